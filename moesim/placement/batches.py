"""Batches of tokens drawn from a routing trace: what placements are fitted to and scored on.

Decode meets one token of each of many requests, prefill contiguous tokens of few. A step's tokens
lie evenly on the attention ranks, in order: token j of N comes from rank j // (N / R).

Legend: D steps, N tokens of a step, T trace rows, L MoE layers, K top-k, E experts, R ranks,
S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.routing.trace import RoutingTrace

MOST_TOKENS = 1 << 20  # of a step
MIXED = -1  # a step whose tokens are of any domain


@dataclass(frozen=True, eq=False)
class Batches:
    """Steps by the rows of their tokens in `ids_TLK`, which stays where it is (memory-mapped, say).

    `domain_D`: the domain that all tokens of a step are of, or MIXED. `domain_T`: of each row of
    the trace; None where it is not known.
    """

    ids_TLK: NDArray[Any]
    rows_DN: NDArray[np.int64]
    domain_D: NDArray[np.int32]
    experts: int
    domain_T: NDArray[np.uint16] | None = None

    @property
    def steps(self) -> int:
        return int(self.rows_DN.shape[0])

    @property
    def tokens(self) -> int:
        """Of a step, on all ranks."""
        return int(self.rows_DN.shape[1])

    @cached_property
    def counts_DLE(self) -> NDArray[np.int32]:
        """Tokens of each step that chose each expert."""
        layers = self.ids_TLK.shape[1]
        counts_DLE = np.zeros((self.steps, layers, self.experts), np.int32)
        _count_steps(self.ids_TLK, self.rows_DN, counts_DLE)
        return counts_DLE

    def load_LE(self) -> NDArray[np.float64]:
        """Tokens of all steps that chose each expert: what load-based policies are fitted to."""
        return np.asarray(self.counts_DLE.sum(axis=0), np.float64)

    def take(self, steps: NDArray[np.integer[Any]] | slice) -> Batches:
        """Some of the steps."""
        return replace(self, rows_DN=self.rows_DN[steps], domain_D=self.domain_D[steps])


def halves(
    trace: RoutingTrace, fraction: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences to fit on and to score on: the first `fraction` of each domain's, and the rest.

    A trace is in order of time within a domain; a cut across domains would make every score one of
    a workload that was never seen. A domain's only sequence is fitted on; where that leaves none to
    score on, the trace's last one is.
    """
    fit: list[NDArray[np.int64]] = []
    rest: list[NDArray[np.int64]] = []
    for domain in np.unique(trace.domain_S):
        of_domain = np.flatnonzero(trace.domain_S == domain)
        cut = max(1, round(fraction * of_domain.size))
        fit.append(of_domain[:cut])
        rest.append(of_domain[cut:])
    fit_S, score_S = np.sort(np.concatenate(fit)), np.sort(np.concatenate(rest))
    if not score_S.size:
        fit_S, score_S = (fit_S[:-1], fit_S[-1:]) if fit_S.size > 1 else (fit_S, fit_S)
    return fit_S, score_S


def decode_batches(
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
    sequences_S: NDArray[np.int64],
    tokens: int,
    steps: int,
    rng: np.random.Generator,
    by_domain: bool = False,
) -> Batches:
    """Steps of `tokens` concurrent requests: an output token each of different sequences.

    Sequences repeat where there are fewer; one without marks gives any of its tokens. `ids_TLK` are
    the trace's rows at the model's layers. `by_domain`: the tokens of a step are of one domain, the
    domains in turn. Raises InputError for a number of tokens out of range.
    """
    _check(tokens, steps)
    start_S, end_S = trace.sequence_start_S1[:-1], trace.sequence_start_S1[1:]
    output_S = start_S + trace.prompt_tokens_S
    first_S = np.where(output_S < end_S, output_S, start_S)
    rows_DN = np.empty((steps, tokens), np.int64)
    domain_D = np.full(steps, MIXED, np.int32)
    groups = _groups(trace, sequences_S, by_domain)
    for d in range(steps):
        domain_D[d], own_S = groups[d % len(groups)]
        rounds = -(-tokens // own_S.size)
        chosen = np.concatenate([rng.permutation(own_S) for _ in range(rounds)])[:tokens]
        rows_DN[d] = rng.integers(first_S[chosen], end_S[chosen])
    return Batches(ids_TLK, rows_DN, domain_D, trace.experts, _domain_of_rows(trace))


def prefill_batches(
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
    sequences_S: NDArray[np.int64],
    tokens: int,
    steps: int,
    rng: np.random.Generator,
    by_domain: bool = False,
) -> Batches:
    """Steps of `tokens` contiguous tokens: sequences one behind the other in random order, from a
    random place in the first. Arguments as of `decode_batches`; tokens of a prompt are taken where
    the trace marks them, else any."""
    _check(tokens, steps)
    start_S = trace.sequence_start_S1[:-1]
    length_S = np.where(trace.prompt_tokens_S > 0, trace.prompt_tokens_S, trace.sequence_tokens_S)
    rows_DN = np.empty((steps, tokens), np.int64)
    domain_D = np.full(steps, MIXED, np.int32)
    groups = _groups(trace, sequences_S, by_domain)
    for d in range(steps):
        domain_D[d], own_S = groups[d % len(groups)]
        filled = 0
        while filled < tokens:
            for s in rng.permutation(own_S):
                skip = int(rng.integers(length_S[s])) if filled == 0 else 0
                taken = min(int(length_S[s]) - skip, tokens - filled)
                rows_DN[d, filled : filled + taken] = start_S[s] + skip + np.arange(taken)
                filled += taken
                if filled == tokens:
                    break
    return Batches(ids_TLK, rows_DN, domain_D, trace.experts, _domain_of_rows(trace))


def stratify(batches: Batches) -> Batches:
    """The tokens of mixed steps put together anew, in their order, to steps of one domain each.

    What is left of a domain after whole steps is dropped; the batches as they are where domains are
    not known, or fewer than two fill a step.
    """
    if batches.domain_T is None:
        return batches
    rows = batches.rows_DN.ravel()
    domain_of_rows = batches.domain_T[rows]
    parts, domains = [], []
    for domain in np.unique(domain_of_rows):
        own = rows[domain_of_rows == domain]
        steps = own.size // batches.tokens
        parts.append(own[: steps * batches.tokens].reshape(steps, batches.tokens))
        domains += [domain] * steps
    if len(set(domains)) < 2:
        return batches
    return replace(batches, rows_DN=np.concatenate(parts), domain_D=np.array(domains, np.int32))


def _domain_of_rows(trace: RoutingTrace) -> NDArray[np.uint16]:
    return np.repeat(trace.domain_S, trace.sequence_tokens_S)


def _groups(
    trace: RoutingTrace, sequences_S: NDArray[np.int64], by_domain: bool
) -> Sequence[tuple[int, NDArray[np.int64]]]:
    if not by_domain:
        return [(MIXED, sequences_S)]
    domain_S = trace.domain_S[sequences_S]
    return [(int(x), sequences_S[domain_S == x]) for x in np.unique(domain_S)]


def _check(tokens: int, steps: int) -> None:
    if not 1 <= tokens <= MOST_TOKENS:
        raise InputError("batch", f"must be 1 to {MOST_TOKENS} tokens", tokens)
    if steps < 1:
        raise InputError("steps", "must be at least 1", steps)


@compiled
def _count_steps(
    ids_TLK: NDArray[Any], rows_DN: NDArray[np.int64], counts_DLE: NDArray[np.int32]
) -> None:
    steps, tokens = rows_DN.shape
    layers, top_k = ids_TLK.shape[1], ids_TLK.shape[2]
    for d in range(steps):
        for j in range(tokens):
            row = rows_DN[d, j]
            for layer in range(layers):
                for k in range(top_k):
                    counts_DLE[d, layer, ids_TLK[row, layer, k]] += 1
