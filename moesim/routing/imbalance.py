"""What a step's tokens ask of experts and ranks, by how many they are and where they come from.

Legend: B batch sizes, D draws, L MoE layers, R numbers of expert-parallel ranks, E experts, K
top-k, T tokens of a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.routing import kernels, statistics
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

SIZES = tuple(2**power for power in range(12))
DRAWS = 96
EVEN_DRAWS = 256
EXACT_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Batches:
    """Means over draws; `sizes` are tokens of a step over all ranks.

    Distinct experts, [B, L]: of tokens of different requests that decode together (NaN above the
    number of requests), of neighbouring tokens, as one prefill chunk has them, and the [B] of a
    router that takes all experts alike. Busiest over mean rank, [B, R, L], experts placed in order
    of their number: tokens from anywhere, neighbouring tokens, and the [B, R] of the even router.
    `spread_BR`: standard deviation over draws, of tokens from anywhere, of the mean over layers.
    """

    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    distinct_decode_BL: Floats
    distinct_prefill_BL: Floats
    distinct_uniform_B: Floats
    imbalance_random_BRL: Floats
    imbalance_prefill_BRL: Floats
    imbalance_even_BR: Floats
    spread_BR: Floats

    def at(self, size: int, ranks: int) -> tuple[int, int] | None:
        """Indices of a batch size and a number of ranks; None where they were not measured."""
        if size not in self.sizes or ranks not in self.ranks:
            return None
        return self.sizes.index(size), self.ranks.index(ranks)


def uniform_distinct(sizes: Sequence[int], experts: int, top_k: int) -> Floats:
    """Experts that B tokens touch if each takes any K of E alike: E (1 - (1 - K/E)^B), [B]."""
    return experts * (1 - (1 - top_k / experts) ** np.asarray(sizes, np.float64))


def rank_choices(experts: int, asked: int | None = None) -> tuple[int, ...]:
    """Powers of two above 1 that divide the experts, and `asked` if it does."""
    powers = {2**power for power in range(1, 17) if experts % 2**power == 0}
    return tuple(sorted(powers | ({asked} if asked and experts % asked == 0 else set())))


def phase_part(trace: RoutingTrace, phase: Literal["prompt", "decode"]) -> RoutingTrace:
    """The tokens of one phase, in their sequences; the whole trace if it holds none of it."""
    start_S, prompt_S = trace.sequence_start_S1[:-1], trace.prompt_tokens_S.astype(np.int64)
    if phase == "prompt":
        first_S, last_S = start_S, start_S + prompt_S
    else:
        first_S, last_S = start_S + prompt_S, trace.sequence_start_S1[1:]
    wanted_S = np.flatnonzero(last_S > first_S)
    if not len(wanted_S) or (last_S - first_S).sum() == trace.tokens:
        return trace
    tokens_S = (last_S - first_S)[wanted_S]
    start_S1 = np.concatenate([[0], np.cumsum(tokens_S)])
    rows_T = np.arange(start_S1[-1]) + np.repeat(first_S[wanted_S] - start_S1[:-1], tokens_S)
    return RoutingTrace(
        trace.ids_TLK[rows_T],
        start_S1,
        tokens_S if phase == "prompt" else np.zeros_like(tokens_S),
        trace.domain_S[wanted_S],
        trace.domains,
        trace.layers_L,
        trace.experts,
        trace.model,
        ids_checked=True,
    )


def measure_batches(
    trace: RoutingTrace,
    rng: np.random.Generator,
    sizes: Sequence[int] = SIZES,
    asked_ranks: int | None = None,
    draws: int = DRAWS,
) -> Batches:
    """Draw batches of every size. Decode batches come of decoded tokens and chunks of prompts,
    where the trace has both."""
    decoded, prompts = phase_part(trace, "decode"), phase_part(trace, "prompt")
    ranks = rank_choices(trace.experts, asked_ranks)
    shape = len(sizes), len(ranks), trace.layers
    decode_BL, prefill_BL = np.full((2, shape[0], shape[2]), np.nan)
    random_BRL, chunk_BRL = np.full((2, *shape), np.nan)
    spread_BR = np.full(shape[:2], np.nan)
    for b, size in enumerate(sizes):
        if size <= decoded.sequences:
            rows_DB = statistics.draw_batches(decoded, size, draws, rng, "decode")
            decode_BL[b] = statistics.distinct_experts(decoded, rows_DB).mean(axis=0)
        rows_DB = statistics.draw_batches(decoded, size, draws, rng, "random")
        ratio_DRL = _load(decoded, rows_DB, ranks)[1]
        random_BRL[b], spread_BR[b] = ratio_DRL.mean(axis=0), ratio_DRL.mean(axis=2).std(axis=0)
        if size <= prompts.tokens:
            rows_DB = statistics.draw_batches(prompts, size, draws, rng, "contiguous")
            distinct_DL, ratio_DRL = _load(prompts, rows_DB, ranks)
            prefill_BL[b], chunk_BRL[b] = distinct_DL.mean(axis=0), ratio_DRL.mean(axis=0)
    return Batches(
        sizes=tuple(sizes),
        ranks=ranks,
        distinct_decode_BL=decode_BL,
        distinct_prefill_BL=prefill_BL,
        distinct_uniform_B=uniform_distinct(sizes, trace.experts, trace.top_k),
        imbalance_random_BRL=random_BRL,
        imbalance_prefill_BRL=chunk_BRL,
        imbalance_even_BR=_even(sizes, ranks, trace.experts, trace.top_k, rng),
        spread_BR=spread_BR,
    )


def _load(
    trace: RoutingTrace, rows_DB: NDArray[np.int64], ranks: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Distinct experts [D, L] and busiest over mean rank [D, R, L] of each batch."""
    counts_LE = np.empty((trace.layers, trace.experts), np.int64)
    distinct_DL = np.empty((len(rows_DB), trace.layers))
    ratio_DRL = np.empty((len(rows_DB), len(ranks), trace.layers))
    for d, rows_B in enumerate(rows_DB):
        kernels.count_rows(trace.ids_TLK, rows_B, counts_LE)
        distinct_DL[d] = (counts_LE > 0).sum(axis=1)
        for r, number in enumerate(ranks):
            by_rank = counts_LE.reshape(trace.layers, number, -1).sum(axis=2)
            ratio_DRL[d, r] = statistics.max_over_mean(by_rank)
    return distinct_DL, ratio_DRL


def _even(
    sizes: Sequence[int], ranks: tuple[int, ...], experts: int, top_k: int, rng: np.random.Generator
) -> Floats:
    """Busiest over mean rank, [B, R], when every token takes any K experts alike.

    Tokens are drawn one by one up to EXACT_TOKENS; beyond that their sum is normal, with the
    hypergeometric variance of a token's choices on a rank.
    """
    even_BR = np.empty((len(sizes), len(ranks)))
    exact = min(max(sizes), EXACT_TOKENS)
    left = (experts - top_k) / max(1, experts - 1)
    for r, number in enumerate(ranks):
        ratio_TD = np.empty((exact, EVEN_DRAWS))
        for d in range(EVEN_DRAWS):
            chosen_TR = rng.multivariate_hypergeometric([experts // number] * number, top_k, exact)
            ratio_TD[:, d] = statistics.max_over_mean(chosen_TR.cumsum(axis=0))
        scatter_DR = rng.normal(size=(EVEN_DRAWS, number))
        scatter_DR -= scatter_DR.mean(axis=1, keepdims=True)
        for b, size in enumerate(sizes):
            if size <= exact:
                even_BR[b, r] = ratio_TD[size - 1].mean()
            else:
                relative = np.sqrt(left * number / (size * top_k)) * scatter_DR.max(axis=1)
                even_BR[b, r] = 1 + relative.mean()
    return even_BR
