"""What a run says of the times at which its experts were placed anew.

Legend: N requests, T output tokens of all of them, G gaps between two tokens of one request.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.metrics import distribution
from moesim.sim.rebalancing import RebalanceLog

if TYPE_CHECKING:
    import pandas as pd

EFFECT = ("steps", "waited_before", "waited", "gain_s", "step_s", "lost_s")
LEAST_SHARE = 0.25  # of a window's steps, before and behind a rebalance, to compare them
LEVEL = 0.95


def rebalances_table(log: Sequence[RebalanceLog] | None) -> pd.DataFrame:
    """A row each time a replica's load was looked at, in order of time."""
    import pandas as pd

    rows = [vars(one) for one in log or ()]
    return pd.DataFrame(rows, columns=list(RebalanceLog.__annotations__))


def during(
    table: pd.DataFrame,
    replica: NDArray[np.int64],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether each interval of a replica overlaps one of its rebalances."""
    found = np.zeros(replica.size, np.bool_)
    moved = table[table["end_s"].notna()]
    for k, of in moved.groupby("replica"):
        here = np.flatnonzero(replica == k)
        at_s, until_s = (of[name].to_numpy() for name in ("at_s", "end_s"))
        first = np.searchsorted(until_s, start_s[here], side="right")
        known = first < at_s.size
        found[here[known]] = at_s[first[known]] < end_s[here[known]]
    return found


def gaps_during(
    table: pd.DataFrame,
    token_s: NDArray[np.float64],
    requests: NDArray[Any],
    ranks_per_replica: int,
    counted_N: NDArray[np.bool_],
    least_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gaps between tokens of counted requests, longer than `least_s`, that overlap a rebalance of
    their replica, and the others."""
    if token_s.size == 0:
        return np.zeros(0), np.zeros(0)
    request_T = np.repeat(np.arange(requests.size), requests["output_tokens"])
    within = (request_T[1:] == request_T[:-1]) & counted_N[request_T[1:]]
    start_s, end_s = token_s[:-1][within], token_s[1:][within]
    replica = requests["rank"].astype(np.int64)[request_T[1:][within]] // ranks_per_replica
    gap_s = end_s - start_s
    inside = during(table, replica, start_s, end_s)
    kept = gap_s > least_s
    return gap_s[inside & kept], gap_s[~inside & kept]


def _waiting(steps: pd.DataFrame) -> float:
    """Time of the slowest expert rank over that of the mean rank, less 1."""
    mean_s = float(steps["experts_s"].sum())
    return float(steps["expert_imbalance_s"].sum()) / mean_s if mean_s > 0 else np.nan


def _exchange_s(steps: pd.DataFrame) -> float:
    """Dispatch and combine of a token."""
    tokens = int((steps["prefill_tokens"] + steps["decode_tokens"]).sum())
    exchange_s = float((steps["dispatch_s"] + steps["combine_s"]).sum())
    return exchange_s / tokens if tokens else np.nan


def effects(table: pd.DataFrame, steps: pd.DataFrame, until_s: float) -> pd.DataFrame:
    """A row for each rebalance that moved experts.

    steps: how many of the steps behind it, at most a window, before the next one and `until_s`,
    from which batches only shrink. waited_before, waited: time that the slowest expert rank took
    longer than the mean rank, over the latter's, in the window before and in `steps`; gain_s, the
    difference at the mean rank's time in `steps`, so that larger batches do not count; step_s,
    their mean duration. These are NaN with less than `LEAST_SHARE` of a window on either side.
    lost_s: the standstill, or what exchanges beside the copies took longer for a token.
    """
    import pandas as pd

    steps = steps[~steps["dummy"]]
    rows = []
    moved = table[(table["outcome"] == "rebalanced") & table["end_s"].notna()]
    for k, of in moved.groupby("replica"):
        here = steps[steps["replica"] == k]
        start_s = here["start_s"].to_numpy()
        next_s = np.minimum(np.append(of["at_s"].to_numpy()[1:], until_s), until_s)
        for one, over_s in zip(of.to_dict("records"), next_s.tolist(), strict=True):
            rows.append(_effect(one, here, start_s, over_s))
    return pd.DataFrame(rows, columns=list(EFFECT))


def _effect(
    one: Mapping[Hashable, Any], steps: pd.DataFrame, start_s: NDArray[np.float64], over_s: float
) -> dict[str, float]:
    """A rebalance's row of `effects`, from its replica's steps."""
    edges = [one["at_s"], one["end_s"], over_s]
    first, behind, over = np.searchsorted(start_s, edges).tolist()
    window = int(one["window_steps"])
    before = steps.iloc[max(0, first - window) : first]
    beside, after = (
        steps.iloc[first:behind],
        steps.iloc[behind : max(behind, min(over, behind + window))],
    )
    lost_s = float(one["stall_s"])
    if lost_s == 0.0 and len(beside):
        tokens = int((beside["prefill_tokens"] + beside["decode_tokens"]).sum())
        lost_s = max(0.0, (_exchange_s(beside) - _exchange_s(before)) * tokens)
    found = dict.fromkeys(EFFECT, np.nan) | {"steps": float(len(after)), "lost_s": lost_s}
    if min(len(before), len(after)) >= LEAST_SHARE * window:
        waited_before, waited = _waiting(before), _waiting(after)
        found["waited_before"], found["waited"] = waited_before, waited
        found["gain_s"] = (waited_before - waited) * float(after["experts_s"].mean())
        found["step_s"] = float(after["duration_s"].mean())
    return found


def gain_interval(
    gain_s: NDArray[np.float64], steps: NDArray[np.float64]
) -> tuple[float | None, float | None, float | None]:
    """Mean gain of rebalances, each weighed by its steps, and its `LEVEL` interval.

    The interval is Student's t over rebalances, with the standard error of a ratio of sums; None
    for fewer than two.
    """
    from scipy.stats import t as student

    n = gain_s.size
    if n == 0:
        return None, None, None
    share = steps / steps.sum()
    mean = float(share @ gain_s)
    if n == 1:
        return mean, None, None
    error = float(np.sqrt((share**2 * (gain_s - mean) ** 2).sum() * n / (n - 1)))
    half = float(student.ppf((1.0 + LEVEL) / 2.0, n - 1)) * error
    return mean, mean - half, mean + half


def rebalancing_summary(
    table: pd.DataFrame,
    steps: pd.DataFrame,
    gaps: tuple[NDArray[np.float64], NDArray[np.float64]],
    until_s: float = np.inf,
) -> dict[str, Any]:
    """Totals over all replicas, means over rebalances that moved experts, and when they pay.

    until_s: when the last request began; rebalances from then on are `late`, left out of the means
    of gains, and of balancedness unless all are. gain_s_per_step, lost_s_mean: as measured, see
    `effects`; gain_low, gain_high: see `gain_interval`. break_even_steps: steps between two
    rebalances whose gain is what one of them loses; None unless the whole interval is a gain.
    """
    moved = table[table["outcome"] == "rebalanced"]
    done, early = moved[moved["end_s"].notna()], moved[moved["at_s"] < until_s]
    late = len(moved) - len(early)
    early = early if len(early) else moved
    found = effects(table, steps, until_s)
    known = found.dropna()
    gain_s, low_s, high_s = gain_interval(known["gain_s"].to_numpy(), known["steps"].to_numpy())
    weight = known["steps"].to_numpy()
    over = {name: _weighed(known[name].to_numpy(), weight) for name in EFFECT}
    lost_s = float(found["lost_s"].mean()) if len(found) else None
    pays = gain_s is not None and low_s is not None and low_s > 0.0 and lost_s is not None
    even = lost_s / gain_s if pays else None  # type: ignore[operator]
    return {
        "looks": len(table),
        "count": len(moved),
        "late": late,
        "balanced": int((table["outcome"] == "balanced").sum()),
        "moved_slots": int(moved["moved_slots"].sum()),
        "bytes_within": float(moved["bytes_within"].sum()),
        "bytes_across": float(moved["bytes_across"].sum()),
        "stall_s": float(table["stall_s"].sum()),
        "stall_s_mean": float(done["stall_s"].mean()) if len(done) else None,
        "duration_s_mean": float((done["end_s"] - done["at_s"]).mean()) if len(done) else None,
        "balancedness_before": float(early["balancedness"].mean()) if len(early) else None,
        "balancedness_predicted": float(early["predicted"].mean()) if len(early) else None,
        "itl_s": {
            when: {**distribution(gap_s), "max": float(gap_s.max()) if gap_s.size else None}
            for when, gap_s in zip(("during", "between"), gaps, strict=True)
        },
        "lost_s_mean": lost_s,
        "compared": len(known),
        "waited_before": over["waited_before"],
        "waited_behind": over["waited"],
        "gain_s_per_step": gain_s,
        "gain_low_s_per_step": low_s,
        "gain_high_s_per_step": high_s,
        "break_even_steps": even,
        "break_even_s": None if even is None else even * (over["step_s"] or 0.0),
    }


def _weighed(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    return float(values @ weight / weight.sum()) if values.size else None
