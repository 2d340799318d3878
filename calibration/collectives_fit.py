"""Fit the laws of exchange libraries on published timings.

    python -m calibration.collectives_fit ../shared/facts/comm.csv

writes `moesim/presets/collectives.csv` and docs/explanation/collectives.md with its chart. Each
family's few parameters minimise squared log residuals within bounds (SciPy's trust region). A
parameter that the rows hardly determine stays near its prior, which comes from elsewhere: measured
rows have a spread of 5 %, each prior its own. Every EP size is left out in turn and predicted by
the others and the priors alone.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from calibration.collectives_rows import Row
from moesim.costs.libraries import ExchangeLaw
from moesim.costs.traffic import Floats, Kind
from moesim.files import replace_atomically

ROW_SPREAD = 0.05


@dataclass(frozen=True)
class Parameter:
    """A positive number to fit: its prior, the spread of its logarithm, and bounds."""

    prior: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """Laws that share parameters. `fields`: law and phase -> field -> parameter's name."""

    parameters: Mapping[str, Parameter]
    laws: tuple[ExchangeLaw, ...]
    fields: Mapping[tuple[str, str], Mapping[str, str]]

    def made(self, values: Mapping[str, float]) -> dict[tuple[str, str], ExchangeLaw]:
        """Laws with these parameters."""
        laws = {}
        for law in self.laws:
            key = law.library, law.phase
            numbers = {field: values[name] for field, name in self.fields[key].items()}
            laws[key] = replace(law, **numbers)  # type: ignore[arg-type]
        return laws


def predicted_s(laws: Mapping[tuple[str, str], ExchangeLaw], row: Row) -> float:
    """A row's seconds, with the SMs it was measured with."""
    law = laws[row.law, row.phase]
    return row.predicted_s(replace(law, sms=row.sms) if row.sms else law)


def fit(family: Family, rows: Iterable[Row]) -> dict[str, float]:
    """Parameters of a family that fit the rows best."""
    from scipy.optimize import least_squares

    used = list(rows)
    names = list(family.parameters)
    of = [family.parameters[name] for name in names]
    priors = np.log([each.prior for each in of])
    spreads = np.array([each.spread for each in of])
    measured = np.log([row.seconds for row in used])

    def residuals(logs: Floats) -> Floats:
        laws = family.made(dict(zip(names, np.exp(logs).tolist(), strict=True)))
        predicted = np.log([predicted_s(laws, row) for row in used])
        return np.concatenate([(predicted - measured) / ROW_SPREAD, (logs - priors) / spreads])

    bounds = np.log([each.low for each in of]), np.log([each.high for each in of])
    found = least_squares(residuals, priors, bounds=bounds, x_scale="jac")
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def errors(laws: Mapping[tuple[str, str], ExchangeLaw], rows: Iterable[Row]) -> Floats:
    """(predicted - measured) / measured."""
    return np.array([predicted_s(laws, row) / row.seconds - 1.0 for row in rows])


@dataclass(frozen=True)
class Result:
    """A fitted family: its rows, their errors, and errors of rows whose EP size was left out."""

    values: Mapping[str, float]
    laws: Mapping[tuple[str, str], ExchangeLaw]
    rows: tuple[Row, ...]
    error: Floats
    held_out: Floats


def study(family: Family, rows: Iterable[Row]) -> Result:
    """Fit a family, and predict each EP size from the others and the priors."""
    names = {(law.library, law.phase) for law in family.laws}
    used = tuple(row for row in rows if (row.law, row.phase) in names)
    values = fit(family, used)
    laws = family.made(values)
    held_out = np.zeros(len(used))
    sizes = np.array([row.ep for row in used])
    for ep in np.unique(sizes):
        others = family.made(fit(family, [row for row in used if row.ep != ep]))
        held_out[sizes == ep] = errors(others, [row for row in used if row.ep == ep])
    return Result(values, laws, used, errors(laws, used), held_out)


def described(result: Result, date: str) -> list[ExchangeLaw]:
    """Laws of a family with what they were fitted on and how well."""
    laws = []
    for key, law in result.laws.items():
        mine = [i for i, row in enumerate(result.rows) if (row.law, row.phase) == key]
        sizes = [result.rows[i].ep for i in mine]
        source = sorted({result.rows[i].source for i in mine})
        laws.append(
            replace(
                law,
                ep_low=min(sizes),
                ep_high=max(sizes),
                fitted_on=" ".join(sorted({result.rows[i].gpu for i in mine})),
                rows=len(mine),
                mape_percent=round(100.0 * float(np.abs(result.error[mine]).mean()), 1),
                held_out_percent=round(100.0 * float(np.abs(result.held_out[mine]).mean()), 1),
                trust="A" if law.library != "torch-all-to-all" else "B",
                date=date,
                source="; ".join(source),
            )
        )
    return laws


def layered(laws: Iterable[ExchangeLaw]) -> list[ExchangeLaw]:
    """Low latency that sends once to each node and passes on there (DeepEP pull request 500).

    Dispatch only; nobody published timings as numbers: the parameters are plain low latency's.
    """
    note = "not fitted: deepep-low-latency with copies once per node (deepseek-ai/DeepEP#500)"
    made = []
    for law in laws:
        if law.library == "deepep-low-latency":
            kind: Kind = "copies" if law.phase == "dispatch" else law.traffic
            made.append(
                replace(
                    law,
                    library="deepep-low-latency-layered",
                    traffic=kind,
                    rows=0,
                    mape_percent=0.0,
                    held_out_percent=0.0,
                    ep_low=0,
                    ep_high=0,
                    trust="C",
                    source=note,
                )
            )
    return made


HEAD = """# How long the exchanges of expert-parallel libraries take: written by
#   python -m calibration.collectives_fit comm.csv
# The formula and the columns are those of moesim.costs.libraries.ExchangeLaw. Shares are of what
# the link reaches (fabrics.csv). mape_percent: of the rows fitted; held_out_percent: of the rows of
# each EP size, predicted from the other sizes. trust: A published by the library's or engine's
# makers, B by others, C not fitted. docs/explanation/collectives.md has every residual.
"""


def preset(laws: Iterable[ExchangeLaw]) -> str:
    """The text of presets/collectives.csv."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [each.name for each in fields(ExchangeLaw)]
    table.writerow(names)
    for law in laws:
        table.writerow([_cell(getattr(law, name)) for name in names])
    return HEAD + text.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Fit, and write the preset, the page and its chart."""
    from calibration.collectives_families import FAMILIES
    from calibration.collectives_page import write_page
    from calibration.collectives_rows import read_rows

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("comm", type=Path, help="the table of published timings")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--date", default="2026-11-22")
    given = parser.parse_args()
    rows, left_out = read_rows(given.comm)
    results = [study(family, rows) for family in FAMILIES]
    laws = [law for result in results for law in described(result, given.date)]
    laws += layered(laws)
    with replace_atomically(given.root / "moesim" / "presets" / "collectives.csv") as path:
        path.write_text(preset(laws), encoding="utf-8")
    write_page(given.root / "docs" / "explanation", results, laws, left_out)


if __name__ == "__main__":
    main()
