"""Every figure of a report, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.report.cost_charts import cost_and_throughput, memory
from moesim.report.expert_charts import expert_heatmap, imbalance
from moesim.report.figure import AnyChart, Figure
from moesim.report.gap_charts import token_gaps
from moesim.report.latency_charts import latency_cdf, percentile_curves
from moesim.report.rebalance_charts import balance, rebalances
from moesim.report.source import ReportedResult, checked
from moesim.report.step_charts import over_time, step_parts

__all__ = ["Figure", "all_charts", "figures"]


def figures(results: Sequence[ReportedResult]) -> tuple[Figure, ...]:
    """The figures of one result, or the overlays of 2 to 6; InputError on another number.

    A figure without data keeps its place and says why in its title.
    """
    runs = checked(results)
    compared = (cost_and_throughput(runs),) if len(runs) > 1 else ()
    moved = (balance(runs),) if rebalances(runs) else ()
    return (
        *compared,
        latency_cdf(runs),
        percentile_curves(runs),
        token_gaps(runs),
        step_parts(runs),
        over_time(runs),
        expert_heatmap(runs),
        imbalance(runs),
        *moved,
        memory(runs),
    )


def all_charts(results: Sequence[ReportedResult]) -> dict[str, AnyChart]:
    """Titled charts by key, each of which shows itself in a notebook; no chart, no entry."""
    return {f.key: f.drawing() for f in figures(results) if f.chart is not None}
