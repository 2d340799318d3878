"""Requests out of SGLang's forward passes, which name positions but no requests.

A pass of prefill lists its requests by `extend_seq_lens`; one that begins after position 0 goes on
with the request that was cut last (chunked prefill), if that stopped there. A decode pass holds one
token for each running request, always in the same order. So tokens at a position belong to the
requests that stopped there, one for one, as long as there are as many; where some of several
requests at one position have ended, nothing says which, and all of them are cut there: a sequence
may be a part of a request, but never parts of two.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moesim.errors import InputError

# ForwardMode of sglang.srt.model_executor.forward_batch_info
EXTEND, DECODE, MIXED, IDLE = 1, 2, 3, 4


@dataclass(frozen=True)
class Pass:
    """One forward pass on one rank; its tokens are rows `first_row` and on."""

    number: int
    mode: int
    positions: tuple[int, ...]
    input_ids: tuple[int, ...]
    extend_lengths: tuple[int, ...]
    first_row: int

    @classmethod
    def of_record(cls, record: Mapping[str, Any], first_row: int) -> Pass:
        """Check and take over a record of the recorder; InputError if it is not sound."""
        positions = _wholes(record, "positions")
        lengths = _wholes(record, "extend_seq_lens") if record.get("extend_seq_lens") else ()
        mode = record.get("forward_mode")
        if mode not in (EXTEND, DECODE, MIXED, IDLE):
            raise InputError("record.forward_mode", "must be 1 to 4, no speculative decoding", mode)
        if mode in (EXTEND, MIXED) and sum(lengths) != len(positions):
            raise InputError("record.extend_seq_lens", f"must sum to {len(positions)}", lengths)
        return cls(
            int(record["forward_pass_id"]),
            int(mode),
            positions,
            _wholes(record, "input_ids"),
            lengths,
            first_row,
        )


@dataclass(eq=False)
class _Open:
    """A request that may go on: its rows so far, the position it stopped before."""

    next: int
    rows: list[int] = field(default_factory=list)
    prompt: int = 0
    decoding: bool = False

    def add(self, rows: Sequence[int]) -> None:
        self.rows.extend(rows)
        self.next += len(rows)


def requests(passes: Sequence[Pass]) -> list[tuple[list[int], int]]:
    """(rows, prefilled tokens) of each request, or part of one, in the order they began."""
    every: list[_Open] = []
    running: list[_Open] = []
    cut: _Open | None = None  # the last request of the last prefill, whose prompt may go on
    for one in passes:
        if one.mode == DECODE:
            running = _decode(one, every, running)
        elif one.extend_lengths:
            found = _extend(one, every, running, cut)
            # Prefilled requests join the others at their end; in a mixed pass all are there.
            others = [] if one.mode == MIXED else [r for r in running if r not in found]
            running = others + found
            cut = next((r for r in reversed(found) if not r.decoding), None)
    return [(request.rows, request.prompt) for request in every]


def _extend(one: Pass, every: list[_Open], running: list[_Open], cut: _Open | None) -> list[_Open]:
    """The requests of a prefill pass, in its order, with their tokens added."""
    at, found = 0, []
    for length in one.extend_lengths:
        if not length:
            continue
        rows = range(one.first_row + at, one.first_row + at + length)
        position = one.positions[at]
        if one.positions[at : at + length] != tuple(range(position, position + length)):
            raise InputError("record.positions", "must rise by 1 within a request", position)
        at += length
        waiting = [r for r in running if r.next == position and r is not cut]
        if one.mode == MIXED and length == 1 and len(waiting) == 1:
            request = waiting[0]
            request.decoding = True
        elif cut is not None and cut.next == position and cut not in found:
            request = cut
        else:
            request = _Open(position)
            every.append(request)
        request.prompt += 0 if request.decoding else length
        request.add(rows)
        found.append(request)
    return found


def _decode(one: Pass, every: list[_Open], running: list[_Open]) -> list[_Open]:
    """The requests of a decode pass, in its order; who is not among them has ended."""
    tokens = Counter(one.positions)
    stopped = Counter(request.next for request in running)
    waiting: dict[int, deque[_Open]] = defaultdict(deque)
    for request in running:
        if tokens[request.next] == stopped[request.next]:
            waiting[request.next].append(request)
    after = []
    for i, position in enumerate(one.positions):
        if waiting[position]:
            request = waiting[position].popleft()
        else:
            request = _Open(position)
            every.append(request)
        request.add([one.first_row + i])
        request.decoding = True
        after.append(request)
    return after


def _wholes(record: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise InputError(f"record.{key}", "must be a list of whole numbers")
    return tuple(value)
