"""The search of a plan against exhaustive enumeration, with a law in the place of simulations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.planning import search as module
from moesim.planning.demand_facts import demand_facts
from moesim.planning.ledger import Ledger, fingerprint
from moesim.planning.outcomes import Outcome
from moesim.planning.pruning import Pruned, prune
from moesim.planning.search import Search
from moesim.planning.shapes import Shape, make_shape
from moesim.planning.space import plan_space
from moesim.scenario import Scenario
from tests.fixtures.plan_cases import LIMITS, case

OVER = {"pools": ("together",), **LIMITS}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.parse(case(slo={"ttft_s": 100.0}))


@pytest.fixture(scope="module")
def pruned(scenario: Scenario) -> Pruned:
    space = plan_space(scenario, ("h100-sxm", "h200-sxm"), 8, OVER)
    return prune(scenario, space, demand_facts(scenario, 99.0), {})


class Law:
    """How many copies a shape needs, at random; remembers what was asked."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.needs: dict[str, float] = {}
        self.asked: list[tuple[str, int]] = []

    def need(self, shape: Shape) -> float:
        if shape.key not in self.needs:
            self.needs[shape.key] = float(self.rng.lognormal(1.2 - np.log(shape.gpus), 0.6))
        return self.needs[shape.key]


def searched(
    monkeypatch: pytest.MonkeyPatch, scenario: Scenario, pruned: Pruned, law: Law, trials: int = 500
) -> Search:
    space = plan_space(scenario, ("h100-sxm", "h200-sxm"), 8, OVER)
    facts = demand_facts(scenario, 99.0)
    by_name = {each.shape.name: each.shape for each in pruned.prospects}
    for each in pruned.prospects:
        each.tight = True  # the law has no tables
        law.need(each.shape)

    def outcome(run: Scenario, units: int, percentile: float) -> Outcome:
        shape = by_name[run.name.partition(" x ")[2]]
        law.asked.append((shape.key, units))
        excess = law.need(shape) / units
        missed = ("late",) if excess > 1.0 else ()
        return Outcome(units, 100, run.seed, missed, excess, False, 10**6, 10**6, {})

    monkeypatch.setattr(module, "outcome", outcome)
    ledger = Ledger(space, fingerprint({}), 0, None)
    found = Search(pruned.prospects, space, facts, ledger, lambda of: of, 99.0, 150, 0, trials)  # type: ignore[arg-type, return-value]
    found.go()
    return found


def cheapest(pruned: Pruned, law: Law, most_gpus: int = 8) -> float:
    costs = [
        units * each.shape.usd_per_hour
        for each in pruned.prospects
        for units in range(1, most_gpus // each.shape.gpus + 1)
        if law.need(each.shape) <= units
    ]
    return min(costs, default=np.inf)


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_cheapest(
    seed: int, monkeypatch: pytest.MonkeyPatch, scenario: Scenario, pruned: Pruned
) -> None:
    law = Law(seed)
    found = searched(monkeypatch, scenario, pruned, law)
    grid = sum(8 // each.shape.gpus for each in pruned.prospects)
    assert found.best is not None
    assert found.best.usd_per_hour == pytest.approx(cheapest(pruned, law))
    assert len(law.asked) == len(set(law.asked)), "nothing is simulated twice"
    assert grid > 200
    assert len(law.asked) <= grid / 3, "even where shapes have nothing to do with each other"


def test_the_sampler_takes_over_where_simulations_are_few(
    monkeypatch: pytest.MonkeyPatch, scenario: Scenario, pruned: Pruned
) -> None:
    law = Law(5)
    found = searched(monkeypatch, scenario, pruned, law, trials=20)
    assert len(law.asked) == 20
    assert found.reasons["left untried: the simulations allowed were used up"] > 0
    assert found.best is not None
    assert found.best.usd_per_hour <= 1.6 * cheapest(pruned, law)


def test_shapes_stand_for_several_fields(scenario: Scenario) -> None:
    moe = Scenario.parse({**scenario.model_dump(), "model": "olmoe-1b-7b"})
    choices = {
        "cluster.gpu": "h200-sxm",
        "deployment.parallelism.attention_tp": 2,
        "deployment.parallelism.attention_dp": 2,
        "deployment.parallelism.expert_parallel": "all",
        "placement": "eplb+1",
        "pools": "1:2",
    }
    shape = make_shape(moe, choices, {"h200-sxm": 2.5})
    of = shape.unit.deployment
    assert of.parallelism.expert_parallel == 4
    assert of.placement.redundant_experts == 4
    assert shape.gpus == 12
    assert shape.usd_per_hour == 30.0
    three = shape.scenario(3).deployment.disaggregation
    assert three is not None
    assert (three.prefill.replicas, three.decode.replicas) == (3, 6)
    assert shape.scenario(3).cluster.nodes == 5


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"most_gpus": 0}, "--max-gpus"),
        ({"gpus": ("h100",)}, "cluster.gpu"),
        ({"over": {"deployment.replicas": ()}}, "--over"),
        ({"over": {f"a.b{i}": tuple(range(100)) for i in range(4)}}, "--over"),
    ],
)
def test_absurd_spaces_are_refused(scenario: Scenario, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        plan_space(scenario, **given)
    assert refused.value.field == field


@pytest.fixture
def shape(scenario: Scenario) -> Iterator[Shape]:
    space = plan_space(scenario, None, 1, OVER)
    return make_shape(scenario, next(space.points()), {})


def test_a_study_is_kept_and_belongs_to_one_question(
    scenario: Scenario, shape: Shape, tmp_path: Path
) -> None:
    space, path = plan_space(scenario, None, 1, OVER), tmp_path / "study.db"
    found = Outcome(1, 150, 0, ("late",), 1.5, False, 10, 10, {"ttft_s.p99": 0.5})
    Ledger(space, "one", 0, path).keep(shape, found, 3.0)
    again = Ledger(space, "one", 0, path)
    assert again.known == {(shape.key, 1, 150, 0): found}
    with pytest.raises(InputError, match="begun for another scenario"):
        Ledger(space, "another", 0, path)
    path.write_text("not a database")
    with pytest.raises(InputError, match="must be a file of moesim plan"):
        Ledger(space, "one", 0, path)


def damaged(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM studies; END",
        "CREATE VIEW v AS SELECT 1",
        "INSERT INTO studies (study_name) VALUES ('mine')",
        "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'outcome'",
        "UPDATE trial_user_attributes SET value_json = '[' WHERE key = 'outcome'",
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '150', '1.5')",
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '0.5', 'NaN')",
        "UPDATE trials SET state = 'OVER'",
        "DELETE FROM study_user_attributes",
    ],
)
def test_a_study_that_others_have_changed_is_refused_in_one_line(
    scenario: Scenario, shape: Shape, tmp_path: Path, statement: str
) -> None:
    space, path = plan_space(scenario, None, 1, OVER), tmp_path / "study.db"
    found = Outcome(1, 150, 0, ("late",), 1.5, False, 10, 10, {"ttft_s.p99": 0.5})
    Ledger(space, "one", 0, path).keep(shape, found, 3.0)
    damaged(path, statement)
    before = path.read_bytes()
    with pytest.raises(InputError, match="--study") as refused:
        Ledger(space, "one", 0, path)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_somebody_elses_database_is_left_as_it_is(scenario: Scenario, tmp_path: Path) -> None:
    space, path = plan_space(scenario, None, 1, OVER), tmp_path / "mine.db"
    damaged(path, "CREATE TABLE mine (a)")
    before = path.read_bytes()
    for name in (path, tmp_path / "study.db?mode=memory"):
        with pytest.raises(InputError, match="--study"):
            Ledger(space, "one", 0, name)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("pools", ["²:1", "0:1", "1:1:1", "1:9999999"])
def test_pools_that_say_nothing_are_refused(scenario: Scenario, pools: str) -> None:
    space = plan_space(scenario, None, 8, {**OVER, "pools": [pools]})
    with pytest.raises(InputError, match="--over pools must be"):
        prune(scenario, space, demand_facts(scenario, 99.0), {})
