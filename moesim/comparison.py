"""compare(scenarios) -> Comparison: the same demand against several deployments, paired.

Legend: N requests, B resamples.

Demand depends on the workload and the seed alone, so request n of one run is request n of the other
and their latencies are subtracted one by one. The interval of a difference comes from a circular
block bootstrap over requests in order of arrival (D. Politis, J. Romano, "A circular
block-resampling procedure for stationary data", 1992): neighbours in a queue are alike, and drawing
them singly would promise too much. It speaks for this demand; another seed is another demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.pools import check
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import as_scenario, simulate

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

METRICS = ("ttft_s", "tpot_s", "e2e_s")
LEVEL = 0.95
RESAMPLES = 1000
MOST_DRAWN = 1e7  # values drawn for one interval: about a second
AT_ONCE = 1e6
FEWEST_RESAMPLES = 100
BOOTSTRAP_SEED = 20_260_101
STATISTICS: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (  # over the last axis
    ("mean", lambda values: np.asarray(values.mean(axis=-1))),
    ("p99", lambda values: np.asarray(np.percentile(values, 99, axis=-1))),
)


@dataclass(frozen=True)
class Difference:
    """How one figure of a deployment differs from the first one's, in seconds.

    `low` and `high` bound the difference with 95 % confidence. `requests` were compared: those that
    completed and are not warm-up, in both runs where `paired`.
    """

    name: str
    metric: str
    statistic: str
    first_s: float
    other_s: float
    difference_s: float
    low_s: float
    high_s: float
    requests: int
    paired: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """Finished runs; the first is what the others are compared with."""

    results: tuple[Result, ...]

    def __post_init__(self) -> None:
        if len(self.results) < 2:
            raise InputError("compare", "needs at least two scenarios", len(self.results))

    @cached_property
    def unpaired(self) -> tuple[Result, ...]:
        """The deployments whose demand is not the first one's."""
        first, *others = self.results
        return tuple(other for other in others if not same_demand(first, other))

    @cached_property
    def differences(self) -> tuple[tuple[Difference, ...], ...]:
        """For each later deployment, its TTFT, TPOT and end-to-end latency less the first one's."""
        first, *others = self.results
        return tuple(tuple(_differences(first, other)) for other in others)

    def table(self) -> pd.DataFrame:
        """A row per deployment: its headline figures, in base units."""
        import pandas as pd

        return pd.DataFrame([_row(result.summary) for result in self.results])

    def difference_table(self) -> pd.DataFrame:
        """`differences` as a table."""
        import pandas as pd

        return pd.DataFrame([vars(each) for of_one in self.differences for each in of_one])

    def to_json(self) -> list[dict[str, Any]]:
        """What ``moesim compare --json`` prints: the summaries; later ones with `against_first`."""
        listed = [dict(result.summary) for result in self.results]
        for summary, differences in zip(listed[1:], self.differences, strict=True):
            summary["against_first"] = _against_first(self.results[0].name, differences)
        return listed

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML report; it holds at most six deployments."""
        from moesim.findings.case import Case
        from moesim.report.page import write_report

        first = self.results[0].name
        note = f"not asked the same as {first}: part of the difference is the demand's"
        write_report(
            [
                replace(result, labels=(*result.labels, note))
                if result in self.unpaired
                else result
                for result in self.results
            ],
            path,
            [Case(uncertainty=result.uncertainty) for result in self.results],
            asked_the_same=[result not in self.unpaired for result in self.results[1:]],
        )

    def charts(self) -> dict[str, Any]:
        """Altair charts by name; each shows itself in a notebook."""
        from moesim.report.charts import all_charts

        return all_charts(self.results)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from moesim.findings.case import Case
        from moesim.report.notebook import comparison_html

        cases = [Case(uncertainty=result.uncertainty) for result in self.results]
        return comparison_html(self.results, cases=cases)


def compare(scenarios: Sequence[Scenario | Mapping[str, object] | str | Path]) -> Comparison:
    """Simulate every scenario; all are checked before the first one runs. Raises InputError."""
    checked = [as_scenario(scenario) for scenario in scenarios]
    if len(checked) < 2:
        raise InputError("compare", "needs at least two scenarios", len(checked))
    for scenario in checked:
        check(scenario)
    return Comparison(tuple(simulate(scenario) for scenario in checked))


def same_demand(first: Result, other: Result) -> bool:
    """Whether both were asked the same: lengths, domains, and arrivals where these are given."""
    one, two = first.raw.requests, other.raw.requests
    columns = ["prompt_tokens", "output_tokens", "domain"]
    if one.size != two.size or not all(np.array_equal(one[c], two[c]) for c in columns):
        return False
    if _closed_loop(first) and _closed_loop(other):
        return True  # arrivals follow from the service
    given = [_given_arrivals(result) for result in (first, other)]  # later turns follow from it too
    return np.array_equal(given[0], given[1])


def _given_arrivals(result: Result) -> Floats:
    """Arrivals of the requests that wait for no other."""
    threads = result.raw.threads
    arrival_s = result.raw.requests["arrival_s"]
    return np.asarray(arrival_s if threads is None else arrival_s[threads.turn_N == 0])


def _closed_loop(result: Result) -> bool:
    from moesim.workload.arrivals import ClosedLoop

    return isinstance(result.scenario.workload.arrivals, ClosedLoop)


def _differences(first: Result, other: Result) -> list[Difference]:
    from moesim.metrics import counted_rows

    paired = same_demand(first, other)
    tables = first.requests, other.requests
    keep = [counted_rows(table) for table in tables]
    if paired:
        keep = [keep[0] & keep[1]] * 2
    found = []
    for metric in METRICS:
        one, two = (
            table.loc[rows, metric].to_numpy(np.float64)
            for table, rows in zip(tables, keep, strict=True)
        )
        one, two = one[~np.isnan(one)], two[~np.isnan(two)]  # the same requests have no TPOT
        if one.size and two.size:
            found += [
                Difference(
                    name=other.name,
                    metric=metric,
                    statistic=statistic,
                    first_s=float(of(one)),
                    other_s=float(of(two)),
                    difference_s=float(of(two) - of(one)),
                    low_s=low,
                    high_s=high,
                    requests=min(one.size, two.size),
                    paired=paired,
                )
                for (statistic, of), (low, high) in zip(
                    STATISTICS, difference_intervals(one, two, paired), strict=True
                )
            ]
    return found


def difference_intervals(one: Floats, two: Floats, paired: bool) -> list[tuple[float, float]]:
    """Percentile bootstrap bounds of statistic(two) - statistic(one) for each of STATISTICS.

    Values are in order of arrival. Blocks of about the square root of N neighbours are drawn with
    replacement, the same for both samples where these are paired.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    most = max(one.size, two.size)
    resamples = int(np.clip(MOST_DRAWN / most, FEWEST_RESAMPLES, RESAMPLES))
    drawn = np.empty((len(STATISTICS), resamples))
    step = max(1, int(AT_ONCE / most))
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        rows_one = _blocks(one.size, count, rng)
        rows_two = rows_one if paired else _blocks(two.size, count, rng)
        samples_one, samples_two = one[rows_one], two[rows_two]
        for s, (_, of) in enumerate(STATISTICS):
            drawn[s, first : first + count] = of(samples_two) - of(samples_one)
    edge = (1 - LEVEL) / 2
    bounds = np.quantile(drawn, [edge, 1 - edge], axis=1)
    return [(float(low), float(high)) for low, high in bounds.T]


def _blocks(size: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[count, size] rows in blocks of neighbours; the last row's neighbour is the first."""
    length = max(1, round(size**0.5))
    starts = rng.integers(0, size, (count, -(-size // length)))
    rows = (starts[:, :, None] + np.arange(length)) % size
    return np.asarray(rows.reshape(count, -1)[:, :size], np.int64)


def _against_first(first: str, differences: Sequence[Difference]) -> dict[str, Any]:
    told: dict[str, Any] = {"first": first, "paired": False, "requests": 0}
    for each in differences:
        told["paired"], told["requests"] = each.paired, max(told["requests"], each.requests)
        told.setdefault(each.metric, {})[each.statistic] = {
            "difference": each.difference_s,
            "low": each.low_s,
            "high": each.high_s,
        }
    return told


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    requests, throughput, cost = summary["requests"], summary["throughput"], summary["cost"]
    return {
        "name": summary["name"],
        "gpus": summary["gpus"],
        "completed": requests["completed"],
        "failed": requests["failed"],
        **{
            f"{metric.removesuffix('_s')}_{statistic}_s": summary[metric][statistic]
            for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
            for statistic in ("mean", "p50", "p99")
        },
        "output_tokens_per_s": throughput["output_tokens_per_s"],
        "output_tokens_per_s_per_gpu": throughput["output_tokens_per_s_per_gpu"],
        "expert_imbalance_mean": summary["expert_imbalance"]["max_over_mean"]["mean"],
        "usd_per_hour": cost["usd_per_hour"],
        "usd_per_million_output_tokens": cost["usd_per_million_output_tokens"],
    }
