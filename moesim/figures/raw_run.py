"""RawRun: what a simulation leaves behind, as arrays; moesim.results makes tables of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.gaps import GapBlocks
from moesim.sim.faults import FaultLog
from moesim.sim.rebalancing import RebalanceLog
from moesim.sim.step_folding import FoldedSteps
from moesim.workload.groups import Groups
from moesim.workload.threads import Threads


@dataclass(frozen=True, eq=False)
class PoolRun:
    """A pool of a run with disaggregation: its GPUs, and the shape of its replicas."""

    name: str
    gpus: int
    replicas: int
    ranks: int  # attention ranks of a replica
    stages: int
    memory: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class RawRun:
    """What the simulation leaves: request rows (REQUEST), step rows (STEP), token times.

    In a streaming run `folded` has the steps' sums, `steps` a row of each stretch of them, and
    `gaps` what token times would show, which are not kept.
    """

    requests: NDArray[Any]
    steps: NDArray[Any]
    token_s: NDArray[np.float64]
    rank_tokens_LR: NDArray[np.float64]
    rank_active_LR: NDArray[np.float64]
    routed_ids: int
    counted_steps: int
    ranks_per_replica: int
    background_finish_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    threads: Threads | None = None
    groups: Groups | None = None
    gaps: GapBlocks | None = None
    folded: FoldedSteps | None = None
    tiers: Mapping[str, Mapping[str, float]] | None = None  # what lower memories delivered
    faults: tuple[FaultLog, ...] | None = None
    outages: tuple[tuple[int, float, float], ...] | None = None  # (replica, from, to)
    rebalances: tuple[RebalanceLog, ...] | None = None
    # Replicas started, switched off, and (replica, from, to) of all that was paid for.
    scaling: tuple[int, int, tuple[tuple[int, float, float], ...]] | None = None
    pools: tuple[PoolRun, ...] = ()  # prefill, decode; empty where every replica does both
    handed: NDArray[Any] | None = None  # HANDED rows of their requests
    decode_start_s: NDArray[np.float64] | None = None  # first step in the decode pool
