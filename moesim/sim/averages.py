"""Mean expert times of batches by size, sampled from a trace before a run.

A step that replays its own tokens counts every expert. Where only means matter (sweeps, fits), the
same formula is averaged here once, over batches drawn from the trace: contiguous tokens for steps
with prompts, tokens from everywhere for decode. Legend: T trace rows, L MoE layers, K top-k, P
slots, n tokens of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import hot
from moesim.sim.cost_tables import DECODE, PROMPT, Averages, Costs
from moesim.sim.experts import expert_layer
from moesim.sim.setup import build_work
from moesim.sim.state import COUNTERS, STEP, Record

SIZES_PER_OCTAVE = 2
LAYERS = 8  # as many layers, evenly spread, stand for all
DRAWN_TOKENS = 4_096  # batches of a size hold so many tokens together, but are this many at most:
MOST_BATCHES = 32


def average_experts(
    slots_TLK: NDArray[Any], costs: Costs, most_tokens: int, rng: np.random.Generator
) -> Averages:
    """Averages for every number of tokens of the group up to `most_tokens`.

    `slots_TLK` holds the physical slots of a trace's tokens. Sampled sizes lie on a logarithmic
    scale; between them the logarithm is linear.
    """
    rows, layers, _ = slots_TLK.shape
    chosen = np.unique(np.linspace(0, layers - 1, min(LAYERS, layers)).astype(np.int64))
    last = int(np.ceil(SIZES_PER_OCTAVE * np.log2(max(2, most_tokens))))
    sizes = np.unique(np.rint(np.exp2(np.arange(last + 1) / SIZES_PER_OCTAVE)).astype(np.int64))
    sizes = np.minimum(sizes, most_tokens)
    work = build_work(1, 1, costs)
    record = _no_record(costs)
    found = np.zeros((2, 4, sizes.size))
    for at, size in enumerate(sizes):
        batches = int(np.clip(DRAWN_TOKENS // size, 1, MOST_BATCHES))
        for kind in (PROMPT, DECODE):
            for _ in range(batches):
                if kind == PROMPT:
                    drawn = (rng.integers(rows) + np.arange(size)) % rows
                else:
                    drawn = rng.integers(rows, size=size)
                step = np.zeros(1, STEP)
                _count_and_time(costs, work, record, step[0], slots_TLK, drawn, chosen, kind)
                found[kind, :, at] += _totals(step, chosen.size, layers)
            found[kind, :, at] /= batches
    return Averages(*(_spread(sizes, found[:, part], most_tokens) for part in range(4)))


@hot
def _count_and_time(
    c: Any, w: Any, record: Any, step: Any, slots_TLK: Any, rows_n: Any, layers_M: Any, kind: int
) -> None:
    """Count the slots of trace rows in some layers, and add those layers' times to `step`."""
    for layer in layers_M:
        counts = w.counts_LP[layer]
        counts[:] = 0
        for row in rows_n:
            for k in range(slots_TLK.shape[2]):
                counts[slots_TLK[row, layer, k]] += 1
        expert_layer(c, w, record, step, layer, kind, rows_n.size)


def _totals(step: NDArray[Any], sampled: int, layers: int) -> NDArray[np.float64]:
    """Fields of Averages from the sums over the sampled layers."""
    mean_s = float(step["experts_s"][0]) * layers / sampled
    excess_s = float(step["expert_imbalance_s"][0]) * layers / sampled
    imbalance, active = (float(step[name][0]) / sampled for name in ("imbalance", "active_experts"))
    return np.array([mean_s + excess_s, mean_s, imbalance, active])


def _spread(
    sizes: NDArray[np.int64], values_2S: NDArray[np.float64], most: int
) -> NDArray[np.float64]:
    """Values at every number of tokens, [2, most + 1]; no tokens take nothing."""
    tokens = np.arange(most + 1)
    spread = np.zeros((2, most + 1))
    for kind in (PROMPT, DECODE):
        logs = np.log(np.maximum(values_2S[kind], 1e-12))
        spread[kind, 1:] = np.exp(np.interp(np.log(tokens[1:]), np.log(sizes), logs))
    return spread


def _no_record(costs: Costs) -> Record:
    per_rank = (costs.stage_of_layer.size, costs.domain_of_rank.size)
    return Record(
        token_s=np.zeros(0),
        steps=np.zeros(1, STEP),
        counters=np.zeros(COUNTERS, np.int64),
        done=np.zeros(0, np.int32),
        rank_tokens_LR=np.zeros(per_rank),
        rank_active_LR=np.zeros(per_rank),
    )
