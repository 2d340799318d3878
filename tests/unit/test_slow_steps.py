"""Slow steps are named by what was planted in them: a prompt, a context, an expert, a link."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moesim.cli.app import main
from moesim.errors import InputError
from moesim.findings.attribution import BOUNDS, SlowSteps
from moesim.looking import Looker
from moesim.report.slow_step_charts import slow_step_figures
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.sim.cost_tables import ALL_GATHER
from moesim.sim.state import STEP_PARTS
from moesim.simulation import simulate
from moesim.slow_steps import Typical, causes_of, slow_steps, slowest, typical
from tests.fixtures.engine import make_demand
from tests.fixtures.toy_model import EXPERTS, LAYERS, TOP_K, toy, toy_costs

PAIR_S = 1e-4


def planted(
    scenario: Scenario, prompt: Any, output: Any, arrival_s: Any, **given: Any
) -> tuple[Result, tuple[SlowSteps, ...]]:
    """A run of made requests and made step times, and what its slow steps are said to be."""
    demand = make_demand(prompt, output, arrival_s)
    made = partial(simulate, scenario, demand=demand, provenance=False, **given)
    result = made()
    return result, slow_steps(result, again=lambda looker: made(looker=looker))


def decoding(requests: int, output: int = 300) -> tuple[list[int], list[int], list[float]]:
    """Requests that decode side by side from the start."""
    return [16] * requests, [output] * requests, [0.0] * requests


def group(found: tuple[SlowSteps, ...], name: str = "all steps") -> SlowSteps:
    return next(each for each in found if each.group == name)


def test_a_huge_prompt_is_named_with_its_rank(tmp_path: Path) -> None:
    prompt, output, arrival = decoding(8)
    prompt, output, arrival = [*prompt, 4000], [*output, 2], [*arrival, 0.4]
    result, found = planted(toy(tmp_path), prompt, output, arrival, costs=toy_costs())
    first = group(found).causes[0]
    rank = int(result.requests["rank"].iloc[-1])
    assert (first.bound_by, first.where) == ("prefill chunk", f"attention rank {rank}")
    assert first.share == pytest.approx(1.0)
    assert "prompt chunks on a neighbouring rank" in first.sentence


def test_a_long_context_is_named_with_its_rank(tmp_path: Path) -> None:
    prompt, output, arrival = decoding(6, output=600)
    prompt[2], output[2], arrival[2] = 3000, 40, 0.3
    costs = toy_costs(0.0, 1e-3, kv_token_s=1e-6)
    result, found = planted(toy(tmp_path), prompt, output, arrival, costs=costs)
    first = group(found, "steps without prompts").causes[0]
    rank = int(result.requests["rank"].iloc[2])
    assert (first.bound_by, first.where) == ("kv-heavy rank", f"attention rank {rank}")
    assert first.share > 0.8  # one more that decodes explains the rest
    assert first.steps == group(found, "steps without prompts").steps


def test_a_hot_expert_is_named_with_its_layer_and_rank(tmp_path: Path) -> None:
    """In a few steps all tokens go to experts 6 and 7 of layer 2, both on the second rank."""
    ids = np.array([[row % 4, 4 + row % 4] for row in range(512)])
    ids = np.repeat(ids[:, None], LAYERS, axis=1)  # every token takes one expert of each rank
    ids[300:308, 2] = [6, 7]
    requests = 8
    costs = toy_costs(0.0, 1e-3, expert_pair_s=PAIR_S)
    of = decoding(requests, output=450)
    _, found = planted(toy(tmp_path, {"any": ids}), *of, costs=costs)
    plain = group(found, "steps without prompts")
    expert = next(each for each in plain.causes if each.bound_by == "expert")
    assert plain.causes[0] is expert
    assert expert.where.startswith("layer 2, rank 1, expert 6")
    assert int(np.unravel_index(plain.waiting_LR.argmax(), plain.waiting_LR.shape)[0]) == 2
    assert plain.waiting_LR[2, 1] == pytest.approx(requests * TOP_K / 2 * PAIR_S)
    assert plain.waiting_LR[[0, 1, 3]] == pytest.approx(0.0, abs=1e-12)


def test_a_slow_link_is_named(tmp_path: Path) -> None:
    faults = {
        "events": [
            {"kind": "slow-link", "at_s": 0.2, "replica": 0, "rank": 1, "factor": 50,
             "duration_s": 0.05, "link": "scale-up"}
        ]
    }  # fmt: skip
    scenario = toy(tmp_path, faults=faults)
    costs = toy_costs(
        0.0, 1e-3, gather_token_s=1e-6, gather_up_bytes=1e3, up_byte_s=1e-9,
        prefill_exchange=ALL_GATHER, decode_exchange=ALL_GATHER,
    )  # fmt: skip
    _, found = planted(scenario, *decoding(8, output=600), costs=costs)
    first = group(found, "steps without prompts").causes[0]
    assert (first.bound_by, first.where) == ("link", "scale-up")


def test_shares_sum_to_one_and_what_was_seen_is_what_was_priced(real: Result) -> None:
    found = slow_steps(real)
    assert [each.group for each in found] == ["all steps", "steps without prompts"]
    for each in found:
        assert sum(cause.share for cause in each.causes) == pytest.approx(1.0)
        assert sum(cause.steps for cause in each.causes) == each.steps
        assert each.notes == ()
        assert each.excess_s > 0.0
        assert each.sentence.startswith("The slowest 1 %")
    figures = slow_step_figures(found)
    assert all(figure.chart is not None for figure in figures)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Random routing, the toy's own rates, two replicas."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((400, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]
    deployment = {"replicas": 2, "engine": "sglang"}
    folder = tmp_path_factory.mktemp("toy")
    scenario = toy(
        folder, {"any": ids}, deployment, cluster={"gpu": "h100-sxm", "gpus_per_node": 4}
    )
    workload = scenario.workload.model_copy(update={"requests": 150})
    return simulate(scenario.model_copy(update={"workload": workload}), provenance=False)


def test_looking_changes_nothing_and_adds_up_to_the_step(real: Result) -> None:
    """Tokens and waiting of every step that was looked at are those of its row."""
    steps = real.raw.steps[real.raw.steps["dummy"] == 0][::7]
    looker = Looker(steps)
    again = simulate(real.scenario, provenance=False, looker=looker)
    assert again.raw.steps.tobytes() == real.raw.steps.tobytes()
    seen = [(step, looker.of(step)) for step in steps]
    assert sum(each is not None for _, each in seen) > 0.9 * len(steps)
    for step, each in seen:
        if each is None:
            continue
        assert each.prompt_tokens_D.sum() == step["prefill_tokens"]
        assert each.decoding_D.sum() == step["decode_tokens"]
        over_LR = each.expert_s_LR.max(axis=1) - each.expert_s_LR.mean(axis=1)
        assert over_LR.sum() == pytest.approx(step["expert_imbalance_s"], rel=1e-9, abs=1e-15)
        over_s = each.attention_s_D.max() - each.attention_s_D.mean()
        assert over_s == pytest.approx(step["attention_imbalance_s"], rel=1e-9, abs=1e-15)
        assert each.tokens_LP.sum() == LAYERS * TOP_K * (
            step["prefill_tokens"] + step["decode_tokens"]
        )


def test_a_second_run_that_is_another_is_refused(real: Result) -> None:
    workload = real.scenario.workload.model_copy(update={"requests": 149})
    other = real.scenario.model_copy(update={"workload": workload})
    with pytest.raises(InputError, match="must be made again with all"):
        slow_steps(real, again=lambda looker: simulate(other, looker=looker))


def test_without_a_look_causes_stay_and_places_are_not_known(real: Result) -> None:
    known, blind = slow_steps(real)[1], slow_steps(real, look=False)[1]
    assert [each.bound_by for each in known.causes] == [each.bound_by for each in blind.causes]
    assert not blind.waiting_LR.size
    assert "nobody looked" in blind.notes[0]


def test_the_command_tells_what_bound_slow_steps(
    real: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(real.scenario.model_dump(mode="json")))
    assert main(["run", str(file), "--explain"]) == 0
    shown = capsys.readouterr().out
    assert slow_steps(real)[0].sentence in " ".join(shown.split())
    assert main(["run", str(file), "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["slow_steps"]
    assert [each["group"] for each in told] == ["all steps", "steps without prompts"]
    assert sum(each["share"] for each in told[0]["causes"]) == pytest.approx(1.0)
    assert np.array(told[0]["waiting_s"]).shape == (LAYERS, 2)


def test_causes_sum_to_the_excess_of_any_step(real: Result) -> None:
    steps = real.raw.steps
    usual = Typical.of(typical(steps))
    for step in slowest(steps):
        excess_s = float(step["duration_s"]) - sum(usual.parts.values())
        found = causes_of(step, usual, None)
        assert tuple(found) == BOUNDS
        assert sum(found.values()) == pytest.approx(excess_s, rel=1e-9)
    assert sum(usual.parts[part] for part in STEP_PARTS) == pytest.approx(
        float(typical(steps)["duration_s"].mean())
    )
