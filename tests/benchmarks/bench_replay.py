"""How long scoring placements takes: `python tests/benchmarks/bench_replay.py`."""

from __future__ import annotations

import time

import numpy as np

from moesim.placement.batches import MIXED, Batches
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import one_corner
from moesim.placement.placement import Placement
from moesim.placement.replay import replay

TOKENS, LAYERS, EXPERTS, RANKS, PLACEMENTS = 100_000, 58, 256, 32, 100
LAW = one_corner(6.34e-6, 6.34e-6 / 220, 1.5 * 6.34e-6)


def main() -> None:
    rng = np.random.default_rng(0)
    share = rng.lognormal(0.0, 1.0, (LAYERS, EXPERTS))
    ids_TLK = np.empty((TOKENS, LAYERS, 8), np.uint8)
    for layer in range(LAYERS):
        score = rng.gumbel(size=(TOKENS, EXPERTS)).astype(np.float32) + np.log(share[layer])
        ids_TLK[:, layer] = np.argpartition(-score, 8, axis=1)[:, :8]
    rows_DN = rng.permutation(TOKENS)[: 24 * 4096].reshape(24, 4096)
    batches = Batches(ids_TLK, rows_DN, np.full(24, MIXED, np.int32), EXPERTS)
    load_LE = batches.load_LE()
    for slots, choice, fan_out in [
        (256, "hash", False),
        (288, "hash", False),
        (288, "nearest", False),
        (288, "least-loaded", False),
        (288, "lp", False),
        (288, "active", False),
        (288, "hash", True),
        (288, "lp", True),
    ]:
        placement = Placement(eplb(load_LE, slots, 1, 1, RANKS), RANKS)
        nodes = np.arange(RANKS) // 8
        replay(placement, batches.take(slice(0, 1)), LAW, choice, nodes, fan_out)
        start_s = time.perf_counter()
        for _ in range(3):
            replay(placement, batches, LAW, choice, nodes, fan_out)
        once_s = (time.perf_counter() - start_s) / 3
        each_ms = once_s / rows_DN.shape[0] / LAYERS * 1e3
        print(
            f"{slots} slots, {choice:12} {'with' if fan_out else 'no'} fan-out: "
            f"{PLACEMENTS} placements on 98,304 tokens x 58 layers x top-8 {once_s * 100:6.1f} s; "
            f"{each_ms:6.3f} ms a step of 4,096 tokens and layer"
        )


if __name__ == "__main__":
    main()
