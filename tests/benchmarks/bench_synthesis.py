"""How fast synthetic routing is drawn: `python tests/benchmarks/bench_synthesis.py`.

(token, layer) selections a second of processor time on one core: drawing alone, and a whole trace
with its calibration.
"""

from __future__ import annotations

import time

import numpy as np

from moesim.routing import sampling
from moesim.routing.settings import SynthesisSettings
from moesim.routing.synthesis import synthesise


def main() -> None:
    print("experts  top-k  layers   drawing   whole trace of 65,536 tokens, M selections/s")
    for experts, top_k, layers in (
        (8, 2, 32),
        (32, 4, 24),
        (64, 6, 26),
        (128, 8, 48),
        (256, 8, 58),
    ):
        drawing = max(_drawing(experts, top_k, layers) for _ in range(12))
        _whole(experts, top_k, layers, 256)  # compiles
        whole = _whole(experts, top_k, layers)
        print(f"{experts:7} {top_k:6} {layers:7} {drawing / 1e6:9.2f} {whole / 1e6:9.2f}")


def _drawing(experts: int, top_k: int, layers: int, tokens: int = 4096) -> float:
    rng = np.random.default_rng(0)
    context_TD, token_TD = rng.standard_normal((2, tokens, sampling.RANK)).astype(np.float32)
    arrays = (
        context_TD,
        token_TD,
        np.arange(tokens),
        np.full((layers, 2), 0.7, np.float32),
        np.zeros(layers, np.uint64),
        rng.normal(0, 1, (layers, experts)).astype(np.float32),
        rng.normal(0, 2, (layers, sampling.RANK, experts)).astype(np.float32),
        sampling.gumbel_table(rng, experts),
        np.uint64(1),
    )
    ids_TLK = np.empty((tokens, layers, top_k), np.uint8)
    start_s = time.process_time()
    sampling.choose(*arrays, ids_TLK)
    return tokens * layers / (time.process_time() - start_s)


def _whole(experts: int, top_k: int, layers: int, tokens: int = 65_536) -> float:
    sizes = (0, tokens // 64)
    start_s = time.process_time()
    synthesise(SynthesisSettings(), layers, experts, top_k, 64, sizes, np.random.default_rng(0))
    return tokens * layers / (time.process_time() - start_s)


if __name__ == "__main__":
    main()
