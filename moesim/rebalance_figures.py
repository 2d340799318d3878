"""What a run says of the times at which its experts were placed anew.

Legend: N requests, T output tokens of all of them, G gaps between two tokens of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.metrics import distribution
from moesim.sim.rebalancing import RebalanceLog

if TYPE_CHECKING:
    import pandas as pd


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


def effects(table: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """For each rebalance that moved experts, from the steps of the window before it and as many
    behind it: gain_s, what waiting for the slowest expert rank has become less in a step, at the
    mean rank's time behind it, so that larger batches do not count; step_s, mean duration behind
    it; lost_s, the standstill, or what exchanges beside the copies took longer for a token."""
    import pandas as pd

    steps = steps[~steps["dummy"]]
    rows = []
    moved = table[(table["outcome"] == "rebalanced") & table["end_s"].notna()]
    for k, of in moved.groupby("replica"):
        here = steps[steps["replica"] == k]
        start_s = here["start_s"].to_numpy()
        for one in of.to_dict("records"):
            first, behind = np.searchsorted(start_s, [one["at_s"], one["end_s"]]).tolist()
            window = int(one["window_steps"])
            before = here.iloc[max(0, first - window) : first]
            beside, after = here.iloc[first:behind], here.iloc[behind : behind + window]
            lost_s = float(one["stall_s"])
            if lost_s == 0.0 and len(beside):
                tokens = int((beside["prefill_tokens"] + beside["decode_tokens"]).sum())
                lost_s = max(0.0, (_exchange_s(beside) - _exchange_s(before)) * tokens)
            waiting = _waiting(before) - _waiting(after)
            rows.append(
                {
                    "gain_s": waiting * after["experts_s"].mean(),
                    "step_s": after["duration_s"].mean(),
                    "lost_s": lost_s,
                }
            )
    return pd.DataFrame(rows, columns=["gain_s", "step_s", "lost_s"]).dropna()


def rebalancing_summary(
    table: pd.DataFrame,
    steps: pd.DataFrame,
    gaps: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> dict[str, Any]:
    """Totals over all replicas, means over rebalances that moved experts, and when they pay.

    gain_s_per_step, lost_s_mean: as measured, see `effects`. break_even_steps: steps between two
    rebalances whose gain is what one of them loses; None where nothing is gained.
    """
    moved = table[table["outcome"] == "rebalanced"]
    done = moved[moved["end_s"].notna()]
    found = effects(table, steps)
    gain_s = float(found["gain_s"].mean()) if len(found) else None
    lost_s = float(found["lost_s"].mean()) if len(found) else None
    even = lost_s / gain_s if gain_s is not None and lost_s is not None and gain_s > 0 else None
    return {
        "looks": len(table),
        "count": len(moved),
        "balanced": int((table["outcome"] == "balanced").sum()),
        "moved_slots": int(moved["moved_slots"].sum()),
        "bytes_within": float(moved["bytes_within"].sum()),
        "bytes_across": float(moved["bytes_across"].sum()),
        "stall_s": float(table["stall_s"].sum()),
        "stall_s_mean": float(done["stall_s"].mean()) if len(done) else None,
        "duration_s_mean": float((done["end_s"] - done["at_s"]).mean()) if len(done) else None,
        "balancedness_before": float(moved["balancedness"].mean()) if len(moved) else None,
        "balancedness_predicted": float(moved["predicted"].mean()) if len(moved) else None,
        "itl_s": {"during": distribution(gaps[0]), "between": distribution(gaps[1])},
        "lost_s_mean": lost_s,
        "gain_s_per_step": gain_s,
        "break_even_steps": even,
        "break_even_s": None if even is None else even * float(found["step_s"].mean()),
    }
