"""SimPy at absolute times.

SimPy schedules by delay, and now + (t - now) is not t in floating point. Step boundaries are
computed by compiled code; for runs that leap and runs that do not to agree to the last bit, events
must fire at exactly the times computed.
"""

from __future__ import annotations

from heapq import heappush
from typing import Any

import simpy

URGENT = 0  # before everything else that happens at the same instant (simpy.events.URGENT)
NORMAL = 1  # simpy.events.NORMAL
LOW = 2  # after everything else that happens at the same instant


def at(env: simpy.Environment, time_s: float, priority: int = NORMAL) -> simpy.Event:
    """An event that fires at exactly `time_s` (not before now)."""
    event = simpy.Event(env)
    fire(event, time_s, priority)
    return event


def fire(event: simpy.Event, time_s: float, priority: int = NORMAL, value: object = None) -> None:
    """Let an event that nobody has triggered succeed at exactly `time_s` (not before now)."""
    env = event.env
    event._ok = True
    event._value = value
    queue: list[Any] = env._queue
    heappush(queue, (time_s, priority, next(env._eid), event))
