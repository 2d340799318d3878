"""How long placing takes: `python tests/benchmarks/bench_placement.py`. Best and median of 15.

Targets, one core: EPLB of 58 x 256 experts into 288 slots on 144 ranks in 10 ms with NumPy, 3 ms
compiled. Measured 2026-11-22 in four runs, Python 3.11, a shared 2-core VM (Sapphire Rapids): best
6.4 to 9.5 ms and 1.0 to 1.4 ms, medians 8.5 to 10.1 and 1.2 to 1.5. On 144 ranks, what stays is
found in 0.1 ms, who sends in 0.5, new labels in 22 (nodes of 8: 200); affinity takes 2.5 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.placement.affinity import lower_destinations
from moesim.placement.batches import Batches
from moesim.placement.copies import place_rows
from moesim.placement.eplb import eplb
from moesim.placement.eplb_compiled import eplb_compiled
from moesim.placement.layer_law import one_corner
from moesim.placement.load import load_from_trace
from moesim.placement.migration import keep_slots, moves, relabel
from moesim.placement.placement import Placement
from moesim.placement.settling import settle
from moesim.placement.task import Workload

LAW = one_corner(6.34e-6, 0.0326e-6, 31e-6)


def timed(what: str, run: Callable[[], object], ids: int = 0, runs: int = 15) -> None:
    run()
    times_s = []
    for _ in range(runs):
        start_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - start_s)
    rate = f"  {ids / min(times_s) / 1e9:5.2f} G ids/s" if ids else ""
    print(f"{what:58} {min(times_s) * 1e3:7.2f} {np.median(times_s) * 1e3:7.2f} ms{rate}")


def bench_migration(load_LE: NDArray[np.float64], rng: np.random.Generator) -> None:
    """After the load of every expert has drifted by a tenth."""
    drifted_LE = load_LE * rng.lognormal(0.0, 0.1, load_LE.shape)
    for ranks, node in ((32, 8), (144, 8), (144, 144)):
        old_LP, new_LP = (eplb_compiled(load, 288, 1, 1, ranks) for load in (load_LE, drifted_LE))
        print(f"58 x 288 slots on {ranks} ranks, nodes of {node}:")
        bench_move(old_LP, new_LP, np.arange(ranks, dtype=np.int32) // node)


def bench_move(
    old_LP: NDArray[np.int32], new_LP: NDArray[np.int32], domain_R: NDArray[np.int32]
) -> None:
    ranks = domain_R.size
    timed("  keep_slots", lambda: keep_slots(old_LP, new_LP, ranks))
    timed("  moves", lambda: moves(old_LP, new_LP, domain_R))
    timed("  relabel", lambda: relabel(old_LP, new_LP, domain_R), runs=3)
    for what, table_LP in (("kept", new_LP), ("relabelled", relabel(old_LP, new_LP, domain_R))):
        left = moves(old_LP, keep_slots(old_LP, table_LP, ranks), domain_R).layer_M.size
        print(f"    {left} of {old_LP.size} slots to be sent, {what}")


def bench_settling(load_LE: NDArray[np.float64], rng: np.random.Generator) -> None:
    drifted_LE = load_LE * rng.lognormal(0.0, 0.1, load_LE.shape)
    one_R = np.zeros(32, np.int32)
    old_LP, new_LP = (eplb_compiled(load, 288, 1, 1, 32) for load in (load_LE, drifted_LE))
    timed("settle on 32 ranks", lambda: settle(old_LP, new_LP, drifted_LE, one_R), runs=3)
    left = moves(old_LP, settle(old_LP, new_LP, drifted_LE, one_R), one_R).layer_M.size
    print(f"    {left} of {old_LP.size} slots to be sent")


def bench_affinity(rng: np.random.Generator) -> None:
    """Tokens that choose within one of four hidden groups of experts, on 32 ranks of 4 nodes."""
    hidden_LE = rng.permuted(np.tile(np.arange(256, dtype=np.uint8), (58, 1)), axis=1)
    within_TLK = rng.random((8192, 58, 64)).argsort(axis=2)[:, :, :8]
    group_T = rng.integers(0, 4, 8192)
    ids_TLK = hidden_LE[np.arange(58)[:, None], group_T[:, None, None] * 64 + within_TLK]
    rows_DN = np.arange(8192).reshape(32, 256)
    work = Workload(Batches(ids_TLK, rows_DN, np.full(32, -1, np.int32), 256), LAW)
    start_LP = eplb_compiled(work.batches.load_LE(), 288, 1, 1, 32)
    domain_R = np.arange(32, dtype=np.int32) // 8
    timed(
        "affinity, 58 x 256 experts into 288 slots on 32 ranks",
        lambda: lower_destinations(start_LP, [work], domain_R, np.random.default_rng(0)),
        runs=3,
    )


def main() -> None:
    rng = np.random.default_rng(0)
    load_LE = rng.lognormal(0.0, 1.0, (58, 256)) * 1e3
    for slots, groups, nodes, ranks in [
        (288, 1, 1, 144),
        (288, 1, 1, 32),
        (288, 8, 4, 32),
        (256, 1, 1, 8),
    ]:
        name = f"eplb 58 x 256 into {slots}, {groups} groups, {nodes} nodes, {ranks} ranks"
        timed(name, lambda a=(slots, groups, nodes, ranks): eplb(load_LE, *a))
        timed("  compiled", lambda a=(slots, groups, nodes, ranks): eplb_compiled(load_LE, *a))
    bench_migration(load_LE, rng)
    bench_settling(load_LE, rng)
    bench_affinity(rng)
    ids_TLK = rng.integers(0, 256, (50_000, 58, 8)).astype(np.uint8)
    timed("load_from_trace, 50,000 rows", lambda: load_from_trace(ids_TLK, 256), ids_TLK.size)
    placement = Placement(eplb(load_LE, 288, 1, 1, 32), 32)
    timed("place_rows into 288 slots", lambda: place_rows(ids_TLK, placement), ids_TLK.size)


if __name__ == "__main__":
    main()
