"""What serving costs, on a small model that is really simulated; and the command around it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moesim
from moesim.cli.app import main
from moesim.cli.cost import tokens
from moesim.economics import api_prices as prices_module
from moesim.economics.api_prices import ApiPrice, api_prices, prices_of_model
from moesim.economics.curves import BreakEven
from moesim.economics.day import find_profile
from moesim.economics.replicas import Rules
from moesim.errors import InputError
from moesim.report import cost_rows, cost_words
from moesim.report.cost_page import cost_figures
from moesim.report.export import svg
from moesim.scenario import Scenario
from moesim.serving_cost import study as module
from moesim.serving_cost.capacity import at_rate, judge
from moesim.serving_cost.study import CostStudy, cost_study
from moesim.simulation import simulate
from tests.fixtures.offers import fake_study

SMALL = {
    "name": "Qwen3-30B on one H200",
    "model": "qwen3-30b-a3b",
    "cluster": {"gpu": "h200-sxm", "gpus_per_node": 2},
    "routing": {"tokens": 4096},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 10}},
        "requests": 150,
        "prompt": {"lognormal": {"median": 400, "sigma": 0.8, "low": 16, "high": 4000}},
        "output": {"uniform": {"low": 20, "high": 80}},
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.03},
    "economics": {"usd_per_gpu_hour": 2.0},
}
DEAR = ApiPrice("dear", "", 3.0, 1.5, 9.0)
CHEAP = ApiPrice("cheap", "", 1e-4, None, 1e-4)
NEAR = ApiPrice("near", "", 0.8, None, 0.8)  # what a few replicas come to


@pytest.fixture(scope="module")
def study() -> CostStudy:
    return cost_study(
        Scenario.parse(SMALL),
        volumes=(1e6, 1e9, 2e10),
        profile=find_profile("consumer"),
        apis=(DEAR, CHEAP),
        dense="same-active",
    )


def test_a_replica_keeps_its_slo_and_no_more(study: CostStudy) -> None:
    found = study.own.capacity
    assert found.result is not None
    assert judge(found.result) == ()
    beyond = simulate(at_rate(found.scenario, found.fails_at_per_s), provenance=False)
    assert judge(beyond)
    assert found.fails_at_per_s / found.requests_per_s <= 1.0501


def test_a_replica_costs_what_its_gpus_cost(study: CostStudy) -> None:
    own = study.own
    assert own.gpus == 1
    assert own.replica.usd_per_hour == 2.0
    per_s = own.capacity.requests_per_s * (own.prompt_tokens + own.output_tokens)
    assert own.replica.tokens_per_s == per_s
    assert own.usd_per_million_when_full == pytest.approx(2.0 / 3600 / per_s * 1e6)


def test_the_dense_model_is_the_nearest_to_the_active_parameters(study: CostStudy) -> None:
    own, dense = study.offers
    assert dense.scenario.model == "llama-3.1-8b"  # 8.0 B is the smallest; 3.3 B are active
    assert own.hosting.total_parameters > 3 * dense.hosting.total_parameters
    assert own.light["input"].flops < dense.light["input"].flops
    assert dense.prompt_tokens == own.prompt_tokens  # the same demand


def test_simulated_tokens_take_longer_than_light(study: CostStudy) -> None:
    for offer in study.summary["offers"]:
        full = offer["usd_per_million_when_full"]
        for kind in ("input", "output"):
            assert full[kind] > offer["light"][kind]["usd_per_million"]


def test_bills_are_those_of_the_day_and_add_up(study: CostStudy) -> None:
    own = study.own
    for each in study.summary["volumes"]:
        volume = each["tokens_per_day"]
        for how, by_hour in (("always on", False), ("by the hour", True)):
            bill = each["self_hosted"][own.name][how]
            day = study.day(own, volume, by_hour)
            assert bill["usd_per_day"] == pytest.approx(day.usd_per_day)
            split = bill["usd_per_million"]
            paid = volume / 1e6 * own.input_tokens_share * split["input"]
            paid += volume / 1e6 * (1 - own.input_tokens_share) * split["output"]
            assert paid == pytest.approx(bill["usd_per_day"])
            assert bill["usd_idle_per_day"] == pytest.approx(
                bill["usd_per_day"] * (1 - bill["utilisation"])
            )
        dear = each["apis_usd_per_day"]["dear"]
        assert dear == pytest.approx(volume * DEAR.usd_per_token(own.input_tokens_share))
    assert study.summary["volumes"][0]["cheapest"] == "cheap"


def test_bills_are_equal_at_the_break_even(study: CostStudy) -> None:
    edges = {
        (each["offer"], each["how"], each["against"]): each for each in study.summary["break_even"]
    }
    line = study.api_curve(DEAR)
    for by_hour, how in enumerate(("always on", "by the hour")):
        found = edges[study.own.name, how, "dear"]
        curve = study.curves[study.own.name, bool(by_hour)]
        at = found["first"]
        assert float(curve.usd_per_day(at)) == pytest.approx(float(line.usd_per_day(at)))
        assert found["for_good"] is not None
        assert edges[study.own.name, how, "cheap"]["first"] is None


def test_twice_the_price_is_twice_the_bill(study: CostStudy) -> None:
    from dataclasses import replace

    dearer = replace(study.own, price=replace(study.own.price, usd=4.0))
    assert study.day(dearer, 1e9).usd_per_day == 2 * study.day(study.own, 1e9).usd_per_day


def test_words_name_every_price_with_its_source(study: CostStudy) -> None:
    summary = study.summary
    said = "\n".join(cost_words.headlines(summary))
    assert re.search(r"serves [\d.]+ requests a second .* within TTFT 1.0 s and TPOT 30 ms", said)
    assert "30.5 B take" in said
    assert "3.35 B" in said
    assert "Against cheap: self-hosting is dearer at every volume" in said
    assert "dearer at every volume" in said
    told = "\n".join(cost_words.price_lines(summary))
    assert "2.00 USD per GPU-hour, as given" in told
    assert "ServeGen" in told
    assert "Uptime Institute" in told
    assert len(cost_rows.price_rows(summary)) == 2
    rows = dict(cost_rows.work_rows(summary))
    assert len(rows) == 2 * 5
    hosted = dict(cost_rows.hosting_rows(summary))["self-hosted"]
    assert hosted[:2] == ["30.5 B", "3.35 B"]
    assert hosted[3:] == ["1", "1", "$2,920"]  # two replicas of one GPU at 2 USD, 730 hours
    assert rows["self-hosted: output, simulated"][-1].startswith("$")
    assert len(cost_rows.break_even_rows(summary)) == 2 * 2 * 3
    assert cost_words.few([1, 2, 3, 4, 5]) == [1, 3, 5]
    assert any("lock-in" in note for note in summary["notes"])
    assert any("--headroom 1.41" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("even", "words"),
    [
        ((None, None, None, 5e9), "dearer at every volume up to 5 billion tokens a day"),
        ((0.0, 0.0, 5e9, 5e9), "no dearer at any volume up to 5 billion tokens a day"),
        ((2e6, 2e6, 5e9, 5e9), "cheaper from 2 million tokens a day"),
        (
            (2e6, 3.5e7, 5e9, 5e9),
            "no dearer from 2 million tokens a day, cheaper for good from 35 million",
        ),
        ((0.0, None, 4e8, 5e9), "no dearer to 400 million tokens a day, dearer beyond"),
    ],
)
def test_break_even_in_words(even: tuple[Any, ...], words: str) -> None:
    assert cost_words.from_volume(BreakEven(*even)) == words


def test_the_summary_is_strict_json(study: CostStudy) -> None:
    assert json.loads(json.dumps(study.summary, allow_nan=False)) == study.summary


def test_the_report_is_whole_and_needs_no_network(study: CostStudy, tmp_path: Path) -> None:
    path = tmp_path / "cost.html"
    study.report(path)
    html = path.read_text(encoding="utf-8")
    for text in ("Break-even", "cost-by-volume", "replicas-by-hour", "as given", "lock-in"):
        assert text in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?http", html)


def test_intervals_are_of_the_study_at_the_bounds() -> None:
    """What a replica serves at least and at most gives the most and the least that tokens cost."""
    apis = (DEAR, CHEAP, NEAR)
    sure = fake_study(apis, spread=0.1)
    slow, fast = (fake_study(apis, rate=factor).summary for factor in (1 / 1.1, 1.1))
    for n, each in enumerate(sure.summary["volumes"]):
        for name, bills in each["self_hosted"].items():
            for how, bill in bills.items():
                bounds = [
                    of["volumes"][n]["self_hosted"][name][how]["usd_per_million"]["total"]
                    for of in (fast, slow)
                ]
                assert bill["usd_per_million_interval"] == pytest.approx(bounds)
    for n, even in enumerate(sure.summary["break_even"]):
        if even["against"] in ("dear", "cheap"):
            at = [of["break_even"][n]["first"] for of in (fast, slow)]
            if None not in at:
                assert even["first_interval"] == pytest.approx(at)
            else:
                assert even["first_interval"] == at
    said = "\n".join(cost_words.headlines(sure.summary))
    assert "over 5 seeds, 95 % interval 9.09 to 11.0" in said
    assert any(" to " in cells[0] for _, cells in cost_rows.break_even_rows(sure.summary))
    (figure, _) = cost_figures(sure.findings())
    assert "95 % interval" in figure.caption
    assert svg(figure).startswith("<svg")


def test_a_notebook_shows_answers_and_volumes() -> None:
    shown = fake_study((DEAR,), name="<b>bold</b>")._repr_html_()
    assert "Against dear" in shown
    assert "&lt;b&gt;bold" in shown
    assert "<b>bold" not in shown
    assert moesim.CostStudy is CostStudy
    assert moesim.cost_study is cost_study
    assert {row["gpu"] for row in moesim.prices()["gpu_hours"]} >= {"h100-sxm", "h200-sxm"}


def test_every_figure_is_drawn(study: CostStudy) -> None:
    found = study.findings()
    for figure in cost_figures(found):
        assert figure.chart is not None
        assert svg(figure).startswith("<svg")
    none = cost_figures(replace(found, lines=()))
    assert "in steps of replicas" in none[0].title


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200M", 2e8), ("1.5B", 1.5e9), ("2e8", 2e8), (" 40k ", 4e4), ("1T", 1e12)],
)
def test_volumes_have_suffixes(text: str, expected: float) -> None:
    assert tokens(text) == pytest.approx(expected)


@pytest.fixture
def scenario_file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--volume", "-3"], "--volume must be a number of tokens a day above 0"),
        (["--volume", "many"], "--volume must be a number of tokens a day"),
        (["--volume", "nan"], "--volume must be a number of tokens a day"),
        (["--volume", "1e16"], "--volume must be a number of tokens a day"),
        (["--profile", "nine-to-five"], "--profile must be one of flat, office-hours"),
        (["--profile", "1,2,3"], "profile must have 24 weights"),
        (["--profile", "absent.csv"], "absent.csv must be an existing file"),
        (["--api", "nobody/nothing"], "--api must be a shipped price or INPUT,CACHED,OUTPUT"),
        (["--api", "1,-2"], "--api must be INPUT,OUTPUT"),
        (["--api", "deepseek/deepseek-chat-off-peak"], "--api must hold all day; this price holds"),
        (["--dense", "mixtral-8x7b"], "--dense must be a dense model"),
        (["--dense", "no-such"], "model must be a shipped model"),
        (["--spare", "-1"], "--spare must be from 0"),
        (["--headroom", "0.9"], "--headroom must be from 1.0"),
        (["--percentile", "100"], "--percentile must be from 50"),
        (["--seeds", "0"], "--seeds must be 1 to 30"),
        (["--cached-share", "1.5"], "--cached-share must be from 0 to 1"),
        (["--set", "slo={}"], "slo must limit ttft_s, tpot_s or e2e_s"),
        (["--set", "economics={price: gold}"], "economics.price must be a price known for h200"),
        (["--set", "economics={owned: {}}"], "economics.owned.capex_usd_per_gpu is required"),
        (["--set", "workload.requests=20"], "workload.requests must be at least 100"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    options: list[str],
    message: str,
    scenario_file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("ran")

    monkeypatch.setattr("moesim.serving_cost.capacity.simulate", never)
    assert main(["cost", scenario_file, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_an_slo_that_no_rate_keeps_is_said(
    scenario_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", scenario_file, "--set", "slo={tpot_s: 0.0001}"]) == 2
    error = capsys.readouterr().err
    assert "slo is kept at no rate of arrivals: served alone, 0.0% of the requests keep" in error


def test_prices_are_listed_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"gpu_hours", "apis", "energy", "profiles"}
    for table in (found["gpu_hours"], found["apis"], found["energy"].values()):
        assert all(row["date"] and row["source"] for row in table)
    assert main(["prices"]) == 0
    told = capsys.readouterr().out
    assert "deepseek/deepseek-chat" in told
    assert told.count("off-peak hours only: 16:30 to 00:30 UTC") == 2


def test_prices_of_a_model_are_its_own_and_hold_all_day(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [price.name for price in prices_of_model("deepseek-v3")]
    assert "deepseek/deepseek-chat" in names
    assert not [name for name in names if "off-peak" in name]
    assert not [name for name in names if "r1" in name or "reasoner" in name or "v3.1" in name]
    for price in api_prices():
        assert bool(price.hours) == ("off-peak" in price.name)
    reasoning = replace(CHEAP, name="thinking", model="m", product="M Thinking")
    night = replace(CHEAP, name="night", model="m", hours="0:00 to 6:00 UTC")
    own = replace(CHEAP, name="own", model="m")
    monkeypatch.setattr(prices_module, "api_prices", lambda: (reasoning, night, own))
    assert prices_of_model("m") == (own,)
    monkeypatch.setattr(prices_module, "api_prices", lambda: (reasoning, night))
    assert prices_of_model("m") == (reasoning,)
    said = "thinking sells another product of the model's shape: M Thinking"
    assert said in fake_study([reasoning]).summary["notes"]
    with pytest.raises(InputError, match="--api must hold all day"):
        cost_study(Scenario.parse(SMALL), apis=(night,))


def test_the_chart_speaks_of_the_cheapest_api() -> None:
    title = cost_figures(fake_study((DEAR, CHEAP, NEAR)).findings())[0].title
    assert "against cheap: " in title


def test_volumes_and_shares_are_checked_by_the_function_too() -> None:
    scenario = Scenario.parse(SMALL)
    for volumes in ((), (0.0,), (float("nan"),), (1.0,) * 101):
        with pytest.raises(InputError, match=r"^--volume must be 1 to 100 numbers"):
            cost_study(scenario, volumes=volumes)
    assert module.VOLUMES[0] == 1e6
    assert Rules().spare == 1
