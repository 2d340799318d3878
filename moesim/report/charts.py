"""Every figure of a report, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.report.cost_charts import cost_and_throughput, memory
from moesim.report.expert_charts import expert_heatmap, imbalance
from moesim.report.figure import AnyChart, Figure
from moesim.report.gap_charts import token_gaps
from moesim.report.latency_charts import latency_cdf, percentile_curves
from moesim.report.paired_charts import paired
from moesim.report.rebalance_charts import balance, rebalances
from moesim.report.source import ReportedResult, checked
from moesim.report.step_charts import over_time, step_parts

__all__ = ["Figure", "all_charts", "figures"]


def figures(
    results: Sequence[ReportedResult], asked_the_same: Sequence[bool] = ()
) -> tuple[Figure, ...]:
    """The figures of one result, or the overlays of 2 to 6; InputError on another number.

    A figure without data keeps its place and says why in its title. `asked_the_same`: for each
    later result, whether its request n is the first one's.
    """
    runs = checked(results)
    compared = (cost_and_throughput(runs),) if len(runs) > 1 else ()
    pairs = paired(runs, asked_the_same) if asked_the_same else None
    moved = (balance(runs),) if rebalances(runs) else ()
    return (
        *compared,
        latency_cdf(runs),
        percentile_curves(runs),
        *(() if pairs is None else (pairs,)),
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
