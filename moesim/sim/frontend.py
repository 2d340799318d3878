"""FrontEnd: where requests arrive, and the load balancers that send them on."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.policies.load_balancing import LoadBalancer, Loads
from moesim.sim.clock import at
from moesim.sim.door import open_door
from moesim.sim.fleet import Fleet
from moesim.sim.state import FAILED, IN_FLIGHT, STATIC, State


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
        self.refresh()

    def refresh(self) -> None:
        """Take a new snapshot of the candidates' queues."""
        ranks = self.fleet.state.ranks[self.ranks_nm]
        capacity = float(self.fleet.state.rules[0]["kv_capacity_bytes"]) * self.ranks_nm.shape[1]
        free = (ranks["kv_free_bytes"] + ranks["kv_idle_bytes"]).sum(axis=1)
        self.waiting = (ranks["waiting"] + ranks["inbox"]).sum(axis=1).astype(np.int64)
        self.running = ranks["running"].sum(axis=1).astype(np.int64)
        self.kv_used_fraction = 1.0 - free / capacity
        self.sent[:] = 0

    @property
    def busy(self) -> bool:
        """Whether the snapshot shows a request anywhere."""
        return bool((self.waiting + self.running).any())

    def choose(self, request: int) -> int:
        """The candidate for a request."""
        n = len(self.ranks_nm)
        if n == 1:
            return 0
        if self.policy.snapshot_interval_s == 0.0:
            self.refresh()
        row = self.fleet.state.requests[request]
        blocks = self.fleet.state.prefix_blocks[
            row["prefix_start"] : row["prefix_start"] + row["prefix_count"]
        ]
        matched = np.zeros(n, np.int64)
        if self.seen.size and blocks.size:
            matched = np.logical_and.accumulate(self.seen[:, blocks], axis=1).sum(axis=1)
        ranks = self.fleet.state.ranks[self.ranks_nm]
        loads = Loads(
            number=self.number,
            waiting=self.waiting,
            running=self.running,
            kv_used_fraction=self.kv_used_fraction,
            sent=self.sent,
            in_flight=(ranks["waiting"] + ranks["inbox"] + ranks["running"]).sum(axis=1),
            prefix_blocks=matched,
            rng=self.rng,
        )
        chosen = self.policy.choose(loads)
        if not 0 <= chosen < n:
            raise InputError("load balancing", f"must choose a candidate from 0 to {n - 1}", chosen)
        self.number += 1
        self.sent[chosen] += 1
        if self.seen.size and blocks.size:
            self.seen[chosen, blocks] = True
        return chosen


class FrontEnd:
    """Lets requests in at their times, or as others end, and hands each to an attention rank."""

    def __init__(
        self,
        env: simpy.Environment,
        fleet: Fleet,
        over_replicas: Balancer,
        over_ranks: list[Balancer],
        delay_s: float,
        concurrency: int | None,
    ) -> None:
        self.env = env
        self.fleet = fleet
        self.over_replicas = over_replicas
        self.over_ranks = over_ranks
        self.delay_s = delay_s
        self.concurrency = concurrency
        self.arrived = 0
        self.requests = fleet.state.requests
        self.fits = _fits(fleet.state)
        if fleet.leap and fleet.state.ranks.size == 1:  # nobody has to choose
            fleet.admit_by(open_door(self.requests, self.fits, delay_s, concurrency))
            return
        if concurrency:
            fleet.on_completion = self._replace
            env.process(self._fill(concurrency))
        else:
            env.process(self.run())
        choosing = [b for b in (over_replicas, *over_ranks) if len(b.ranks_nm) > 1]
        for interval_s in sorted({b.policy.snapshot_interval_s for b in choosing} - {0.0}):
            looking = [b for b in choosing if b.policy.snapshot_interval_s == interval_s]
            env.process(self._refresh(interval_s, looking))

    def run(self) -> Generator[simpy.Event, None, None]:
        """Wait for each request's arrival, tokenise it, hand it on; until none is left."""
        arrival_s = self.requests["arrival_s"]
        for request in range(self.requests.size):
            yield at(self.env, float(arrival_s[request]) + self.delay_s)
            self.arrived += 1
            self._hand_on(request)

    def _fill(self, concurrency: int) -> Generator[simpy.Event, None, None]:
        """Closed loop: start as many requests as may be in flight."""
        for _ in range(min(concurrency, self.requests.size)):
            self._start_next()
        yield at(self.env, self.env.now)

    def _replace(self, done: list[int]) -> None:
        """Closed loop: each request that ended lets the next one start."""
        for _ in done:
            self._start_next()

    def _start_next(self) -> None:
        if self.arrived < self.requests.size:
            self.requests[self.arrived]["arrival_s"] = self.env.now
            self.env.process(self._tokenise(self.arrived))
            self.arrived += 1

    def _tokenise(self, request: int) -> Generator[simpy.Event, None, None]:
        yield at(self.env, self.env.now + self.delay_s)
        self._hand_on(request)

    def _hand_on(self, request: int) -> None:
        """Choose replica and rank; refuse what could never fit."""
        if not self.fits[request]:
            self.requests[request]["status"] = FAILED
            if self.concurrency:
                self._start_next()
            return
        k = self.over_replicas.choose(request)
        d = self.over_ranks[k].choose(request)
        self.fleet.enqueue(request, int(self.over_ranks[k].ranks_nm[d, 0]))

    def _refresh(
        self, interval_s: float, balancers: list[Balancer]
    ) -> Generator[simpy.Event, None, None]:
        """Take snapshots at a fixed interval while requests still come."""
        tick = 0
        while self.arrived < self.requests.size:
            for balancer in balancers:
                balancer.refresh()
            tick += 1
            if not self.concurrency and not any(balancer.busy for balancer in balancers):
                # Idle queues look the same until the next request, which may be days away.
                next_s = float(self.requests["arrival_s"][self.arrived]) + self.delay_s
                tick = max(tick, int(next_s // interval_s))
            yield at(self.env, tick * interval_s)


def _fits(state: State) -> NDArray[np.bool_]:
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
    if rules["policy"] == STATIC or whole:
        fits &= prompt <= rules["token_budget"]
    return np.asarray(fits)
