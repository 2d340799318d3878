"""compare(scenarios) -> Comparison: the same demand against several deployments, paired.

Demand depends on the workload and the seed alone, so request n of one run is request n of the other
and their latencies are subtracted one by one. Both runs are cut into the same batches of requests;
the interval of a difference comes from what it is without each batch (uncertainty.intervals). It
speaks for this demand's kind; `compare_replications` has intervals over seeds, routing and
calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.figures.metrics import counted_rows
from moesim.findings.estimates import HEADLINES, Uncertainty, Verdict, Verdicts
from moesim.pools import check
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import as_scenario, simulate
from moesim.uncertainty.observations import part_of_request
from moesim.uncertainty.parts import Parts
from moesim.uncertainty.verdicts import overall, told_exactly, verdict
from moesim.uncertainty.within_run import BATCHES, value_at

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

METRICS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
STATISTICS = ("mean", "p99")


@dataclass(frozen=True)
class Difference:
    """How one figure of a deployment differs from the first one's, in seconds.

    `low` and `high` bound the difference with 95 % confidence; None where too few requests tell, or
    a run does not settle. `requests` were compared: those that completed and are not warm-up, in
    both runs where `paired`.
    """

    name: str
    metric: str
    statistic: str
    first_s: float
    other_s: float
    difference_s: float
    low_s: float | None
    high_s: float | None
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
    def verdicts(self) -> tuple[Verdicts, ...]:
        """For each later deployment, what every headline figure's difference lets one say."""
        first, *others = self.results
        return tuple(verdicts(first, other) for other in others)

    @cached_property
    def differences(self) -> tuple[tuple[Difference, ...], ...]:
        """For each later deployment, its latencies less the first one's."""
        first, *others = self.results
        return tuple(
            tuple(_differences(first, other, told))
            for other, told in zip(others, self.verdicts, strict=True)
        )

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
        told = zip(listed[1:], self.differences, self.verdicts, strict=True)
        for summary, differences, verdicts_of in told:
            against = _against_first(self.results[0].name, differences)
            summary["against_first"] = against | plain_verdicts(verdicts_of)
        return listed

    def report(
        self,
        path: str | Path,
        verdicts: Sequence[Verdicts] | None = None,
        uncertainties: Sequence[Uncertainty] | None = None,
    ) -> None:
        """Write the self-contained HTML report; it holds at most six deployments.

        `verdicts`, `uncertainties`: those of replications, instead of what single runs tell.
        """
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
            [
                Case(uncertainty=each)
                for each in uncertainties or [result.uncertainty for result in self.results]
            ],
            [result not in self.unpaired for result in self.results[1:]],
            self.verdicts if verdicts is None else verdicts,
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
        return comparison_html(self.results, self.verdicts, cases)


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


def pair(first: Result, other: Result, parts: int) -> tuple[Parts, Parts]:
    """Both runs cut into batches: the same requests' where both were asked the same."""
    one, two = first.observed, other.observed
    if not same_demand(first, other):
        return one.batches(parts), two.batches(parts)
    counted_N = one.counted_N & two.counted_N
    part_N = part_of_request(one.order, counted_N, parts)
    return one.cut(part_N, counted_N), two.cut(part_N, counted_N)


def verdicts(first: Result, other: Result) -> Verdicts:
    """What the difference of two runs lets one say of each headline figure."""
    paired = same_demand(first, other)
    one, two = pair(first, other, BATCHES)
    why = _unsettled(
        (first.name, first.steady_state.settled), (other.name, other.steady_state.settled)
    )
    told = []
    for path in HEADLINES:
        values = [value_at(run.summary, path) for run in (first, other)]
        each = verdict(path, one, two, paired, silent=bool(why))
        if each is not None and None not in values:
            told.append(told_exactly(each, not _closed_loop(first)))
    said = overall(other.name, first.name, tuple(told), why)
    method = (
        f"95 % intervals of differences from {BATCHES} batches of neighbouring requests, "
        f"{'the same in both runs' if paired else 'of each run'} (jackknife, Student's t). They "
        "speak for the demand alone, not for routing or calibration."
    )
    return Verdicts(first.name, other.name, said, tuple(told), paired, method)


def _unsettled(*runs: tuple[str, bool]) -> str:
    """Why a difference has no long-run value; empty where it may have one."""
    names = [name for name, settled in runs if not settled]
    if not names:
        return ""
    return f"nothing can be said of the long run, demand outruns {' and '.join(names)}"


def plain_verdicts(told: Verdicts) -> dict[str, Any]:
    """Verdicts as `--json` has them."""
    return {
        "verdict": told.overall,
        "method": told.method,
        "verdicts": {each.path: _plain_verdict(each) for each in told.each},
    }


def _plain_verdict(each: Verdict) -> dict[str, Any]:
    found = {
        name: {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        for name, estimate in (("difference", each.difference), ("relative", each.relative))
    }
    rest = {"told_apart": each.told_apart, "better": each.better, "more": each.more}
    rest["exact"] = each.exact
    from moesim.figures.metrics import plain  # a relative difference of 0 is no number

    told = plain({**found, **rest, "sentence": each.sentence})
    assert isinstance(told, dict)
    return told


def _differences(first: Result, other: Result, told: Verdicts) -> list[Difference]:
    """Means and 99th percentiles of latencies."""
    keep = [counted_rows(run.requests) for run in (first, other)]
    if told.paired:
        keep = [keep[0] & keep[1]] * 2
    found = []
    for metric in METRICS:
        column = metric if metric != "itl_s" else "ttft_s"
        counted = min(
            int(run.requests.loc[rows, column].notna().sum())
            for run, rows in zip((first, other), keep, strict=True)
        )
        for statistic in STATISTICS:
            each = told.of(metric, statistic)
            if each is None:
                continue
            before = float(first.summary[metric][statistic])
            after = float(other.summary[metric][statistic])
            found.append(
                Difference(
                    name=other.name,
                    metric=metric,
                    statistic=statistic,
                    first_s=before,
                    other_s=after,
                    difference_s=each.difference.value,
                    low_s=each.difference.low,
                    high_s=each.difference.high,
                    requests=counted,
                    paired=told.paired,
                )
            )
    return found


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
