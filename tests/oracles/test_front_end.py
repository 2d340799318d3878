"""The front end by hand: stale snapshots, delays, and who is let in at the very end of a step.

Each by the door, in compiled code, and by events, as where something else has to be waited for.
"""

from __future__ import annotations

import pytest

from moesim.policies.load_balancing import LeastLoaded, PrefixAffinity, RoundRobin, VllmScore
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand

SECOND = linear_costs(per_step_s=1.0)
WAYS = pytest.mark.parametrize("leap", [True, False], ids=["door", "events"])


def replicas(run: Run) -> list[int]:
    """The replica of each request (one attention rank each)."""
    return list(run.requests["rank"].tolist())


@WAYS
@pytest.mark.parametrize(
    ("interval_s", "went"),
    [
        # Fresh: a runs on 0 throughout; b, c, d and e find 1 empty.
        (0.0, [0, 1, 1, 1, 1]),
        # A look at t = 5.5: until then only what was sent counts: 1 and 0, 1 and 1 (in turn, so 0),
        # 2 and 1; the look finds a on 0 and nobody on 1.
        (5.5, [0, 1, 0, 1, 1]),
        # No look after t = 0: two were sent to each when e comes, and it is 0's turn.
        (50.0, [0, 1, 0, 1, 0]),
    ],
)
def test_a_stale_view_counts_what_was_sent_since(
    interval_s: float, went: list[int], leap: bool
) -> None:
    balancing = LeastLoaded(snapshot_interval_s=interval_s)
    harness = Harness({"replicas": 2}, SECOND, balancing=balancing, leap=leap)
    run = harness.run(make_demand([4] * 5, [30, 1, 1, 1, 1], [0, 1, 2.5, 4, 6]))
    assert replicas(run) == went


@WAYS
def test_vllms_score_knows_what_is_in_flight_between_two_looks(leap: bool) -> None:
    """b ends unseen: least-loaded still counts it as sent, vLLM's front end knows better."""
    demand = make_demand([4] * 3, [30, 1, 1], [0, 1, 4])
    for policy, third in ((LeastLoaded(snapshot_interval_s=50.0), 0), (VllmScore(), 1)):
        run = Harness({"replicas": 2}, SECOND, balancing=policy, leap=leap).run(demand)
        assert replicas(run) == [0, 1, third]


@WAYS
def test_a_prompt_returns_to_where_its_prefix_was_sent(leap: bool) -> None:
    prefixes = [[0, 1], [2], [2, 3], [0, 1, 4], [5]]
    demand = make_demand([40] * 5, [1] * 5, [0, 10, 20, 30, 40], None, prefixes, 8)
    run = Harness({"replicas": 2}, SECOND, balancing=PrefixAffinity(), leap=leap).run(demand)
    assert replicas(run)[:4] == [0, 1, 1, 0]
    assert run.requests["cached_tokens"].tolist() == [0, 0, 8, 16, 0]


@WAYS
def test_round_robin_goes_in_turn_over_replicas_and_ranks(leap: bool) -> None:
    harness = Harness({"replicas": 2, "ranks": 2}, SECOND, balancing=RoundRobin(), leap=leap)
    assert replicas(harness.run(make_demand([4] * 6, [1] * 6))) == [0, 2, 1, 3, 0, 2]


class Own(RoundRobin):
    """A policy that only the front end knows."""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("leap", "policy"), [(True, RoundRobin), (True, Own), (False, Own)])
def test_who_arrives_at_the_very_end_of_a_step_is_in_the_next(
    leap: bool, policy: type[RoundRobin], ranks: int
) -> None:
    """With two ranks the second request goes to the other one."""
    harness = Harness({"ranks": ranks}, SECOND, leap=leap, balancing=policy())
    run = harness.run(make_demand([4, 4], [6, 1], [0, 3]))
    assert run.requests["scheduled_s"].tolist() == [0, 3]


@WAYS
@pytest.mark.parametrize("concurrency", [None, 1])
def test_tokenising_delays_a_request_before_it_queues(concurrency: int | None, leap: bool) -> None:
    harness = Harness(costs=SECOND, delay_s=0.25, leap=leap)
    run = harness.run(make_demand([4, 4], [2, 2], [0, 7], concurrency))
    arrival_s = run.requests["arrival_s"].tolist()
    assert arrival_s == ([0, 7] if concurrency is None else [0, 2.25])
    assert run.requests["scheduled_s"].tolist() == [arrival_s[0] + 0.25, arrival_s[1] + 0.25]


@WAYS
def test_a_closed_loop_goes_on_past_a_request_that_never_fits(leap: bool) -> None:
    rules = {"block_tokens": 1, "block_bytes": 1, "kv_capacity_bytes": 10}
    demand = make_demand([5, 50, 50, 5], [1, 1, 1, 1], concurrency=1)
    run = Harness(rules, SECOND, leap=leap).run(demand)
    assert run.requests["finish_s"][[0, 3]].tolist() == [1, 2]
    assert run.requests["arrival_s"].tolist() == [0, 1, 1, 1]


def test_nobody_looks_at_idle_queues_for_days() -> None:
    """A gap of 10^9 looks between two requests; afterwards looks fall where they always did."""
    harness = Harness({"replicas": 2}, SECOND, balancing=LeastLoaded(snapshot_interval_s=0.5))
    day_s = 5e8
    run = harness.run(make_demand([4] * 4, [30, 1, 1, 1], [0, day_s, day_s + 0.2, day_s + 0.6]))
    # Second and third in the same half second: what was sent counts. The fourth comes after a look
    # that finds both running, and it is 1's turn.
    assert replicas(run) == [0, 1, 0, 1]
