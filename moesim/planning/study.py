"""plan(): the cheapest deployment that keeps an SLO under a demand, and what it was chosen from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.errors import InputError
from moesim.figures.metrics import plain
from moesim.figures.traffic import limits
from moesim.file_stamps import file_stamps
from moesim.findings.planning import PlanFindings
from moesim.hardware import load_gpu
from moesim.planning import confirming, telling
from moesim.planning.demand_facts import demand_facts
from moesim.planning.ledger import Ledger, fingerprint
from moesim.planning.options import option_of, options_of
from moesim.planning.outcomes import Outcome, Simulate, runner
from moesim.planning.over_check import check_over
from moesim.planning.pruning import UNTRIED, Pruned, prune
from moesim.planning.search import Best, Search, UsedUpError
from moesim.planning.space import GPU, Space, plan_space
from moesim.scenario import Scenario
from moesim.simulation import as_scenario

if TYPE_CHECKING:
    import pandas as pd

    from moesim.report.figure import Figure

LEAST_REQUESTS = 100
DEFAULT_REQUESTS = 1000
DEFAULT_TRIALS = 60
DEFAULT_SEEDS = 3
MOST_TRIALS = 10_000
INTERRUPTED = "interrupted: what had been found by then; the same command with --study goes on"


@dataclass(frozen=True, eq=False)
class Plan:
    """What was asked (`scenario`, `space`, `percentile`) and found (`findings`).

    `interrupted`: it ended early, by Ctrl-C.
    """

    scenario: Scenario
    space: Space
    percentile: float
    findings: PlanFindings
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """The object that ``moesim plan --json`` prints."""
        found = plain(
            {
                "name": self.scenario.name,
                "slo": {**self.scenario.slo.model_dump(), "percentile": self.percentile},
                "space": {
                    "most_gpus": self.space.most_gpus,
                    "dimensions": {of.path: list(of.values) for of in self.space.dimensions},
                },
                **asdict(self.findings),
                "interrupted": self.interrupted,
                "version": moesim.__version__,
            }
        )
        assert isinstance(found, dict)
        return found

    def table(self) -> pd.DataFrame:
        """A row for each option that was simulated, the cheapest first."""
        from moesim.report.plan_words import options_table

        return options_table(self.findings)

    def charts(self) -> tuple[Figure, ...]:
        """The Pareto charts."""
        from moesim.report.plan_charts import plan_figures

        return plan_figures(self.findings)

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page."""
        from moesim.report.plan_page import write_plan_report

        return write_plan_report(self.findings, self.scenario.name, path)

    def _repr_html_(self) -> str:
        from moesim.report.plan_page import plan_html

        return plan_html(self.findings, self.scenario.name)


def plan(
    scenario: Scenario | Mapping[str, object] | str | Path,
    *,
    gpus: Sequence[str] | None = None,
    max_gpus: int | None = None,
    over: Mapping[str, Sequence[Any]] | None = None,
    prices: Mapping[str, float] | None = None,
    percentile: float = 99.0,
    trials: int = DEFAULT_TRIALS,
    seeds: int = DEFAULT_SEEDS,
    study: str | Path | None = None,
    seed: int | None = None,
    run: Simulate | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Plan:
    """The cheapest deployment on at most `max_gpus` GPUs that keeps the scenario's SLO.

    `percentile` % of the requests must keep each limit. `over`: values by path that replace or add
    to what is varied (moesim.planning.space). `prices`: USD per GPU-hour by GPU. `trials`:
    simulations at most; `seeds`: further seeds for what is recommended. `study`: a file that keeps
    every simulation, from which a later call goes on. `run` takes the place of a simulation.
    `progress` is told (simulations, USD per hour of the best so far or ""). Raises InputError.
    """
    asked = as_scenario(scenario)
    asked = _ready(asked, seed)
    check_over(asked, over or {})
    space = plan_space(asked, gpus, max_gpus, over)
    prices = dict(prices or {})
    _check(asked, space, prices, percentile, trials, seeds)
    question = {
        "scenario": asked.model_dump(mode="json"),
        "space": {of.path: of.labels for of in space.dimensions},
        "most_gpus": space.most_gpus,
        "prices": prices,
        "files": file_stamps(asked, [text for of in space.dimensions for text in of.labels]),
        "percentile": percentile,
        "version": moesim.__version__,
    }
    ledger = Ledger(
        space, fingerprint(question), asked.seed, None if study is None else Path(study)
    )
    facts = demand_facts(asked, percentile)
    pruned = prune(asked, space, facts, prices)
    search = Search(
        pruned.prospects,
        space,
        facts,
        ledger,
        run or runner(),
        percentile,
        asked.workload.requests or DEFAULT_REQUESTS,
        asked.seed,
        trials,
        progress,
        reserve=min(2 * seeds + confirming.RUNNER_UP_RUNS, trials // 3),
    )
    chosen = _Chosen()
    interrupted = False
    try:
        chosen.find(search, seeds)
    except KeyboardInterrupt:
        interrupted = True
    findings = _findings(asked, percentile, pruned, search, chosen, interrupted)
    return Plan(asked, space, percentile, findings, interrupted)


class _Chosen:
    """The recommended and the runner-up, each with its seeds."""

    def __init__(self) -> None:
        self.best: Best | None = None
        self.best_runs: list[Outcome] = []
        self.other: Best | None = None
        self.other_runs: list[Outcome] = []
        self.failed: list[str] = []

    def find(self, search: Search, seeds: int) -> None:
        """Search until what is cheapest also holds with other seeds, then look beside it."""
        while True:
            search.go()
            self.best = search.best
            if self.best is None:
                return
            try:
                self.best_runs = confirming.confirm(search, self.best, seeds)
            except UsedUpError:
                return
            if confirming.holds(self.best_runs):
                break
            self.failed.append(f"{self.best.units} x {self.best.shape.name}")
            search.forget(self.best)
        self.other = confirming.runner_up(search, self.best)
        if self.other is not None:
            try:
                self.other_runs = confirming.confirm(search, self.other, seeds)
            except UsedUpError:
                return


def _ready(scenario: Scenario, seed: int | None) -> Scenario:
    """With a number of requests, without scaling."""
    workload = scenario.workload
    requests = workload.requests or DEFAULT_REQUESTS
    changes: dict[str, Any] = {
        "workload": workload.model_copy(update={"requests": requests, "duration_s": None}),
        "deployment": scenario.deployment.model_copy(update={"autoscaling": None}),
    }
    if seed is not None:
        changes["seed"] = seed
    return scenario.model_copy(update=changes)


def _check(
    scenario: Scenario,
    space: Space,
    prices: Mapping[str, float],
    percentile: float,
    trials: int,
    seeds: int,
) -> None:
    if not 50.0 <= percentile < 100.0:
        raise InputError("--percentile", "must be from 50 to below 100", percentile)
    if not 1 <= trials <= MOST_TRIALS:
        raise InputError("--trials", f"must be from 1 to {MOST_TRIALS}", trials)
    if not 0 <= seeds <= 100:
        raise InputError("--seeds", "must be from 0 to 100", seeds)
    if not any(value for each in limits(scenario).values() for value in each.values()):
        hint = "--set 'slo={ttft_s: 2, tpot_s: 0.05}'"
        raise InputError("plan", "needs slo: a limit of ttft_s, tpot_s or e2e_s", None, hint)
    if (scenario.workload.requests or 0) < LEAST_REQUESTS:
        rule = f"must be at least {LEAST_REQUESTS} to speak of percentiles"
        raise InputError("workload.requests", rule, scenario.workload.requests)
    gpus = [str(name) for of in space.dimensions if of.path == GPU for name in of.values]
    for name, usd in prices.items():
        try:
            load_gpu(name)
        except InputError as error:
            raise InputError("--price", error.rule, name, error.hint) from None
        if not 0.0 <= usd <= 1000.0:
            raise InputError("--price", "must be from 0 to 1000 USD per GPU-hour", usd)
    own = scenario.economics.usd_per_gpu_hour is not None or scenario.economics.owned is not None
    without = [name for name in gpus if name not in prices and name != scenario.cluster.gpu]
    if own and without:
        raise InputError(
            "--price",
            f"must say what {', '.join(without)} cost: economics prices {scenario.cluster.gpu}",
            None,
            f"--price {without[0]}=2.5",
        )


def _findings(
    scenario: Scenario,
    percentile: float,
    pruned: Pruned,
    search: Search,
    chosen: _Chosen,
    interrupted: bool,
) -> PlanFindings:
    best = chosen.best or search.best
    special = [each for each in (best, chosen.other) if each is not None]
    options = options_of(search, special)
    mine, other = option_of(options, best), option_of(options, chosen.other)
    reasons = Counter(pruned.reasons) + search.reasons
    simulations = search.runs
    if mine is not None:
        sentences = telling.recommendation(mine, scenario, percentile)
    else:
        sentences = telling.none_meets(pruned, search, scenario, percentile)
    loses = telling.loses(mine, other) if mine is not None and other is not None else ""
    sentences.append(telling.pruned_text(reasons, pruned.candidates, simulations))
    notes = [INTERRUPTED] if interrupted else []
    notes += [f"{name} kept the SLO with the first seed but not with most" for name in
              chosen.failed]  # fmt: skip
    kept, tried = sum(each.meets for each in chosen.best_runs), len(chosen.best_runs)
    if mine is not None and not tried:
        notes.append("what is recommended was not tried with further seeds")
    elif mine is not None and kept < tried:
        notes.append(f"what is recommended keeps the SLO with {kept} of {tried} seeds")
    if search.reasons[UNTRIED]:
        notes.append("not all candidates were tried: --trials allows more simulations")
    notes.append("more copies are taken to keep whatever fewer keep; copies are rented by the GPU")
    return PlanFindings(
        recommended=mine,
        runner_up=other,
        runner_up_loses=loses,
        options=tuple(options),
        candidates=pruned.candidates,
        pruned=dict(reasons),
        simulations=simulations,
        sentences=tuple(sentences),
        notes=tuple(notes),
    )
