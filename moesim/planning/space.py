"""The candidates of a plan: what is varied, and which values it takes.

A space is the product of dimensions, each a place in the scenario and its values. Three places are
short for several fields: `pools` ("together", "own", or prefill to decode replicas as "1:2"),
`placement` (a policy, with "+1" for one redundant expert slot on every rank) and the value "all" of
`deployment.parallelism.expert_parallel` (every GPU of a pipeline stage).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError
from moesim.hardware import MOST_GPUS, load_gpu
from moesim.model import MoEModel, load_model
from moesim.scenario import Scenario

MOST_POINTS = 200_000
GPU = "cluster.gpu"
TP, DP, EP, PP = (
    f"deployment.parallelism.{name}"
    for name in ("attention_tp", "attention_dp", "expert_parallel", "pipeline")
)
BUDGET, REQUESTS = "deployment.batching.token_budget", "deployment.batching.max_requests"
POOLS, PLACEMENT = "pools", "placement"
ALL, TOGETHER, OWN = "all", "together", "own"
# Prefill to decode replicas that are tried beside serving both together.
RATIOS = ("1:1", "1:2", "2:1")
TOKEN_BUDGETS = (2048, 8192)
MOST_RUNNING = 64
# Replicas of more GPUs than this are not looked at unless asked for.
WIDEST = 64


@dataclass(frozen=True)
class Dimension:
    """A place in the scenario (or `pools`, `placement`), and the values that are tried there."""

    path: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The values as text, as a study's file has them."""
        return tuple(label(value) for value in self.values)

    @property
    def ordinal(self) -> bool:
        """Numbers in order, of which neighbours are alike."""
        numbers = all(type(value) in (int, float) for value in self.values)
        return numbers and list(self.values) == sorted(self.values)


@dataclass(frozen=True)
class Space:
    """All combinations of the dimensions that need at most `most_gpus` GPUs in all."""

    dimensions: tuple[Dimension, ...]
    most_gpus: int

    @property
    def size(self) -> int:
        """Combinations, those that no engine can run among them."""
        return math.prod(len(each.values) for each in self.dimensions)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination: value by path."""
        paths = [each.path for each in self.dimensions]
        for values in itertools.product(*(each.values for each in self.dimensions)):
            yield dict(zip(paths, values, strict=True))


def label(value: object) -> str:
    """A value as text; None is the engine's own choice."""
    if value is None:
        return "default"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def plan_space(
    scenario: Scenario,
    gpus: Sequence[str] | None = None,
    most_gpus: int | None = None,
    over: Mapping[str, Sequence[Any]] | None = None,
) -> Space:
    """The space around a scenario; `over` replaces or adds dimensions by path.

    `most_gpus` None: twice the scenario's cluster. Raises InputError for a space that is empty or
    of more than 200,000 combinations.
    """
    cluster = scenario.cluster.nodes * scenario.cluster.gpus_per_node
    most = min(MOST_GPUS, 2 * cluster) if most_gpus is None else most_gpus
    if not 1 <= most <= MOST_GPUS:
        raise InputError("--max-gpus", f"must be from 1 to {MOST_GPUS}", most)
    chosen = tuple(dict.fromkeys(gpus)) if gpus else (scenario.cluster.gpu,)
    dimensions = _defaults(scenario, load_model(scenario.model), most)
    dimensions[GPU] = chosen
    for path, values in (over or {}).items():
        dimensions[path] = _distinct(values)
        if not dimensions[path]:
            raise InputError("--over", "must give at least one value", path)
    for name in dimensions[GPU]:
        load_gpu(name)
    space = Space(tuple(Dimension(*each) for each in dimensions.items()), most)
    if space.size > MOST_POINTS:
        rule = f"must leave at most {MOST_POINTS} combinations to look at"
        raise InputError("--over", rule, space.size, "name fewer values")
    return space


def _defaults(scenario: Scenario, model: MoEModel, most: int) -> dict[str, tuple[Any, ...]]:
    """By path; what the scenario sets is always among the values."""
    of, batching = scenario.deployment, scenario.batching
    own = of.parallelism
    powers = tuple(2**power for power in range(int(math.log2(min(most, WIDEST))) + 1))
    found: dict[str, tuple[Any, ...]] = {GPU: ()}
    if of.attention_ffn is not None:
        return found  # attention and FFN apart: degrees are to be named with --over
    found[TP] = _distinct((*(tp for tp in powers if tp <= scenario.cluster.gpus_per_node),
                           own.attention_tp))  # fmt: skip
    if model.is_moe:
        found[DP] = _distinct((*powers, own.attention_dp))
        full = own.attention_tp * own.attention_dp
        odd = () if own.expert_parallel in (1, full) else (own.expert_parallel,)
        found[EP] = (ALL, 1, *odd)
    nodes = most // scenario.cluster.gpus_per_node
    found[PP] = _distinct((1, *((2,) if nodes >= 2 else ()), own.pipeline))
    plain = of.autoscaling is None and scenario.faults is None and of.rebalancing is None
    if of.disaggregation is not None:
        found[POOLS] = (TOGETHER, OWN)
    elif plain and of.expert_offload is None:
        found[POOLS] = (TOGETHER, *RATIOS)
    if batching.policy != "static":
        found[BUDGET] = _distinct((batching.token_budget, *TOKEN_BUDGETS))
        found[REQUESTS] = _distinct((batching.max_requests, MOST_RUNNING))
    if model.is_moe and of.placement.policy in ("contiguous", "eplb"):
        found[PLACEMENT] = ("contiguous", "eplb", "eplb+1")
    return found


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    """Each once; numbers in order."""
    kept = list({label(value): value for value in values}.values())
    if all(type(value) in (int, float) for value in kept):
        kept.sort()
    return tuple(kept)
