"""Placements that need no load: what engines start with, and a random baseline.

Each returns `slot_expert_LP`, int32 [L, P] (L MoE layers, P physical slots), for E experts on R
ranks; slot p belongs to rank p // (P / R). Extra slots hold copies by the rule stated with each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import check_slots


def contiguous(layers: int, experts: int, slots: int, ranks: int) -> NDArray[np.int32]:
    """Slot p holds expert p mod E: experts in order, then copies of the first ones in order.

    What vLLM starts with, also under `--enable-eplb` (`EplbState.
    build_initial_global_physical_to_logical_map`: all experts, then i mod E for each extra slot).
    """
    check_slots(experts, slots, ranks)
    row_P = np.arange(slots, dtype=np.int32) % np.int32(experts)
    return np.tile(row_P, (layers, 1))


def round_robin(layers: int, experts: int, slots: int, ranks: int) -> NDArray[np.int32]:
    """Expert e goes to rank e mod R (vLLM's `--expert-placement-strategy round_robin`).

    The j-th slot of rank r holds expert (j R + r) mod E, so extra slots, dealt out the same way,
    hold copies of the first experts.
    """
    check_slots(experts, slots, ranks)
    dealt = np.arange(slots, dtype=np.int32).reshape(slots // ranks, ranks)
    row_P = dealt.T.ravel() % np.int32(experts)
    return np.tile(row_P, (layers, 1))


def random(
    layers: int, experts: int, slots: int, ranks: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Every layer shuffled on its own; each expert gets floor or ceil of P / E copies.

    Which experts get the extra copies is drawn without replacement, layer by layer.
    """
    check_slots(experts, slots, ranks)
    whole, extra = divmod(slots, experts)
    order_LE = rng.permuted(np.tile(np.arange(experts, dtype=np.int32), (layers, 1)), axis=1)
    filled_LP = np.hstack([*[order_LE] * whole, order_LE[:, :extra]])
    return np.asarray(rng.permuted(filled_LP, axis=1), dtype=np.int32)
