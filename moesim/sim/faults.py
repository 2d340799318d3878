"""Faults: what fails in simulated time, and how the deployment gets over it.

Each fault is a process: it changes arrays between steps, and the next step is priced by them. A
replica whose GPU dies stands still at once, is noticed to after `detect_s`, and then either starts
anew as a whole or goes on without the dead rank (sim/masks.py) until that has come back.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.policies.faults import FOREVER_S, FaultPlan, Strike
from moesim.sim.clock import at
from moesim.sim.cost_tables import Condition
from moesim.sim.fleet import Fleet
from moesim.sim.frontend import FrontEnd
from moesim.sim.loading import Loading
from moesim.sim.masks import Masks
from moesim.sim.offload import Offload
from moesim.sim.state import Record
from moesim.sim.stop import forget_progress, requeue_prompts, take_requests

# Of Condition: how much slower GPUs and links are; the rest says where experts are.
FACTORS = (
    "attention_slow_KBD",
    "expert_slow_KBR",
    "up_slow_KR",
    "out_slow_KR",
    "worst_up_K",
    "worst_out_K",
)

Process = Generator[simpy.Event, None, None]


@dataclass
class FaultLog:
    """What came of a fault on one replica; times are NaN where there is none."""

    fault: int
    kind: str
    replica: int
    rank: int  # GPU of the replica; the first of several
    node: int
    at_s: float
    answer: str  # restart, elastic, slow, drain, or none where it met nobody
    detected_s: float = np.nan
    recovered_s: float = np.nan
    retried: int = 0
    lost: int = 0
    recomputed_tokens: int = 0


class Faults:
    """Carries a plan out; `log` and `outages` say what happened.

    outages: (replica, from, to) of all times in which a replica stood still.
    """

    def __init__(
        self,
        env: simpy.Environment,
        fleet: Fleet,
        front: FrontEnd,
        plan: FaultPlan,
        condition: Condition,
        record: Record,
        rng: np.random.Generator,
        offload: Offload | None = None,
        masks: Masks | None = None,
        loading: Loading | None = None,
    ) -> None:
        self.env = env
        self.fleet = fleet
        self.front = front
        self.plan = plan
        self.condition = condition
        self.record = record
        self.offload = offload
        self.masks = masks
        self.loading = loading  # None: links and storage are nobody else's
        self.state = fleet.state
        replicas = fleet.state.replicas.size
        self.replicas = replicas
        self.ranks = int(fleet.state.rules[0]["ranks"])
        self.log: list[FaultLog] = []
        self.outages: list[tuple[int, float, float]] = []
        self._restarts = [0] * replicas  # a repair under way ends when another takes over
        self._down = [False] * replicas  # whether it starts anew, or is away
        self._stopped_s = [np.nan] * replicas
        self._slow: list[Strike] = []
        experts = fleet.state.experts
        self._caches: list[NDArray[Any]] = [experts.held_KLP, experts.order_KLP, experts.uses_KLP]
        self._cold_caches = [table.copy() for table in self._caches]
        self._faults = 1 + max((strike.fault for strike in plan.strikes), default=-1)
        for strike in plan.strikes:
            env.process(self._script(strike))
        nodes = -(-replicas * plan.replica_gpus // plan.gpus_per_node)
        if plan.gpu_mtbf_s is not None:
            mean_s = plan.gpu_mtbf_s / (replicas * plan.replica_gpus)
            env.process(self._draw(mean_s, rng.spawn(1)[0], replicas * plan.replica_gpus, "gpu"))
        if plan.node_mtbf_s is not None:
            env.process(self._draw(plan.node_mtbf_s / nodes, rng.spawn(1)[0], nodes, "node"))

    def _script(self, strike: Strike) -> Process:
        yield at(self.env, strike.at_s)
        if not self.front.over():
            yield from self._strike(strike)

    def _draw(self, mean_s: float, rng: np.random.Generator, things: int, what: str) -> Process:
        """Failures at exponential intervals, each of a thing chosen alike, while requests last."""
        while True:
            yield at(self.env, self.env.now + rng.exponential(mean_s))
            thing = int(rng.integers(things))
            if self.front.over():
                return
            fault, self._faults = self._faults, self._faults + 1
            for strike in self._strikes(fault, thing, what):
                self.env.process(self._strike(strike))

    def _strikes(self, fault: int, thing: int, what: str) -> Sequence[Strike]:
        if what == "node":
            return self.plan.strike_node(fault, self.env.now, thing, self.replicas)
        k, gpu = divmod(thing, self.plan.replica_gpus)
        return (Strike(fault, self.env.now, "rank-failure", k, (gpu,)),)

    def _strike(self, strike: Strike) -> Process:
        log = FaultLog(
            strike.fault,
            strike.kind,
            strike.replica,
            strike.gpus[0],
            strike.node,
            self.env.now,
            answer="none",
        )
        self.log.append(log)
        if strike.kind == "rank-failure":
            yield from self._fail(strike, log)
        elif strike.kind == "node-drain":
            yield from self._drain(strike, log)
        else:
            yield from self._slow_down(strike, log)

    def _fail(self, strike: Strike, log: FaultLog) -> Process:
        """A GPU dies: its whole group stands still until somebody has noticed."""
        k = strike.replica
        lost_ranks = {self._attention_rank(gpu) for gpu in strike.gpus}
        if self._down[k] or "off" in self.front.closed[k] or self._masks_all(k, lost_ranks):
            return
        self._stop(k)
        restarts = self._restarts[k]
        yield at(self.env, self.env.now + self.plan.detect_s)
        if self._restarts[k] != restarts:  # a restart has done away with it
            return
        log.detected_s = self.env.now
        if self.masks is not None and self.masks.mask(k, lost_ranks):
            yield from self._go_on_without(k, lost_ranks, restarts, log)
        else:
            yield from self._start_anew(k, 0.0, log)

    def _attention_rank(self, gpu: int) -> int:
        return gpu % self.plan.stage_gpus // self.plan.attention_tp

    def _masks_all(self, k: int, ranks: set[int]) -> bool:
        return self.masks is not None and ranks <= self.masks.masked[k]

    def _stop(self, k: int) -> None:
        self.fleet.stop(k)
        if np.isnan(self._stopped_s[k]):
            self._stopped_s[k] = self.env.now

    def _go_on(self, k: int) -> None:
        self.fleet.go_on(k)
        if self.state.replicas[k]["stopped"] == 0:
            self.outages.append((k, self._stopped_s[k], self.env.now))
            self._stopped_s[k] = np.nan

    def _start_anew(self, k: int, away_s: float, log: FaultLog) -> Process:
        """All of replica k is lost but its GPUs' places; after `away_s` it starts."""
        log.answer = "restart"
        self._restarts[k] += 1
        restarts = self._restarts[k]
        self._down[k] = True
        self.front.close(k, "fault")
        if self.masks is not None:
            self.masks.unmask_all(k)
        for d in range(self.ranks):
            self.front.over_ranks[k].open[d] = True
        self._give_up(k, range(self.ranks), log)
        for table, cold in zip(self._caches, self._cold_caches, strict=True):
            table[k : k + 1] = cold[k : k + 1]
        if self.loading is None:
            yield at(self.env, self.env.now + (away_s + self.plan.restart_s))
        else:
            self.loading.cancel(k)
            yield at(self.env, self.env.now + away_s)
            if self._restarts[k] == restarts:
                yield from self._start(k, range(self.plan.replica_gpus), self.loading)
        if self._restarts[k] != restarts:
            return
        log.recovered_s = self.env.now
        self._down[k] = False
        self.state.replicas[k]["stopped"] = 1
        self._go_on(k)
        self.front.open(k, "fault")

    def _go_on_without(self, k: int, dead: set[int], restarts: int, log: FaultLog) -> Process:
        """The other ranks go on after a while; the dead one joins them when it has started."""
        assert self.masks is not None
        log.answer = "elastic"
        for d in sorted(dead):
            self.front.over_ranks[k].close(d)
        self._give_up(k, sorted(dead), log)
        ready = None
        if self.loading is not None:
            gpus = [g for g in range(self.plan.replica_gpus) if self._attention_rank(g) in dead]
            ready = self.env.process(self._start(k, gpus, self.loading))
        yield from self._fetch_experts(k)
        if self._restarts[k] != restarts:
            return
        requeue_prompts(self.state, k)
        self._go_on(k)
        if ready is not None:
            yield ready
        else:
            yield at(self.env, max(self.env.now, log.detected_s + self.plan.restart_s))
        if self._restarts[k] != restarts:
            return
        log.recovered_s = self.env.now
        self.masks.unmask(k, dead)
        # Who found no room while memory was lent to experts may have it now.
        self.state.replicas[k]["stopped"] += 1
        self.fleet.go_on(k)
        for d in dead:
            self.front.over_ranks[k].open[d] = True

    def _start(self, k: int, gpus: Sequence[int], loading: Loading) -> Process:
        """Load the weights of GPUs of replica k over the fabric, and start their engine."""
        yield loading.load(k, dict.fromkeys(gpus, self.plan.weights_bytes))
        yield at(self.env, self.env.now + self.plan.start_s)

    def _fetch_experts(self, k: int) -> Process:
        """Load the experts that were only on dead ranks to the others of replica k."""
        assert self.masks is not None
        new_R = self.masks.new_bytes(k)
        if self.loading is None:
            fetched_s = float(new_R.max(initial=0.0)) / self.plan.load_bytes_per_s
            yield at(self.env, self.env.now + self.plan.mask_s + fetched_s)
            return
        yield at(self.env, self.env.now + self.plan.mask_s)
        yield self.loading.load(k, {int(r): float(new_R[r]) for r in np.flatnonzero(new_R)})

    def _drain(self, strike: Strike, log: FaultLog) -> Process:
        """No new requests; after `drain_s` the rest moves, and the replica is away for a while."""
        k = strike.replica
        if "drain" in self.front.closed[k] or "off" in self.front.closed[k]:
            return
        log.detected_s = self.env.now
        self.front.close(k, "drain")
        yield at(self.env, self.env.now + strike.drain_s)
        if not self._down[k]:
            self._stop(k)
        yield from self._start_anew(k, strike.duration_s, log)
        log.answer = "drain"
        self.front.open(k, "drain")

    def _slow_down(self, strike: Strike, log: FaultLog) -> Process:
        log.answer = "slow"
        self._slow.append(strike)
        self._set_factors(strike.replica)
        if strike.duration_s >= FOREVER_S:
            return
        yield at(self.env, self.env.now + strike.duration_s)
        log.recovered_s = self.env.now
        self._slow.remove(strike)
        self._set_factors(strike.replica)

    def _set_factors(self, k: int) -> None:
        """Factors of replica k from what slows it down now."""
        condition, plan = self.condition, self.plan
        for name in FACTORS:
            getattr(condition, name)[k] = 1.0
        for strike in self._slow:
            if strike.replica != k:
                continue
            for gpu in strike.gpus:
                stage, place = divmod(gpu, plan.stage_gpus)
                r = place // plan.moe_tp
                if strike.kind == "slow-rank":
                    d = place // plan.attention_tp
                    attention = condition.attention_slow_KBD[k, stage]
                    attention[d] = max(attention[d], strike.factor)
                    experts = condition.expert_slow_KBR[k, stage]
                    experts[r] = max(experts[r], strike.factor)
                    continue
                out = strike.link == "scale-out"
                link = (condition.out_slow_KR if out else condition.up_slow_KR)[k]
                link[r] = max(link[r], strike.factor)
        condition.up_slow_KR[k].max(out=condition.worst_up_K[k : k + 1], axis=0, keepdims=True)
        condition.out_slow_KR[k].max(out=condition.worst_out_K[k : k + 1], axis=0, keepdims=True)

    def _give_up(self, k: int, ranks: Sequence[int], log: FaultLog) -> None:
        """Take the requests away from attention ranks of replica k: ask again, or lose them."""
        found: list[int] = []
        for d in ranks:
            g = k * self.ranks + d
            found += take_requests(self.state, g)
            if self.offload is not None:
                self.offload.forget(g)
        again, lost = [], []
        for request in sorted(found):
            moved = log.kind == "node-drain"
            tries = int(self.state.requests[request]["retries"])
            retry = self.plan.on_failure == "retry" and tries < self.plan.max_retries
            if not (retry or moved):
                lost.append(request)
                continue
            log.recomputed_tokens += forget_progress(self.state, self.record, request)
            self.state.requests[request]["retries"] += 1
            again.append(request)
        log.retried += len(again)
        log.lost += len(lost)
        self.front.resubmit(again)
        self.front.lose(lost)
