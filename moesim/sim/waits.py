"""Waits: which requests may be asked now that others have ended."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.workload.threads import Threads


class Released(NamedTuple):
    """What the end of a request sets off."""

    ready: list[tuple[int, float]]  # (request, seconds from now to its arrival)
    cancelled: list[int]  # requests that will never be asked
    thread_over: bool


class Waits:
    """Counts, for each request, the others that it still waits for."""

    def __init__(self, threads: Threads) -> None:
        waits = len(threads.before_M)
        requests = len(threads.thread_N)
        count_N = np.diff(threads.before_start_N1)
        self.missing: list[int] = count_N.tolist()
        self.first = np.flatnonzero(count_N == 0)  # who waits for nobody: one of each thread
        self.delay_s: list[float] = threads.delay_s_N.tolist()
        self.thread: list[int] = threads.thread_N.tolist()
        self.left: list[int] = np.bincount(threads.thread_N).tolist()
        self.gone = [False] * requests
        # The same list the other way round: who waits for each request.
        order_M = np.argsort(threads.before_M, kind="stable")
        waiter_M = np.repeat(np.arange(requests), count_N)
        self.waiters: list[int] = waiter_M[order_M].tolist() if waits else []
        uses = np.bincount(threads.before_M, minlength=requests)
        self.start: list[int] = np.concatenate([[0], np.cumsum(uses)]).tolist()

    def ended(self, request: int, completed: bool) -> Released:
        """A request ended; one that was not completed takes all that wait for it with it."""
        thread = self.thread[request]
        self.left[thread] -= 1
        ready: list[tuple[int, float]] = []
        cancelled: list[int] = []
        for waiter in self._waiters(request):
            if self.gone[waiter]:
                continue
            if not completed:
                self._cancel(waiter, cancelled)
                continue
            self.missing[waiter] -= 1
            if self.missing[waiter] == 0:
                ready.append((waiter, self.delay_s[waiter]))
        self.left[thread] -= len(cancelled)
        return Released(ready, cancelled, self.left[thread] == 0)

    def _waiters(self, request: int) -> list[int]:
        return self.waiters[self.start[request] : self.start[request + 1]]

    def _cancel(self, request: int, cancelled: list[int]) -> None:
        pending = [request]
        while pending:
            one = pending.pop()
            if not self.gone[one]:
                self.gone[one] = True
                cancelled.append(one)
                pending.extend(self._waiters(one))
