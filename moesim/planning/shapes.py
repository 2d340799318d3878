"""A shape: a deployment whose number of copies is still open, made from a point of the space."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moesim.economics import gpu_hour
from moesim.errors import InputError
from moesim.hardware import load_gpu
from moesim.planning.space import (
    ALL,
    BUDGET,
    EP,
    GPU,
    OWN,
    PLACEMENT,
    POOLS,
    REQUESTS,
    TOGETHER,
    label,
)
from moesim.scenario import Scenario

COUNT = re.compile(r"[1-9][0-9]{0,5}")  # of replicas, of slots


@dataclass(frozen=True, eq=False)
class Shape:
    """`unit`: the scenario with one copy: a replica, or the least pools in the ratio asked for.

    `choices`: value by path, as the space has them. `usd_per_hour` is a copy's.
    """

    choices: Mapping[str, Any]
    unit: Scenario
    gpus: int
    usd_per_gpu_hour: float

    @property
    def usd_per_hour(self) -> float:
        return self.gpus * self.usd_per_gpu_hour

    @property
    def gpu(self) -> str:
        return self.unit.cluster.gpu

    @cached_property
    def key(self) -> str:
        """What tells it from others, as text."""
        return json.dumps({path: label(value) for path, value in self.choices.items()})

    @cached_property
    def but_limits(self) -> str:
        """The same for shapes that differ in batching limits alone; its own with static batches."""
        if self.unit.batching.policy == "static":
            return self.key
        kept = {path: label(value) for path, value in self.choices.items()
                if path not in (BUDGET, REQUESTS)}  # fmt: skip
        return json.dumps(kept)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a runner-up of another kind differs in: GPU, degrees or pools."""
        pools = tuple((of.deployment.parallelism, of.deployment.replicas)
                      for _, of in self.unit.pools())  # fmt: skip
        return (self.gpu, *pools)

    @property
    def name(self) -> str:
        """Short, for people."""
        of = self.unit.deployment.parallelism
        degrees = (("TP", of.attention_tp), ("DP", of.attention_dp), ("EP", of.expert_parallel),
                   ("PP", of.pipeline))  # fmt: skip
        words = [" ".join(f"{name}{n}" for name, n in degrees if n > 1) or "TP1"]
        split = self.unit.deployment.disaggregation
        if split is not None:
            counts = [of.deployment.replicas for _, of in self.unit.pools()]
            words.append(f"{counts[0]} prefill : {counts[1]} decode")
        short = {path.rsplit(".", 1)[-1].replace("_", " "): value
                 for path, value in self.choices.items()
                 if path not in (GPU, POOLS) and "parallelism" not in path}  # fmt: skip
        words += [f"{name} {label(value)}" for name, value in short.items()
                  if value is not None and value != "contiguous"]  # fmt: skip
        return f"{self.gpu} {', '.join(words)}"

    def scenario(
        self, units: int, requests: int | None = None, seed: int | None = None
    ) -> Scenario:
        """With so many copies, on as few nodes as hold them."""
        of = self.unit
        deployment = of.deployment.model_copy(update=_copies(of, units))
        nodes = math.ceil(units * self.gpus / of.cluster.gpus_per_node)
        changes: dict[str, Any] = {
            "deployment": deployment,
            "cluster": of.cluster.model_copy(update={"nodes": max(1, nodes)}),
            "name": f"{units} x {self.name}"[:200],
        }
        if requests is not None:
            less = {"requests": requests, "duration_s": None}
            changes["workload"] = of.workload.model_copy(update=less)
        if seed is not None:
            changes["seed"] = seed
        return of.model_copy(update=changes)


def _copies(scenario: Scenario, units: int) -> dict[str, Any]:
    of = scenario.deployment
    if of.disaggregation is None:
        return {"replicas": units}
    pools = {
        name: pool.model_copy(update={"replicas": units * alone.deployment.replicas})
        for (name, pool), (_, alone) in zip(
            of.disaggregation.pools().items(), scenario.pools(), strict=True
        )
    }
    return {"disaggregation": of.disaggregation.model_copy(update=pools)}


def make_shape(
    scenario: Scenario, choices: Mapping[str, Any], usd_per_gpu_hour: Mapping[str, float]
) -> Shape:
    """The shape of a point; InputError where the scenario cannot be so.

    `usd_per_gpu_hour`: by GPU, those that have a price of their own here.
    """
    data = scenario.model_dump()
    data["deployment"]["batching"] = scenario.batching.model_dump()
    data["deployment"] |= {"autoscaling": None, "replicas": 1}
    gpu = choices[GPU]
    if gpu != scenario.cluster.gpu:
        card = load_gpu(gpu)
        per_node = min(card.most_per_node, scenario.cluster.gpus_per_node)
        data["cluster"] |= {"gpu": gpu, "gpus_per_node": per_node, "scale_up_domain": None}
    if gpu in usd_per_gpu_hour:
        data["economics"] = {
            **data["economics"], "usd_per_gpu_hour": usd_per_gpu_hour[gpu],
            "price": None, "owned": None,
        }  # fmt: skip
    for path, value in choices.items():
        if path not in (GPU, POOLS, PLACEMENT) and value != ALL:
            put(data, path, copy.deepcopy(value))
    parallel = data["deployment"]["parallelism"]
    if choices.get(EP) == ALL:
        parallel["expert_parallel"] = parallel["attention_tp"] * parallel["attention_dp"]
    if PLACEMENT in choices:
        _place(data, choices[PLACEMENT])
    if POOLS in choices:
        _split(data, choices[POOLS])
    unit = Scenario.parse(data)
    gpus = sum(_gpus(alone) for _, alone in unit.pools())
    usd = gpu_hour(unit.economics, load_gpu(gpu)).usd
    return Shape(dict(choices), unit, gpus, usd)


def put(data: dict[str, Any], path: str, value: object) -> None:
    """Set `a.b.c` of nested mappings."""
    at = data
    *folders, last = path.split(".")
    for key in folders:
        if at.get(key) is None:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise InputError("--over", f"cannot go into {key}, which is not a mapping", path)
    at[last] = value


def _gpus(alone: Scenario) -> int:
    of, apart = alone.deployment.parallelism, alone.deployment.attention_ffn
    stage = of.attention_tp * of.attention_dp + (0 if apart is None else apart.expert_gpus)
    return stage * of.pipeline * alone.deployment.replicas


def _place(data: dict[str, Any], value: str) -> None:
    policy, plus, extra = str(value).partition("+")
    if plus and not COUNT.fullmatch(extra):
        raise InputError("--over placement", "must be a policy, or policy+SLOTS_PER_RANK", value)
    ranks = data["deployment"]["parallelism"]["expert_parallel"]
    if ranks == 1 and (policy != "contiguous" or plus):
        raise InputError(PLACEMENT, "changes nothing with one expert-parallel rank", value)
    own = data["deployment"]["placement"]
    kept = own if own["policy"] == policy else {
        "policy": policy, "replica_choice": own["replica_choice"], "choice_s": own["choice_s"],
    }  # fmt: skip
    slots = ranks * int(extra) if plus else 0
    data["deployment"]["placement"] = {**kept, "redundant_experts": slots}


def _split(data: dict[str, Any], value: str) -> None:
    """Pools in the ratio given; `own` keeps the scenario's, in the least numbers of it."""
    own = data["deployment"]["disaggregation"] or {}
    if value == TOGETHER:
        data["deployment"]["disaggregation"] = None
        return
    pools = {name: dict(own.get(name) or {}) for name in ("prefill", "decode")}
    if value == OWN:
        counts = [pools[name].get("replicas") or 1 for name in pools]
        common = math.gcd(*counts)
        counts = [count // common for count in counts]
    else:
        parts = str(value).split(":")
        if len(parts) != 2 or not all(COUNT.fullmatch(part) for part in parts):
            raise InputError("--over pools", "must be together, own or PREFILL:DECODE", value)
        counts = [int(part) for part in parts]
    for pool, count in zip(pools.values(), counts, strict=True):
        pool["replicas"] = count
    data["deployment"]["disaggregation"] = {**own, **pools}
