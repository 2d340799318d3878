"""What holds a loaded deployment up: a queue and what it waits for, or what its steps grow by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.deployment import Deployment
from moesim.results import Result

# Steps of which a share this large leaves requests waiting are held up by a queue.
QUEUED = 0.1
NEARLY_FULL = 0.95
# Parts of a step by what grows in it with the load; the rest is the batch's own work.
BINDS = {
    "expert": ("expert_imbalance_s", "expert_miss_s"),
    "attention rank": ("attention_imbalance_s",),
    "link": ("dispatch_s", "combine_s", "all_reduce_s", "pipeline_s"),
    "host": ("overhead_s",),
}


def loaded_steps(result: Result) -> NDArray[Any]:
    """Steps with work that begin while requests still come, the first half of them left out."""
    steps = result.raw.steps
    steps = steps[steps["dummy"] == 0]
    arrival_s = np.sort(result.raw.requests["arrival_s"])
    arrival_s = arrival_s[~np.isnan(arrival_s)]
    first, last = arrival_s[arrival_s.size // 2], arrival_s[-1]
    within = steps[(steps["start_s"] >= first) & (steps["start_s"] <= last)]
    return np.asarray(within if within.size else steps)


def binds_at(result: Result, lighter: Result, deployment: Deployment) -> str:
    """What holds a loaded run up, one of STRAINS: a queue where steps leave requests waiting, else
    the parts of steps that grew most over a lighter run's."""
    steps = loaded_steps(result)
    queued = steps[steps["waiting"] > 0]
    if steps.size and queued.size > QUEUED * steps.size:
        most = deployment.max_requests * result.raw.ranks_per_replica
        if (queued["kv_used_fraction"] >= NEARLY_FULL).mean() > 0.5:
            return "kv memory"
        if result.raw.requests["preemptions"].sum() > QUEUED * result.raw.requests.size:
            return "kv memory"
        if (queued["running"] >= NEARLY_FULL * most).mean() > 0.5:
            return "batch limit"
        return "prefill queue"
    loaded, light = _growing_s(result), _growing_s(lighter)
    grown = {name: loaded[name] - light[name] for name in loaded}
    binds = max(grown, key=lambda name: grown[name])
    return binds if grown[binds] > 0.0 else "overload"


def _growing_s(result: Result) -> dict[str, float]:
    """What gaps between tokens wait for, on average: prompts beside them, and the parts of steps
    without prompts. Steps are weighed by the tokens that they decode."""
    steps = loaded_steps(result)
    steps = steps[steps["decode_tokens"] > 0]
    plain = steps[steps["prefill_tokens"] == 0]
    plain = plain if plain.size else steps
    parts = {name: sum(_mean_s(plain, part) for part in of) for name, of in BINDS.items()}
    plain_s = _mean_s(plain, "duration_s")
    beside_s = _mean_s(steps, "duration_s") - plain_s
    return {
        **parts,
        "batch size": plain_s - sum(parts.values()),
        "prefill chunks": beside_s,
    }


def _mean_s(steps: NDArray[Any], column: str) -> float:
    if not steps.size:
        return 0.0
    return float(np.average(steps[column], weights=steps["decode_tokens"]))
