"""How long placing takes: `python tests/benchmarks/bench_placement.py`. Best and median of 15.

Targets, one core: EPLB of 58 x 256 experts into 288 slots on 144 ranks in 10 ms with NumPy, 3 ms
compiled. Measured 2026-11-22 in three runs, Python 3.11, a shared 2-core VM (Sapphire Rapids):
best 6.4 to 9.5 ms and 1.0 to 1.4 ms, medians 8.5 to 10.1 and 1.2 to 1.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from moesim.placement.copies import place_rows
from moesim.placement.eplb import eplb
from moesim.placement.eplb_compiled import eplb_compiled
from moesim.placement.load import load_from_trace
from moesim.placement.placement import Placement


def timed(what: str, run: Callable[[], object], ids: int = 0) -> None:
    run()
    times_s = []
    for _ in range(15):
        start_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - start_s)
    rate = f"  {ids / min(times_s) / 1e9:5.2f} G ids/s" if ids else ""
    print(f"{what:58} {min(times_s) * 1e3:7.2f} {np.median(times_s) * 1e3:7.2f} ms{rate}")


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
    ids_TLK = rng.integers(0, 256, (50_000, 58, 8)).astype(np.uint8)
    timed("load_from_trace, 50,000 rows", lambda: load_from_trace(ids_TLK, 256), ids_TLK.size)
    placement = Placement(eplb(load_LE, 288, 1, 1, 32), 32)
    timed("place_rows into 288 slots", lambda: place_rows(ids_TLK, placement), ids_TLK.size)


if __name__ == "__main__":
    main()
