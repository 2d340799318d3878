"""A scheduling policy as a user writes one: vLLM's order of work, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def first_come_first_served(view: Any) -> Iterator[tuple[int, int]]:
    """Decode and go on with every running request, then admit those that wait, in order."""
    left = view.token_budget
    running, waiting = view.running, view.waiting
    for request, due in zip(running.request.tolist(), running.due_tokens.tolist(), strict=True):
        tokens = min(due, left)
        if tokens:
            left -= tokens
            yield request, tokens
    seats = view.max_requests - running.request.size
    first = slice(0, max(0, seats))
    for request, due in zip(
        waiting.request[first].tolist(), waiting.due_tokens[first].tolist(), strict=True
    ):
        tokens = min(due, left)
        if not tokens:
            return
        left -= tokens
        yield request, tokens
