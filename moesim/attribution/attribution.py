"""Attribution: what a study of causes found; it shows itself in tables, JSON, pages, notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.findings.attribution import Attributed, Cause, Explanation
from moesim.findings.estimates import Estimate
from moesim.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Attribution:
    """`findings`: figures split by cause; `causes`: those that were switched off; `combinations`:
    the figures with the causes named by `on` alone, over all seeds; `requests` measured of each
    seed, behind `warmup` of each run.
    """

    scenario: Scenario
    findings: Explanation
    causes: tuple[Cause, ...]
    combinations: tuple[Mapping[str, object], ...]
    requests: int
    warmup: int

    @property
    def name(self) -> str:
        return self.scenario.name

    @property
    def sentences(self) -> tuple[str, ...]:
        """What each split figure says."""
        return tuple(each.sentence for each in self.findings.attributed)

    def of(self, metric: str, statistic: str) -> Attributed | None:
        """The split of one figure; None where the run has no such latency, or it never varies."""
        return self.findings.of(metric, statistic)

    def table(self) -> pd.DataFrame:
        """A row per figure and cause, the rest included: amounts in base units, fractions of the
        total, with their 95 % intervals."""
        import pandas as pd

        rows = []
        for each in self.findings.attributed:
            total = each.total.value
            parts = [(s.cause.name, s.amount, s.fraction, s.alone) for s in each.shares]
            of_rest = Estimate(each.rest.value / total)
            for cause, amount, fraction, alone in [*parts, ("rest", each.rest, of_rest, None)]:
                rows.append(
                    {
                        "metric": each.metric,
                        "statistic": each.statistic,
                        "cause": cause,
                        "amount": amount.value,
                        "amount_low": amount.low,
                        "amount_high": amount.high,
                        "fraction": fraction.value,
                        "fraction_low": fraction.low,
                        "fraction_high": fraction.high,
                        "alone": None if alone is None else alone.value,
                        "total": total,
                    }
                )
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """What ``moesim attribute --json`` prints."""
        return {
            "name": self.name,
            "version": moesim.__version__,
            "seeds": list(self.findings.seeds),
            "requests": self.requests,
            "warmup": self.warmup,
            "causes": [asdict(cause) for cause in self.causes],
            "attributed": [_plain(each) for each in self.findings.attributed],
            "combinations": [dict(each) for each in self.combinations],
            "notes": list(self.findings.notes),
        }

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML page."""
        from moesim.report.attribution_page import write_attribution_report

        write_attribution_report(self.findings, self.name, path, self.scenario.question)

    def charts(self) -> dict[str, Any]:
        """Altair charts by name; each shows itself in a notebook."""
        from moesim.report.attribution_charts import attribution_figures

        figures = attribution_figures(self.findings)
        return {each.key: each.drawing() for each in figures if each.chart is not None}

    def _repr_html_(self) -> str:
        from moesim.report.attribution_page import attribution_table, sentences_html

        return sentences_html(self.findings) + attribution_table(self.findings)


def _plain(each: Attributed) -> dict[str, Any]:
    return {
        "metric": each.metric,
        "statistic": each.statistic,
        "total": asdict(each.total),
        "shares": [
            {
                "cause": share.cause.name,
                "amount": asdict(share.amount),
                "fraction": asdict(share.fraction),
                "alone": None if share.alone is None else asdict(share.alone),
            }
            for share in each.shares
        ],
        "rest": asdict(each.rest),
        "sentence": each.sentence,
    }
