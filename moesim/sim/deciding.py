"""Asking a batching policy written in Python, and refusing what breaks its rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.policies.batching import BatchingPolicy, RankView, RequestsView
from moesim.sim.decision import (
    GRANTS,
    MORE,
    MOST_GRANTS,
    NO_TOKENS,
    NOT_HERE,
    TOO_MANY_REQUESTS,
    TOO_MANY_TOKENS,
    Decision,
)
from moesim.sim.state import State

BROKEN_RULES = {
    NOT_HERE: "must name requests that wait or run on this rank, each once in a batch",
    TOO_MANY_TOKENS: "must not grant more tokens than are due",
    TOO_MANY_REQUESTS: "must not let more requests run than max_requests",
    NO_TOKENS: "may grant no tokens only to preempt a running request that is not in flight",
}
NOTHING = (-1, 0)  # a grant that nobody could mean
MOST = 2**62


class Deciding:
    """Hands a policy what compiled code wrote into a Decision, and writes its grants there."""

    def __init__(self, policy: BatchingPolicy, decision: Decision, state: State) -> None:
        rules = state.rules[0]
        self._policy = policy
        self._decision = decision
        self._token_budget = int(rules["token_budget"])
        self._max_requests = int(rules["max_running"])
        self._grants: list[tuple[int, int]] = []  # those that were handed over last
        self._to_come: Iterator[tuple[int, int]] | None = None

    def decide(self, now: float) -> None:
        """Let the policy say what the rank in question computes; InputError where what it said
        before breaks a rule."""
        _, seated, queued, free, _, _, left, refused, at = self._decision.ask.tolist()
        if refused:
            whole = (
                f"must grant (request, tokens) with at most the {left} tokens left in the budget"
            )
            rule = BROKEN_RULES.get(refused, whole)
            raise InputError("batching policy", rule, self._grants[at])
        if self._to_come is None:
            # Arrays of its own: a policy may keep them, or work in them.
            columns: Any = self._decision.columns_CM[:, : seated + queued].copy()
            view = RankView(
                now,
                self._token_budget,
                self._max_requests,
                free,
                RequestsView.of(columns[:, :seated]),
                RequestsView.of(columns[:, seated:]),
            )
            answer: object = self._policy(view)
            if not isinstance(answer, Iterable):
                rule = "must return, or yield, grants (request, tokens)"
                raise InputError("batching policy", rule, answer)
            self._to_come = iter(answer)
        self._grants = grants = list(islice(self._to_come, MOST_GRANTS))
        numbers = _numbers(grants)
        ask = self._decision.ask
        try:
            self._decision.grants[: len(numbers)] = numbers
        except OverflowError:
            self._decision.grants[: len(numbers)] = [max(-1, min(each, MOST)) for each in numbers]
        ask[GRANTS] = len(grants)
        if len(grants) == MOST_GRANTS:
            ask[MORE] = 1
        else:
            ask[MORE] = 0
            self._to_come = None


def _numbers(grants: Iterable[object]) -> list[int]:
    """Grants one after the other; what is none as NOTHING."""
    numbers: list[int] = []
    for grant in grants:
        if type(grant) is tuple and len(grant) == 2:
            request, tokens = grant
            if type(request) is int and type(tokens) is int:
                numbers += grant
                continue
        numbers += _as_plain(grant)
    return numbers


def _as_plain(grant: object) -> tuple[int, int]:
    """A grant in numbers of other classes."""
    if isinstance(grant, tuple) and len(grant) == 2:
        request, tokens = grant
        if isinstance(request, int | np.integer) and isinstance(tokens, int | np.integer):
            return int(request), int(tokens)
    return NOTHING
