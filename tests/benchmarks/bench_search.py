"""How long placement searches take: `python tests/benchmarks/bench_search.py`. Best of 3."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from moesim.placement.batches import MIXED, Batches
from moesim.placement.eplb import eplb
from moesim.placement.fit_tables import fit_tables
from moesim.placement.layer_law import one_corner
from moesim.placement.portfolio import portfolio
from moesim.placement.swap_search import swap_search
from moesim.placement.task import PlacementTask, Workload

LAYERS, EXPERTS = 58, 256


def timed(what: str, run: Callable[[], object]) -> None:
    run()
    times_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - start_s)
    print(f"{what:64} {min(times_s):6.2f} s")


def main() -> None:
    rng = np.random.default_rng(0)
    load_LE = rng.lognormal(0.0, 1.0, (LAYERS, EXPERTS))
    drawn_TLE = np.log(load_LE) + rng.gumbel(size=(4096, LAYERS, EXPERTS)).astype(np.float32)
    ids_TLK = np.argpartition(-drawn_TLE, 8, axis=2)[..., :8].astype(np.uint8)
    rows_DN = rng.integers(0, 4096, (64, 4096))
    steps = Batches(ids_TLK, rows_DN, np.full(64, MIXED, np.int32), EXPERTS)
    law = one_corner(6.34e-6, 6.34e-6 / 220, 1.5 * 6.34e-6)
    fit = (Workload(steps, law),)
    for slots, ranks in ((288, 32), (256, 16)):
        tables = fit_tables(fit, ranks)
        start_LP = eplb(load_LE, slots, 1, 1, ranks)
        for moves in (0.0, 0.1):
            what = f"58 x 256 into {slots} slots, {ranks} ranks, {moves:.0%} moves of copies"
            timed(what, lambda a=(start_LP, tables, ranks, 10_000, moves): swap_search(*a))
        task = PlacementTask(fit, EXPERTS, slots, np.zeros(ranks, np.int32), choice="lp")
        timed(f"portfolio, {slots} slots, {ranks} ranks", lambda t=task: portfolio(t))


if __name__ == "__main__":
    main()
