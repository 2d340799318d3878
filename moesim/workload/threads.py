"""Requests that wait for others: sessions of turns, and chains of agents that call agents.

A *thread* is one session or chain. Its first request arrives by the workload's arrivals; every
other arrives `delay_s` after the last request that it waits for has ended. A prompt may begin with
the prompt and the answer of an earlier request of the thread (`grows_from`), which is what the
prefix cache finds, and take in the answers of others (`reads`).

Legend: N requests, M listed waits, S sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from moesim.errors import InputError
from moesim.spec import Spec
from moesim.workload.durations import DurationChoice, FixedTime
from moesim.workload.lengths import MAX_TOKENS, Fixed, LengthChoice, no_flag

NOBODY = -1
# Far more than any agent or conversation has; a slip in a distribution would fill the memory.
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Step:
    """One request of a thread, before it has lengths; numbers count within the thread."""

    waits_for: tuple[int, ...] = ()
    delay_s: float = 0.0
    grows_from: int = NOBODY
    reads: tuple[int, ...] = ()
    added_tokens: int | None = None  # new text; None: as the workload's prompts are long


@dataclass(frozen=True, eq=False)
class Threads:
    """What waits for what; read-only arrays.

    thread_N: its thread, ascending. turn_N: its place in the thread, from 0.
    before_M[before_start_N1[n] : before_start_N1[n + 1]]: the requests whose end n waits for, all
    of lower number. delay_s_N: from the last of these ends to n's own arrival.
    """

    thread_N: NDArray[np.int32]
    turn_N: NDArray[np.int32]
    before_start_N1: NDArray[np.int64]
    before_M: NDArray[np.int32]
    delay_s_N: NDArray[np.float64]
    kind: Literal["session", "chain"]


class Draws(Protocol):
    """Uniform numbers from [0, 1), one after the other."""

    def random(self) -> float: ...


class Sessions(Spec):
    """Conversations: each turn's prompt is all before it and some new text.

    The next turn comes a `think_time` after the answer has ended. A session ends before the turn
    that would make prompt and answer longer than `max_context`.
    """

    turns: LengthChoice
    think_time: DurationChoice = FixedTime.default(seconds=0.0)
    max_context: Annotated[int, Field(ge=2, le=MAX_TOKENS), BeforeValidator(no_flag)] | None = None

    def steps(self, rng: Draws) -> Iterator[Step]:
        """The turns of one session."""
        turns = _number(self.turns, rng)
        yield Step()
        for turn in range(1, turns):
            think_s = float(self.think_time.seconds_at(np.array([rng.random()]))[0])
            yield Step((turn - 1,), think_s, turn - 1)


class Chains(Spec):
    """Agents: a first request, then `rounds` times `fan_out` calls and, when all are answered, a
    request that goes on with the grown context.

    A call takes `tool_latency`, and where `calls` is agents (or below the top of a `depth` above
    1) then a sub-agent works: one request at the lowest level, else a chain of its own. `parallel`
    calls start together, others one after the other. What a tool returns has `result` tokens, what
    an agent returns is its last answer.
    """

    calls: Literal["agents", "tools"] = "agents"
    fan_out: LengthChoice = Fixed.default(tokens=2)
    rounds: LengthChoice = Fixed.default(tokens=1)
    depth: int = Field(1, ge=1, le=4)
    parallel: bool = True
    tool_latency: DurationChoice = FixedTime.default(seconds=0.0)
    result: LengthChoice = Fixed.default(tokens=128)

    def steps(self, rng: Draws) -> Iterator[Step]:
        """The requests of one chain, each after all that it waits for."""
        found: list[Step] = []
        self._agent(found, rng, self.depth, (), 0.0)
        return iter(found)

    def _agent(
        self, found: list[Step], rng: Draws, depth: int, after: tuple[int, ...], delay_s: float
    ) -> int:
        """Add an agent's requests; the number of its last one."""
        found.append(Step(after, delay_s))
        last = len(found) - 1
        if last >= MOST_STEPS:
            raise InputError("workload.chains", f"must have at most {MOST_STEPS} requests a chain")
        if depth == 0:
            return last
        for _ in range(_number(self.rounds, rng)):
            calls = _number(self.fan_out, rng)
            if self.calls == "tools" and depth == 1:
                last = self._tools(found, rng, last, calls)
            else:
                last = self._agents(found, rng, last, calls, depth - 1)
        return last

    def _tools(self, found: list[Step], rng: Draws, last: int, calls: int) -> int:
        times_s = [self._latency(rng) for _ in range(calls)]
        tokens = sum(_number(self.result, rng) for _ in range(calls))
        delay_s = max(times_s) if self.parallel else sum(times_s)
        found.append(Step((last,), delay_s, last, (), tokens))
        return len(found) - 1

    def _agents(self, found: list[Step], rng: Draws, last: int, calls: int, depth: int) -> int:
        answers: list[int] = []
        for _ in range(calls):
            after = last if self.parallel or not answers else answers[-1]
            answers.append(self._agent(found, rng, depth, (after,), self._latency(rng)))
        found.append(Step(tuple(answers), 0.0, last, tuple(answers), 0))
        return len(found) - 1

    def _latency(self, rng: Draws) -> float:
        return float(self.tool_latency.seconds_at(np.array([rng.random()]))[0])


def _number(choice: LengthChoice, rng: Draws) -> int:
    return int(choice.tokens_at(np.array([rng.random()]))[0])
