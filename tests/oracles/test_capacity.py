"""Capacity within an SLO, against a queue whose waits are known exactly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.errors import InputError
from moesim.scenario import Scenario, SLOSpec
from moesim.serving_cost.capacity import Capacity, at_rate, capacity, judge, one_replica
from moesim.serving_cost.seeded_capacity import mean_of_brackets, seeded_capacities
from moesim.workload.arrivals import first_arrivals

SERVICE_S = 0.1


def scenario(**changes: Any) -> Scenario:
    return Scenario.parse(
        {
            "name": "a queue",
            "model": "llama-3.1-8b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4},
            "deployment": {"replicas": 4},
            "workload": {
                "arrivals": {"poisson": {"rate_per_s": 1.0}},
                "requests": 400,
                "prompt": {"fixed": 100},
                "output": {"fixed": 10},
            },
            "slo": {"e2e_s": 0.5},
            **changes,
        }
    )


def queue(of: Scenario) -> Any:
    """One server, SERVICE_S each, first come first served (Lindley's recursion)."""
    requests = of.workload.requests
    assert requests is not None
    arrival = first_arrivals(of.workload.arrivals, requests, np.random.default_rng(0))
    finish = np.zeros(requests)
    free = 0.0
    for n, at in enumerate(arrival):
        free = max(free, at) + SERVICE_S
        finish[n] = free
    return result(of, arrival, finish)


def result(of: Scenario, arrival: Any, finish: Any) -> Any:
    e2e = np.asarray(finish) - np.asarray(arrival)
    table = pd.DataFrame(
        {
            "arrival_s": arrival,
            "finish_s": finish,
            "ttft_s": e2e,
            "tpot_s": np.nan,
            "e2e_s": e2e,
            "output_tokens": 10,
            "turn": 0,
            "class": "",
            "warmup": False,
        }
    )
    table["status"] = np.where(np.isnan(table["finish_s"]), "failed", "completed")
    return SimpleNamespace(scenario=of, requests=table, raw=SimpleNamespace(threads=None))


def keeps(rate: float, percentile: float = 99.0) -> bool:
    return not judge(queue(at_rate(one_replica(scenario()), rate)), percentile)


@pytest.mark.parametrize("start", [0.01, 1.0, 7.0, 500.0])
def test_the_answer_is_where_the_slo_ends(start: float) -> None:
    """Wherever the search begins: its rate keeps the SLO, the one 5 % above does not."""
    found = capacity(scenario(workload=workload(start)), run=queue)
    assert keeps(found.requests_per_s)
    assert not keeps(found.fails_at_per_s)
    assert 1.0 < found.fails_at_per_s / found.requests_per_s <= 1.05
    assert len(found.trials) <= 20
    grid = np.linspace(1.0, 12.0, 111)
    by_grid = max(rate for rate in grid if keeps(float(rate)))
    assert found.requests_per_s == pytest.approx(by_grid, rel=0.06)


def workload(rate: float, **changes: Any) -> dict[str, Any]:
    return {
        "arrivals": {"poisson": {"rate_per_s": rate}},
        "requests": 400,
        "prompt": {"fixed": 100},
        "output": {"fixed": 10},
        **changes,
    }


def test_the_same_question_has_the_same_answer() -> None:
    one, other = (capacity(scenario(), run=queue) for _ in range(2))
    assert one.trials == other.trials


def test_a_looser_slo_is_kept_at_higher_rates() -> None:
    found = [
        capacity(scenario(), SLOSpec(e2e_s=limit), run=queue).requests_per_s
        for limit in (0.2, 0.4, 0.8, 1.6)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1] < 1.2 / SERVICE_S


def test_a_lower_percentile_is_kept_at_higher_rates() -> None:
    high, low = (capacity(scenario(), percentile=p, run=queue).requests_per_s for p in (99.0, 80.0))
    assert low > high


def test_an_slo_that_is_never_kept_is_said() -> None:
    found = capacity(scenario(slo={"e2e_s": 0.05}), run=queue)
    assert isinstance(found, Capacity)
    assert found.requests_per_s == 0.0
    assert found.result is None
    assert found.why == "0.0% of the requests keep E2E at most 0.05 s"


def test_a_backlog_that_grows_is_overload_however_loose_the_slo() -> None:
    """At 15 a second against 10 the queue grows by 5 a second; limits of an hour never notice."""
    loose = one_replica(scenario(slo={"e2e_s": 3600.0}))
    (missed,) = judge(queue(at_rate(loose, 15.0)))
    assert missed.startswith("overload: ")
    assert judge(queue(at_rate(loose, 8.0))) == ()
    found = capacity(loose, run=queue)
    assert 8.0 < found.requests_per_s < 13.0


def test_too_few_requests_to_fill_a_replica_are_said() -> None:
    """A second each however many: 400 that arrive within a second say nothing more."""

    def wide(of: Scenario) -> Any:
        arrival = first_arrivals(of.workload.arrivals, 400, np.random.default_rng(0))
        return result(of, arrival, arrival + 1.0)

    with pytest.raises(InputError, match=r"^workload.requests must be more to fill a replica"):
        capacity(scenario(slo={"e2e_s": 2.0}), run=wide)


def test_requests_that_never_end_miss_every_limit() -> None:
    def failing(of: Scenario) -> Any:
        made = queue(of)
        made.requests.loc[:9, ["finish_s", "e2e_s", "ttft_s"]] = np.nan
        made.requests.loc[:9, "status"] = "failed"
        return made

    found = capacity(scenario(), run=failing)
    assert found.requests_per_s == 0.0
    assert "97.5% of the requests" in found.why


def test_one_replica_is_the_scenario_less_what_is_of_the_fleet() -> None:
    asked = scenario(faults={"mtbf": {"gpu_hours": 10}})
    one = one_replica(asked)
    assert one.deployment.replicas == 1
    assert one.faults is None
    assert one_replica(scenario(workload=workload(1.0, requests=None, duration_s=5))).workload


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": {}}, r"^slo must limit ttft_s, tpot_s or e2e_s"),
        ({"workload": workload(1.0, requests=99)}, r"^workload.requests must be at least 100"),
        (
            {"workload": workload(1.0, arrivals={"closed_loop": {"concurrency": 4}})},
            r"^workload.arrivals must be poisson, gamma or deterministic",
        ),
    ],
)
def test_what_has_no_capacity_is_refused_before_a_run(
    changes: dict[str, Any], message: str
) -> None:
    def never(of: Scenario) -> Any:
        raise AssertionError("ran")

    with pytest.raises(InputError, match=message):
        capacity(scenario(**changes), run=never)


@pytest.mark.parametrize("percentile", [100.0, 49.0, float("nan")])
def test_percentiles_are_from_50_to_below_100(percentile: float) -> None:
    with pytest.raises(InputError, match=r"^--percentile must be from 50"):
        capacity(scenario(), percentile=percentile, run=queue)


# Several seeds


def seeded_queue(of: Scenario) -> Any:
    """As `queue`, with arrivals of the scenario's own seed."""
    requests = of.workload.requests
    assert requests is not None
    arrival = first_arrivals(of.workload.arrivals, requests, np.random.default_rng(of.seed))
    finish = np.zeros(requests)
    free = 0.0
    for n, at in enumerate(arrival):
        free = max(free, at) + SERVICE_S
        finish[n] = free
    return result(of, arrival, finish)


def test_further_seeds_are_bracketed_near_the_first_as_by_a_search_of_their_own() -> None:
    found = seeded_capacities(scenario(), 6, run=seeded_queue)
    assert found[0].trials == capacity(scenario(), run=seeded_queue).trials
    for number, near in enumerate(found):
        assert near.scenario.seed == number
        assert 1.0 < near.fails_at_per_s / near.requests_per_s <= 1.0501
        alone = capacity(scenario(seed=number), run=seeded_queue)
        assert near.requests_per_s < alone.fails_at_per_s
        assert alone.requests_per_s < near.fails_at_per_s
    assert len({each.requests_per_s for each in found}) > 1
    assert sum(len(each.trials) for each in found[1:]) <= 5 * 5


def test_the_interval_is_students_over_the_seeds_and_holds_what_the_search_left_open() -> None:
    kept, failed = [8.0, 8.0, 8.0], [8.4, 8.4, 8.4]
    sure = mean_of_brackets(kept, failed)
    assert (sure.value, sure.low, sure.high) == pytest.approx((8.0, 8.0, 8.4))
    spread = mean_of_brackets([8.0, 10.0], [8.0, 10.0])
    half = 12.7062 * np.log(10.0 / 8.0) / 2.0  # t of one degree of freedom, sd / sqrt(2)
    assert spread.value == pytest.approx(80.0**0.5)
    assert spread.high == pytest.approx(80.0**0.5 * np.exp(half), rel=1e-4)
    assert spread.low == pytest.approx(80.0**0.5 * np.exp(-half), rel=1e-4)
    one = mean_of_brackets([8.0], [8.4])
    assert (one.value, one.low, one.high) == (8.0, None, None)


def test_the_interval_covers_the_mean_that_brackets_were_drawn_around() -> None:
    """400 studies of five seeds: at least 95 %, less what luck takes of it."""
    rng = np.random.default_rng(7)
    ends = 8.0 * np.exp(0.06 * rng.standard_normal((400, 5)))
    kept = ends / 1.05 ** rng.random((400, 5))
    found = [mean_of_brackets(low, 1.05 * low) for low in kept]
    covered = sum(each.low <= 8.0 <= each.high for each in found if each.low and each.high)
    assert covered >= 372


@pytest.mark.parametrize("seeds", [0, 31])
def test_seeds_are_1_to_30(seeds: int) -> None:
    with pytest.raises(InputError, match=r"^--seeds must be 1 to 30"):
        seeded_capacities(scenario(), seeds, run=queue)


def test_a_seed_that_never_keeps_the_slo_is_named() -> None:
    def unlucky(of: Scenario) -> Any:
        made = seeded_queue(of)
        if of.seed == 2:
            made.requests.loc[:9, ["finish_s", "e2e_s", "ttft_s"]] = np.nan
            made.requests.loc[:9, "status"] = "failed"
        return made

    with pytest.raises(InputError, match=r"^slo is kept at no rate of arrivals with seed 2: "):
        seeded_capacities(scenario(), 3, run=unlucky)
