"""One `moesim calibrate kernels`: a deployment, this machine, and what to measure on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.kernels.count_vectors import Batches
from calibration.kernels.device import Device, gpu_name
from calibration.kernels.grid import FULL, GROUPS, QUICK, TINY, Grid, Target, plan
from calibration.kernels.measure import Tell, estimated_s, measure_points
from calibration.kernels.points import Point, PointStore
from calibration.kernels.tables import write_kernels
from calibration.kernels.timing import CPU_EFFORT, FULL_EFFORT, QUICK_EFFORT, Effort
from moesim.deployment import Deployment, deploy
from moesim.engine import GRAPH_SIZES, most_step_tokens
from moesim.errors import InputError
from moesim.hardware import GPU, load_gpu
from moesim.routing.source import open_routing
from moesim.scenario import Scenario
from moesim.workload.demand import DemandStreams, draw_demand

SUFFIX, POINTS_SUFFIX = ".safetensors", ".points.jsonl"
# Steps of a static batch may be as large as all prompts together: enough for their GEMMs' slope.
MOST_TOKENS = 65_536


@dataclass(frozen=True)
class Session:
    """Everything that is known before the first point is measured."""

    device: Device
    gpu: GPU
    points: tuple[Point, ...]
    effort: Effort
    notes: tuple[str, ...]
    out: Path

    @property
    def points_file(self) -> Path:
        """Where measured points are kept, beside the profile."""
        return self.out.with_name(self.out.name.removesuffix(SUFFIX) + POINTS_SUFFIX)

    def open_store(self, restart: bool = False) -> PointStore:
        """The points measured so far; `restart` drops them."""
        if restart:
            self.points_file.unlink(missing_ok=True)
        return PointStore(self.points_file, self.device.machine() | {"gpu": self.gpu.name})

    def estimated_s(self, store: PointStore) -> float:
        """About how long the points take that the store does not have."""
        return estimated_s(self.device, self.gpu, store.todo(self.points), self.effort)

    def measure(self, store: PointStore, tell: Tell) -> None:
        """Measure what the store lacks; what was measured is kept when this is interrupted."""
        measure_points(self.device, self.gpu, self.points, store, self.effort, tell)

    def write(self, store: PointStore) -> None:
        """Write the profile from all points of the store."""
        tests_only = not self.device.is_cuda
        write_kernels(self.out, self.gpu.name, store.known, self.device.state(), tests_only)


def model_scenario(
    model: str, gpu: str, attention_tp: int, attention_dp: int, expert_parallel: int
) -> Scenario:
    """A scenario for a model alone, with one request of 16,384 tokens or the model's longest."""
    return Scenario.parse(
        {
            "name": f"kernels of {Path(model).name}",
            "model": model,
            "cluster": {"gpu": gpu, "nodes": -(-attention_tp * attention_dp // 8)},
            "deployment": {
                "profile": "assumed",
                "parallelism": {
                    "attention_tp": attention_tp,
                    "attention_dp": attention_dp,
                    "expert_parallel": expert_parallel,
                },
            },
            "workload": {
                "arrivals": "all_at_once",
                "requests": 1,
                "prompt": {"fixed": 16_000},
                "output": {"fixed": 384},
            },
        }
    )


def prepare(
    scenario: Scenario,
    device: Device,
    out: Path,
    quick: bool = False,
    trace: str | None = None,
    groups: Sequence[str] = GROUPS,
    asked_gpu: str | None = None,
) -> Session:
    """The points of a scenario's deployment on this device.

    `trace` takes the place of the scenario's routing. Raises InputError.
    """
    if out.suffix != SUFFIX:
        raise InputError("--out", f"must end in {SUFFIX}", str(out))
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise InputError("--only", f"must be of {', '.join(GROUPS)}", unknown[0])
    # A CPU may stand for any GPU; a GPU only for itself.
    gpu = load_gpu(
        gpu_name(device, asked_gpu or (None if device.is_cuda else scenario.cluster.gpu))
    )
    if scenario.cluster.gpu != gpu.name:
        raise InputError(
            "cluster.gpu", f"must be this machine's ({gpu.name})", scenario.cluster.gpu
        )
    bare = scenario.deployment.model_copy(update={"kernels": None, "profile": "assumed"})
    scenario = scenario.model_copy(update={"deployment": bare})
    deployment = deploy(scenario)
    grid, effort = _grid(device, quick)
    batches, notes = _batches(scenario, deployment, trace, groups)
    target = _target(scenario, deployment, device)
    points, left_out = plan(target, grid, batches, groups)
    if not points:
        raise InputError("--only", "leaves nothing to measure", ", ".join(groups))
    told = (*notes, *(f"not measured: {each}" for each in left_out))
    return Session(device, gpu, tuple(points), effort, told, out)


def _grid(device: Device, quick: bool) -> tuple[Grid, Effort]:
    if not device.is_cuda:
        return TINY, CPU_EFFORT
    return (QUICK, QUICK_EFFORT) if quick else (FULL, FULL_EFFORT)


def _batches(
    scenario: Scenario, deployment: Deployment, trace: str | None, groups: Sequence[str]
) -> tuple[Batches | None, tuple[str, ...]]:
    """Batches of routing where experts are measured, and what to know of the trace."""
    routing, model = scenario.routing, deployment.model
    if not model.is_moe or "experts" not in groups:
        return None, ()
    opened, ids_TLK, notes = open_routing(
        trace or routing.trace, routing.tokens, model, scenario.seed
    )
    return Batches(ids_TLK, model.experts, opened.model, scenario.seed), notes


def _target(scenario: Scenario, deployment: Deployment, device: Device) -> Target:
    """The largest sizes of the scenario's steps."""
    model = deployment.model
    demand = draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    total: Any = demand.prompt_tokens.astype(np.int64) + demand.output_tokens
    limits = deployment.token_budget, deployment.max_requests, model.max_context
    rank_tokens = max(GRAPH_SIZES[-1], most_step_tokens(scenario, *limits))
    return Target(
        model,
        deployment.sharding,
        deployment.precision,
        min(rank_tokens, MOST_TOKENS),
        deployment.max_requests,
        int(min(max(1, int(total.max(initial=1))), model.max_context)),
        int(deployment.memory.kv_capacity_tokens),
        device.devices,
        device.fp8,
    )
