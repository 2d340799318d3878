"""The expert exchanges that a deployment can choose, and their laws on its links.

Names are those of `deployment.exchange`; a pair (prefill, decode) says which one steps with prompts
take, and which one steps without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.costs.libraries import EXCHANGE, PHASES, ExchangeLaw, load_law
from moesim.costs.m_to_n import FACTORS, m_to_n_note, m_to_n_numbers
from moesim.costs.profile import NetworkProfile
from moesim.hardware import Link
from moesim.model import MoEModel
from moesim.precision import Precision

# Without a law: nothing to exchange, tensor-parallel experts, all tokens to all ranks.
PLAIN = ("none", "all-reduce", "allgather-reducescatter")
BY_LAW = (
    "deepep-normal",
    "deepep-low-latency",
    "deepep-low-latency-rdma",
    "deepep-low-latency-layered",
    "deepep-v2",
    "pplx",
    "pplx-ibrc",
    "nvlink-one-sided",
)
# Between attention and experts on GPUs of their own; not a choice of deployment.exchange.
M_TO_N = tuple(FACTORS)
EXCHANGES = (*PLAIN, *BY_LAW)

# What is sent on the way to the experts and back, after the plain ones (moesim.sim.cost_tables).
_TRAFFIC = (("copies", "copies"), ("messages", "messages"), ("copies", "messages"))
FABRIC = "infiniband-ndr400"  # of all fitted rows that cross nodes


def traffic_code(exchange: str) -> int:
    """How the simulation counts an exchange: the values of moesim.sim.cost_tables."""
    if exchange in PLAIN:
        return PLAIN.index(exchange)
    if exchange in M_TO_N:
        return len(PLAIN) + len(_TRAFFIC)
    there, back = (load_law(exchange, phase).traffic for phase in PHASES)
    return len(PLAIN) + _TRAFFIC.index((there, back))


def exchange_rows(
    exchange: Sequence[str],
    model: MoEModel,
    precision: Precision,
    network: NetworkProfile,
    links: tuple[Link, Link],
    domains: int,
) -> NDArray[np.void]:
    """Rows of EXCHANGE [2, 2]: of each kind of step (prefill, decode), dispatch and combine."""
    rows = np.zeros((2, 2), EXCHANGE)
    for kind, name in enumerate(exchange):
        if name in PLAIN:
            continue
        for at, phase in enumerate(PHASES):
            copy_bytes = model.hidden * 2.0
            if phase == "dispatch":
                copy_bytes = dispatch_bytes(name, model.hidden, precision.dispatch, network)
            if name in M_TO_N:
                rows[kind, at] = m_to_n_numbers(name, links, copy_bytes, domains, network)
                continue
            law = load_law(name, phase)
            rows[kind, at] = law.numbers(links, copy_bytes, domains, model.experts)
            base_s = _own_base_s(name, network)
            if base_s is not None:
                latency_s = links[int(domains > 1)].latency_s
                rows[kind, at]["base_s"], rows[kind, at]["floor_s"] = base_s + latency_s, 0.0
    return rows


def dispatch_bytes(exchange: str, hidden: int, dtype: str, network: NetworkProfile) -> float:
    """Bytes of a token under way (DeepEP config.hpp): FP8 has a scale per 128 values."""
    payload = hidden * 1.0 + hidden / 128.0 * 4.0 if dtype == "fp8" else hidden * 2.0
    low_latency = exchange.startswith("deepep-low-latency")
    return payload + (network.message_header_bytes if low_latency else 0)


def _own_base_s(exchange: str, network: NetworkProfile) -> float | None:
    """A fixed time that the profile sets in the place of the law's."""
    if exchange.startswith("deepep-low-latency"):
        return network.low_latency_base_s
    return network.normal_base_s if exchange == "deepep-normal" else None


def exchange_notes(
    exchange: Sequence[str], ranks: int, domains: int, fabric: str, measured: Mapping[str, str]
) -> list[str]:
    """What the exchanges' times rest on, and the error to expect where laws are stretched.

    `measured`: exchanges that tables time -> which.
    """
    notes = []
    for name in dict.fromkeys(exchange):
        if name in PLAIN or ranks == 1:
            continue
        if name in M_TO_N:
            notes.append(m_to_n_note(name))
            continue
        if name in measured:
            notes.append(f"exchange {name}: measured ({measured[name]})")
            continue
        laws = [load_law(name, phase) for phase in PHASES]
        notes.append(
            f"exchange {name}: {_rests_on(laws)}{_stretched(laws, ranks, domains, fabric)}"
        )
    return notes


def _rests_on(laws: Sequence[ExchangeLaw]) -> str:
    one = laws[0]
    if not one.rows:
        return f"{one.source}; no error is known"
    rows = sum(law.rows for law in laws)
    mape = sum(law.rows * law.mape_percent for law in laws) / rows
    return (
        f"law fitted on {rows} published timings ({one.fitted_on}, {one.ep_low} to {one.ep_high} "
        f"GPUs), mean error {mape:.0f} %"
    )


def _stretched(laws: Sequence[ExchangeLaw], ranks: int, domains: int, fabric: str) -> str:
    one = laws[0]
    if not one.rows:
        return ""
    held_out = max(law.held_out_percent for law in laws)
    said = ""
    if not one.ep_low <= ranks <= one.ep_high:
        said += (
            f"; {ranks} GPUs lie outside: expect {held_out:.0f} % (sizes left out of the fit) or "
            "more for every doubling, and no congestion"
        )
    if domains > 1 and fabric != FABRIC:
        said += (
            f"; fitted on {FABRIC}, of {fabric} only its reached fraction is known: expect up to a "
            "factor of 2 (untuned RoCE, DeepEP issue 82)"
        )
    return said
