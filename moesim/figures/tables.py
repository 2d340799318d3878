"""Tables of one run, from its arrays: requests, steps, background transfers, gaps between tokens.

Legend: N requests, G gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Columns
from moesim.figures.metrics import e2e, itl, tpot, ttft
from moesim.figures.pools import pool_of_replica, request_columns
from moesim.figures.raw_run import RawRun
from moesim.figures.rebalances import during, rebalances_table
from moesim.sim.state import CANCELLED, COMPLETED, LOST, NOBODY, REJECTED

if TYPE_CHECKING:
    import pandas as pd

    from moesim.topology import BackgroundTransfer

# What became of a request; "failed" otherwise.
ENDED = {COMPLETED: "completed", REJECTED: "rejected", CANCELLED: "cancelled", LOST: "lost"}


def requests_table(run: RawRun) -> Columns:
    """A row per request; columns as in docs/reference/results.md but `warmup`."""
    raw = run.requests
    status = np.full(raw.size, "failed", dtype=object)
    for number, word in ENDED.items():
        status[raw["status"] == number] = word
    threads, groups = run.threads, run.groups
    rank = raw["rank"].astype(np.int64)
    placed = rank != NOBODY
    pooled: dict[str, NDArray[Any]] = {}
    first_replica = 0
    if run.handed is not None:  # replicas are numbered through the pools
        assert run.decode_start_s is not None
        pooled = request_columns(run.pools, run.handed, run.decode_start_s)
        first_replica = run.pools[0].replicas
    no_name_N = np.full(raw.size, "", dtype=object)
    return Columns(
        {
            "request": np.arange(raw.size),
            "replica": np.where(placed, rank // run.ranks_per_replica + first_replica, -1),
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
            "session": np.full(raw.size, -1) if threads is None else threads.thread_N,
            "turn": np.zeros(raw.size, np.int64) if threads is None else threads.turn_N,
            "class": no_name_N if groups is None else _names(groups.classes, groups.class_N),
            "tenant": no_name_N if groups is None else _names(groups.tenants, groups.tenant_N),
            **pooled,
        }
    )


def steps_table(run: RawRun) -> Columns:
    """A row per engine step."""
    table = _of_steps(run, run.steps)
    if run.rebalances is None:
        return table
    start_s = run.steps["start_s"]
    span = start_s, start_s + run.steps["duration_s"]
    replica = run.steps["replica"].astype(np.int64)
    log = rebalances_table(run.rebalances)
    return table.with_column("rebalancing", during(log, replica, *span))


def totals_table(run: RawRun) -> Columns:
    """A row per stretch of steps of a streaming run and kind."""
    assert run.folded is not None
    return _of_steps(run, run.folded.totals)


def _of_steps(run: RawRun, rows: NDArray[Any]) -> Columns:
    """The fields of `rows`, and the pool of each."""
    columns = {name: rows[name] for name in rows.dtype.names or ()}
    columns["dummy"] = rows["dummy"] != 0
    if run.pools:
        columns["pool"] = pool_of_replica(run.pools)[rows["replica"]]
    return Columns(columns)


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


def _names(names: tuple[str, ...], index_N: NDArray[np.uint16]) -> NDArray[np.object_]:
    """The name of each request's group; empty where there are none."""
    if not names:
        return np.full(index_N.size, "", dtype=object)
    return np.array(names, dtype=object)[index_N]
