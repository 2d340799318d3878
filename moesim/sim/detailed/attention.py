"""Attention time of a rank, worked out key by key; a second implementation of sim/attention.py.

Results are (full, windowed, linear): seconds of one layer of each kind.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.grids import BATCH, KV_TOKENS, NEW_TOKENS, PREFIX_TOKENS, Axis
from moesim.sim.cost_tables import Costs
from moesim.sim.detailed.batch import Piece

Kinds = tuple[float, float, float]


def attention_s(costs: Costs, pieces: list[Piece], expand_drafts: bool) -> Kinds:
    """Seconds of one layer of each kind for the pieces of one rank."""
    if costs.context_log_s.shape[1] > 0:
        return _measured(costs, pieces, expand_drafts)
    return _rated(costs.scalars[0], pieces, expand_drafts)


def _rated(cost: Any, pieces: list[Piece], expand_drafts: bool) -> Kinds:
    """The slower of computing query-key pairs and reading keys and values."""
    window = int(cost["window"])
    compute, windowed, keys, window_keys = 0.0, 0.0, 0.0, 0.0
    for grant, first, stop in pieces:
        seen = np.arange(grant.before + first + 1, grant.before + stop + 1)  # keys of each query
        within = np.minimum(seen, window)
        kind = "decode" if grant.decodes else "prefill"
        compute += float(seen.sum()) * cost[f"{kind}_pair_s"]
        windowed += float(within.sum()) * cost[f"window_{kind}_pair_s"]
        keys += float(seen[-1])
        window_keys += float(min(seen[-1], window + seen.size - 1))
        if expand_drafts and grant.decodes:  # each further query reads its keys again
            more = seen.size - 1
            keys += more * (grant.before + first + 0.5 * seen.size)
            window_keys += more * float(within[0])
    return (
        max(compute, keys * float(cost["kv_token_s"])),
        max(windowed, window_keys * float(cost["window_kv_token_s"])),
        len(pieces) * float(cost["state_request_s"]),
    )


def _measured(costs: Costs, pieces: list[Piece], expand_drafts: bool) -> Kinds:
    """From tables: every chunk of a prompt by itself, all that decode together."""
    cost = costs.scalars[0]
    present = [int(cost[f"{kind}_layers"]) > 0 for kind in ("full", "window", "linear")]
    times = [0.0, 0.0, 0.0]
    prompts = [piece for piece in pieces if not piece.grant.decodes]
    decodes = [piece for piece in pieces if piece.grant.decodes]
    for grant, first, stop in prompts:
        at = (NEW_TOKENS, stop - first), (PREFIX_TOKENS, grant.before + first)
        for kind in range(3):
            if present[kind]:
                times[kind] += table_s(costs.context_log_s[kind], *at)
    if decodes:
        queries = sum(piece.stop - piece.first for piece in decodes)
        keys = sum(piece.grant.before + piece.stop for piece in decodes) / len(decodes)
        rows, each = float(len(decodes)), queries / len(decodes)
        read_s, pair_s = float(cost["kv_token_s"]), float(cost["decode_pair_s"])
        grows = each  # with the queries of a request: linear attention does
        many = 1.0
        if expand_drafts:
            rows, grows = float(queries), 1.0
        elif each > 1.0 and max(read_s, pair_s) > 0.0:
            many = max(read_s, each * pair_s) / max(read_s, pair_s)
        mixed = bool(prompts) and costs.mixed_log_s.shape[1] > 0
        table = costs.mixed_log_s if mixed else costs.generation_log_s
        for kind, factor in enumerate((many, many, grows)):
            if present[kind]:
                times[kind] += table_s(table[kind], (BATCH, rows), (KV_TOKENS, keys)) * factor
    if prompts:
        counts = [piece.stop - piece.first for piece in pieces]
        times[0] += sum(max(counts) - n for n in counts) * float(cost["uneven_token_s"])
    return times[0], times[1], times[2]


def table_s(
    log_s_XY: NDArray[np.float64], first: tuple[Axis, float], second: tuple[Axis, float]
) -> float:
    """Seconds at two quantities: log-linear between points of both axes, and beyond the last."""
    (i, u), (j, v) = (
        _place(axis, quantity, size)
        for (axis, quantity), size in zip((first, second), log_s_XY.shape, strict=True)
    )
    corners = log_s_XY[i : i + 2, j : j + 2]
    return math.exp(float(np.array([1.0 - u, u]) @ corners @ np.array([1.0 - v, v])))


def _place(axis: Axis, quantity: float, points: int) -> tuple[int, float]:
    """Number of the point below a quantity, and how far it lies towards the next."""
    x = axis.octave_points * math.log2(1.0 + quantity / axis.scale)
    i = min(int(x), points - 2)
    return i, x - i
