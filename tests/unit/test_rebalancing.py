"""What a scenario may say of rebalancing and of copies, and what an engine does unless told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.cli.sections import section_lines
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.figures.rebalances import rebalances_table, rebalancing_summary
from moesim.placement.placement import Placement
from moesim.policies.rebalancing import Rebalancing, plan_rebalancing
from moesim.scenario import Scenario
from moesim.sharding import expert_bytes
from moesim.sim.rebalancing import RebalanceLog
from moesim.simulation import simulate

BASE: dict[str, Any] = {
    "name": "moving",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm"},
    "routing": {"trace": "uniform", "tokens": 1024},
    "workload": {
        "arrivals": "all_at_once",
        "requests": 8,
        "prompt": {"fixed": 20},
        "output": {"fixed": 30},
    },
}


def scenario(rebalancing: Any = (), dp: int = 4, ep: int = 4, **changes: Any) -> dict[str, Any]:
    deployment = {
        "parallelism": {"attention_dp": dp, "expert_parallel": ep},
        "rebalancing": {"interval_steps": 5, **dict(rebalancing)},
        **changes.pop("deployment", {}),
    }
    return {**BASE, "deployment": deployment, **changes}


def test_engines_do_what_their_sources_say() -> None:
    vllm, sglang = (plan_rebalancing(Rebalancing(), engine) for engine in ("vllm", "sglang"))
    assert (vllm.mode, vllm.interval_steps, vllm.window_steps) == ("async", 3000, 1000)
    assert (vllm.first_steps, vllm.layers_per_chunk, vllm.threshold) == (750, 1, 1.0)
    assert (sglang.mode, sglang.interval_steps, sglang.window_steps) == ("sync", 1000, 1000)
    assert (sglang.first_steps, sglang.layers_per_chunk) == (1000, None)
    with pytest.raises(InputError, match="nothing is known of how trtllm does it"):
        plan_rebalancing(Rebalancing(), "trtllm")
    full = {"mode": "sync", "interval_steps": 9, "planning_s": 0.0, "layer_s": 0.0}
    assert plan_rebalancing(Rebalancing.parse(full), "trtllm").window_steps == 9


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (scenario({"window_steps": 6}), "window_steps must be at most interval_steps"),
        (scenario({"interval_steps": None, "window_steps": 4000}), "at most interval_steps"),
        (scenario({"threshold": 0.0}), "threshold"),
        (scenario({"policy": "swap"}), "policy"),
        (scenario(dp=1, ep=1), "several expert-parallel ranks"),
        (scenario(deployment={"autoscaling": {"target_queue": 1}}), "autoscaling"),
        (scenario(deployment={"expert_offload": {"gpu_experts": 4}}), "expert_offload"),
        (
            scenario(
                deployment={
                    "parallelism": {"attention_dp": 4, "expert_parallel": 4},
                    "attention_ffn": {"expert_gpus": 4},
                }
            ),
            "attention_ffn",
        ),
        (scenario(routing={**BASE["routing"], "mode": "averaged"}), "must be replay"),
        (scenario(faults={"mtbf": {"gpu_hours": 9.0}}), "other than slow-rank and slow-link"),
        (
            scenario(
                deployment={"parallelism": {"attention_dp": 4, "expert_parallel": 4, "pipeline": 2}}
            ),
            "pipeline 1",
        ),
        (scenario(deployment={"disaggregation": {}}), "cannot go with"),
    ],
)
def test_what_cannot_be_rebalanced_is_refused_in_a_line(changed: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as refused:
        simulate(changed)
    assert "\n" not in str(refused.value)


def test_the_detailed_mode_has_none() -> None:
    with pytest.raises(InputError, match="not part of the detailed mode"):
        simulate(scenario(), detailed=True)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"routing": {**BASE["routing"], "mode": "averaged"}}, "averaged"),
        ({"deployment": {"expert_offload": {"gpu_experts": 4}}}, "expert_offload"),
    ],
)
def test_copies_that_cannot_be_chosen_are_refused(changed: Any, rule: str) -> None:
    of = changed.get("deployment", {})
    placement = {"policy": "contiguous", "redundant_experts": 4, "replica_choice": "lp"}
    deployment = {
        "parallelism": {"attention_dp": 4, "expert_parallel": 4},
        "placement": placement,
        **of,
    }
    with pytest.raises(InputError, match=rule):
        simulate({**BASE, **changed, "deployment": deployment})


def test_what_choosing_takes() -> None:
    """Hash takes no time whatever the scenario says of choosing: averaged routing and the detailed
    mode, which know no other choice, charge none."""

    def seconds(**given: Any) -> float:
        data = scenario(deployment={"placement": {"policy": "eplb", **given}})
        return Scenario.parse(data).deployment.placement.seconds_to_choose()

    assert seconds(choice_s=0.5) == 0.0
    assert seconds(choice_s=0.5, replica_choice="nearest") == 0.5
    assert seconds(choice_s=0.0, replica_choice="lp") == 0.0
    assert seconds(replica_choice="lp") == 1e-4
    assert seconds(replica_choice="active") == 0.0


@pytest.mark.parametrize("choice", ["nearest", "least-loaded", "lp", "active"])
def test_every_choice_of_copies_serves_all_tokens(choice: str) -> None:
    placement = {"policy": "contiguous", "redundant_experts": 16, "replica_choice": choice}
    data = scenario(deployment={"placement": placement, "rebalancing": None})
    run = simulate(data, provenance=False)
    hashed = simulate(
        scenario(
            deployment={"placement": {**placement, "replica_choice": "hash"}, "rebalancing": None}
        ),
        provenance=False,
    )
    tokens = run.steps[["prefill_tokens", "decode_tokens"]].to_numpy().sum()
    assert (run.raw.rank_tokens_LR.sum(axis=1) == 8 * tokens).all()
    if choice == "lp":
        assert run.steps["imbalance"].mean() < hashed.steps["imbalance"].mean()
    if choice == "active":
        assert run.steps["active_experts"].mean() <= hashed.steps["active_experts"].mean()


def test_a_buffer_for_arriving_experts_comes_out_of_keys_and_values() -> None:
    """Async: 64 experts on 4 ranks, of one layer or two; sync: none."""
    without = deploy(Scenario.parse(scenario() | {"deployment": {
        "parallelism": {"attention_dp": 4, "expert_parallel": 4}}}))  # fmt: skip
    one = expert_bytes(without.model, without.precision)
    for given, layers in (({}, 1), ({"layers_per_chunk": 2}, 2), ({"mode": "sync"}, 0)):
        found = deploy(Scenario.parse(scenario(given)))
        less = without.memory.kv_bytes - found.memory.kv_bytes
        assert less == pytest.approx(layers * 16 * one, abs=1.0)


def test_a_policy_of_ones_own_is_given_the_load_and_obeyed() -> None:
    seen: list[Any] = []

    def reverse(load_LE: Any, placement: Placement) -> Any:
        seen.append(load_LE)
        return placement.slot_expert_LP[:, ::-1]

    result = simulate(scenario({"mode": "sync"}), rebalancing=reverse)
    assert seen[0].shape == (16, 64)
    moved = result.rebalances.query("outcome == 'rebalanced'")
    # Every expert changes its rank: 64 slots in each of 16 layers.
    assert moved["moved_slots"].tolist() == [16 * 64] * len(moved)
    assert len(moved) == result.summary["rebalancing"]["count"] >= 3
    one = expert_bytes(deploy(result.scenario).model, deploy(result.scenario).precision)
    assert moved["bytes_within"].to_numpy() == pytest.approx(16 * 64 * one, rel=1e-12)
    with pytest.raises(InputError, match="is required where"):
        simulate({**BASE}, rebalancing=reverse)


@pytest.mark.parametrize(
    ("spoilt", "rule"),
    [
        (np.zeros_like, "every expert at least once"),
        (lambda slots_LP: slots_LP - 9, "must name experts by their number"),
        (lambda slots_LP: slots_LP * 10**6, "must name experts by their number"),
        (lambda slots_LP: slots_LP / 1.0, "table of integers"),
        (lambda slots_LP: slots_LP[:-1], "must keep the layers and slots"),
        (lambda slots_LP: np.repeat(slots_LP, 2, axis=1), "must keep the layers and slots"),
    ],
)
def test_what_a_policy_returns_is_looked_at_before_it_is_used(spoilt: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        simulate(scenario(), rebalancing=lambda load_LE, old: spoilt(old.slot_expert_LP))


def test_a_run_reports_gaps_during_and_between() -> None:
    """Stalls of two seconds in a run of milliseconds: every gap during is one of them."""
    given = {"mode": "sync", "planning_s": 2.0, "interval_steps": 8, "window_steps": 8}
    result = simulate(scenario(given), provenance=False)
    figures = result.summary["rebalancing"]
    assert figures["itl_s"]["during"]["p50"] > 2.0 > figures["itl_s"]["between"]["p99"]
    assert figures["itl_s"]["during"]["max"] == result.itl_s.max()
    # All asked at once: from the first token on batches only shrink, and no gain is told.
    assert figures["late"] == figures["count"]
    assert figures["gain_s_per_step"] is figures["break_even_steps"] is None
    assert figures["stall_s_mean"] > 2.0
    assert figures["lost_s_mean"] == pytest.approx(figures["stall_s_mean"])
    gaps = result.itl_s
    stalls = int((gaps > 2.0).sum())
    assert stalls == 8 * figures["count"]  # eight requests wait for each
    assert not result.steps["rebalancing"].any()  # nobody computes meanwhile


def steps_of(imbalance_N: list[float]) -> pd.DataFrame:
    """Steps of 1 s each, a mean rank's 0.5 s of experts in them."""
    columns: dict[str, Any] = dict.fromkeys(("prefill_tokens", "decode_tokens"), 4)
    columns |= {"replica": 0, "dummy": False, "duration_s": 1.0, "experts_s": 0.5}
    columns |= {"dispatch_s": 0.1, "combine_s": 0.1}
    frame = pd.DataFrame({"start_s": np.arange(len(imbalance_N)) + 0.5})
    return frame.assign(**columns, expert_imbalance_s=0.5 * np.array(imbalance_N))


def stalls(*at_s: float) -> pd.DataFrame:
    """Rebalances of windows of 8 steps that stand still for a tenth of a second."""
    log = [
        RebalanceLog(0, int(at), at, 8, "rebalanced", at + 0.1, 0.5, 0.9, stall_s=0.1)
        for at in at_s
    ]
    return rebalances_table(log)


def judged(imbalance_N: list[float], until_s: float, *at_s: float) -> dict[str, Any]:
    none = np.zeros(0)
    return rebalancing_summary(stalls(*at_s), steps_of(imbalance_N), (none, none), until_s)


def test_gains_are_weighed_by_the_steps_that_they_hold_for() -> None:
    """0.2 of 0.5 s for 8 steps and 0.1 of it for 4, until the last request begins."""
    found = judged([0.4] * 8 + [0.2] * 8 + [0.1] * 4 + [9.0] * 8, 20.0, 8.0, 16.0, 24.0)
    assert (found["count"], found["late"], found["compared"]) == (3, 1, 2)
    assert found["gain_s_per_step"] == pytest.approx((8 * 0.1 + 4 * 0.05) / 12)
    assert found["waited_before"] == pytest.approx((8 * 0.4 + 4 * 0.2) / 12)
    assert found["waited_behind"] == pytest.approx((8 * 0.2 + 4 * 0.1) / 12)
    # The drain's rise is in none of them, nor is the third rebalance.
    assert found["gain_high_s_per_step"] > found["gain_s_per_step"] > found["gain_low_s_per_step"]
    # Two rebalances that far apart tell nothing: t of one degree of freedom is 12.7.
    assert found["gain_low_s_per_step"] < 0
    assert found["break_even_steps"] is None


def test_a_clear_gain_breaks_even_and_one_rebalance_does_not_tell() -> None:
    clear = judged([0.6] * 8 + [0.4] * 8 + [0.2] * 8, 99.0, 8.0, 16.0)
    assert clear["gain_low_s_per_step"] == pytest.approx(0.1)
    assert clear["break_even_steps"] == pytest.approx(0.1 / 0.1)
    assert clear["break_even_s"] == pytest.approx(1.0)
    text = dict(section_lines({"rebalancing": clear}))["Its effect"]
    assert "pays from about every 1 steps on" in text
    one = judged([0.6] * 8 + [0.4] * 8, 99.0, 8.0)
    assert one["gain_s_per_step"] == pytest.approx(0.1)
    assert one["break_even_steps"] is one["gain_low_s_per_step"] is None
    assert "cannot be told" in dict(section_lines({"rebalancing": one}))["Its effect"]
    # One step behind it, of a window of eight: too few.
    few = judged([0.6] * 8 + [0.4], 99.0, 8.0)
    assert few["gain_s_per_step"] is None
    assert few["lost_s_mean"] == pytest.approx(0.1)
    assert "too few steps" in dict(section_lines({"rebalancing": few}))["Its effect"]


def test_the_report_draws_the_balance_with_its_rebalances(tmp_path: Path) -> None:
    moving = simulate(scenario({"mode": "sync"}), provenance=False)
    still = simulate(scenario(deployment={"rebalancing": None}), provenance=False)
    moving.report(tmp_path / "moving.html")
    still.report(tmp_path / "still.html")
    shown = [(tmp_path / name).read_text() for name in ("moving.html", "still.html")]
    assert ["figure-balance" in page for page in shown] == [True, False]
    assert "rebalances: balancedness from" in shown[0]
    assert len(moving.rebalances)
    assert still.rebalances.empty
    moving.save(tmp_path / "out")
    assert (tmp_path / "out" / "rebalances.parquet").exists()
