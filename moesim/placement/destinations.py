"""How many ranks and nodes the tokens of a layer are sent to, and what a swap of slots changes.

What a token costs the links is the number of distinct nodes, and of distinct ranks, that hold its
experts (dispatch sends one copy to each). Moving item i alone to another place adds

    tokens of i  -  those of them for which i is alone at its place  -  those that touch the other

and a swap adds both moves, less what the tokens that chose both items were counted wrongly: these
touch the same places before and after. The counts on the right are kept up to date, so that every
swap has its exact price at hand. (Counts of pairs alone would not do: of three items of a token on
one rank they see three pairs, where two sends are saved.)

Legend: T tokens, K top-k, P items (slots with what they hold), X places (ranks, or nodes).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, hot, inner

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float64]


class Level(NamedTuple):
    """Ranks, or nodes: where items are, and the counts that price a move."""

    place_P: Ints  # of each item
    count_TX: NDArray[np.int16]  # a token's items at each place
    touching_PX: Ints  # tokens of an item that have any item at a place
    alone_P: Ints  # tokens of an item that have no other item at its place


@compiled
def level_of(place_P: Ints, places: int, items_TK: Ints) -> Level:
    tokens, top_k = items_TK.shape
    count_TX = np.zeros((tokens, places), np.int16)
    touching_PX = np.zeros((place_P.size, places), np.int32)
    alone_P = np.zeros(place_P.size, np.int32)
    for t in range(tokens):
        for k in range(top_k):
            count_TX[t, place_P[items_TK[t, k]]] += 1
        for k in range(top_k):
            item = items_TK[t, k]
            if count_TX[t, place_P[item]] == 1:
                alone_P[item] += 1
            for place in range(places):
                if count_TX[t, place] > 0:
                    touching_PX[item, place] += 1
    return Level(place_P, count_TX, touching_PX, alone_P)


@compiled
def tokens_of_items(items_TK: Ints, slots: int) -> tuple[Ints, Ints]:
    """Tokens of item i: token_of[start_P1[i] : start_P1[i + 1]]."""
    tokens, top_k = items_TK.shape
    start_P1 = np.zeros(slots + 1, np.int32)
    for t in range(tokens):
        for k in range(top_k):
            start_P1[items_TK[t, k] + 1] += 1
    for i in range(slots):
        start_P1[i + 1] += start_P1[i]
    free_P = start_P1[:-1].copy()
    token_of = np.empty(tokens * top_k, np.int32)
    for t in range(tokens):
        for k in range(top_k):
            item = items_TK[t, k]
            token_of[free_P[item]] = t
            free_P[item] += 1
    return start_P1, token_of


@hot
def price(
    a: int,
    tokens_a: Ints,
    items_TK: Ints,
    start_P1: Ints,
    level: Any,
    weight: float,
    change_P: Floats,
    first: bool,
) -> None:
    """Add to `change_P` (or set it) what a swap of `a` with each item adds at this level."""
    place_P, count_TX, touching_PX, alone_P = level
    home = place_P[a]
    for b in range(place_P.size):
        other = place_P[b]
        change = 0
        if other != home:
            change = tokens_a.size - alone_P[a] - touching_PX[a, other]
            change += start_P1[b + 1] - start_P1[b] - alone_P[b] - touching_PX[b, home]
        change_P[b] = weight * change + (0.0 if first else change_P[b])
    for t in tokens_a:
        for k in range(items_TK.shape[1]):
            b = items_TK[t, k]
            other = place_P[b]
            if other != home:
                wrong = int(count_TX[t, home] == 1) + int(count_TX[t, other] == 1)
                change_P[b] += weight * wrong


@hot
def swap(
    items_TK: Ints, a: int, b: int, tokens_a: Ints, tokens_b: Ints, marked_T: Any, level: Any
) -> None:
    place_P, count_TX, _, alone_P = level
    from_a, from_b = place_P[a], place_P[b]
    if from_a == from_b:
        return
    for t in tokens_b:
        marked_T[t] = True
    for t in tokens_a:
        if marked_T[t]:  # has both: the same places as before
            difference = int(count_TX[t, from_b] == 1) - int(count_TX[t, from_a] == 1)
            alone_P[a] += difference
            alone_P[b] -= difference
            marked_T[t] = False
        else:
            _move(items_TK, t, a, from_a, from_b, level)
    place_P[a] = from_b
    for t in tokens_b:
        if marked_T[t]:
            marked_T[t] = False
            _move(items_TK, t, b, from_b, from_a, level)
    place_P[b] = from_a


@inner
def _move(items_TK: Ints, t: int, item: int, source: int, target: int, level: Any) -> None:
    """Take an item of token t from one place to another in the counts."""
    place_P, count_TX, touching_PX, alone_P = level
    left, joined = count_TX[t, source] - 1, count_TX[t, target] + 1
    count_TX[t, source], count_TX[t, target] = left, joined
    alone_P[item] += int(joined == 1) - int(left == 0)
    for k in range(items_TK.shape[1]):
        x = items_TK[t, k]
        if left == 0:
            touching_PX[x, source] -= 1
        if joined == 1:
            touching_PX[x, target] += 1
        if x != item and left == 1 and place_P[x] == source:
            alone_P[x] += 1
        if x != item and joined == 2 and place_P[x] == target:
            alone_P[x] -= 1
