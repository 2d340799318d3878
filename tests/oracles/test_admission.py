"""Who is turned away: full queues against M/M/1/K, token buckets against their closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moesim.policies.admission import Admission, RateLimit
from moesim.sim.state import COMPLETED, REJECTED
from tests.fixtures.engine import Harness, linear_costs, make_demand, make_groups, make_threads

SECOND = linear_costs(per_step_s=1.0)


def test_a_full_replica_turns_away_as_m_m_1_k_does() -> None:
    """P = (1 - rho) rho^K / (1 - rho^(K+1)) with K = requests in flight, waiting and running."""
    rng = np.random.default_rng(5)
    n, rho, k = 6000, 0.9, 3
    service = np.maximum(1, np.rint(rng.exponential(400.0, n))).astype(int)  # ticks of 1/400 s
    arrival_s = np.cumsum(rng.exponential(1.0 / rho, n))
    rules = {"max_running": 1, "token_budget": 100_000}
    costs = linear_costs(per_token_s=1 / 400)
    run = Harness(rules, costs, admission=Admission(max_queued_requests=k)).run(
        make_demand(service, [1] * n, arrival_s)
    )
    rejected = run.requests["status"] == REJECTED
    expected = (1 - rho) * rho**k / (1 - rho ** (k + 1))
    # Rejections come in bursts: the tolerance is five standard errors of independent ones.
    assert abs(rejected.mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    assert (run.requests["status"][~rejected] == COMPLETED).all()
    assert np.isnan(run.requests["scheduled_s"][rejected]).all()


def test_prompts_in_their_prefill_phase_are_limited_in_tokens() -> None:
    """vLLM's rule: turned away once the limit is reached, not if it would be exceeded."""
    demand = make_demand([60, 60, 60, 60], [5] * 4, [0, 0.1, 0.2, 1.5])
    run = Harness(costs=SECOND, admission=Admission(max_queued_tokens=100)).run(demand)
    # 60 < 100 lets the second in; 120 keeps the third out; at 1.5 the first has its first token.
    assert run.requests["status"].tolist() == [COMPLETED, COMPLETED, REJECTED, COMPLETED]


@pytest.mark.parametrize(("per_s", "burst", "gap_s"), [(0.5, 3.0, 1.0), (2.0, 1.0, 0.3)])
def test_a_token_bucket_lets_in_what_its_closed_form_says(
    per_s: float, burst: float, gap_s: float
) -> None:
    """Of arrivals every gap, while more come than it fills, floor(burst + rate x t) are in by t."""
    n = 40
    limit = Admission(rate_limit=RateLimit(requests_per_s=per_s, burst_requests=burst))
    arrival_s = np.arange(n) * gap_s
    run = Harness(costs=linear_costs(per_step_s=0.01), admission=limit).run(
        make_demand([4] * n, [1] * n, arrival_s)
    )
    let_in = np.cumsum(run.requests["status"] == COMPLETED)
    most = np.floor(burst + per_s * arrival_s + 1e-9)
    assert (let_in <= most).all()
    if burst > 1:  # a bucket that never overflows is used to the last token
        assert let_in.tolist() == np.minimum(np.arange(1, n + 1), most).tolist()


def test_tenants_have_buckets_of_their_own_and_tokens_count() -> None:
    """100 tokens each, 10 a second: a prompt of 60 and a declared output of 20 take 80."""
    limit = Admission(rate_limit=RateLimit(tokens_per_s=10.0, burst_tokens=100.0))
    demand = make_demand(
        [60] * 5,
        [1] * 5,
        [0, 1, 2, 5.9, 6],
        max_output=[20] * 5,
        groups=make_groups(tenant=[0, 0, 1, 0, 0]),
    )
    run = Harness(costs=linear_costs(per_step_s=0.01), admission=limit).run(demand)
    ended = [COMPLETED, REJECTED, COMPLETED, REJECTED, COMPLETED]
    assert run.requests["status"].tolist() == ended


def test_a_rejected_turn_ends_its_session_and_a_loop_goes_on() -> None:
    demand = make_demand(
        [4] * 3,
        [5, 1, 1],
        None,
        2,
        threads=make_threads([[], [], [1]], thread=[0, 1, 1]),
    )
    run = Harness(costs=SECOND, admission=Admission(max_queued_requests=1)).run(demand)
    assert run.requests["status"].tolist()[:2] == [COMPLETED, REJECTED]
    assert run.requests["status"][2] > REJECTED
