"""Attribution: what each switch does, what is kept of a run, how it is resampled, stored, told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moesim
from moesim.attribution import Attribution
from moesim.attribution.causes import CAUSES, present_causes
from moesim.attribution.extent import extent_of
from moesim.attribution.resampling import times_taken
from moesim.attribution.samples import Sample, samples_of
from moesim.attribution.setting import Setting, of_equal_length
from moesim.attribution.store import Store, key_of
from moesim.attribution.study import attribute
from moesim.attribution.telling import sentence
from moesim.cli import main
from moesim.errors import InputError
from moesim.findings.attribution import METRICS, Cause, Share
from moesim.findings.estimates import Estimate
from moesim.ideal import Ideal
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.sim.exchange import receive_evenly
from moesim.sim.state import STEP_PARTS
from moesim.simulation import simulate
from moesim.workload.demand import DemandStreams, draw_demand

DENSE: dict[str, Any] = {
    "name": "toy",
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "deployment": {"engine": "vllm", "profile": "assumed"},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 4}},
        "requests": 60,
        "prompt": {"uniform": {"low": 500, "high": 3000}},
        "output": {"uniform": {"low": 5, "high": 40}},
    },
}
MOE: dict[str, Any] = {
    **DENSE,
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4},
    "deployment": {
        "engine": "vllm",
        "profile": "assumed",
        "parallelism": {"attention_dp": 4, "expert_parallel": 4},
    },
    "routing": {"trace": "uniform", "tokens": 1024},
    "workload": {
        **DENSE["workload"],
        "requests": 12,
        "prompt": {"uniform": {"low": 200, "high": 900}},
    },
}


def scenario(base: dict[str, Any] = DENSE, **changes: Any) -> Scenario:
    return Scenario.parse({**base, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Attribution, Path]:
    """A small study, and the file that it kept its runs in."""
    store = tmp_path_factory.mktemp("store") / "runs.jsonl"
    return attribute(scenario(), seeds=2, requests=40, store=store), store


@pytest.fixture(scope="module")
def moe_runs() -> dict[str, Result]:
    """One MoE scenario: as it is, with even routing, with a free network."""
    made = scenario(MOE)
    ideals = {
        "real": Ideal(),
        "even": Ideal(even_routing=True),
        "free": Ideal(free_network=True),
    }
    return {name: simulate(made, ideal=of, provenance=False) for name, of in ideals.items()}


def test_shares_and_rest_add_up_to_the_total(study: tuple[Attribution, Path]) -> None:
    found = study[0].findings.attributed
    assert len(found) == 9
    for each in found:
        parts = sum(share.amount.value for share in each.shares) + each.rest.value
        assert parts == pytest.approx(each.total.value, rel=1e-12)


def test_the_total_is_that_of_the_runs_themselves(study: tuple[Attribution, Path]) -> None:
    made = scenario(workload={**DENSE["workload"], "requests": 50})
    runs = [Setting(made).simulate(seed) for seed in (0, 1)]
    ttft = np.concatenate([run.requests["ttft_s"].to_numpy()[10:] for run in runs])
    split = study[0].of("ttft_s", "p99")
    assert split is not None
    assert split.total.value == pytest.approx(np.percentile(ttft, 99), rel=1e-12)
    split = study[0].of("e2e_s", "variance")
    assert split is not None
    e2e = np.concatenate([run.requests["e2e_s"].to_numpy()[10:] for run in runs])
    assert split.total.value == pytest.approx(e2e.var(), rel=1e-9)


def test_intervals_hold_their_values(study: tuple[Attribution, Path]) -> None:
    for each in study[0].findings.attributed:
        for share in each.shares:
            of = share.fraction
            assert of.low is not None
            assert of.high is not None
            assert of.low <= of.value <= of.high


def test_queueing_has_no_part_in_gaps_between_tokens(study: tuple[Attribution, Path]) -> None:
    split = study[0].of("itl_s", "variance")
    assert split is not None
    queueing = next(share for share in split.shares if share.cause.name == "queueing")
    assert queueing.fraction == Estimate(0.0, 0.0, 0.0)


def test_a_finished_study_runs_nothing_again(
    study: tuple[Attribution, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Setting, "simulate", never)
    again = attribute(scenario(), seeds=2, requests=40, store=study[1])
    assert again.to_json() == study[0].to_json()


def test_an_interrupted_study_goes_on(study: tuple[Attribution, Path], tmp_path: Path) -> None:
    lines = study[1].read_bytes().splitlines(keepends=True)
    assert len(lines) == 8  # two seeds; prefill and lengths on and off
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(b"".join(lines[:6]) + b'{"key": 3}\n' + lines[6][:100])
    again = attribute(scenario(), seeds=2, requests=40, store=torn)
    assert again.to_json() == study[0].to_json()
    assert len(Store(torn)._known) == 8


def test_another_scenario_has_another_key() -> None:
    one, two = Setting(scenario()), Setting(scenario(model="llama-3.1-70b"))
    keys = {
        key_of(one, 0, 5),
        key_of(two, 0, 5),
        key_of(one, 1, 5),
        key_of(one, 0, 6),
        key_of(one.with_ideal(free_network=True), 0, 5),
        key_of(replace(one, equal_lengths=True), 0, 5),
    }
    assert len(keys) == 6
    # What only tells times otherwise is no other run.
    assert key_of(replace(one, unqueued=True), 0, 5) == key_of(one, 0, 5)


def test_even_routing_takes_away_the_wait_for_the_slowest_rank(
    moe_runs: dict[str, Result],
) -> None:
    real, even = moe_runs["real"].raw.steps, moe_runs["even"].raw.steps
    first, same = real[0], even[0]
    assert first["prefill_tokens"] == same["prefill_tokens"] > 0
    assert first["expert_imbalance_s"] > 0.0
    expected = first["duration_s"] - first["expert_imbalance_s"]
    assert same["duration_s"] == pytest.approx(expected, rel=1e-12)
    assert np.abs(even["expert_imbalance_s"]).max() < 1e-12
    assert even["imbalance_max"][even["imbalance"] > 0] == pytest.approx(1.0)


def test_a_slow_gpu_stays_slow_where_routing_is_even() -> None:
    """Expert time with a GPU of factor f is kernels + f x mean rank, so even steps of f."""
    took_s = []
    for factor in (1.0, 2.0, 3.0):
        slow = {"at_s": 0, "kind": "slow-rank", "replica": 0, "rank": 1, "factor": factor}
        one = {**MOE["workload"], "requests": 1}
        made = scenario(MOE, workload=one, faults={"events": [slow]})
        step = simulate(made, ideal=Ideal(even_routing=True), provenance=False).raw.steps[0]
        took_s.append(float(step["experts_s"] + step["expert_imbalance_s"]))
    assert took_s[1] > took_s[0]
    assert took_s[2] - took_s[1] == pytest.approx(took_s[1] - took_s[0], rel=1e-9)


def test_a_free_network_leaves_the_other_parts_of_a_step(moe_runs: dict[str, Result]) -> None:
    real, free = moe_runs["real"].raw.steps, moe_runs["free"].raw.steps
    gone = ("dispatch_s", "combine_s", "all_reduce_s", "pipeline_s")
    assert real[0]["dispatch_s"] > 0.0
    for part in STEP_PARTS:
        expected = 0.0 if part in gone else real[0][part]
        assert free[0][part] == expected
    assert all((free[part] == 0.0).all() for part in gone)


def test_receivers_are_evened_out_and_senders_left_alone() -> None:
    """Four ranks in two domains; rank 1 sends 6 tokens across, rank 2 sends 2."""
    w = SimpleNamespace(
        recv_up_LR=np.array([[4.0, 0.0, 0.0, 0.0]]),
        recv_out_LR=np.array([[0.0, 8.0, 0.0, 0.0]]),
        send_out_LR=np.array([[0.0, 6.0, 2.0, 0.0]]),
        pair_L=np.array([6.0]),
        source_LX=np.zeros((1, 6)),
    )
    c = SimpleNamespace(domain_of_rank=np.array([0, 0, 1, 1]))
    plain = getattr(receive_evenly, "py_func", receive_evenly)
    plain(c, w, 0, True)
    assert w.recv_up_LR.tolist() == [[1.0] * 4]
    assert w.recv_out_LR.tolist() == [[2.0] * 4]
    assert w.send_out_LR.tolist() == [[0.0, 6.0, 2.0, 0.0]]
    assert w.pair_L.tolist() == [3.0]  # 6 tokens to two ranks across
    plain(c, w, 0, False)
    assert w.pair_L.tolist() == [6.0]  # or to one domain across


def test_a_twin_computes_the_prompts() -> None:
    made = scenario()
    off = next(each for each in CAUSES if each.name == "prefill").off(Setting(made))
    run = off.simulate(0)
    assert run.raw.pools
    decode = run.steps[run.steps["pool"] == "decode"]
    assert decode["decode_tokens"].sum() > 0
    assert decode["prefill_tokens"].sum() == 0
    # Keys and values arrive in no time.
    assert run.requests["kv_exposed_s"].max() == 0.0
    assert (run.requests["status"] == "completed").all()


def test_without_a_queue_requests_are_told_less_their_wait() -> None:
    run = Setting(scenario()).simulate(0)
    real, unqueued = samples_of(run, 0, 0.001)
    wait_s = run.requests["queue_s"].to_numpy() - 0.001
    told = real["ttft_s"].mean_N - unqueued["ttft_s"].mean_N
    np.testing.assert_allclose(told, wait_s, atol=1e-12)
    assert unqueued["itl_s"] is real["itl_s"]


@given(st.integers(0, 5), st.integers(1, 60))
def test_equal_lengths_keep_totals(seed: int, requests: int) -> None:
    workload = scenario(workload={**DENSE["workload"], "requests": requests}).workload
    demand = draw_demand(workload, DemandStreams.from_seed(seed))
    level = of_equal_length(demand)
    for name in ("prompt_tokens", "output_tokens"):
        one, two = getattr(demand, name), getattr(level, name)
        assert one.sum() == two.sum()
        assert two.max() - two.min() <= 1
    assert (level.arrival_s == demand.arrival_s).all()
    assert (level.max_output_tokens >= level.output_tokens).all()


def test_switches_commute() -> None:
    disturbed = scenario(
        MOE,
        cluster={
            "gpu": "h100-sxm",
            "gpus_per_node": 4,
            "background": [{"source": "gpu0", "target": "gpu1", "size_bytes": 1e9, "at_s": 0.0}],
        },
    )
    there = Setting(disturbed)
    for one in CAUSES:
        for other in CAUSES:
            assert one.off(other.off(there)) == other.off(one.off(there)), (one.name, other.name)
            assert one.off(one.off(there)) == one.off(there), one.name


def test_causes_that_cannot_be_there_are_left_out_with_a_reason() -> None:
    demand = draw_demand(scenario().workload, DemandStreams.from_seed(0))
    found, left_out = present_causes(scenario(), demand)
    assert [each.name for each in found] == ["queueing", "prefill", "lengths"]
    assert any("dense" in reason for reason in left_out)
    assert any("one GPU" in reason for reason in left_out)
    found, _ = present_causes(scenario(MOE), demand)
    assert [each.name for each in found] == ["routing", "network", "queueing", "prefill", "lengths"]
    faulty = scenario(
        faults={
            "events": [
                {"at_s": 1, "kind": "slow-rank", "replica": 0, "rank": 0, "factor": 2,
                 "duration_s": 1}
            ]
        }
    )  # fmt: skip
    found, left_out = present_causes(faulty, demand)
    assert [each.name for each in found] == ["queueing", "lengths", "disturbance"]
    assert any("GPUs of their own" in reason for reason in left_out)


def test_a_run_is_cut_to_what_is_measured_and_its_warmup() -> None:
    extent = extent_of(scenario(), 40)
    assert (len(extent.demand), extent.warmup, extent.measured) == (50, 10, 40)
    whole = draw_demand(scenario().workload, DemandStreams.from_seed(0))
    assert (extent.demand.arrival_s == whole.arrival_s[:50]).all()
    closed = scenario(
        workload={**DENSE["workload"], "arrivals": {"closed_loop": {"concurrency": 4}}}
    )
    assert (extent_of(closed, 40).warmup, extent_of(closed, 400).measured) == (0, 60)
    asked = scenario(measure={"warmup": 7})
    assert (extent_of(asked, 30).warmup, extent_of(asked, 30).measured) == (7, 30)


def test_runs_too_short_to_fill_the_deployment_are_said_to_be() -> None:
    crowded = {
        **DENSE["workload"],
        "output": {"fixed": 300},
        "arrivals": {"poisson": {"rate_per_s": 20}},
    }
    notes = attribute(
        scenario(workload=crowded), seeds=1, requests=20, causes=("queueing",)
    ).findings.notes
    assert any("raise --requests" in note for note in notes)


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
def test_statistics_are_those_of_the_values_repeated(seed: int, requests: int, many: bool) -> None:
    rng = np.random.default_rng(seed)
    count_N = rng.integers(0, 80, requests) if many else np.ones(requests, np.int64)
    owner = np.repeat(np.arange(requests), count_N)
    values = rng.lognormal(size=owner.size)
    sample = Sample.of(values, owner, requests)
    times_BN = rng.integers(0, 3, (4, requests))
    found = sample.statistics(times_BN)
    for times_N, row in zip(times_BN, found, strict=True):
        drawn = np.repeat(values, times_N[owner])
        if not drawn.size:
            assert np.isnan(row).all()
            continue
        expected = drawn.mean(), drawn.var(), np.percentile(drawn, 99)
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-12)


def test_samples_together_are_samples_of_all() -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(20), 100)
    values = rng.lognormal(size=owner.size)
    halves = [Sample.of(values[i], owner[i] % 10, 10) for i in (owner < 10, owner >= 10)]
    one = Sample.of(values, owner, 20).statistics(np.ones((1, 20), np.int64))
    two = Sample.together(halves).statistics(np.ones((1, 20), np.int64))
    np.testing.assert_allclose(one, two, rtol=1e-12)
    back = Sample.from_json(json.loads(json.dumps(halves[0].to_json())))
    assert (back.tail_T == halves[0].tail_T).all()
    with pytest.raises(ValueError, match="owner"):
        Sample.from_json({**halves[0].to_json(), "owner_T": [99] * halves[0].owner_T.size})


def test_resamples_take_as_many_requests_and_keep_neighbours() -> None:
    times_BN = times_taken([100, 100], 50)
    assert times_BN.shape == (50, 200)
    assert (times_BN.sum(axis=1) == 200).all()
    # Blocks of ten neighbours, so most neighbours are drawn equally often.
    assert (np.diff(times_BN[:, :100], axis=1) == 0).mean() > 0.7
    # Some resamples have the first seed twice and the second not at all.
    assert (times_BN[:, 100:].sum(axis=1) == 0).any()


def share(name: str, phrase: str, *of: float, alone: float | None = None) -> Share:
    value, low, high = of
    made = Estimate(value, low, high)
    removed = Estimate(value if alone is None else alone)
    return Share(Cause(name, phrase, ""), made, made, removed)


def test_a_sentence_has_the_largest_first_and_leaves_out_what_is_unclear() -> None:
    shares = [
        share("routing", "uneven routing", 0.22, 0.15, 0.30),
        share("prefill", "prompts in the same steps", 0.61, 0.52, 0.70),
        share("network", "the network", 0.05, -0.01, 0.09),
        share("lengths", "unequal lengths", -0.04, -0.06, -0.02),
    ]
    assert sentence("itl_s", "variance", shares, Estimate(0.16), Estimate(1.0)) == (
        "61 % of the variance of ITL comes from prompts in the same steps (52 to 70 %), 22 % from "
        "uneven routing (15 to 30 %); unequal lengths make it smaller, by 4 % (2 to 6 %); 16 % "
        "stays with all of them off."
    )


def test_a_sentence_says_that_causes_act_together() -> None:
    shares = [
        share("network", "the network", 0.5, 0.4, 0.6, alone=0.9),
        share("prefill", "prompts in the same steps", 0.5, 0.4, 0.6, alone=0.9),
    ]
    said = sentence("itl_s", "p99", shares, Estimate(0.0), Estimate(1.0))
    assert said.endswith(
        "Causes act together: without the network alone the p99 of ITL would fall by 90 %."
    )


def test_nothing_clear_is_said_plainly() -> None:
    shares = [share("network", "the network", 0.05, -0.01, 0.09)]
    assert "every interval holds 0" in sentence(
        "ttft_s", "mean", shares, Estimate(0.9), Estimate(1.0)
    )


def test_table_json_page_and_notebook(study: tuple[Attribution, Path], tmp_path: Path) -> None:
    found = study[0]
    table = found.table()
    assert len(table) == 9 * (3 + 1)
    assert table.groupby(["metric", "statistic"])["fraction"].sum().to_numpy() == pytest.approx(1.0)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["seeds"] == [0, 1]
    assert len(told["combinations"]) == 8
    page = tmp_path / "why.html"
    found.report(page)
    html = page.read_text(encoding="utf-8")
    assert "why does latency vary?" in html
    for key in ("attribution-shares", "attribution-itl", "attribution-ttft", "attribution-e2e"):
        assert f'data-chart="{key}"' in html
    assert "unequal lengths" in found._repr_html_()
    assert set(found.charts()) == {
        "attribution-shares", "attribution-itl", "attribution-ttft", "attribution-e2e"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"seeds": 0}, "--seeds"),
        ({"seeds": 11}, "--seeds"),
        ({"requests": 5}, "--requests"),
        ({"causes": ("weather",)}, "--causes"),
        ({"causes": ("routing",)}, "--causes"),
        ({"store": "/dev/null/runs.jsonl"}, "store"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        attribute(scenario(), **given)
    assert caught.value.field == field


def test_the_command_prints_sentences_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(json.dumps(DENSE), encoding="utf-8")
    arguments = ["attribute", str(file), "--seeds", "1", "--requests", "40", "--causes", "queueing"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "of the variance of TTFT comes from waiting in the queue" in out
    assert "queueing, %" in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["causes"][0]["name"] == "queueing"
    assert main(["attribute", str(file), "--causes", "weather"]) == 2
    assert "routing, network" in capsys.readouterr().err


def test_the_front_door_has_both_names() -> None:
    assert moesim.attribute is attribute
    assert moesim.Attribution is Attribution


def test_somebody_elses_file_is_no_store(tmp_path: Path) -> None:
    other = tmp_path / "scenario.yaml"
    other.write_text("name: mine\n")
    with pytest.raises(InputError, match="must be a file of a study of causes"):
        Store(other)
    assert other.read_text() == "name: mine\n"
    other.write_text('{"key": "')  # the first line, half written
    Store(other)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("count_N", [10**30]),
        ("count_N", [-1]),
        ("count_N", [1, 1]),
        ("mean_N", [float("nan")]),
        ("mean_N", [float("inf")]),
        ("owner_T", [1]),
        ("tail_T", [[1.0]]),
    ],
)
def test_samples_that_cannot_be_are_no_part_of_a_store(
    tmp_path: Path, field: str, values: list[Any]
) -> None:
    one = Sample.of(np.ones(1), np.zeros(1, np.int64), 1).to_json()
    samples = [{metric: dict(one) for metric in METRICS} for _ in range(2)]
    path = tmp_path / "runs.jsonl"
    sound = json.dumps({"key": "sound", "samples": samples})
    samples[0]["ttft_s"][field] = values
    path.write_text(json.dumps({"key": "damaged", "samples": samples}) + "\n" + sound + "\n")
    store = Store(path)
    assert store.find("damaged") is None
    assert store.find("sound") is not None
