"""Loads by domain: as detailed as the number of requests bears out, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.routing import RoutingTrace
from moesim.routing import statistics as stats
from moesim.routing.domain_loads import domain_loads
from tests.fixtures.toy_traces import trace_of

FIRST, SECOND = [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]


def drawn(
    chances_CE: list[list[float]], sequences_C: list[int], tokens: int, spread: float = 0.0
) -> RoutingTrace:
    """One layer, top-1: requests whose experts follow their domain's chances, or stray from them
    by log-normal factors of this sd."""
    rng = np.random.default_rng(0)
    domain_S = np.repeat(np.arange(len(sequences_C)), sequences_C)
    ids = []
    for domain in domain_S:
        chance_E = np.array(chances_CE[domain]) * np.exp(spread * rng.standard_normal(4))
        ids.append(rng.choice(4, tokens, p=chance_E / chance_E.sum()))
    return RoutingTrace(
        np.concatenate(ids).astype(np.uint8)[:, None, None],
        np.arange(len(domain_S) + 1) * tokens,
        np.zeros(len(domain_S), np.int32),
        domain_S.astype(np.uint16),
        tuple(f"d{c}" for c in range(len(sequences_C))),
        np.zeros(1, np.int32),
        4,
        "toy",
    )


def test_domains_of_many_requests_keep_their_own_load() -> None:
    load_CE = domain_loads(drawn([FIRST, SECOND], [60, 60], 50))[:, 0]
    assert load_CE == pytest.approx(4 * np.array([FIRST, SECOND]), abs=0.1)
    assert load_CE.mean(axis=1) == pytest.approx([1, 1])


def test_domains_that_do_not_differ_share_one_load() -> None:
    for requests in (5, 20, 60):
        load_CLE = domain_loads(drawn([FIRST, FIRST], [requests] * 2, 40, spread=0.8))
        # Where chance says otherwise, little is kept of it.
        assert np.abs(load_CLE - load_CLE.mean(axis=0)).max() < 0.35


def test_a_domain_of_one_request_is_drawn_towards_all() -> None:
    """Requests stray as far as domains differ: one request says little of its domain."""
    trace = drawn([FIRST, SECOND, FIRST], [40, 40, 1], 60, spread=1.2)
    load_CE = domain_loads(trace)[:, 0]
    pooled_E = stats.expert_counts(trace)[0] * 4 / trace.tokens

    def kept(domain: int, sequences: list[int]) -> float:
        part = trace.subset(sequences)
        own_E = stats.expert_counts(part)[0] * 4 / part.tokens - pooled_E
        return float((load_CE[domain] - pooled_E) @ own_E / (own_E @ own_E))

    assert 0.1 < kept(2, [80]) < 0.8 < kept(0, list(range(40))) <= 1


def test_one_domain_or_one_request_each_has_one_load() -> None:
    ids = np.random.default_rng(1).integers(0, 4, (60, 1, 1)).astype(np.uint8)
    one = trace_of(ids, 4, [30, 30])
    counts_LE = stats.expert_counts(one)
    assert domain_loads(one)[0] == pytest.approx(counts_LE / counts_LE.mean())
    assert len(domain_loads(drawn([FIRST, SECOND], [1, 1], 40))) == 1
