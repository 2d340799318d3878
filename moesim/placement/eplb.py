"""DeepSeek's Expert Parallelism Load Balancer: replicate hot experts, pack the copies evenly.

The algorithm of github.com/deepseek-ai/EPLB (eplb.py at d52c72d, 2025-03-24), the default policy of
vLLM and SGLang too, written over whole arrays: each greedy step treats all layers at once. Ties are
broken as there (the lower index first), and weights and sums are float32 as there, so results are
identical, slot for slot. 58 layers x 256 experts into 288 slots on 144 ranks take 6 to 9 ms on one
core of a 2026 server (tests/benchmarks/bench_placement.py); `eplb_compiled` takes 1.0 to 1.4.

Shapes: L layers, E experts, P slots, G groups; X independent packing problems (layers x nodes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.placement import FIELD, check_slots

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def eplb(
    load_LE: NDArray[np.number[Any]], slots: int, groups: int, nodes: int, ranks: int
) -> NDArray[np.int32]:
    """`slot_expert_LP` that balances `load_LE` (any unit, >= 0) over `ranks`, int32 [L, P].

    Hierarchical where `nodes` divides `groups` (the groups of group-limited routing stay on one
    node: groups to nodes, replicas inside each node, then to its ranks); global otherwise.
    Raises InputError for shapes that do not divide, and for a load that is negative or not finite.
    """
    load_LE, groups, nodes = checked(load_LE, slots, groups, nodes, ranks)
    return _hierarchical(load_LE, slots, groups, nodes, ranks)


def checked(
    load_LE: NDArray[np.number[Any]], slots: int, groups: int, nodes: int, ranks: int
) -> tuple[Floats, int, int]:
    """The load as float32, and the groups and nodes to use: 1 and 1 for the global policy."""
    load_LE = np.asarray(load_LE)
    if load_LE.ndim != 2 or load_LE.size == 0:
        raise InputError(f"{FIELD}.load", "must be a [layers, experts] table", list(load_LE.shape))
    experts = load_LE.shape[1]
    check_slots(experts, slots, ranks)
    with np.errstate(over="ignore"):
        narrow_LE = load_LE.astype(np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
        finite = bool(np.isfinite(narrow_LE.sum(axis=1)).all())
    if not finite or (narrow_LE < 0).any():
        raise InputError(f"{FIELD}.load", "must be finite and not negative")
    if groups < 1 or experts % groups:
        raise InputError(f"{FIELD}.groups", f"must divide the experts ({experts})", groups)
    if nodes < 1 or ranks % nodes:
        raise InputError(f"{FIELD}.nodes", f"must divide the ranks ({ranks})", nodes)
    return (narrow_LE, 1, 1) if groups % nodes else (narrow_LE, groups, nodes)


def group_loads(load_LE: Floats, groups: int) -> Floats:
    """Load of each group of neighbouring experts, float32 [L, G]."""
    load_LGe = load_LE.reshape(len(load_LE), groups, -1)
    return np.asarray(load_LGe.sum(axis=-1, dtype=np.float32))


def _hierarchical(
    load_LE: Floats, slots: int, groups: int, nodes: int, ranks: int
) -> NDArray[np.int32]:
    """Groups to nodes, replicas within nodes, replicas to ranks; one node is the global policy."""
    layers, experts = load_LE.shape
    group_size, node_experts = experts // groups, experts // nodes

    node_LG, place_LG = balanced_packing(group_loads(load_LE, groups), nodes)
    position_LG = node_LG * (groups // nodes) + place_LG
    group_of_position_LG = np.argsort(position_LG, axis=1)
    expert_LE = (group_of_position_LG[:, :, None] * group_size + np.arange(group_size)).reshape(
        layers, experts
    )

    load_XE = np.take_along_axis(load_LE, expert_LE, axis=1).reshape(-1, node_experts)
    local_XP, copies_XE = replicate_experts(load_XE, slots // nodes)

    share_XE: Floats = np.divide(load_XE, copies_XE, dtype=np.float32)
    share_XP = np.take_along_axis(share_XE, local_XP, axis=1)
    rank_XP, place_XP = balanced_packing(share_XP, ranks // nodes)
    slot_XP = rank_XP * (slots // ranks) + place_XP
    packed_XP = np.empty_like(local_XP)
    np.put_along_axis(packed_XP, slot_XP, local_XP, axis=1)

    first_expert = np.arange(nodes)[:, None] * node_experts
    position_LP = (packed_XP.reshape(layers, nodes, -1) + first_expert).reshape(layers, slots)
    return np.take_along_axis(expert_LE, position_LP, axis=1).astype(np.int32)


def balanced_packing(weight_Xn: Floats, packs: int) -> tuple[Ints, Ints]:
    """Heaviest first, each item to the lightest pack with room; every pack gets n / packs items.

    Returns for each item its pack and its place there, both int64 [X, n].
    """
    problems, items = weight_Xn.shape
    capacity = items // packs
    if capacity == 1:
        pack_Xn = np.tile(np.arange(items), (problems, 1))
        return pack_Xn, np.zeros_like(pack_Xn)

    order_Xn = np.argsort(-weight_Xn, axis=1, kind="stable")
    heaviest_nX = np.ascontiguousarray(np.take_along_axis(weight_Xn, order_Xn, axis=1).T)
    pack_nX = np.empty((items, problems), dtype=np.int64)
    place_nX = np.empty((items, problems), dtype=np.int64)
    load_XM = np.zeros((problems, packs), dtype=np.float32)
    load, held = load_XM.ravel(), np.zeros(problems * packs, dtype=np.int64)
    first_X = np.arange(problems) * packs
    for item in range(items):
        pack_X = load_XM.argmin(axis=1)
        at_X = first_X + pack_X
        place_X = held.take(at_X)
        load_X = load.take(at_X) + heaviest_nX[item]
        load_X[place_X == capacity - 1] = np.inf  # a full pack is never the lightest
        load[at_X] = load_X
        held[at_X] = place_X + 1
        pack_nX[item], place_nX[item] = pack_X, place_X

    pack_Xn, place_Xn = np.empty_like(order_Xn), np.empty_like(order_Xn)
    np.put_along_axis(pack_Xn, order_Xn, pack_nX.T, axis=1)
    np.put_along_axis(place_Xn, order_Xn, place_nX.T, axis=1)
    return pack_Xn, place_Xn


def replicate_experts(weight_XE: Floats, slots: int) -> tuple[Ints, Ints]:
    """Give each extra slot to the expert whose copies carry most; least possible largest share.

    Returns the expert of each slot, int64 [X, slots] (first one of each, then the extra copies in
    the order they were given), and the copies of each expert, int64 [X, E].
    """
    problems, experts = weight_XE.shape
    row_X = np.arange(problems)
    expert_XP = np.tile(np.arange(slots), (problems, 1))
    copies_XE = np.ones((problems, experts), dtype=np.int64)
    share_XE = weight_XE.copy()
    for slot in range(experts, slots):
        hottest_X = share_XE.argmax(axis=1)
        expert_XP[:, slot] = hottest_X
        copies_X = copies_XE[row_X, hottest_X] + 1
        copies_XE[row_X, hottest_X] = copies_X
        share_XE[row_X, hottest_X] = weight_XE[row_X, hottest_X] / copies_X.astype(np.float32)
    return expert_XP, copies_XE
