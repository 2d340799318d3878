"""The page of a plan in a real browser, off the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesim.findings.estimates import Estimate
from moesim.findings.planning import Option, PlanFindings
from moesim.report.plan_page import write_plan_report
from tests.browser.pages import HOSTILE, IN_A_BROWSER, legible_charts, opened

pytestmark = IN_A_BROWSER


def option(name: str, gpus: int, slowness: float, missed: tuple[str, ...] = ()) -> Option:
    figures = {
        "ttft_s.p99": 0.4 * slowness,
        "tpot_s.p50": 0.012 * slowness,
        "tpot_s.p99": 0.02 * slowness,
        "e2e_s.p99": 3.0 * slowness,
        "throughput.output_tokens_per_s_per_gpu": 900.0 / gpus,
        "cost.usd_per_million_total_tokens": 0.1 * gpus,
    }
    return Option(
        name=name,
        choices={"cluster.gpu": "h100-sxm", "deployment.parallelism.attention_tp": gpus},
        scenario={},
        gpus=gpus,
        usd_per_hour=2.95 * gpus,
        figures={
            path: Estimate(value, 0.9 * value, 1.1 * value) for path, value in figures.items()
        },
        missed=missed,
        simulations=3,
        launch={"vllm": f"# {name}\nvllm serve model \\\n    --tensor-parallel-size {gpus}\n"},
    )


def findings(name: str, options: int) -> PlanFindings:
    found = [option(f"{i} x {name}", i, 4.0 / i, ("late",) if i < 3 else ())
             for i in range(1, options + 1)]  # fmt: skip
    kept = [each for each in found if each.meets]
    return PlanFindings(
        recommended=kept[0] if kept else None,
        runner_up=kept[1] if len(kept) > 1 else None,
        runner_up_loses=f"{kept[1].name}: 33% dearer." if len(kept) > 1 else "",
        options=tuple(found),
        candidates=300,
        pruned={"weights and caches do not fit its GPUs": 120, HOSTILE: 3},
        simulations=3 * options,
        sentences=("A sentence.", "300 combinations were looked at."),
        notes=("a note",),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("h100-sxm TP4 DP2 EP8", 8), ("one that misses", 1), (HOSTILE, 4), ("long name " * 12, 14)],
    ids=["many", "none meets", "hostile", "long names"],
)
def test_charts_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, name: str, options: int
) -> None:
    path = write_plan_report(findings(name, options), name, tmp_path / "plan.html")
    tab, troubles = opened(chromium, path)
    charts = legible_charts(tab, troubles)
    assert charts == {"cost-against-latency", "throughput-against-speed"}
    tab.context.close()
