"""What a run in two pools says of each pool and of what goes between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Table, equal, floats
from moesim.figures.metrics import counted_rows, distribution, utilisation
from moesim.figures.raw_run import PoolRun

MEMORY = ("weights_bytes_per_gpu", "kv_capacity_tokens")


def pool_of_replica(pools: Sequence[PoolRun]) -> NDArray[np.object_]:
    """The name of the pool of each replica; replicas are numbered through the pools."""
    return np.repeat(
        np.array([pool.name for pool in pools], object), [pool.replicas for pool in pools]
    )


def request_columns(
    pools: Sequence[PoolRun], handed: NDArray[Any], scheduled_s: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Columns of the request table that only pools have; NaN where a request did not get so far.

    `scheduled_s`: start of its first step in the decode pool.
    """
    prefill_ranks = pools[0].ranks
    rank = handed["prefill_rank"].astype(np.int64)
    placed = rank >= 0
    done_s = handed["prefilled_s"]
    # Where blocks are taken before prefill, waiting for them comes before it as well.
    return {
        "prefill_replica": np.where(placed, rank // prefill_ranks, -1),
        "prefill_rank": np.where(placed, rank % prefill_ranks, -1),
        "prefill_finish_s": done_s,
        "kv_wait_s": handed["reserved_s"] - handed["offered_s"],
        "kv_transfer_s": handed["landed_s"] - handed["sent_s"],
        "kv_exposed_s": handed["landed_s"] - done_s,
        "kv_bytes": handed["kv_bytes"],
        "decode_queue_s": scheduled_s - handed["landed_s"],
    }


def pools_summary(
    pools: Sequence[PoolRun], requests: Table, steps: Table, duration_s: float
) -> dict[str, Any]:
    """Each pool's GPUs and use, and the transfers between them, of counted requests."""
    counted = requests[counted_rows(requests)]
    queues = {"prefill": "queue_s", "decode": "decode_queue_s"}
    found: dict[str, Any] = {}
    for pool in pools:
        own = steps[equal(steps, "pool", pool.name)]
        found[pool.name] = {
            "gpus": pool.gpus,
            "replicas": pool.replicas,
            **utilisation(own, duration_s, pool.replicas, pool.stages),
            "queue_s": distribution(floats(counted, queues[pool.name])),
            "kv_used_fraction": _mean_over_time(own),
            **{name: pool.memory[name] for name in MEMORY},
        }
    moved = floats(requests, "kv_bytes")
    found["kv_transfer"] = {
        "requests": int((moved > 0.0).sum()),
        "bytes": float(moved.sum()),
        "bytes_per_s": float(moved.sum()) / duration_s if duration_s > 0.0 else None,
        "wait_s": distribution(floats(counted, "kv_wait_s")),
        "transfer_s": distribution(floats(counted, "kv_transfer_s")),
        "exposed_s": distribution(floats(counted, "kv_exposed_s")),
    }
    return found


def pools_utilisation(
    pools: Sequence[PoolRun], steps: Table, duration_s: float
) -> dict[str, float | None]:
    """Use of all GPUs: the pools' by their number of GPUs."""
    of_pools = [
        utilisation(steps[equal(steps, "pool", pool.name)], duration_s, pool.replicas, pool.stages)
        for pool in pools
    ]
    gpus = sum(pool.gpus for pool in pools)
    found: dict[str, float | None] = {}
    for name in of_pools[0]:
        parts = [
            (each[name] or 0.0) * pool.gpus for each, pool in zip(of_pools, pools, strict=True)
        ]
        found[name] = sum(parts) / gpus if of_pools[0][name] is not None else None
    return found


def _mean_over_time(steps: Table) -> float | None:
    """KV cache in use, mean over the time that steps take."""
    duration_s = floats(steps, "duration_s")
    if duration_s.sum() <= 0.0:
        return None
    return float(np.average(floats(steps, "kv_used_fraction"), weights=duration_s))
