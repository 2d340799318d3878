"""Traces larger than memory: exact counts by blocks, everything else on a sample of sequences.

Legend: T tokens, L MoE layers, K top-k, E experts, S sequences, W windows.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing import kernels
from moesim.routing.trace import RoutingTrace

BLOCK_BYTES = 16 * 1024**2
MOST_IDS = 24_000_000  # of a sample: 24 MB below 257 experts; about 10 s of statistics
LEAST_WINDOWS = 64  # no sequence takes more than this part of a sample


def release(array: NDArray[Any]) -> None:
    """Let go of the pages of a mapped array; they are read again when touched. No-op otherwise."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def counts_by_blocks(trace: RoutingTrace) -> NDArray[np.int64]:
    """`statistics.expert_counts`, [L, E], with no more than a block of a mapped trace resident."""
    counts_LE = np.zeros((trace.layers, trace.experts), np.int64)
    rows = max(1, BLOCK_BYTES * trace.tokens // trace.ids_TLK.nbytes)
    for start in range(0, trace.tokens, rows):
        counts_LE += kernels.count(trace.ids_TLK[start : start + rows], trace.experts)
        release(trace.ids_TLK)
    return counts_LE


def sampled(
    trace: RoutingTrace, rng: np.random.Generator, most_ids: int = MOST_IDS
) -> RoutingTrace:
    """The trace itself up to `most_ids` expert ids; else random sequences of it, without weights.

    A sequence that alone would take more than 1/64 of the sample gives a random window of that
    size. Sequences keep their order. Rows are copied and the mapped pages released.
    """
    if trace.ids_TLK.size <= most_ids:
        return trace
    budget = max(1, most_ids // (trace.layers * trace.top_k))
    window = max(1, budget // LEAST_WINDOWS)
    tokens_S = np.minimum(trace.sequence_tokens_S, window)
    order_S = rng.permutation(trace.sequences)
    taken = max(1, int(np.searchsorted(np.cumsum(tokens_S[order_S]), budget, "right")))
    chosen_W = np.sort(order_S[:taken])
    tokens_W = tokens_S[chosen_W]
    offset_W = rng.integers(0, trace.sequence_tokens_S[chosen_W] - tokens_W + 1)
    start_W1 = np.concatenate([[0], np.cumsum(tokens_W)])
    ids_TLK = np.empty((int(start_W1[-1]), trace.layers, trace.top_k), trace.ids_TLK.dtype)
    copied = 0
    for w, first in enumerate(trace.sequence_start_S1[chosen_W] + offset_W):
        ids_TLK[start_W1[w] : start_W1[w + 1]] = trace.ids_TLK[first : first + tokens_W[w]]
        copied += int(tokens_W[w]) * trace.ids_TLK[0].nbytes
        if copied > BLOCK_BYTES:
            release(trace.ids_TLK)
            copied = 0
    release(trace.ids_TLK)
    return RoutingTrace(
        ids_TLK,
        start_W1,
        np.clip(trace.prompt_tokens_S[chosen_W] - offset_W, 0, tokens_W),
        trace.domain_S[chosen_W],
        trace.domains,
        trace.layers_L,
        trace.experts,
        trace.model,
        trace.provenance,
        ids_checked=True,
    )
