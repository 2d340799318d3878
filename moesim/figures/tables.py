"""Tables of one run, from its arrays: requests, steps, background transfers, gaps between tokens.

Legend: N requests, G gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.figures.metrics import e2e, itl, tpot, ttft
from moesim.figures.pools import pool_of_replica, request_columns
from moesim.figures.raw_run import RawRun
from moesim.figures.rebalances import during
from moesim.sim.state import CANCELLED, COMPLETED, LOST, NOBODY, REJECTED

if TYPE_CHECKING:
    import pandas as pd

    from moesim.topology import BackgroundTransfer

# What became of a request; "failed" otherwise.
ENDED = {COMPLETED: "completed", REJECTED: "rejected", CANCELLED: "cancelled", LOST: "lost"}


def requests_table(run: RawRun) -> pd.DataFrame:
    """A row per request; columns as in docs/reference/results.md but `warmup`."""
    import pandas as pd

    raw = run.requests
    status = np.full(raw.size, "failed", dtype=object)
    for number, word in ENDED.items():
        status[raw["status"] == number] = word
    threads, groups = run.threads, run.groups
    rank = raw["rank"].astype(np.int64)
    placed = rank != NOBODY
    table = pd.DataFrame(
        {
            "request": np.arange(raw.size),
            "replica": np.where(placed, rank // run.ranks_per_replica, -1),
            "rank": np.where(placed, rank % run.ranks_per_replica, -1),
            "status": status,
            "arrival_s": raw["arrival_s"],
            "scheduled_s": raw["scheduled_s"],
            "first_token_s": raw["first_token_s"],
            "finish_s": raw["finish_s"],
            "prompt_tokens": raw["prompt_tokens"],
            "output_tokens": raw["output_tokens"],
            "cached_tokens": raw["cached_tokens"],
            "loaded_tokens": raw["loaded_tokens"],
            "preemptions": raw["preemptions"],
            "retries": raw["retries"],
            "queue_s": raw["scheduled_s"] - raw["arrival_s"],
            "ttft_s": ttft(raw["arrival_s"], raw["first_token_s"]),
            "tpot_s": tpot(raw["first_token_s"], raw["finish_s"], raw["output_tokens"]),
            "e2e_s": e2e(raw["arrival_s"], raw["finish_s"]),
            "session": -1 if threads is None else threads.thread_N,
            "turn": 0 if threads is None else threads.turn_N,
            "class": "" if groups is None else _names(groups.classes, groups.class_N),
            "tenant": "" if groups is None else _names(groups.tenants, groups.tenant_N),
        }
    )
    if run.handed is not None:  # replicas are numbered through the pools
        assert run.decode_start_s is not None
        table.loc[table["replica"] >= 0, "replica"] += run.pools[0].replicas
        for name, column in request_columns(run.pools, run.handed, run.decode_start_s).items():
            table[name] = column
    return table


def steps_table(run: RawRun, rebalances: pd.DataFrame) -> pd.DataFrame:
    """A row per engine step. `rebalances`: figures.rebalances.rebalances_table of the run."""
    import pandas as pd

    raw = run.steps
    assert raw.dtype.names is not None
    table = pd.DataFrame({name: raw[name] for name in raw.dtype.names})
    table["dummy"] = table["dummy"].astype(bool)
    if run.pools:
        table["pool"] = pool_of_replica(run.pools)[table["replica"].to_numpy()]
    if run.rebalances is not None:
        start_s = raw["start_s"]
        span = start_s, start_s + raw["duration_s"]
        table["rebalancing"] = during(rebalances, raw["replica"].astype(np.int64), *span)
    return table


def totals_table(run: RawRun) -> pd.DataFrame:
    """A row per stretch of steps of a streaming run and kind."""
    import pandas as pd

    assert run.folded is not None
    raw = run.folded.totals
    assert raw.dtype.names is not None
    table = pd.DataFrame({name: raw[name] for name in raw.dtype.names})
    table["dummy"] = table["dummy"].astype(bool)
    if run.pools:
        table["pool"] = pool_of_replica(run.pools)[table["replica"].to_numpy()]
    return table


def background_table(run: RawRun, planned: Sequence[BackgroundTransfer]) -> pd.DataFrame:
    """The scenario's background transfers, a row each."""
    import pandas as pd

    columns = ("source", "target", "size_bytes", "at_s")
    table = pd.DataFrame({name: [getattr(one, name) for one in planned] for name in columns})
    table["finish_s"] = run.background_finish_s
    table["bytes_per_s"] = table["size_bytes"] / (table["finish_s"] - table["at_s"])
    return table


def token_gaps(
    run: RawRun, counted_N: NDArray[np.bool_], least_s: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(gaps [G] between output tokens of counted requests, the row of each one's request).

    Gaps that are no longer than `least_s` are none: those between tokens of one message.
    """
    if run.token_s.size == 0:
        return np.zeros(0), np.zeros(0, np.int64)
    rows = run.requests
    output_N = rows["output_tokens"][counted_N].astype(np.int64)
    if counted_N.all():
        gaps = itl(run.token_s, rows["token_start"])
    else:
        times = run.token_s[np.repeat(counted_N, rows["output_tokens"])]
        gaps = itl(times, np.cumsum(output_N) - output_N)
    real = gaps > least_s
    row_G = np.repeat(np.flatnonzero(counted_N), np.maximum(output_N - 1, 0))
    return gaps[real], row_G[real]


def _names(names: tuple[str, ...], index_N: NDArray[np.uint16]) -> NDArray[np.object_] | str:
    """The name of each request's group; empty where there are none."""
    if not names:
        return ""
    return np.array(names, dtype=object)[index_N]
