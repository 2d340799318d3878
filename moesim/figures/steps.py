"""What the step tables share: a row of `steps` is one step, a row of `step_totals` may be many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def number(steps: pd.DataFrame) -> Floats:
    """[W] how many steps each row stands for."""
    return steps["steps"].to_numpy(np.float64) if "steps" in steps else np.ones(len(steps))


def balanced(steps: pd.DataFrame) -> Floats:
    """[W] and how many that have experts to balance."""
    if "balanced_steps" in steps:
        return steps["balanced_steps"].to_numpy(np.float64)
    return np.asarray(steps["imbalance"].to_numpy(np.float64) > 0, np.float64)


def ends_s(steps: pd.DataFrame) -> Floats:
    """[W] when the last of them ends."""
    if "end_s" in steps:
        return steps["end_s"].to_numpy(np.float64)
    return (steps["start_s"] + steps["duration_s"]).to_numpy(np.float64)


def most_kv_used(steps: pd.DataFrame) -> float:
    """The largest share of a replica's KV cache that any step found held; NaN without steps."""
    many = "most_kv_used_fraction"
    return float(steps[many if many in steps else "kv_used_fraction"].max())


def most_tokens(steps: pd.DataFrame) -> int:
    """Tokens of the largest step."""
    if "most_tokens" in steps:
        return int(steps["most_tokens"].max())
    return int((steps["prefill_tokens"] + steps["decode_tokens"]).max())
