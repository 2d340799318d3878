"""What a composed batch asks of each attention rank: the engine's arrays, read in plain Python.

Legend: D attention ranks of a replica.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.sim.cost_tables import (
    ALL_REDUCE,
    DECODE,
    FIVE_STAGE,
    NO_EXCHANGE,
    NO_OVERLAP,
    PROMPT,
    SHARED_EXPERTS,
    TWO_BATCH,
    Costs,
)
from moesim.sim.detailed.rows import accepted
from moesim.sim.state import State


class Grant(NamedTuple):
    """Tokens [before, before + tokens) of a request, computed in one step on one rank."""

    request: int
    before: int  # leading tokens whose keys and values are there
    tokens: int
    decodes: bool  # its newest output token, alone or with drafts behind it
    kept: int  # of the tokens, those that are not rejected drafts


class Piece(NamedTuple):
    """Tokens [first, stop) of a grant, by number within it: what one half of a batch computes."""

    grant: Grant
    first: int
    stop: int


class Batch(NamedTuple):
    """One step's work and how it is done."""

    grants_D: list[list[Grant]]
    kind: int  # PROMPT or DECODE
    exchange: int
    overlap: int
    halves: list[list[list[Piece]]]  # [halves][D]
    padded: list[int]  # of each half: rows of a decode graph; 0 with prompts

    @property
    def most_requests(self) -> int:
        return max(len(grants) for grants in self.grants_D)

    def tokens(self, d: int) -> int:
        return sum(grant.tokens for grant in self.grants_D[d])

    def logits(self, d: int) -> int:
        """Rows of the output layer: every decoded token, one of each prompt."""
        return sum(grant.tokens if grant.decodes else 1 for grant in self.grants_D[d])


def read_batch(state: State, costs: Costs, k: int, b: int) -> Batch:
    """The batch in slot b of replica k, split as the overlap policy has it."""
    rules, cost = state.rules[0], costs.scalars[0]
    ranks = int(rules["ranks"])
    grants_D = [_grants(state, k, b, d) for d in range(ranks)]
    prompts = any(not grant.decodes for grants in grants_D for grant in grants)
    kind = PROMPT if prompts else DECODE
    exchange = int(cost["prefill_exchange" if prompts else "decode_exchange"])
    if ranks == 1 and exchange > ALL_REDUCE:
        exchange = NO_EXCHANGE
    policy = _overlap(costs, grants_D, kind, exchange)
    halves = [[[Piece(one, 0, one.tokens) for one in grants] for grants in grants_D]]
    if policy >= TWO_BATCH:
        cuts = [_cut(grants, prompts) for grants in grants_D]
        halves = [
            [_between(grants, 0, cut) for grants, cut in zip(grants_D, cuts, strict=True)],
            [_between(grants, cut, None) for grants, cut in zip(grants_D, cuts, strict=True)],
        ]
    padded = [0] * len(halves)
    if not prompts:
        # A static batch keeps the size it began with.
        began = 0
        if policy < TWO_BATCH:
            began = int(state.ranks["batch_size"][k * ranks : (k + 1) * ranks].max())
        padded = [max(began, _graph(costs, half)) for half in halves]
    return Batch(grants_D, kind, exchange, policy, halves, padded)


def _grants(state: State, k: int, b: int, d: int) -> list[Grant]:
    count = int(state.batch_size[k, b, d])
    numbers = state.batch_request[k, b, d, :count]
    rows: Any = state.requests[numbers]
    columns = (
        numbers.tolist(),
        state.batch_tokens[k, b, d, :count].tolist(),
        *(rows[name].tolist() for name in ("computed", "prompt_tokens", "generated")),
    )
    found = []
    for r, tokens, computed, prompt, generated in zip(*columns, strict=True):
        before = computed - tokens
        decodes = before >= prompt
        if tokens > 1:
            decodes = generated > 0 and before == prompt + generated - 1
        drafts = max(0, computed - (prompt + generated))
        rejected = drafts - accepted(state, r, generated, drafts) if drafts else 0
        found.append(Grant(r, before, tokens, decodes, tokens - rejected))
    return found


def _overlap(costs: Costs, grants_D: list[list[Grant]], kind: int, exchange: int) -> int:
    """What hides the exchanges: all ranks split, or none."""
    cost = costs.scalars[0]
    policy = int(cost["overlap"])
    if policy == NO_OVERLAP or costs.stage_of_layer.size == 0 or exchange <= ALL_REDUCE:
        return NO_OVERLAP
    if policy == SHARED_EXPERTS:
        return SHARED_EXPERTS
    field = "overlap_prefill_tokens" if kind == PROMPT else "overlap_decode_tokens"
    least = max(2, int(cost[field]))
    if any(sum(grant.tokens for grant in grants) < least for grants in grants_D):
        return NO_OVERLAP
    return FIVE_STAGE if policy == FIVE_STAGE and kind == DECODE else TWO_BATCH


def _cut(grants: list[Grant], prompts: bool) -> int:
    """Tokens of the first half: half of them, or where only output is computed of the requests."""
    counts = [grant.tokens for grant in grants]
    return sum(counts) // 2 if prompts else sum(counts[: len(counts) // 2])


def _between(grants: list[Grant], first: int, stop: int | None) -> list[Piece]:
    """Pieces of the tokens [first, stop) of a rank."""
    found, at = [], 0
    for grant in grants:
        low = max(0, first - at)
        high = grant.tokens if stop is None else min(grant.tokens, stop - at)
        at += grant.tokens
        if high > low:
            found.append(Piece(grant, low, high))
    return found


def _graph(costs: Costs, half: list[list[Piece]]) -> int:
    """Rows that decode is padded to: the graph of the fullest rank."""
    return int(costs.graph_tokens[max(1, *(tokens_of(pieces) for pieces in half))])


def tokens_of(pieces: list[Piece]) -> int:
    return sum(piece.stop - piece.first for piece in pieces)


def sizes_of(batch: Batch, half: int) -> list[int]:
    """Rows that each rank computes of a half, padding included."""
    return [max(batch.padded[half], tokens_of(pieces)) for pieces in batch.halves[half]]


def no_rows() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.zeros(0, np.int64)
