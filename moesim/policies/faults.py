"""What fails, when, and what is done about it: the scenario's settings, and the plan of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moesim.spec import Spec, broken_rule

FaultKind = Literal["rank-failure", "slow-rank", "slow-link", "node-drain"]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
FOREVER_S = 1e12


class FaultEvent(Spec):
    """One scripted fault of a GPU of a replica (`replica`, `rank`), or of a whole `node`.

    rank-failure: the GPU dies. slow-rank: it computes `factor` times as long, for `duration_s`
    (null: to the end). slow-link: the same of bytes on its `link`. node-drain: the replicas there
    get no new requests; after `drain_s` they are switched off and their requests move; they start
    again `duration_s` later.
    """

    at_s: Seconds
    kind: FaultKind
    replica: int | None = Field(None, ge=0, le=100_000)
    rank: int | None = Field(None, ge=0, le=100_000)
    node: int | None = Field(None, ge=0, le=100_000)
    factor: float | None = Field(None, ge=1.0, le=1000.0)
    duration_s: float | None = Field(None, ge=0.0, le=1e9)
    drain_s: Seconds = 0.0
    link: Literal["scale-out", "scale-up"] = "scale-out"

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> Self:
        if (self.node is None) == (self.replica is None):
            raise broken_rule("replica", "or node is required, one of them")
        if self.node is not None and self.rank is not None:
            raise broken_rule("rank", "goes with replica: a node fails whole", self.rank)
        slow = self.kind in ("slow-rank", "slow-link")
        if slow != (self.factor is not None):
            raise broken_rule("factor", "is for slow-rank and slow-link, which need it")
        if self.kind in ("rank-failure", "slow-rank", "slow-link"):
            if self.node is None and self.rank is None:
                raise broken_rule("rank", f"is required: {self.kind} is of one GPU")
        elif self.duration_s is None:
            raise broken_rule("duration_s", "is required: for how long the node is away")
        if self.kind == "rank-failure" and self.duration_s is not None:
            raise broken_rule("duration_s", "of a failure follows from detect_s and restart")
        return self


class MeanTimeBetweenFailures(Spec):
    """Failures at random, independent of each other: mean time between two of one GPU or node."""

    gpu_hours: float | None = Field(None, gt=0.0, le=1e9)
    node_hours: float | None = Field(None, gt=0.0, le=1e9)

    @model_validator(mode="after")
    def _something_fails(self) -> Self:
        if self.gpu_hours is None and self.node_hours is None:
            raise broken_rule("gpu_hours", "is required (or node_hours)")
        return self


class Restart(Spec):
    """How long a replica takes to start: weights of a GPU at `load_bytes_per_s`, then `start_s`.

    With `load_from` the bytes take the cluster's ports, at most so fast: from the storage of each
    node, or from the GPUs of another replica. Assumed: 2 GB/s is one of eight GPUs' share of a
    node's disks; engines compile and warm up for about a minute (SGLang issue 33111 measures 46 s
    for DeepGEMM alone, median).
    """

    load_bytes_per_s: float = Field(2e9, gt=0.0, le=1e15)
    start_s: Seconds = 60.0
    load_from: Literal["storage", "peers"] | None = None  # None: nobody else uses the way


class FaultsSpec(Spec):
    """Which faults happen, and how the deployment answers.

    detect_s: until a dead rank is noticed: DeepEP's CPU timeout is 100 s (`config.hpp`), SGLang's
    watchdog 300 s, vLLM's engine_recovery_timeout_sec 120 s. `recovery` restart loads and starts
    the whole replica again; elastic masks the dead rank after `mask_s` (10 s: timeout of
    fault-driven retirement, SGLang issue 33111) and goes on without it until a new one is ready.
    """

    events: Annotated[tuple[FaultEvent, ...], Field(max_length=100_000)] = ()
    mtbf: MeanTimeBetweenFailures | None = None
    detect_s: Seconds = 100.0
    restart: Restart = Restart.default()
    recovery: Literal["restart", "elastic"] = "restart"
    mask_s: Seconds = 10.0
    on_failure: Literal["retry", "lose"] = "retry"
    max_retries: int = Field(3, ge=0, le=1000)
    no_replica: Literal["wait", "lose"] = "wait"


@dataclass(frozen=True)
class Strike:
    """A fault as it meets one replica: `gpus` are numbers within it."""

    fault: int  # number of the fault; those of one node share it
    at_s: float
    kind: FaultKind
    replica: int
    gpus: tuple[int, ...]
    node: int = -1
    factor: float = 1.0
    duration_s: float = FOREVER_S
    drain_s: float = 0.0
    link: str = "scale-out"


@dataclass(frozen=True)
class FaultPlan:
    """What a run needs to know of faults, in its own units.

    GPU i of a replica is GPU i % stage_gpus of pipeline stage i // stage_gpus, where it belongs to
    attention rank i // attention_tp and to expert rank i // moe_tp.
    """

    strikes: tuple[Strike, ...] = ()
    detect_s: float = 0.0
    restart_s: float = 0.0
    recovery: str = "restart"
    mask_s: float = 0.0
    on_failure: str = "retry"
    max_retries: int = 3
    no_replica: str = "wait"
    stage_gpus: int = 1
    replica_gpus: int = 1
    attention_tp: int = 1
    moe_tp: int = 1
    gpus_per_node: int = 1
    gpu_mtbf_s: float | None = None
    node_mtbf_s: float | None = None
    expert_bytes: float = 0.0  # of one expert of one MoE layer, on one GPU
    load_bytes_per_s: float = 1.0
    weights_bytes: float = 0.0  # of one GPU
    start_s: float = 0.0  # of restart_s, what follows when the weights are there

    def strike_node(self, fault: int, at_s: float, node: int, replicas: int) -> tuple[Strike, ...]:
        """The failure of a whole node, as it meets each replica that has a GPU there."""
        first, last = node * self.gpus_per_node, (node + 1) * self.gpus_per_node
        found = []
        for k in range(first // self.replica_gpus, -(-last // self.replica_gpus)):
            start = k * self.replica_gpus
            gpus = range(max(first, start) - start, min(last, start + self.replica_gpus) - start)
            if k < replicas:
                found.append(Strike(fault, at_s, "rank-failure", k, tuple(gpus), node))
        return tuple(found)
