"""EPLB (`eplb.py` says what it is), compiled: the same slots, several times sooner.

Heaps instead of scans: the heaviest item and the lightest rank are roots. A key is the bits of a
float32 that is not negative, which order as its values do, above the index, which breaks ties as
the published code does; so keys are unique, and results do not depend on how a heap is kept.
58 layers x 256 experts into 288 slots on 144 ranks take 1.0 to 1.4 ms on one core of a 2026 server
(tests/benchmarks/bench_placement.py).

Shapes: L layers, E experts, G groups, P slots; n items (experts or copies) of one packing problem.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, inner
from moesim.placement.eplb import checked, group_loads

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
Bits = NDArray[np.int32]  # the same memory as Floats
Ints = NDArray[np.int32]

_MOST_BITS = 0x7FFF_FFFF
_INDEX = 0xFFFF_FFFF


def eplb_compiled(
    load_LE: NDArray[np.number[Any]], slots: int, groups: int, nodes: int, ranks: int
) -> Ints:
    """As `eplb.eplb`: the same arguments, the same result in every slot, the same errors."""
    load_LE, groups, nodes = checked(load_LE, slots, groups, nodes, ranks)
    slot_expert_LP = np.empty((len(load_LE), slots), np.int32)
    _place(load_LE, group_loads(load_LE, groups), nodes, ranks, slot_expert_LP)
    return slot_expert_LP


@compiled
def _place(load_LE: Floats, load_LG: Floats, nodes: int, ranks: int, slot_expert_LP: Ints) -> None:
    layers, experts = load_LE.shape
    groups, slots = load_LG.shape[1], slot_expert_LP.shape[1]
    group_size, node_experts, node_slots = experts // groups, experts // nodes, slots // nodes
    node_ranks = ranks // nodes

    expert_E = np.empty(experts, np.int32)  # in order of nodes
    weight_n, share_n = np.empty(node_experts, np.float32), np.empty(node_slots, np.float32)
    copies_n, expert_n = np.empty(node_experts, np.int32), np.empty(node_slots, np.int32)
    position_n = np.empty(max(groups, node_slots), np.int32)
    items, packs = np.empty(max(groups, slots), np.int64), np.empty(max(nodes, ranks), np.int64)
    load_m, held_m = np.empty(max(nodes, ranks), np.float32), np.empty(max(nodes, ranks), np.int32)
    share_bits_n, load_bits_m = share_n.view(np.int32), load_m.view(np.int32)

    for layer in range(layers):
        group_G = load_LG[layer]
        bits_G = group_G.view(np.int32)
        _pack(group_G, bits_G, nodes, items, packs, load_m, load_bits_m, held_m, position_n)
        for group in range(groups):
            for i in range(group_size):
                expert_E[position_n[group] * group_size + i] = group * group_size + i
        for node in range(nodes):
            first = node * node_experts
            for i in range(node_experts):
                weight_n[i] = load_LE[layer, expert_E[first + i]]
            _replicate(weight_n, share_n, share_bits_n, items, copies_n, expert_n)
            for i in range(node_slots):
                share_n[i] = weight_n[expert_n[i]] / np.float32(copies_n[expert_n[i]])
            _pack(
                share_n,
                share_bits_n,
                node_ranks,
                items,
                packs,
                load_m,
                load_bits_m,
                held_m,
                position_n,
            )
            for i in range(node_slots):
                slot = node * node_slots + position_n[i]
                slot_expert_LP[layer, slot] = expert_E[first + expert_n[i]]


@inner
def _pack(
    weight_n: Floats,
    weight_bits_n: Bits,
    packs: int,
    items: Keys,
    lightest: Keys,
    load_m: Floats,
    load_bits_m: Bits,
    held_m: Ints,
    position_n: Ints,
) -> None:
    """Heaviest first, each item to the lightest pack with room: its place in order of packs."""
    n = weight_n.size
    capacity = n // packs
    if capacity == 1:
        for i in range(n):
            position_n[i] = i
        return
    _heap_of_heaviest(weight_bits_n, n, items)
    for pack in range(packs):
        load_m[pack], held_m[pack] = 0.0, 0
        lightest[pack] = pack
    open_packs = packs
    for left in range(n, 0, -1):
        item, pack = items[0] & _INDEX, lightest[0] & _INDEX
        items[0] = items[left - 1]
        _sift(items, left - 1)
        position_n[item] = pack * capacity + held_m[pack]
        load_m[pack] += weight_n[item]
        held_m[pack] += 1
        if held_m[pack] == capacity:
            open_packs -= 1
            lightest[0] = lightest[open_packs]
        else:
            lightest[0] = (np.int64(load_bits_m[pack]) << 32) | pack
        _sift(lightest, open_packs)


@inner
def _replicate(
    weight_n: Floats,
    share_n: Floats,
    share_bits_n: Bits,
    hottest: Keys,
    copies_n: Ints,
    expert_n: Ints,
) -> None:
    """Each slot beyond one an expert to the expert whose copies carry most."""
    experts, slots = weight_n.size, expert_n.size
    for i in range(experts):
        expert_n[i], copies_n[i], share_n[i] = i, 1, weight_n[i]
    _heap_of_heaviest(share_bits_n, experts, hottest)
    for slot in range(experts, slots):
        expert = hottest[0] & _INDEX
        expert_n[slot] = expert
        copies_n[expert] += 1
        share_n[expert] = weight_n[expert] / np.float32(copies_n[expert])
        hottest[0] = (np.int64(_MOST_BITS - share_bits_n[expert]) << 32) | expert
        _sift(hottest, experts)


@inner
def _heap_of_heaviest(bits_n: Bits, n: int, heap: Keys) -> None:
    for i in range(n):
        heap[i] = (np.int64(_MOST_BITS - bits_n[i]) << 32) | i
    for i in range(n // 2 - 1, -1, -1):
        _sift(heap, n, i)


@inner
def _sift(heap: Keys, size: int, at: int = 0) -> None:
    """Let the key at `at` sink to where both below it are larger.

    The smaller child is found without a branch, whose outcome no processor can guess: a third of
    the time.
    """
    key = heap[at]
    child = 2 * at + 1
    while child + 1 < size:
        child += int(heap[np.uintp(child + 1)] < heap[np.uintp(child)])
        below = heap[np.uintp(child)]
        if below >= key:
            break
        heap[np.uintp(at)] = below
        at, child = child, 2 * child + 1
    if child + 1 == size and heap[child] < key:
        heap[at] = heap[child]
        at = child
    heap[at] = key
