"""The page of a sweep in a real browser, off the network."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from moesim.findings.sweep import SweepFindings, SweepRun
from moesim.report.sweep_page import write_sweep_report
from tests.browser.pages import HOSTILE, IN_A_BROWSER, legible_charts, opened

pytestmark = IN_A_BROWSER
RATE, REPLICAS = "workload.arrivals.poisson.rate_per_s", "deployment.replicas"
POLICY = "deployment.load_balancing"


def run(choices: dict[str, Any], seed: int, settled: bool) -> SweepRun:
    """Figures that fall with replicas and rise with the rate."""
    load = choices.get(RATE, 8.0) / choices.get(REPLICAS, 1)
    figures = {f"{name}.{q}": base * (1.0 + n) * (1.0 + load / 10.0 + 0.01 * seed)
               for name, base in (("ttft_s", 0.2), ("tpot_s", 0.012), ("itl_s", 0.01),
                                  ("e2e_s", 3.0))
               for n, q in enumerate(("p50", "p90", "p99"))}  # fmt: skip
    figures |= {"throughput.output_tokens_per_s": 400.0 * choices.get(RATE, 8.0),
                "cost.usd_per_million_output_tokens": 2.0 * choices.get(REPLICAS, 1) / load,
                "gpus": 8.0}  # fmt: skip
    return SweepRun(choices, seed, figures, settled=settled, key="0" * 64)


def findings(name: str, over: dict[str, list[Any]], seeds: int, wrong: int = 0) -> SweepFindings:
    points = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    runs = [run(point, seed, n % 7 > 0) for n, point in enumerate(points) for seed in range(seeds)]
    for n in range(wrong):
        runs[n] = SweepRun(runs[n].choices, runs[n].seed, {}, error=f"needs 16 GPUs; {HOSTILE}")
    return SweepFindings(
        name=name,
        question=f"How many replicas does {name} need?",
        fields=tuple(over),
        runs=tuple(runs),
        slo={"ttft_s.p99": 1.0},
        simulated=len(runs) - wrong,
        read=0,
        left=0,
    )


@pytest.mark.parametrize(
    ("name", "over", "seeds", "wrong"),
    [
        ("one field", {RATE: [2, 4, 8, 16]}, 1, 0),
        ("two fields", {REPLICAS: [1, 2, 4], RATE: [2, 4, 8, 16]}, 3, 2),
        ("many values", {REPLICAS: list(range(1, 13)), RATE: list(range(2, 34, 2))}, 1, 0),
        (HOSTILE, {POLICY: ["round_robin", "least_requests", HOSTILE], RATE: [2, 4]}, 2, 1),
        ("long name " * 12, {RATE: [2, 4]}, 1, 0),
    ],
    ids=["one field", "two fields", "many values", "hostile", "long name"],
)
def test_charts_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, name: str, over: dict[str, list[Any]], seeds: int, wrong: int
) -> None:
    path = write_sweep_report(findings(name, over, seeds, wrong), tmp_path / "sweep.html")
    tab, troubles = opened(chromium, path)
    charts = legible_charts(tab, troubles)
    assert {"over-ttft-s-p99", "latency-percentiles", "cost-against-latency"} <= charts
    tab.context.close()
