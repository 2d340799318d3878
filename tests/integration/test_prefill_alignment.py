"""Aligned prefills against what vLLM PR #44558 measured on 8 GB200 (DeepSeek-R1 FP4, DP8/EP8)."""

from __future__ import annotations

from typing import Any

import pytest

from moesim.scenario import load_scenario
from moesim.simulation import simulate

# (summary, statistic): milliseconds measured on every step, and on every second one.
MEASURED = {
    ("itl_s", "p50"): (274.9, 32.1),
    ("itl_s", "mean"): (236.7, 139.4),
    ("ttft_s", "mean"): (813.0, 502.0),
    ("ttft_s", "p99"): (2476.0, 1475.0),
}


@pytest.mark.slow
def test_aligning_prefills_has_the_published_effect() -> None:
    """Each ratio within a factor of 1.5, at equal throughput."""
    every, second = (
        simulate(load_scenario(f"prefill-every-{name}", ["workload.requests=1500"])).summary
        for name in ("step", "second-step")
    )

    def ratio(of: Any) -> float:
        return float(every[of[0]][of[1]] / second[of[0]][of[1]])

    for of, (before, after) in MEASURED.items():
        assert before / after / 1.5 <= ratio(of) <= before / after * 1.5, of
    rates = [summary["throughput"]["requests_per_s"] for summary in (every, second)]
    assert rates[0] == pytest.approx(rates[1], rel=0.02)
    # The absolute level of a step with prompts follows from launching it on a Grace host.
    assert every["itl_s"]["p50"] == pytest.approx(0.2749, rel=0.2)
