"""Mean expert and exchange times of batches by size, sampled from a trace before a run.

A step that replays its own tokens counts every expert. Where only means matter (sweeps, fits), the
same formulas are averaged here once, over batches drawn from the trace: for each attention rank
contiguous tokens in steps with prompts, tokens from everywhere in decode. Legend: T trace rows,
L MoE layers, K top-k, D attention ranks, S sampled sizes, n tokens of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import hot
from moesim.sim.cost_tables import (
    ALL_REDUCE,
    DECODE,
    LAYERED,
    M_TO_N,
    NO_EXCHANGE,
    NORMAL,
    PROMPT,
    Averages,
    Costs,
)
from moesim.sim.exchange import clear_traffic, exchange_layer
from moesim.sim.experts import expert_layers
from moesim.sim.replay import NO_PIECE, count_range, touch_rows
from moesim.sim.routes import no_routes
from moesim.sim.setup import build_work, rank_sums
from moesim.sim.state import COUNTERS, STEP, Record
from moesim.sim.step_routing import add_traffic, sum_ranks
from moesim.sim.token_times import kept_times

SIZES_PER_OCTAVE = 2
LAYERS = 8  # as many layers, evenly spread, stand for all
DRAWN_TOKENS = 4_096  # batches of a size hold so many tokens together, but are this many at most:
MOST_BATCHES = 32


def average_experts(
    slots_TLK: NDArray[Any], costs: Costs, ranks: int, most_tokens: int, rng: np.random.Generator
) -> Averages:
    """Averages for every number of tokens up to `most_tokens` of the group of `ranks`.

    `slots_TLK` holds the physical slots of a trace's tokens. Sampled sizes lie on a logarithmic
    scale; between them the logarithm is linear.
    """
    rows, layers, _ = slots_TLK.shape
    chosen = np.unique(np.linspace(0, layers - 1, min(LAYERS, layers)).astype(np.int64))
    some = costs._replace(stage_of_layer=np.zeros(chosen.size, np.int32))
    few_TLK = np.ascontiguousarray(slots_TLK[:, chosen].astype(np.uint16, copy=False))
    routes, work = no_routes()._replace(slots_TLK=few_TLK), build_work(1, 1, some)
    record = _no_record(some)
    sizes = _sizes(most_tokens)
    found = np.zeros((2, len(Averages._fields), sizes.size))
    for at, size in enumerate(sizes.tolist()):
        batches = int(np.clip(DRAWN_TOKENS // max(1, size), 1, MOST_BATCHES))
        for kind in (PROMPT, DECODE):
            how = kind, _exchange(costs, kind, ranks), _group_tokens(costs, kind, size, ranks)
            for _ in range(batches):
                drawn, step = _draw(rng, kind, rows, size, ranks), np.zeros(1, STEP)
                _sample(some, work, routes, record, step[0], drawn, ranks, *how)
                found[kind, :, at] += _totals(step, layers / chosen.size) / batches
    return Averages(*(_spread(sizes, found[:, part]) for part in range(found.shape[1])))


def _sizes(most: int) -> NDArray[np.int64]:
    """0, and numbers of tokens from 1 to `most` on a logarithmic scale."""
    last = int(np.ceil(SIZES_PER_OCTAVE * np.log2(max(2, most))))
    sizes = np.rint(np.exp2(np.arange(last + 1) / SIZES_PER_OCTAVE)).astype(np.int64)
    return np.unique([0, *np.minimum(sizes, most)])


def _draw(
    rng: np.random.Generator, kind: int, rows: int, size: int, ranks: int
) -> NDArray[np.int64]:
    """Trace rows of a batch, rank after rank."""
    if kind == DECODE:
        return rng.integers(rows, size=size)
    edges = np.arange(ranks + 1) * size // ranks
    pieces = [rng.integers(rows) + np.arange(n) for n in np.diff(edges)]
    return np.concatenate(pieces) % rows


def _exchange(costs: Costs, kind: int, ranks: int) -> int:
    scalars = costs.scalars[0]
    exchange = int(scalars["prefill_exchange" if kind == PROMPT else "decode_exchange"])
    alone = ranks == 1 and exchange > ALL_REDUCE and exchange != M_TO_N
    return NO_EXCHANGE if alone else exchange


def _group_tokens(costs: Costs, kind: int, size: int, ranks: int) -> int:
    """Tokens of the group after padding to CUDA graphs, which decode has where ranks are even."""
    return size if kind == PROMPT else ranks * int(costs.graph_tokens[max(1, -(-size // ranks))])


@hot
def _sample(
    c: Any,
    w: Any,
    routes: Any,
    record: Any,
    step: Any,
    rows_n: Any,
    ranks: int,
    kind: int,
    exchange: int,
    group_tokens: int,
) -> None:
    """Add to `step` what all layers of `w` take for the tokens of these trace rows."""
    w.counts_LP[:] = 0
    clear_traffic(w)
    for d in range(ranks):
        w.source_LP[:] = 0
        w.source_LX[:] = 0
        for i in range(d * rows_n.size // ranks, (d + 1) * rows_n.size // ranks):
            count_range(routes, rows_n[i], rows_n[i] + 1, 1, w.source_LP)
            if exchange in (NORMAL, LAYERED, M_TO_N):
                touch_rows(routes, NO_PIECE, rows_n[i], 1, w.touch, w.source_LX)
        add_traffic(c, w, d, exchange)
        for layer in range(w.counts_LP.shape[0]):
            counts, source = w.counts_LP[layer], w.source_LP[layer]
            for p in range(counts.size):
                counts[p] += source[p]
    sum_ranks(w)
    expert_layers(c, w, record, step, 0, kind, group_tokens)
    for layer in range(w.counts_LP.shape[0]):
        if exchange >= NORMAL:
            exchange_layer(c, w, step, layer, exchange, kind, group_tokens)


def _totals(step: NDArray[Any], layers_each: float) -> NDArray[np.float64]:
    """Fields of Averages from sums over sampled layers, each of which stands for `layers_each`."""
    of = {name: float(step[name][0]) * layers_each for name in STEP.names or ()}
    return np.array(
        [
            of["experts_s"] + of["expert_imbalance_s"],
            of["experts_s"],
            of["imbalance"],
            of["active_experts"],
            of["dispatch_s"],
            of["combine_s"],
            of["scale_up_bytes"],
            of["scale_out_bytes"],
        ]
    )


def _spread(sizes: NDArray[np.int64], values_2S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at every number of tokens, [2, most + 1]."""
    tokens = np.arange(sizes[-1] + 1)
    spread = np.zeros((2, tokens.size))
    for kind in (PROMPT, DECODE):
        if not values_2S[kind].any():
            continue
        logs = np.log(np.maximum(values_2S[kind, 1:], 1e-12))
        spread[kind, 1:] = np.exp(np.interp(np.log(tokens[1:]), np.log(sizes[1:]), logs))
        spread[kind, 0] = values_2S[kind, 0]
        spread[kind, sizes] = values_2S[kind]
    return spread


def _no_record(costs: Costs) -> Record:
    return Record(
        steps=np.zeros(1, STEP),
        counters=np.zeros(COUNTERS, np.int64),
        done=np.zeros(0, np.int32),
        **rank_sums(costs),
        **kept_times(0),
    )
