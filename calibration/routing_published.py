"""Published figures of routers against the shipped profiles: repetition and LRU hit rates.

Sources: Mixtral report, arXiv 2401.04088, table 5 (means of eight corpora); kekzl/imp pull requests
1359 and 1374 (one decode trace of Qwen3-30B-A3B).

Legend: T tokens, L MoE layers, K top-k, E experts, S sequences, N tokens of a sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.model import load_model
from moesim.routing.profiles import load_profile
from moesim.routing.synthesis import synthesise

MIXTRAL_LAYERS = (0, 15, 31)
MIXTRAL = {
    "first choice repeats": (0.141, 0.264, 0.227),
    "any of two choices shared": (0.482, 0.631, 0.509),
}
RESIDENCY = (0.05, 0.15, 0.30, 0.50)
QWEN = {
    "selections repeated at the next token, within eight": (0.45, 0.80),
    "LRU hits with 5, 15, 30, 50 % of experts kept": (0.366, 0.741, 0.894, 0.962),
}
SEEDS = 6


def published_rows() -> list[str]:
    """A Markdown table: figure, published, profile (mean over seeds), target, met."""
    rows = ["| figure | published | profile | target | met |", "|---|---|---|---|---|"]
    for model, published, allowed in (
        ("mixtral-8x7b", MIXTRAL, 0.02),
        ("qwen3-30b-a3b", QWEN, 0.04),
    ):
        measured = [_measure(model, seed) for seed in range(SEEDS)]
        for name, wanted in published.items():
            found = np.mean([one[name] for one in measured], axis=0)
            met = "yes" if np.abs(found - wanted).max() <= allowed else "no"
            texts = (" ".join(f"{value:.3f}" for value in values) for values in (wanted, found))
            rows.append(f"| {model}: {name} | {' | '.join(texts)} | within {allowed} | {met} |")
    return rows


def _measure(name: str, seed: int) -> dict[str, NDArray[np.float64]]:
    """The figures of one synthetic trace of 12 requests of 300 decoded tokens."""
    model = load_model(name)
    layers = len(model.moe_layers)
    trace = synthesise(
        load_profile(name).settings,
        layers,
        model.experts,
        model.top_k,
        12,
        (0, 300),
        np.random.default_rng(seed),
    )
    ids_SNLK = trace.ids_TLK.reshape(12, 300, layers, model.top_k)
    if name.startswith("mixtral"):
        now, before = (
            ids_SNLK[:, part][:, :, MIXTRAL_LAYERS] for part in (slice(1, None), slice(-1))
        )
        shared = (now[..., :, None] == before[..., None, :]).any(axis=(3, 4))
        first = now[..., 0] == before[..., 0]
        return dict(zip(MIXTRAL, (first.mean(axis=(0, 1)), shared.mean(axis=(0, 1))), strict=True))
    kept = [round(share * model.experts) for share in RESIDENCY]
    repeats = [np.mean([reused(ids, model.experts, n) for ids in ids_SNLK]) for n in (1, 8)]
    hits = [np.mean([lru_hits(ids, model.experts, n) for ids in ids_SNLK]) for n in kept]
    return dict(zip(QWEN, (np.array(repeats), np.array(hits)), strict=True))


@compiled
def reused(ids_NLK: NDArray[Any], experts: int, window: int) -> float:
    """Share of selections that one of the last `window` tokens made, in the same layer."""
    tokens, layers, top_k = ids_NLK.shape
    found = 0
    for layer in range(layers):
        last_E = np.full(experts, -window - 1, np.int64)
        for n in range(tokens):
            for k in range(top_k):
                found += n >= window and n - last_E[ids_NLK[n, layer, k]] <= window
            for k in range(top_k):
                last_E[ids_NLK[n, layer, k]] = n
    return found / ((tokens - window) * layers * top_k)


@compiled
def lru_hits(ids_NLK: NDArray[Any], experts: int, slots: int) -> float:
    """Share of selections found in a layer's cache of `slots` experts, least recently used out.

    A token's experts are looked up together, then stored, its strongest last.
    """
    tokens, layers, top_k = ids_NLK.shape
    found = 0
    for layer in range(layers):
        used_E = np.full(experts, -1, np.int64)  # -1: not kept
        clock, kept = 0, 0
        for n in range(tokens):
            for k in range(top_k):
                found += used_E[ids_NLK[n, layer, k]] >= 0
            for k in range(top_k - 1, -1, -1):
                kept += used_E[ids_NLK[n, layer, k]] < 0
                used_E[ids_NLK[n, layer, k]] = clock
                clock += 1
            while kept > slots:
                oldest = -1
                for e in range(experts):
                    if used_E[e] >= 0 and (oldest < 0 or used_E[e] < used_E[oldest]):
                        oldest = e
                used_E[oldest] = -1
                kept -= 1
    return found / (tokens * layers * top_k)
