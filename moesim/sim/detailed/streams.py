"""GPUs as pairs of streams: one computes, one communicates, and each does its work in order.

A stream is a SimPy process that goes through a list, as a CUDA stream does: kernels take their
time, and wait for events of other streams where they need what these bring. What all GPUs of a
group do together is a `Meeting`: it begins when the last of them has come.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple

import simpy

Events = Generator[simpy.Event, object, None]
Slice = Callable[[str, int, str, float, float], None]  # row, GPU, name, start, end

COMPUTE, COMMUNICATION = "compute", "communication"


class Meeting:
    """Something that `members` GPUs of a stage do together: a collective or an exchange.

    A member's data are there once it has posted; it takes part once its stream has come to it.
    `waiting`: the part of a step's time that waiting for the last to post counts as; `moving`: that
    waiting for its end counts as.
    """

    def __init__(
        self,
        env: simpy.Environment,
        name: str,
        members: Iterable[int],
        waiting: str,
        moving: str,
        act: Callable[[], Events],
    ) -> None:
        self.env = env
        self.name = name
        self.waiting = waiting
        self.moving = moving
        self.posted = {g: env.event() for g in members}
        self.done = env.event()
        self.ready_s = float("inf")  # when the last has posted
        self.start_s = self.end_s = float("nan")
        self._act = act
        self._to_post = self._to_join = len(self.posted)

    def post(self, g: int) -> None:
        """The data of GPU g are there."""
        self.posted[g].succeed()
        self._to_post -= 1
        if self._to_post == 0:
            self.ready_s = self.env.now

    def join(self) -> None:
        """A stream has come to it; the last one starts it."""
        self._to_join -= 1
        if self._to_join == 0:
            self.env.process(self._run())

    def _run(self) -> Events:
        self.start_s = self.env.now
        yield from self._act()
        self.end_s = self.env.now
        self.done.succeed()


class Work(NamedTuple):
    """A kernel, or several in a row: which part of a step it counts as, and how long it takes."""

    name: str
    part: str
    seconds: float


class Post(NamedTuple):
    """The stream's results are there for a meeting on the other stream, which it does not await."""

    meeting: Meeting


class Wait(NamedTuple):
    """The stream needs what a meeting brings."""

    meeting: Meeting


class Join(NamedTuple):
    """The stream takes part in a meeting itself, and waits for its end."""

    meeting: Meeting


class Hidden(NamedTuple):
    """Work of lower priority, done while the stream would wait for `first`; what is left of it
    then, while it would wait for `last`, and after that."""

    work: Work
    first: Meeting
    last: Meeting


Item = Work | Post | Wait | Join | Hidden


class Streams:
    """The streams of one GPU during one stage of one step; `spent` adds up the computing one's
    time by part of the step."""

    def __init__(self, env: simpy.Environment, g: int, tell: Slice) -> None:
        self.env = env
        self.g = g
        self.spent: dict[str, float] = {}
        self.end_s = 0.0
        self._tell = tell
        self._left_s: dict[int, float] = {}  # of hidden work, by the meeting that ends it

    def compute(self, items: Iterable[Item]) -> Events:
        """The computing stream."""
        for item in items:
            if isinstance(item, Work):
                yield from self._work(item)
            elif isinstance(item, Post):
                item.meeting.post(self.g)
            elif isinstance(item, Hidden):
                yield from self._hide(item.work, item.first, item.last)
            else:
                if isinstance(item, Join):
                    item.meeting.post(self.g)
                    item.meeting.join()
                yield from self._wait(item.meeting)
        self.end_s = self.env.now

    def idle(self) -> None:
        """The computing stream has had nothing to do since its end: others of the stage had."""
        self._count("attention_imbalance_s", self.env.now - self.end_s)
        self._tell(COMPUTE, self.g, "wait for other GPUs", self.end_s, self.env.now)

    def communicate(self, meetings: Iterable[Meeting]) -> Events:
        """The communicating stream."""
        for meeting in meetings:
            yield meeting.posted[self.g]
            meeting.join()
            yield meeting.done
            self._tell(COMMUNICATION, self.g, meeting.name, meeting.start_s, meeting.end_s)

    def _count(self, part: str, seconds: float) -> None:
        self.spent[part] = self.spent.get(part, 0.0) + seconds

    def _work(self, work: Work) -> Events:
        if work.seconds == 0.0:
            return
        start_s = self.env.now
        yield self.env.timeout(work.seconds)
        self._count(work.part, work.seconds)
        self._tell(COMPUTE, self.g, work.name, start_s, self.env.now)

    def _wait(self, meeting: Meeting) -> Events:
        """What is left of work that hides behind this meeting first, if there is any."""
        left_s = self._left_s.pop(id(meeting), 0.0)
        if left_s > 0.0:
            yield from self._work(Work("shared experts", "dense_s", left_s))
        start_s = self.env.now
        if not meeting.done.processed:
            yield meeting.done
        ready_s = min(max(meeting.ready_s, start_s), self.env.now)
        self._count(meeting.waiting, ready_s - start_s)
        self._count(meeting.moving, self.env.now - ready_s)
        self._tell(COMPUTE, self.g, f"wait for {meeting.name}", start_s, self.env.now)

    def _hide(self, work: Work, first: Meeting, last: Meeting) -> Events:
        start_s = self.env.now
        if work.seconds > 0.0 and not first.done.processed:
            yield simpy.AnyOf(self.env, [self.env.timeout(work.seconds), first.done])
        took_s = min(self.env.now - start_s, work.seconds)
        self._count(work.part, took_s)
        self._tell(COMPUTE, self.g, work.name, start_s, self.env.now)
        self._left_s[id(last)] = work.seconds - took_s
