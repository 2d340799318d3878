"""FrontEnd: where requests arrive, and the load balancers that send them on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.policies.load_balancing import LoadBalancer, Loads
from moesim.sim.balancing import (
    Balancing,
    build_balancing,
    is_compiled,
    last_tick,
    no_balancing,
)
from moesim.sim.clock import URGENT, at
from moesim.sim.door import open_door
from moesim.sim.fleet import Fleet
from moesim.sim.gate import Gate
from moesim.sim.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_FLIGHT,
    LOST,
    REJECTED,
    STATIC,
    State,
)
from moesim.sim.waits import Waits


class Balancer:
    """One load balancer over n groups of attention ranks, with its possibly old view of them."""

    def __init__(
        self,
        policy: LoadBalancer,
        fleet: Fleet,
        ranks_nm: NDArray[np.int64],
        prefix_blocks: int,
        rng: np.random.Generator,
    ) -> None:
        self.policy = policy
        self.fleet = fleet
        self.ranks_nm = ranks_nm  # [n candidates, m ranks of each]
        self.rng = rng
        self.number = 0
        self.sent = np.zeros(len(ranks_nm), np.int64)
        affine = getattr(policy, "policy", "") == "prefix-affinity"
        self.seen = np.zeros((len(ranks_nm), prefix_blocks if affine else 0), np.bool_)
        self.open = np.ones(len(ranks_nm), np.bool_)  # who may be chosen; one at least
        self.refresh()

    def refresh(self) -> None:
        """Take a new snapshot of the candidates' queues."""
        ranks = self.fleet.state.ranks[self.ranks_nm]
        capacity = float(self.fleet.state.rules[0]["kv_capacity_bytes"]) * self.ranks_nm.shape[1]
        free = (ranks["kv_free_bytes"] + ranks["kv_idle_bytes"]).sum(axis=1)
        self.waiting = _waiting(ranks).astype(np.int64)
        self.running = ranks["running"].sum(axis=1).astype(np.int64)
        self.kv_used_fraction = 1.0 - free / capacity
        self.sent[:] = 0

    @property
    def busy(self) -> bool:
        """Whether the snapshot shows a request anywhere."""
        return bool((self.waiting + self.running).any())

    def choose(self, request: int) -> int:
        """The candidate for a request."""
        here = np.flatnonzero(self.open)
        n = here.size
        if n == 1:
            return int(here[0])
        fresh = self.policy.snapshot_interval_s == 0.0
        if fresh:
            self.refresh()
        row = self.fleet.state.requests[request]
        blocks = self.fleet.state.prefix_blocks[
            row["prefix_start"] : row["prefix_start"] + row["prefix_count"]
        ]
        matched = np.zeros(n, np.int64)
        if self.seen.size and blocks.size:
            matched = np.logical_and.accumulate(self.seen[here][:, blocks], axis=1).sum(axis=1)
        waiting, running = self.waiting[here], self.running[here]
        in_flight = waiting + running
        if not fresh:
            ranks = self.fleet.state.ranks[self.ranks_nm[here]]
            in_flight = _waiting(ranks) + ranks["running"].sum(axis=1)
        loads = Loads(
            number=self.number,
            waiting=waiting,
            running=running,
            kv_used_fraction=self.kv_used_fraction[here],
            sent=self.sent[here],
            in_flight=in_flight,
            prefix_blocks=matched,
            rng=self.rng,
        )
        chosen = self.policy.choose(loads)
        if not 0 <= chosen < n:
            raise InputError("load balancing", f"must choose a candidate from 0 to {n - 1}", chosen)
        chosen = int(here[chosen])
        self.number += 1
        self.sent[chosen] += 1
        if self.seen.size and blocks.size:
            self.seen[chosen, blocks] = True
        return chosen

    def close(self, candidate: int) -> None:
        """Choose this candidate no more; what it was sent before is forgotten."""
        self.open[candidate] = False
        self.seen[candidate] = False


def _balancing(over_replicas: Balancer, over_ranks: list[Balancer], state: State) -> Balancing:
    """The same load balancers in compiled code, before they have chosen for anybody."""
    if state.ranks.size == 1:
        return no_balancing()
    each = [over_replicas, *over_ranks]
    return build_balancing(
        [balancer.policy for balancer in each],
        [balancer.ranks_nm for balancer in each],
        (over_replicas.rng, over_ranks[0].rng),
        state.requests.size,
        state.prefix_refs.shape[1],
    )


def _waiting(ranks: NDArray[Any]) -> NDArray[Any]:
    """Requests that have come to each row of ranks and do not run yet."""
    waiting = ranks["waiting"] + ranks["inbox"] + ranks["coming"] + ranks["landed"]
    return waiting.sum(axis=1, dtype=np.int64)


class FrontEnd:
    """Lets requests in at their times, or as others end, and hands each to an attention rank.

    `deliver` takes a request and its rank where the fleet itself does not; who does so calls
    `completed` with those that end, and may have load balancers of its own, `others`.
    `replicas_change`: replicas may come and go (sim/faults.py, sim/autoscaler.py). While there is
    none, requests are held, or lost if `hold` is false.
    """

    def __init__(
        self,
        env: simpy.Environment,
        fleet: Fleet,
        over_replicas: Balancer,
        over_ranks: list[Balancer],
        delay_s: float,
        concurrency: int | None,
        waits: Waits | None = None,
        gate: Gate | None = None,
        replicas_change: bool = False,
        hold: bool = True,
        deliver: Callable[[int, int], None] | None = None,
        others: Sequence[Balancer] = (),
    ) -> None:
        self.env = env
        self.fleet = fleet
        self.over_replicas = over_replicas
        self.over_ranks = over_ranks
        self.delay_s = delay_s
        self.concurrency = concurrency
        self.waits = waits
        self.gate = gate
        self.replicas_change = replicas_change
        self.hold = hold
        self.deliver = deliver or fleet.enqueue
        self.goes_on = deliver is not None  # requests are not over when the fleet is done with them
        self.held: list[int] = []
        # Why each replica is not offered to the load balancer.
        self.closed: list[set[str]] = [set() for _ in over_ranks]
        self.requests = fleet.state.requests
        self.fits = fits(fleet.state)
        # Who comes by the arrivals of the workload; the others wait for somebody's end.
        self.first = np.arange(self.requests.size) if waits is None else waits.first
        self.started = 0  # of these, how many have arrived
        self.arrived = 0  # of all, how many have arrived or never will
        nothing_else = not (waits or gate or replicas_change or deliver)
        known = all(is_compiled(balancer.policy) for balancer in (over_replicas, *over_ranks))
        if fleet.leap and nothing_else and known:
            balancing = _balancing(over_replicas, over_ranks, fleet.state)
            fleet.admit_by(open_door(fleet.state, self.fits, delay_s, concurrency, balancing))
            return
        if self.listens and not self.goes_on:
            fleet.on_completion = self.completed
        env.process(self._fill(concurrency) if concurrency else self.run())
        choosing = [b for b in (over_replicas, *over_ranks, *others) if len(b.ranks_nm) > 1]
        for interval_s in sorted({b.policy.snapshot_interval_s for b in choosing} - {0.0}):
            looking = [b for b in choosing if b.policy.snapshot_interval_s == interval_s]
            env.process(self._refresh(interval_s, looking))

    @property
    def listens(self) -> bool:
        """Whether the end of a request lets another one come."""
        return bool(self.concurrency) or self.waits is not None

    def run(self) -> Generator[simpy.Event, None, None]:
        """Wait for each request's arrival, tokenise it, hand it on; until none is left."""
        arrival_s = self.requests["arrival_s"]
        for request in self.first.tolist():
            yield at(self.env, float(arrival_s[request]) + self.delay_s)
            self.started += 1
            self.arrived += 1
            self._hand_on(request)

    def _fill(self, concurrency: int) -> Generator[simpy.Event, None, None]:
        """Closed loop: start as many requests as may be in flight."""
        for _ in range(min(concurrency, self.first.size)):
            self._start_next()
        yield at(self.env, self.env.now)

    def completed(self, done: list[int]) -> None:
        """Requests have been completed."""
        for request in done:
            self._ended(request, True)

    def _ended(self, request: int, completed: bool) -> None:
        """A request has ended: who waited for it may come; in a closed loop the next one starts."""
        over = True
        if self.waits is not None:
            released = self.waits.ended(request, completed)
            over = released.thread_over
            self.requests["status"][released.cancelled] = CANCELLED
            self.arrived += len(released.cancelled)
            for waiter, delay_s in released.ready:
                self.env.process(self._follow(waiter, delay_s))
        if self.concurrency and over:
            self._start_next()

    def _start_next(self) -> None:
        if self.started < self.first.size:
            self.env.process(self._arrive(int(self.first[self.started])))
            self.started += 1

    def _follow(self, request: int, delay_s: float) -> Generator[simpy.Event, None, None]:
        yield at(self.env, self.env.now + delay_s)
        yield from self._arrive(request)

    def _arrive(self, request: int) -> Generator[simpy.Event, None, None]:
        self.requests[request]["arrival_s"] = self.env.now
        self.arrived += 1
        yield at(self.env, self.env.now + self.delay_s)
        self._hand_on(request)

    def _hand_on(self, request: int) -> None:
        """Choose replica and rank; refuse what could never fit or is too much."""
        if not self.fits[request]:
            self._refuse(request, FAILED)
            return
        if self.gate is not None and not self.gate.within_rate(request, self.env.now):
            self._refuse(request, REJECTED)
            return
        self._send(request)

    def _send(self, request: int) -> None:
        """To a replica that takes it, if there is one."""
        if not self.over_replicas.open.any():
            if self.hold:
                self.held.append(request)
            else:
                self._refuse(request, LOST)
            return
        k = self.over_replicas.choose(request)
        if self.gate is not None:
            # Who was let in once comes back.
            if self.requests[request]["retries"] > 0:
                self.gate.leave(request)
            elif not self.gate.has_room(k):
                self._refuse(request, REJECTED)
                return
            self.gate.enter(request, k)
        d = self.over_ranks[k].choose(request)
        self.deliver(request, int(self.over_ranks[k].ranks_nm[d, 0]))

    def _refuse(self, request: int, status: int) -> None:
        if status == LOST and self.gate is not None:  # it had been let in
            self.gate.leave(request)
        self.requests[request]["status"] = status
        self._ended(request, False)

    def close(self, k: int, reason: str) -> None:
        """Send nobody to replica k while there is a reason not to."""
        self.closed[k].add(reason)
        self.over_replicas.close(k)
        for d in range(len(self.over_ranks[k].ranks_nm)):
            self.over_ranks[k].seen[d] = False

    def open(self, k: int, reason: str) -> None:
        """One reason is gone; after the last, replica k gets what was held."""
        self.closed[k].discard(reason)
        if self.closed[k]:
            return
        self.over_replicas.open[k] = True
        held, self.held = self.held, []
        for request in held:
            self._send(request)

    def is_on(self, k: int) -> bool:
        """Whether replica k has its weights, as far as anybody knows."""
        return not self.closed[k] & {"fault", "off"}

    def resubmit(self, requests: list[int]) -> None:
        """Requests that were taken away from a replica come again, by way of the tokeniser."""
        if requests:
            self.env.process(self._again(requests))

    def _again(self, requests: list[int]) -> Generator[simpy.Event, None, None]:
        yield at(self.env, self.env.now + self.delay_s)
        for request in requests:
            self._send(request)

    def lose(self, requests: list[int]) -> None:
        """Requests end with their replica."""
        for request in requests:
            self._refuse(request, LOST)

    def over(self) -> bool:
        """Whether every request has ended."""
        return self.arrived >= self.requests.size and bool(
            (self.requests["status"] >= COMPLETED).all()
        )

    def _all_sent(self) -> bool:
        lasts = self.replicas_change or self.goes_on
        return self.over() if lasts else self.arrived >= self.requests.size

    def _refresh(
        self, interval_s: float, balancers: list[Balancer]
    ) -> Generator[simpy.Event, None, None]:
        """Take snapshots at a fixed interval while requests still come."""
        tick = 0
        while not self._all_sent():
            for balancer in balancers:
                balancer.refresh()
            tick += 1
            jumps = self._by_events or not self.concurrency
            if jumps and not any(balancer.busy for balancer in balancers):
                # Idle queues look the same until the next request, which may be days away.
                next_s = self._next_s()
                if next_s == np.inf:
                    return
                tick = max(tick, last_tick(next_s, interval_s))
            yield at(self.env, tick * interval_s, URGENT)

    @property
    def _by_events(self) -> bool:
        """Whether requests come by more than their own times."""
        return self.waits is not None or self.replicas_change or self.goes_on

    def _next_s(self) -> float:
        """No request reaches an idle queue before this."""
        if self._by_events:
            return self.env.peek()
        return float(self.requests["arrival_s"][self.arrived]) + self.delay_s


def fits(state: State) -> NDArray[np.bool_]:
    """[N] whether each request could be computed on a rank that has nothing else to do."""
    rules, requests = state.rules[0], state.requests
    prompt = requests["prompt_tokens"].astype(np.int64)
    # The last output token is handed out but never computed on.
    tokens = prompt + requests["output_tokens"] - 1 + rules["drafts"]
    blocks = -(-tokens // rules["block_tokens"])
    windowed = np.minimum(blocks, rules["window_blocks"]) * rules["window_block_bytes"]
    bytes_needed = rules["state_bytes"] + blocks * rules["block_bytes"] + windowed
    fits = bytes_needed <= rules["kv_capacity_bytes"]
    if rules["max_context"] > 0:
        fits &= prompt + requests["output_tokens"] <= rules["max_context"]
    # What computes a prompt in one step: TensorRT-LLM refuses a longer one on arrival.
    whole = rules["policy"] == IN_FLIGHT and not rules["chunked_prefill"]
    whole = whole and rules["remote_kv"] == 0
    if rules["policy"] == STATIC or whole:
        fits &= prompt <= rules["token_budget"]
    return np.asarray(fits)
