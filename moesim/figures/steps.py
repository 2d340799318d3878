"""What the step tables share: a row of `steps` is one step, a row of `step_totals` may be many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Table, floats

Floats = NDArray[np.float64]


def number(steps: Table) -> Floats:
    """[W] how many steps each row stands for."""
    return floats(steps, "steps") if "steps" in steps else np.ones(len(steps))


def balanced(steps: Table) -> Floats:
    """[W] and how many that have experts to balance."""
    if "balanced_steps" in steps:
        return floats(steps, "balanced_steps")
    return np.asarray(floats(steps, "imbalance") > 0, np.float64)


def ends_s(steps: Table) -> Floats:
    """[W] when the last of them ends."""
    if "end_s" in steps:
        return floats(steps, "end_s")
    return floats(steps, "start_s") + floats(steps, "duration_s")


def most_kv_used(steps: Table) -> float:
    """The largest share of a replica's KV cache that any step found held; NaN without steps."""
    many = "most_kv_used_fraction"
    used = floats(steps, many if many in steps else "kv_used_fraction")
    return float(used.max()) if used.size else np.nan


def most_tokens(steps: Table) -> int:
    """Tokens of the largest step."""
    if "most_tokens" in steps:
        return int(np.asarray(steps["most_tokens"]).max())
    return int(np.asarray(steps["prefill_tokens"] + steps["decode_tokens"]).max())
