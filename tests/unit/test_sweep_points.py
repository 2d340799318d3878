"""What is swept: values and their short forms, combinations, draws, files, scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.scenario import Scenario, load_scenario, scenario_names
from moesim.sweeping.point_files import read_points
from moesim.sweeping.points import combinations, make_points, plain_scenario
from moesim.sweeping.values import Between, dimension, over_option, read_values
from tests.fixtures.sweeps import TOY

RATE = "workload.arrivals.poisson.rate_per_s"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4", [1, 2, 4]),
        ("2:16:2", list(range(2, 17, 2))),
        ("2:7:2", [2, 4, 6]),
        ("8:2:-3", [8, 5, 2]),
        ("0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
        ("1:64:x2", [1, 2, 4, 8, 16, 32, 64]),
        ("0.1:10:x10", [0.1, 1.0, 10.0]),
        ("1,4:8:2,100", [1, 4, 6, 8, 100]),
        ("bf16, fp8", ["bf16", "fp8"]),
        ("null,1e3", [None, 1000.0]),
        ("contiguous,{policy: eplb, redundant_experts: 8}",
         ["contiguous", {"policy": "eplb", "redundant_experts": 8}]),
        ("1..64", Between(1, 64)),
        ("0.5..64:log", Between(0.5, 64, log=True)),
    ],
)  # fmt: skip
def test_short_forms(text: str, values: Any) -> None:
    assert read_values(text, "--over a") == values


@pytest.mark.parametrize(
    "text",
    ["", "4:2:1", "1:2:0", "0:8:x2", "1:8:x1", "8..1", "0..8:log", "1,2..3", "[1", "1:1e9:1",
     "1e400:2:1", "1..1e300"],
)  # fmt: skip
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--over a"):
        dimension("a", text)


def test_an_option_needs_a_field() -> None:
    assert over_option("a.b=1,2") == ("a.b", "1,2")
    for text in ("a.b", "=1", "a..b=1"):
        with pytest.raises(InputError):
            over_option(text)


@given(
    st.lists(
        st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), min_size=1, max_size=3
    )
)
def test_a_grid_has_every_combination_once(values: list[list[int]]) -> None:
    found = combinations([dimension(f"f{i}", each) for i, each in enumerate(values)])
    assert len(found) == int(np.prod([len(each) for each in values]))
    assert len({tuple(point.items()) for point in found}) == len(found)


def test_draws_differ_stay_within_and_begin_alike() -> None:
    dims = [dimension("a", "1..64:log"), dimension("b", [0.5, 2]), dimension("c", "0.0..1.0")]
    few, many = (combinations(dims, draws=n, seed=3) for n in (20, 50))
    assert many[:20] == few
    assert len({tuple(point.values()) for point in many}) == 50
    assert all(type(p["a"]) is int and 1 <= p["a"] <= 64 for p in many)
    assert all(p["b"] in (0.5, 2) and 0 <= p["c"] <= 1 for p in many)
    # Even in the logarithm: half of them below the geometric mean.
    drawn = combinations([dimension("a", "1.0..10000.0:log")], draws=400, seed=1)
    assert 0.4 < np.mean([p["a"] < 100 for p in drawn]) < 0.6
    assert combinations(dims, draws=20, seed=4) != few


def test_draws_from_few_points_end() -> None:
    assert len(combinations([dimension("a", [1, 2]), dimension("b", [3])], draws=50)) == 2


def test_ranges_are_only_drawn_from() -> None:
    with pytest.raises(InputError, match="--random"):
        combinations([dimension("a", "1..4")])


def test_absurd_sizes_are_refused_before_they_are_made() -> None:
    dims = [dimension(name, range(1000)) for name in "abcd"]
    with pytest.raises(InputError, match="100000"):
        combinations(dims)
    with pytest.raises(InputError, match="100000"):
        combinations(dims, draws=10**9)


def test_points_from_files(tmp_path: Path) -> None:
    csv, yaml = tmp_path / "a.csv", tmp_path / "a.yaml"
    csv.write_text(f"deployment.replicas,{RATE}\n1,2.5\n2,\n")
    yaml.write_text(f"- {{deployment.replicas: 1, {RATE}: 2.5}}\n- {{deployment.replicas: 2}}\n")
    rows = [{"deployment.replicas": 1, RATE: 2.5}, {"deployment.replicas": 2}]
    assert read_points(csv) == read_points(yaml) == rows
    assert combinations([dimension("seed", [7, 8])], rows)[1] == {**rows[0], "seed": 8}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ""),
        ("a.csv", "a,a\n1,2\n"),
        ("a.csv", "a,b\n1\n"),
        ("a.csv", "a\n[\n"),
        ("a.yaml", "a: 1"),
        ("a.yaml", "[]"),
        ("a.yaml", "[1]"),
        ("a.yaml", "- {1: 2}"),
        ("a.txt", "a\n1\n"),
    ],
)
def test_files_that_list_no_points_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError):
        read_points(tmp_path / name)


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_without_its_defaults_is_the_same(name: str) -> None:
    scenario = load_scenario(name)
    assert Scenario.parse(plain_scenario(scenario)) == scenario


def points(over: dict[str, Any], seeds: int = 1, **changes: Any) -> list[Any]:
    combined = combinations([dimension(path, values) for path, values in over.items()])
    return make_points(Scenario.parse({**TOY, **changes}), combined, seeds, Path.cwd())


def scenario_of(point: Any) -> Scenario:
    return Scenario.model_validate_json(point.task.scenario)


def test_points_change_what_they_name_and_nothing_else() -> None:
    found = points({"deployment.replicas": [1, 3], RATE: "2:4:2"}, seeds=2)
    assert [(p.choices[RATE], p.seed) for p in found[:4]] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    last = scenario_of(found[-1])
    assert last.deployment.replicas == 3
    assert last.seed == 1
    same = last.model_copy(
        update={"deployment": Scenario.parse(TOY).deployment, "seed": 0,
                "workload": Scenario.parse(TOY).workload}
    )  # fmt: skip
    assert same == Scenario.parse(TOY)
    assert len({p.task.key for p in found}) == len(found)


def test_one_batching_limit_changes_what_the_engine_does_by_itself() -> None:
    found = points({"deployment.engine": ["vllm", "sglang"],
                    "deployment.batching.max_requests": [8]})  # fmt: skip
    kinds = [scenario_of(p).batching for p in found]
    assert [kind.policy for kind in kinds] == ["chunked-prefill", "prefill-first"]
    assert all(kind.max_requests == 8 for kind in kinds)


def test_a_point_that_cannot_be_read_is_kept_with_its_error() -> None:
    good, bad = points({"deployment.replicas": [1, 0]})
    assert good.error is None
    assert bad.task is None
    assert "deployment.replicas must be at least 1" in str(bad.error)


@pytest.mark.parametrize(
    ("path", "hint"),
    [("deployment.replcas", "replicas"), ("workload.arivals.poisson.rate_per_s", "arrivals")],
)
def test_misspelt_fields_are_refused(path: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"not a known field.*{hint}") as caught:
        points({path: [1, 2], "seed": [1, 2]})
    assert caught.value.field == f"--over {path}"


def test_a_sweep_of_nothing_that_can_be_read_is_refused() -> None:
    with pytest.raises(InputError, match="whole number"):
        points({"deployment.replicas": ["many", "few"]})


def test_a_field_that_only_some_points_have_is_no_slip() -> None:
    over = {"deployment.placement.policy": ["contiguous", "eplb"],
            "deployment.placement.fit_fraction": [0.5]}  # fmt: skip
    contiguous, eplb = points(over)
    assert contiguous.error is not None
    assert eplb.error is None
