"""Every shipped scenario says what it asks, fits its machines and runs."""

from __future__ import annotations

import pytest

from moesim.deployment import deploy
from moesim.pools import plan_pools
from moesim.scenario import find_scenario, load_scenario, scenario_names
from moesim.simulation import simulate

# The studies that the documentation promises, by what their names begin with.
STUDIES = {
    "deepseek-v3-one-node",
    "deepseek-v3-two-nodes",
    "mixtral-8x7b-chat",
    "mixtral-8x22b",
    "dbrx",
    "gpt-oss-120b-one-gpu",
    "gpt-oss-120b-eight-gpus",
    "ep-against-tp-ep",
    "ep-against-tp-tp",
    "moe-against-dense-moe",
    "moe-against-dense-same-active",
    "moe-against-dense-same-total",
    "gpt-4-rumoured",
    "placement-contiguous",
    "placement-eplb",
    "demo",
}


def test_all_studies_ship() -> None:
    assert set(scenario_names()) >= STUDIES


@pytest.mark.parametrize("name", scenario_names())
def test_it_opens_with_the_question_it_answers(name: str) -> None:
    assert find_scenario(name).read_text(encoding="utf-8").startswith("# ")
    assert load_scenario(name).question.endswith("?")


@pytest.mark.parametrize("name", scenario_names())
def test_it_fits_its_machines(name: str) -> None:
    scenario = load_scenario(name)
    if scenario.deployment.disaggregation is None:
        deployments = [deploy(scenario)]
    else:
        deployments = [pool.deployment for pool in plan_pools(scenario)]
    for deployment in deployments:
        least = 10_000 if deployment.offload else 100_000
        assert deployment.memory.kv_capacity_tokens > least


@pytest.mark.parametrize("name", scenario_names())
def test_it_runs(name: str) -> None:
    result = simulate(load_scenario(name, ["workload.requests=30"]))
    assert result.summary["requests"]["completed"] == 30
    offloaded = result.scenario.deployment.expert_offload is not None  # on a card nobody measured
    begins = "datasheet" if offloaded else "measured kernels"
    assert any(note.startswith(begins) for note in result.notes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("deepseek-v3-one-node", "deepseek-v3-two-nodes"),
        ("deepseek-v3-two-copies", "deepseek-v3-two-nodes"),
        ("gpt-oss-120b-one-gpu", "gpt-oss-120b-eight-gpus"),
        ("ep-against-tp-ep", "ep-against-tp-tp"),
        ("moe-against-dense-moe", "moe-against-dense-same-active"),
        ("moe-against-dense-moe", "moe-against-dense-same-total"),
        ("placement-contiguous", "placement-eplb"),
        ("prefill-every-step", "prefill-every-second-step"),
        ("deepseek-v3-one-node", "deepseek-v3-one-node-drafts"),
        ("deepseek-v3-two-nodes", "deepseek-v3-two-nodes-overlapped"),
        ("attention-ffn-apart", "attention-ffn-together"),
        ("deepseek-v3-nine-nodes", "deepseek-v3-nine-copies"),
        ("failure-of-a-wide-ep", "failure-of-narrow-eps"),
    ],
)
def test_scenarios_meant_to_be_compared_meet_the_same_demand(one: str, other: str) -> None:
    first, second = load_scenario(one), load_scenario(other)
    assert first.workload == second.workload
    assert first.seed == second.seed
