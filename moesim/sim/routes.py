"""Building Routes: a routing trace placed on slots, and the streams of rows that requests walk.

Legend as in replay.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.copies import place_rows, slot_dtype
from moesim.placement.placement import Placement
from moesim.routing.coverage import usable_sequences
from moesim.routing.trace import RoutingTrace
from moesim.sim.cost_tables import LAYERED, M_TO_N, NORMAL, Costs
from moesim.sim.replay import PREFIX_ROWS, Routes, running_counts, running_touches
from moesim.sim.setup import domains_of, exchanges_of, touch_of

MOST_RUNNING_SUM_BYTES = 1e9


def build_routes(
    trace: RoutingTrace,
    ids_TLK: NDArray[np.uint8] | NDArray[np.uint16],
    placement: Placement,
    costs: Costs,
    domain_names: tuple[str, ...],
    spare_slots: int = 0,
) -> Routes:
    """Place a trace on slots and cut its sequences into the two streams that requests walk.

    `ids_TLK` are the trace's experts for the model's own MoE layers; `domain_names` are the
    demand's domains (empty: all sequences are one domain). Behind each rank's slots
    `spare_slots` more are empty, which `costs` count.
    """
    first = trace.sequence_start_S1[:-1].astype(np.int64)
    rows = np.diff(trace.sequence_start_S1).astype(np.int64)
    prompt = trace.prompt_tokens_S.astype(np.int64)
    usable = usable_sequences(trace)
    prompt_piece, decode_piece = (first, prompt), (first + prompt, rows - prompt)
    if not ((prompt > 0) & (prompt < rows)).any():  # none tells prompt and output apart
        prompt_piece, decode_piece = (first, rows), (first, rows)
    order, starts = _by_domain(trace, usable, domain_names)
    slots = costs.rank_of_slot.size
    placed_TLK = place_rows(ids_TLK, placement)
    if spare_slots:
        wide_TLK = placed_TLK.astype(slot_dtype(slots), copy=False)
        each, spare = (
            wide_TLK.dtype.type(placement.slots_per_rank),
            wide_TLK.dtype.type(spare_slots),
        )
        placed_TLK = wide_TLK + wide_TLK // each * spare
    routes = no_routes()._replace(
        **_as_fields(placed_TLK),
        edge_Q=np.zeros(order.size, np.int64),
        prompt_first_Q=prompt_piece[0][order],
        prompt_rows_Q=prompt_piece[1][order].astype(np.int32),
        prompt_domain_start=starts,
        decode_first_Q=decode_piece[0][order],
        decode_rows_Q=decode_piece[1][order].astype(np.int32),
        decode_domain_start=starts,
    )
    return with_sums(routes, costs)


def _as_fields(placed_TLK: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A placed trace as the fields of Routes that hold it, one of them empty."""
    rest = placed_TLK.shape[1:]
    fields = {
        "narrow_TLK": np.zeros((0, *rest), np.uint8),
        "slots_TLK": np.zeros((0, *rest), np.uint16),
    }
    name = "narrow_TLK" if placed_TLK.dtype == np.uint8 else "slots_TLK"
    return fields | {name: np.ascontiguousarray(placed_TLK)}


def with_sums(routes: Routes, costs: Costs) -> Routes:
    """With the running sums of its prompt pieces that `costs` asks for, where they are not larger
    than MOST_RUNNING_SUM_BYTES."""
    edges_Q = -(-routes.prompt_rows_Q.astype(np.int64) // PREFIX_ROWS)
    edges = int(edges_Q.sum())
    routes = routes._replace(edge_Q=np.cumsum(edges_Q) - edges_Q)
    layers, slots = routes.slots_TLK.shape[1], costs.rank_of_slot.size
    width = costs.domain_of_rank.size + domains_of(costs)
    counts = np.zeros((0, layers, slots), np.uint16)
    if edges * layers * slots * 2 <= MOST_RUNNING_SUM_BYTES:
        counts = running_counts(routes, edges, slots)
    touches = np.zeros((0, layers, width), np.uint16)
    if (
        exchanges_of(costs) & {NORMAL, LAYERED, M_TO_N}
        and edges * layers * width * 2 <= MOST_RUNNING_SUM_BYTES
    ):
        touches = running_touches(routes, touch_of(costs), edges, width)
    return routes._replace(counts_ALP=counts, touches_ALX=touches)


def no_routes() -> Routes:
    """The routes of a dense model: none."""
    nothing = np.zeros(0, np.int64)
    return Routes(
        narrow_TLK=np.zeros((0, 0, 1), np.uint8),
        slots_TLK=np.zeros((0, 0, 1), np.uint16),
        counts_ALP=np.zeros((0, 0, 0), np.uint16),
        touches_ALX=np.zeros((0, 0, 0), np.uint16),
        edge_Q=nothing,
        prompt_first_Q=nothing,
        prompt_rows_Q=nothing.astype(np.int32),
        prompt_domain_start=np.zeros(1, np.int32),
        decode_first_Q=nothing,
        decode_rows_Q=nothing.astype(np.int32),
        decode_domain_start=np.zeros(1, np.int32),
    )


def _by_domain(
    trace: RoutingTrace, usable_S: NDArray[np.bool_], names: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sequences in order of the demand's domains, and where each domain starts."""
    if not names:
        order = np.flatnonzero(usable_S)
        return order, np.array([0, order.size], np.int32)
    pieces = []
    for name in names:
        if name not in trace.domains:
            raise InputError(
                "workload.domains",
                f"must name domains of the routing trace ({', '.join(trace.domains[:12])})",
                name,
            )
        of_domain = trace.domain_S == trace.domains.index(name)
        found = np.flatnonzero(usable_S & of_domain)
        if found.size == 0:
            raise InputError("workload.domains", "must have sequences in the routing trace", name)
        pieces.append(found)
    starts = np.concatenate([[0], np.cumsum([piece.size for piece in pieces])])
    return np.concatenate(pieces), starts.astype(np.int32)
