"""Dense twins: as many parameters, the same attention, as many GPUs, the same demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from moesim.cli.app import main
from moesim.dense_twin import TILE, TWIN_KINDS, TwinKind, dense_twin
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.model import load_model, model_names
from moesim.results import Result
from moesim.scenario import Scenario, load_scenario
from moesim.sim.state import STEP_PARTS
from moesim.simulation import simulate
from moesim.twins import compare_twin, gpus_of, part_shares, study_twins, twin_scenario
from tests.fixtures.toy_model import toy

MOES = tuple(name for name in model_names() if load_model(name).is_moe)


@pytest.mark.parametrize("kind", TWIN_KINDS)
@pytest.mark.parametrize("name", MOES)
def test_parameters_are_equal_to_within_half_a_tile(name: str, kind: TwinKind) -> None:
    model = load_model(name)
    twin = load_model(f"dense-{kind}:{name}")
    wanted = getattr(model.parameters(), kind)
    assert abs(twin.parameters().total - wanted) <= 3 * model.hidden * model.layers * TILE / 2
    assert twin.parameters().active == twin.parameters().total
    assert not twin.is_moe
    assert twin.dense_layers == tuple(range(model.layers))
    same = ("hidden", "layers", "vocab", "attention", "window_of_layer", "index", "linear")
    assert all(getattr(twin, field) == getattr(model, field) for field in same)


def test_a_twin_of_hand_is_as_wide_as_it_must_be() -> None:
    """Mixtral: all layers routed, top 2 of 8 experts of 14,336, routers of 8 x 4,096."""
    model = load_model("mixtral-8x7b")
    assert dense_twin(model, "active").dense_width == 2 * 14_336
    assert dense_twin(model, "total").dense_width == 8 * 14_336


def test_what_has_no_twin_is_refused() -> None:
    for name in ("dense-active:llama-3.1-70b", "dense-total:dense-active:mixtral-8x7b"):
        with pytest.raises(InputError, match=r"^model must"):
            load_model(name)
    with pytest.raises(InputError, match="must be active or total"):
        dense_twin(load_model("mixtral-8x7b"), "half")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "tp"), [("active", 1), ("total", 8)])
def test_twins_have_as_many_gpus_on_the_least_that_hold_one(kind: TwinKind, tp: int) -> None:
    scenario = load_scenario("deepseek-v3-one-node")
    twin = twin_scenario(scenario, kind)
    assert twin.deployment.parallelism.attention_tp == tp
    assert gpus_of(twin) == gpus_of(scenario) == 8
    assert twin.workload == scenario.workload
    assert deploy(twin).model.name.startswith("dense twin of deepseek-v3")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def own(asked: Scenario) -> Result:
    return simulate(asked, provenance=False)


def test_a_study_compares_the_same_demand(asked: Scenario) -> None:
    ran: list[Scenario] = []

    def run(of: Scenario) -> Result:
        ran.append(of)
        return simulate(of, provenance=False)

    (twin,) = study_twins(asked, ["active"], seeds=(0, 1), run=run)
    assert [of.seed for of in ran] == [0, 1, 0, 1]
    assert twin.gpus == 2
    assert twin.parameters == load_model(ran[-1].model).parameters().total
    estimate = twin.figures["itl_s.p99"]
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    assert "ITL of" in twin.sentence
    assert "2 replicas of 1" in twin.sentence
    assert study_twins(asked.model_copy(update={"model": ran[-1].model})) == ()


def test_ratios_in_the_sentence_are_those_of_the_runs(own: Result) -> None:
    """Against itself every ratio is 1."""
    told = compare_twin([own], [own], "total")
    assert "varies 1.0 times as much as on a dense model of the same total size" in told.sentence


def test_shares_of_the_variance_of_steps_sum_to_one(own: Result) -> None:
    shares = part_shares(own)
    assert shares.sum() == pytest.approx(1.0)
    steps = own.raw.steps[own.raw.steps["decode_tokens"] > 0]
    weights = steps["decode_tokens"] / steps["decode_tokens"].sum()
    both = np.cov(steps["experts_s"], steps["duration_s"], aweights=weights, ddof=0)
    assert shares[STEP_PARTS.index("experts_s")] == pytest.approx(both[0, 1] / both[1, 1])
    none = replace(own, raw=replace(own.raw, steps=own.raw.steps[:0]))
    assert np.isnan(part_shares(none)).all()


def test_one_scenario_is_compared_with_its_twin(
    asked: Scenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(asked.model_dump(mode="json")))
    assert main(["compare", str(file), "--dense", "active"]) == 0
    assert "as on a dense model of the same active size" in capsys.readouterr().out
    assert main(["compare", str(file)]) == 2
    assert main(["compare", "mixtral-8x7b-chat", "--set", "model=llama-3.1-8b",
                 "--dense", "total"]) == 2  # fmt: skip
    assert "must have experts to have a dense twin" in capsys.readouterr().err


def test_a_twin_that_does_not_fit_is_refused() -> None:
    """671 billion parameters of two bytes are more than four GPUs hold."""
    few = load_scenario(
        "deepseek-v3-one-node", ["cluster.gpus_per_node=4", "precision.weights=bf16"]
    )
    with pytest.raises(InputError, match="must fit the scenario's cluster of 4 GPUs"):
        twin_scenario(few, "total")
