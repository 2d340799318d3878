"""Max-min fair rates: classic networks by hand, an exact second algorithm, and what must hold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.sim.max_min import max_min_rates

INF = float("inf")
Flows = list[list[tuple[int, float]]]  # (port, weight) of each flow


def rates(flows: Flows, capacity: list[float], caps: list[float] | None = None) -> list[float]:
    pairs = [pair for flow in flows for pair in flow]
    return max_min_rates(
        np.cumsum([0, *map(len, flows)], dtype=np.int64),
        np.array([port for port, _ in pairs], np.int64),
        np.array([weight for _, weight in pairs], np.float64),
        np.array(capacity, np.float64),
        np.array([INF] * len(flows) if caps is None else caps, np.float64),
    ).tolist()


def over(*ports: int) -> list[tuple[int, float]]:
    return [(port, 1.0) for port in ports]


def test_linear_network() -> None:
    """One long flow over three links, one short flow on each: everybody gets half."""
    assert rates([over(0, 1, 2), over(0), over(1), over(2)], [1.0, 1.0, 1.0]) == [0.5] * 4


def test_linear_network_with_unequal_links() -> None:
    """Bertsekas and Gallager's kind: the tightest link first, the rest of the others after it."""
    # Link 0 (6) has flows a, b, c: 2 each. Link 1 (10) has a, d: d takes 8. Link 2 (3): d too, so
    # d gets 3 and link 1 stays half empty.
    assert rates([over(0, 1), over(0), over(0), over(1, 2)], [6.0, 10.0, 3.0]) == [2, 2, 2, 3]
    assert rates([over(0, 1), over(0), over(0), over(1)], [6.0, 10.0]) == [2, 2, 2, 8]


def test_what_one_flow_cannot_use_goes_to_the_others() -> None:
    assert rates([over(0), over(0), over(0)], [12.0], [2.0, INF, INF]) == [2, 5, 5]
    assert rates([over(0), over(0), over(0)], [12.0], [2.0, 4.5, INF]) == [2, 4.5, 5.5]
    assert rates([over(0), over(0)], [12.0], [20.0, 30.0]) == [6, 6]


def test_bytes_on_a_port_may_be_a_multiple_of_the_rate() -> None:
    # The first flow puts 3 bytes on port 0 for each of its rate: 3 x + x = 8.
    assert rates([[(0, 3.0)], [(0, 1.0)]], [8.0]) == [2, 2]
    assert rates([[(0, 3.0), (1, 1.0)], [(0, 1.0)]], [8.0, 1.0]) == [1, 5]


def test_without_ports_only_the_cap_holds() -> None:
    assert rates([[], [], over(0)], [1.0], [INF, 7.0, INF]) == [INF, 7.0, 1.0]
    assert rates([], [1.0]) == []


def test_a_port_of_no_capacity_stops_its_flows_only() -> None:
    assert rates([over(0, 1), over(1)], [0.0, 4.0]) == [0, 4]


@st.composite
def networks(draw: st.DrawFn) -> tuple[Flows, list[float], list[float]]:
    ports = draw(st.integers(1, 6))
    number = st.integers(1, 2**20).map(float)
    capacity = draw(st.lists(number, min_size=ports, max_size=ports))
    flows, caps = [], []
    for _ in range(draw(st.integers(1, 8))):
        used = draw(st.lists(st.integers(0, ports - 1), min_size=1, max_size=4, unique=True))
        weights = [draw(st.sampled_from([0.25, 1.0, 1.0, 1.0, 3.0, 8.0])) for _ in used]
        flows.append(list(zip(used, weights, strict=True)))
        caps.append(draw(st.one_of(st.just(INF), number)))
    return flows, capacity, caps


def loads(flows: Flows, rate: list[float], ports: int) -> NDArray[np.float64]:
    load_P = np.zeros(ports)
    for flow, bytes_per_s in zip(flows, rate, strict=True):
        for port, weight in flow:
            load_P[port] += weight * bytes_per_s
    return load_P


@given(networks())
@settings(max_examples=200)
def test_no_port_is_above_its_capacity_and_no_flow_above_its_cap(network: object) -> None:
    flows, capacity, caps = network  # type: ignore[misc]
    rate = rates(flows, capacity, caps)
    assert (loads(flows, rate, len(capacity)) <= np.array(capacity) * (1 + 1e-9)).all()
    assert (np.array(rate) <= np.array(caps) * (1 + 1e-9)).all()


@given(networks())
@settings(max_examples=200)
def test_every_flow_has_a_bottleneck(network: object) -> None:
    """It is at its cap, or crosses a full port on which no flow is faster: that is max-min."""
    flows, capacity, caps = network  # type: ignore[misc]
    rate = rates(flows, capacity, caps)
    load_P = loads(flows, rate, len(capacity))
    full = load_P >= np.array(capacity) * (1 - 1e-9)
    fastest_P = [
        max((r for g, r in zip(flows, rate, strict=True) if p in dict(g)), default=0.0)
        for p in range(len(capacity))
    ]
    for flow, own, cap in zip(flows, rate, caps, strict=True):
        at_cap = own >= cap * (1 - 1e-9)
        assert at_cap or any(full[p] and own >= fastest_P[p] * (1 - 1e-9) for p, _ in flow)


def exact(flows: Flows, capacity: list[float], caps: list[float]) -> list[Fraction]:
    """The same by another way, in rational numbers: fix the most loaded constraint, solve the rest.

    Each cap is a port that one flow has to itself. The port with the least fair share binds; its
    flows are fixed and taken off, with their bytes, from the network.
    """
    room = {p: Fraction(size) for p, size in enumerate(capacity)}
    on: dict[int, dict[int, Fraction]] = {p: {} for p in room}
    for f, flow in enumerate(flows):
        for p, weight in flow:
            on[p][f] = Fraction(weight)
        if caps[f] < INF:
            own = len(capacity) + f
            room[own], on[own] = Fraction(caps[f]), {f: Fraction(1)}
    found: dict[int, Fraction] = {}
    while len(found) < len(flows):
        share = {p: room[p] / sum(of.values()) for p, of in on.items() if of}
        tightest = min(share, key=lambda p: share[p])
        for f in list(on[tightest]):
            found[f] = share[tightest]
            for p, of in on.items():
                if f in of:
                    room[p] -= of.pop(f) * found[f]
    return [found[f] for f in range(len(flows))]


@given(networks())
@settings(max_examples=200)
def test_the_rates_are_those_of_exact_arithmetic(network: object) -> None:
    flows, capacity, caps = network  # type: ignore[misc]
    expected = [float(rate) for rate in exact(flows, capacity, caps)]
    assert rates(flows, capacity, caps) == pytest.approx(expected, rel=1e-9)


@given(networks(), st.randoms())
def test_the_order_of_flows_and_ports_does_not_matter(network: object, random: object) -> None:
    flows, capacity, caps = network  # type: ignore[misc]
    order = list(range(len(flows)))
    ports = list(range(len(capacity)))
    random.shuffle(order)  # type: ignore[attr-defined]
    random.shuffle(ports)  # type: ignore[attr-defined]
    moved = [[(ports.index(p), weight) for p, weight in reversed(flows[f])] for f in order]
    shuffled = rates(moved, [capacity[p] for p in ports], [caps[f] for f in order])
    back = [shuffled[order.index(f)] for f in range(len(flows))]
    assert back == pytest.approx(rates(flows, capacity, caps), rel=1e-9)


@given(networks(), st.sampled_from([0.5, 4.0, 2.0**30]))
def test_twice_the_network_is_twice_the_rate(network: object, factor: float) -> None:
    """By a power of two, so exactly."""
    flows, capacity, caps = network  # type: ignore[misc]
    scaled = rates(flows, [c * factor for c in capacity], [c * factor for c in caps])
    assert scaled == [rate * factor for rate in rates(flows, capacity, caps)]


@given(networks())
@settings(max_examples=30)
def test_plain_python_gives_the_same_rates(network: object) -> None:
    flows, capacity, caps = network  # type: ignore[misc]
    pairs = [pair for flow in flows for pair in flow]
    plain = getattr(max_min_rates, "py_func", max_min_rates)(
        np.cumsum([0, *map(len, flows)], dtype=np.int64),
        np.array([port for port, _ in pairs], np.int64),
        np.array([weight for _, weight in pairs], np.float64),
        np.array(capacity, np.float64),
        np.array(caps, np.float64),
    )
    assert plain.tolist() == rates(flows, capacity, caps)
