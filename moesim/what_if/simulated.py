"""Placements in whole simulated runs, on the half of the trace that they were not fitted to.

Runs of one seed have the same demand and routing whatever the placement, so gains are paired by
seed; their interval is Student's t over seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.figures.metrics import counted_steps, measured_window
from moesim.findings.placement import Candidate, Gain, SimulatedGain
from moesim.placing import check_choice
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.what_if.fitting import HASH
from moesim.what_if.gains import gain_over_seeds
from moesim.what_if.setting import Setting, Tell

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Figures:
    """Of one run, in seconds; None where it has no such step or gap."""

    decode_step: float | None
    prompt_step: float | None
    itl_p99: float | None


def write_unseen(setting: Setting, path: Path) -> None:
    """The half of the trace that no placement has seen, as a trace file.

    A domain all of whose sequences were fitted to keeps them, so that requests of it can run.
    """
    trace = setting.trace
    unseen_S = np.unique(setting.score_S)
    seen_S = np.setdiff1d(np.arange(trace.sequences), unseen_S)
    lost_S = seen_S[~np.isin(trace.domain_S[seen_S], trace.domain_S[unseen_S])]
    trace.subset(np.sort(np.concatenate([unseen_S, lost_S]))).save(path)


def run_once(
    setting: Setting, candidate: Candidate, trace: Path, seed: int, tell: Told | None = None
) -> Result:
    """One run of the scenario with this placement, replaying `trace`."""
    choice = simulated_choice(setting, candidate)
    data = setting.with_copies(candidate.redundant_experts, choice).model_dump()
    data["name"], data["seed"] = candidate.name[:200], seed
    data["routing"]["trace"] = str(trace)
    result = simulate(
        Scenario.parse(data), placement=candidate.placement, provenance=False, progress=tell
    )
    said = [
        f"placement: {candidate.policy}, fitted on the first half of the trace's sequences; the "
        "second half is replayed"
    ]
    if candidate.choice != choice:
        said.append(f"copies are chosen by hash here, which the study chose by {candidate.choice}")
    return replace(result, labels=(*said, *result.labels))


def simulated_choice(setting: Setting, candidate: Candidate) -> str:
    """How a run chooses among copies: by hash where it cannot choose as the candidate does."""
    changed = setting.with_copies(candidate.redundant_experts, candidate.choice)
    try:
        check_choice(changed, setting.deployment)
    except InputError:
        return HASH
    return candidate.choice


def figures(result: Result) -> Figures:
    """Mean duration of counted steps without prompts and with, and the 99th percentile of gaps
    between tokens."""
    steps = result.steps[counted_steps(result.steps, measured_window(result.requests))]
    with_prompts = steps["prefill_tokens"] > 0
    decode, prompt = (steps.loc[kind, "duration_s"] for kind in (~with_prompts, with_prompts))
    p99 = result.summary["itl_s"]["p99"]
    return Figures(
        float(decode.mean()) if len(decode) else None,
        float(prompt.mean()) if len(prompt) else None,
        None if not p99 else float(p99),
    )


def simulated_gain(
    present: Sequence[Figures], other: Sequence[Figures], choice: str
) -> SimulatedGain:
    """Gains of runs of the same seeds, in the same order."""
    gains: list[Gain | None] = []
    for name in ("decode_step", "prompt_step", "itl_p99"):
        one, two = ([getattr(each, name) for each in runs] for runs in (present, other))
        known = all(value for value in (*one, *two))
        gains.append(gain_over_seeds(one, two) if known else None)
    return SimulatedGain(len(present), choice, *gains)


def run_all(
    setting: Setting,
    present: Candidate,
    candidates: Sequence[Candidate],
    best: Candidate | None,
    seeds: int,
    every: bool,
    tell: Tell,
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """`present` and `best` (where there is none, the one with most gain; with `every` all
    candidates) with the summary of their first run, compared over `seeds` seeds from the scenario's
    on. A candidate that is the present placement is not run again."""
    first = setting.scenario.seed
    others = [each for each in candidates if each.name != present.name]
    best = best or max(others, key=lambda each: each.next_window.percent, default=None)
    runs: dict[int, list[Figures]] = {}
    summaries: dict[int, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="moesim-place-") as folder:
        trace = Path(folder) / "unseen.safetensors"
        write_unseen(setting, trace)
        for number, each in enumerate((present, *candidates)):
            if number and each is not best and not (every and each in others):
                continue
            runs[number] = []
            for seed in range(first, first + seeds):
                told = partial(tell, f"simulating {each.name}, seed {seed}")
                result = run_once(setting, each, trace, seed, told)
                runs[number].append(figures(result))
                if seed == first:
                    summaries[number] = result.summary
    done = []
    for number, each in enumerate((present, *candidates)):
        ran = 0 if each.name == present.name else number
        if ran not in runs:
            done.append(each)
            continue
        gain = simulated_gain(runs[0], runs[ran], simulated_choice(setting, each))
        done.append(replace(each, simulated=gain if number else None, summary=summaries[ran]))
    return done[0], tuple(done[1:])
