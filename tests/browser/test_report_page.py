"""The report in a real browser, off the network: every chart drawn, every label readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.findings.attribution import Attributed, Cause, Explanation, Share
from moesim.findings.estimates import Estimate
from moesim.report import write_report
from moesim.report.attribution_page import write_attribution_report
from moesim.report.place_page import write_place_report
from moesim.report.trace_page import write_trace_report
from moesim.routing.study import TraceStudy, study
from moesim.what_if import PlacementStudy, place_study
from tests.browser.pages import (
    CUT,
    HOSTILE,
    IN_A_BROWSER,
    INK,
    SHAPES,
    contrast,
    legible_charts,
    opened,
)
from tests.fixtures.fake_result import FakeResult, FakeScenario, fake_result
from tests.fixtures.toy_traces import identical, trace_of, uniform_ids

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def run() -> FakeResult:
    return fake_result(requests=400)


def runs(kind: str, run: FakeResult) -> list[FakeResult]:
    if kind == "one run":
        return [run]
    if kind == "queueing":
        return [fake_result("overloaded", requests=600, max_running=24, layers=100, ranks=128)]
    if kind == "small":
        return [fake_result("one request", requests=1)]
    if kind == "dense":
        return [fake_result("dense", layers=0, ranks=1, outputs=(1, 1), requests=40)]
    name = "a deployment whose name tells everything at length, variant"
    return [
        fake_result(
            f"{name} {n}", requests=150, ranks=8 * 2 ** (n % 4), max_running=8 * 2**n,
            layers=58 if n != 3 else 0,
        )
        for n in range(6)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["one run", "queueing", "small", "dense", "six"])
def test_charts_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, run: FakeResult, kind: str
) -> None:
    tab, troubles = opened(chromium, write_report(runs(kind, run), tmp_path / "report.html"))
    charts = legible_charts(tab, troubles)
    assert len(charts) >= 5
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_take_the_colours_of_the_page(
    chromium: Any, tmp_path: Path, run: FakeResult, scheme: str
) -> None:
    path = write_report([run], tmp_path / "report.html")
    tab, _ = opened(chromium, path, color_scheme=scheme)
    ink = tab.evaluate(INK)
    assert ink["label"] == ink["body"]
    assert contrast(ink["body"], ink["paper"]) > 7
    tab.emulate_media(media="print")
    printed = tab.evaluate(INK)
    assert printed["label"] == "rgb(0, 0, 0)"
    assert printed["paper"] == "rgb(255, 255, 255)"
    tab.context.close()


def test_hostile_names_run_nothing(chromium: Any, tmp_path: Path, run: FakeResult) -> None:
    hostile = FakeResult(**{**vars(run), "name": HOSTILE, "notes": (HOSTILE,)})
    hostile.scenario = FakeScenario({"name": HOSTILE}, question=HOSTILE)
    path = write_report([hostile, run], tmp_path / "report.html")
    tab, troubles = opened(chromium, path)
    tab.hover('[data-chart="cost"] svg.marks .role-mark path')
    assert troubles == []
    assert tab.evaluate("document.images.length") == 0
    assert HOSTILE in tab.inner_text("aside")
    tab.context.close()


def test_the_text_stands_without_scripts(chromium: Any, tmp_path: Path, run: FakeResult) -> None:
    path = write_report([run], tmp_path / "report.html")
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    text = tab.inner_text("body")
    assert "Half of the requests see their first token within" in text
    assert "needs JavaScript" in text
    assert tab.locator("table").count() >= 2
    context.close()


def test_a_narrow_screen_scrolls_charts_not_the_page(
    chromium: Any, tmp_path: Path, run: FakeResult
) -> None:
    path = write_report([run], tmp_path / "report.html")
    tab, troubles = opened(chromium, path)
    tab.set_viewport_size({"width": 390, "height": 800})
    assert troubles == []
    wide = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    tab.context.close()


@pytest.fixture(scope="module")
def of_many_experts() -> TraceStudy:
    rng = np.random.default_rng(0)
    ids = uniform_ids(rng, 3000, 40, 256, 6)
    names = [f"a domain with a rather long name, number {n}" for n in range(14)]
    domain = [n % 14 for n in range(60)]
    wide = trace_of(ids, 256, [50] * 60, [20] * 60, names, domain)
    return study(wide, "a trace of many experts whose name tells everything at length")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("traces", [1, 3])
def test_charts_of_traces_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, of_many_experts: TraceStudy, traces: int, scheme: str
) -> None:
    """A trace of many experts and domains with long names, alone and beside others."""
    studies = [of_many_experts]
    if traces > 1:
        studies += [study(identical(), "same"), study(identical(), "same")]
    path = write_trace_report(studies, tmp_path / "trace.html")
    tab, troubles = opened(chromium, path, color_scheme=scheme)
    charts = legible_charts(tab, troubles)
    assert len(charts) >= 8
    ink = tab.evaluate(INK)
    assert ink["label"] == ink["body"]
    tab.context.close()


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> PlacementStudy:
    """Placements on two nodes under a trace of six domains, one of them with a hostile name."""
    rng = np.random.default_rng(0)
    names = [HOSTILE, *(f"a domain with a rather long name, number {n}" for n in range(1, 6))]
    ids = uniform_ids(rng, 60 * 40, 32, 8, 2)
    trace = trace_of(ids, 8, [40] * 60, [10] * 60, names, [n % 6 for n in range(60)])
    path = tmp_path_factory.mktemp("placed") / "trace.safetensors"
    trace.save(path)
    return place_study(
        {
            "name": HOSTILE,
            "model": "mixtral-8x7b",
            "cluster": {"gpu": "h100-sxm", "nodes": 2, "gpus_per_node": 2},
            "deployment": {
                "engine": "sglang",
                "parallelism": {"attention_dp": 4, "expert_parallel": 4},
                "exchange": "deepep",
            },
            "routing": {"trace": str(path)},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 10,
                "prompt": {"fixed": 20},
                "output": {"fixed": 5},
            },
        },
        ["eplb", "swap"],
        [0, 4],
        decode=16,
        prefill=2048,
        simulated=False,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_of_placements_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, placed: PlacementStudy, scheme: str
) -> None:
    path = write_place_report(placed, tmp_path / "placed.html")
    tab, troubles = opened(chromium, path, color_scheme=scheme)
    charts = legible_charts(tab, troubles)
    assert charts == {
        f"place-{name}"
        for name in (
            "gains", "load", "imbalance", "bytes", "redundancy", "ageing", "domains",
        )
    }  # fmt: skip
    ink = tab.evaluate(INK)
    assert ink["label"] == ink["body"]
    assert tab.evaluate("document.images.length") == 0
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    tab.context.close()


def test_a_placement_study_says_its_findings_without_scripts(
    chromium: Any, tmp_path: Path, placed: PlacementStudy
) -> None:
    path = write_place_report(placed, tmp_path / "placed.html")
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    text = tab.inner_text("body").replace("\N{NO-BREAK SPACE}", " ")
    assert placed.headline in text
    assert all(each.answer in text for each in placed.advice)
    assert "No run was simulated" in text
    assert tab.locator("table").count() >= 4
    context.close()


def explained() -> Explanation:
    """Shares of six causes with hostile phrases; one makes each figure smaller."""
    fractions = (0.35, 0.2, 0.1, 0.4, -0.12, 0.02)
    names = ("routing", "network", "queueing", "prefill", "lengths", "disturbance")
    attributed = []
    for metric in ("ttft_s", "itl_s", "e2e_s"):
        for statistic in ("mean", "variance", "p99"):
            shares = tuple(
                Share(
                    Cause(name, f"{HOSTILE} {name}", HOSTILE),
                    Estimate(of * 0.01, of * 0.009, of * 0.011),
                    Estimate(of, of - 0.05, of + 0.05),
                    Estimate(of + 0.1),
                )
                for name, of in zip(names, fractions, strict=True)
            )
            rest = Estimate(0.0005, 0.0004, 0.0006)
            split = Attributed(metric, statistic, Estimate(0.01), shares, rest, HOSTILE)
            attributed.append(split)
    return Explanation(tuple(attributed), (), (), (HOSTILE,), (0, 1, 2))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_of_causes_are_drawn_and_legible(chromium: Any, tmp_path: Path, scheme: str) -> None:
    path = write_attribution_report(explained(), HOSTILE, tmp_path / "why.html", HOSTILE)
    tab, troubles = opened(chromium, path, color_scheme=scheme)
    assert troubles == []
    shapes = tab.evaluate(SHAPES)
    assert set(shapes) == {f"attribution-{name}" for name in ("shares", "itl", "ttft", "e2e")}
    assert all(shapes.values()), shapes
    assert tab.evaluate(CUT) == []
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert tab.evaluate("document.images.length") == 0
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    tab.context.close()
