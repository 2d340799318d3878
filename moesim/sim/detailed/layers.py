"""The layers of a model as a step goes through them, stage by stage.

Tables of costs hold sums over layers: each has its share of projections, dense parts and
all-reduces. What differs is the kind of its attention, and whether it has routed experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.model import MoEModel
from moesim.sim.cost_tables import Costs

NO_EXPERTS = -1


class Layer(NamedTuple):
    """One layer: its share of what tables hold of all layers, how much of it has full, windowed
    and linear attention, and its number among the MoE layers."""

    name: str
    share: float
    attention: tuple[float, float, float]
    moe: int = NO_EXPERTS


def even_layers(costs: Costs) -> list[list[Layer]]:
    """[stages] layers, all alike but for their experts, as the fast mode takes them; those without
    experts first, the last of these possibly a part of one."""
    cost = costs.scalars[0]
    kinds = [float(cost[f"{kind}_layers"]) for kind in ("full", "window", "linear")]
    stages = []
    for stage, share in enumerate(costs.stage_share.tolist()):
        moe = np.flatnonzero(costs.stage_of_layer == stage).tolist()
        size = max(1.0 * len(moe), float(cost["layers"]) * share)
        without = size - len(moe)
        weights = [1.0] * int(without) + [without % 1.0] * (without % 1.0 > 0.0)
        layers = [_even("dense layer", share * weight / size, kinds) for weight in weights]
        layers += [_even(f"MoE layer {i}", share / size, kinds, i) for i in moe]
        stages.append(layers)
    return stages


def _even(name: str, share: float, kinds: list[float], moe: int = NO_EXPERTS) -> Layer:
    full, window, linear = (share * count for count in kinds)
    return Layer(name, share, (full, window, linear), moe)


def model_layers(model: MoEModel, costs: Costs) -> list[list[Layer]]:
    """[stages] layers of a model in their order."""
    sizes = np.rint(costs.stage_share * model.layers).astype(int)
    stage_N = np.repeat(np.arange(sizes.size), sizes)
    linear = frozenset(model.linear.layers) if model.linear else frozenset()
    indexed = frozenset(model.index.layers) if model.index else frozenset()
    moe_of = {layer: i for i, layer in enumerate(model.moe_layers)}
    stages: list[list[Layer]] = [[] for _ in sizes]
    for i in range(model.layers):
        windowed = model.window_of_layer[i] > 0 or model.index is not None
        full = i in indexed if model.index else not windowed
        attention = (0.0, 0.0, 1.0) if i in linear else (float(full), float(windowed), 0.0)
        layer = Layer(f"layer {i}", 1.0 / model.layers, attention, moe_of.get(i, NO_EXPERTS))
        stages[int(stage_N[i])].append(layer)
    return stages
