"""sweep(): one scenario with some of its fields changed, many times over, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moesim.compiled import cache_root
from moesim.errors import InputError
from moesim.figures.traffic import limits
from moesim.findings.sweep import SweepFindings, SweepRun, more_is_better
from moesim.scenario import Scenario, find_scenario
from moesim.simulation import as_scenario
from moesim.sweeping import table
from moesim.sweeping.engines import ENGINES
from moesim.sweeping.keys import Task
from moesim.sweeping.outcomes import Outcome
from moesim.sweeping.point_files import check_rows, read_points
from moesim.sweeping.points import Point, combinations, make_points, varied
from moesim.sweeping.running import Ran, run_all
from moesim.sweeping.store import Store
from moesim.sweeping.values import Between, dimension, plain_value

if TYPE_CHECKING:
    import pandas as pd

    from moesim.report.figure import Figure

COST = "cost.usd_per_million_output_tokens"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was asked (`scenario`) and found (`findings`); `folder` keeps the runs.

    `interrupted`: it ended early, by Ctrl-C; the same sweep goes on from the folder.
    """

    scenario: Scenario
    findings: SweepFindings
    folder: Path
    interrupted: bool
    points: tuple[Point, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each run: what was varied, the seed, headline figures by path into the summary
        (`ttft_s.p99`), whether it settled, and why it cannot run where it cannot."""
        return table.table(self.findings)

    @property
    def figures(self) -> pd.DataFrame:
        """The same with every number of the runs' summaries."""
        return table.table(self.findings, everything=True)

    def best(
        self,
        figure: str = COST,
        within: Mapping[str, float] | None = None,
        most: bool | None = None,
    ) -> pd.Series[Any]:
        """The row of `table` with the least of a figure (the most, where more is better or with
        `most`), among runs that settle and whose figures are at most those of `within`.

        InputError where there is none.
        """
        rows = self.table[self.table["error"].eq("") & self.table["settled"]]
        for path, limit in (within or {}).items():
            rows = rows[self._column(path)[rows.index] <= limit]
        values = self._column(figure)[rows.index].dropna()
        if values.empty:
            raise InputError(
                "best", f"finds no run that settles within the limits and has {figure}"
            )
        upwards = more_is_better(figure) if most is None else most
        numbers = values.to_numpy()
        at = int(numbers.argmax() if upwards else numbers.argmin())
        return cast("pd.Series[Any]", self.table.loc[int(values.index[at])])

    def _column(self, path: str) -> pd.Series[float]:
        frame = self.table if path in self.table else self.figures
        if path not in frame:
            raise InputError("best", "must name a figure that the runs have", path)
        return frame[path]

    def run_scenario(self, run: int) -> Scenario:
        """The scenario of a row of `table`, by its number; InputError for a point that has none."""
        task = self.points[run].task
        if task is None:
            raise InputError("run", "has no scenario: it cannot be read", run)
        return Scenario.model_validate_json(task.scenario)

    def charts(self, figures: Sequence[str] = ()) -> tuple[Figure, ...]:
        """The report's charts; of these figures where given."""
        from moesim.report.sweep_charts import sweep_figures

        return sweep_figures(self.findings, figures)

    def report(self, path: str | Path, figures: Sequence[str] = ()) -> Path:
        """Write the self-contained HTML page."""
        from moesim.report.sweep_page import write_sweep_report

        return write_sweep_report(self.findings, path, figures)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the table into a folder, as table.parquet and table.csv; the paths written."""
        return table.save(self.findings, Path(folder))

    def to_json(self) -> dict[str, Any]:
        """The object that ``moesim sweep --json`` prints."""
        return table.to_json(self.findings, self.folder, self.interrupted)

    def __repr__(self) -> str:
        of = self.findings
        return f"<moesim.Sweep {of.name!r}: {len(of.runs)} runs, {len(of.wrong)} without figures>"

    def _repr_html_(self) -> str:
        from moesim.report.sweep_page import sweep_html

        return sweep_html(self.findings)


def sweep(
    scenario: Scenario | Mapping[str, object] | str | Path,
    over: Mapping[str, str | Between | Sequence[Any]] | None = None,
    *,
    points: str | Path | Sequence[Mapping[str, Any]] | None = None,
    random: int | None = None,
    seeds: int = 1,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Run a scenario with some of its fields changed, in every combination or in some.

    `over`: by path into the scenario, its values, or text as the command line has it ("1,2,4",
    "2:16:2", "1:64:x2"; to be drawn "1..64", "1..64:log", or a `Between`). `random`: so many points
    drawn from these instead of all. `points`: a list of points, or a .csv or .yaml file of it, each
    with every combination. `seeds`: runs of a point, from the scenario's seed on. `workers`: all
    cores unless given. `engine`: local, or ray or dask at `address`. `out`: the folder that keeps
    the runs; by default one in the user's cache. A run that is there is read, not made again.
    `folder`: what paths among the values are relative to, the scenario's own unless given.
    `progress` is called with (runs done, runs in all).

    Raises InputError before anything runs for a field that no scenario has; a point that cannot run
    is a row with its error.
    """
    asked = as_scenario(scenario)
    where = _folder_of(scenario) if folder is None else Path(folder)
    made = _points(asked, over or {}, points, random, seeds, where)
    _check_engine(engine)
    store = Store(cache_root() / "sweeps" if out is None else Path(out))
    tasks = [point.task for point in made if point.task is not None]
    ran = run_all(tasks, store, engine, address, workers, progress or (lambda done, total: None))
    findings = _findings(asked, made, ran)
    return Sweep(asked, findings, store.folder, ran.interrupted, tuple(made))


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise InputError("--engine", f"must be {', '.join(ENGINES[:-1])} or {ENGINES[-1]}", engine)


def _folder_of(scenario: object) -> Path:
    """What paths among the values are relative to: the scenario's file, where it has one."""
    if isinstance(scenario, str | Path):
        return find_scenario(scenario).resolve().parent
    return Path.cwd()


def _points(
    scenario: Scenario,
    over: Mapping[str, Any],
    points: str | Path | Sequence[Mapping[str, Any]] | None,
    random: int | None,
    seeds: int,
    folder: Path,
) -> list[Point]:
    dimensions = [dimension(path, given) for path, given in over.items()]
    listed: list[dict[str, Any]] = []
    if isinstance(points, str | Path):
        listed = read_points(points)
    elif points is not None:
        plain = [{k: plain_value(v) for k, v in row.items()} for row in points]
        listed = check_rows(plain)
    if not dimensions and not listed and seeds == 1:
        raise InputError("--over", "is required: a field and its values (or --list, or --seeds)")
    combined = combinations(dimensions, listed, random, scenario.seed)
    return make_points(scenario, combined, seeds, folder)


def _findings(scenario: Scenario, points: Sequence[Point], ran: Ran) -> SweepFindings:
    runs = [_run(point, ran.outcomes) for point in points]
    kept = [run for run in runs if run is not None]
    fields = varied([dict(point.choices) for point in points])
    slo = {name: value for name, value in limits(scenario).get("", {}).items() if value is not None}
    notes = [] if not ran.interrupted else [f"interrupted: {len(runs) - len(kept)} runs were left"]
    return SweepFindings(
        name=scenario.name,
        question=scenario.question,
        fields=fields,
        runs=tuple(kept),
        slo=slo,
        simulated=ran.simulated,
        read=ran.read,
        left=len(runs) - len(kept),
        notes=tuple(notes),
    )


def _run(point: Point, outcomes: Mapping[str, Outcome]) -> SweepRun | None:
    """None for one that an interruption left out."""
    task: Task | None = point.task
    if task is None:
        return SweepRun(point.choices, point.seed, {}, error=str(point.error))
    found = outcomes.get(task.key)
    if found is None:
        return None
    return SweepRun(
        point.choices,
        point.seed,
        found.figures,
        found.settled,
        found.why_not,
        found.error or found.failed,
        task.key,
        bool(found.failed),
    )
