"""Result: what a run returns; tables, distributions, and the honest labels that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.profile import PowerProfile
from moesim.figures.raw_run import RawRun
from moesim.scenario import Scenario
from moesim.workload.arrivals import AllAtOnce, ClosedLoop, Replay

if TYPE_CHECKING:
    import pandas as pd

    from moesim.figures.columns import Columns
    from moesim.figures.sketch import Sketch
    from moesim.findings.estimates import Uncertainty
    from moesim.uncertainty.observations import Observed
    from moesim.uncertainty.steady_state import SteadyState


@dataclass(frozen=True, eq=False)
class Result:
    """One simulated scenario.

    requests: a row per request; steps: a row per engine step; sessions: a row per session or chain;
    step_totals: as `steps`; in a streaming run a row per stretch of steps.
    faults: a row per fault and replica that it met; rebalances: a row each time a replica's load
    was looked at; all empty without. itl_s: every gap between two output tokens of a counted
    request, in order of request (none in a streaming run, which has `itl`, their sketch);
    rank_tokens_LR, rank_active_LR: token-expert pairs and distinct active experts per step, mean
    over steps, for each MoE layer and rank of the expert-parallel group; summary: the object that
    ``moesim run --json`` prints; notes: what to know before believing the numbers. Columns are
    described in docs/reference/results.md.
    """

    scenario: Scenario
    raw: RawRun
    memory: Mapping[str, float]
    gpus: int
    usd_per_gpu_hour: float | None
    labels: tuple[str, ...]  # what is known before the run: profile, routing, rumoured models
    gpu_power_w: float = 0.0
    power: PowerProfile = field(default_factory=PowerProfile)

    @property
    def name(self) -> str:
        return self.scenario.name

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Everything to know before believing the numbers, run length included."""
        return (*self.steady_state.notes(), *self.labels)  # what makes figures void comes first

    @cached_property
    def steady_state(self) -> SteadyState:
        """Whether the run settles, and is long enough to speak of the long run."""
        from moesim.uncertainty.steady_state import steady_state

        return steady_state(self.request_columns, self.scenario.workload.arrivals)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """How sure the headline figures are, from within this run (findings.estimates)."""
        from moesim.uncertainty.within_run import within_run

        return within_run(self.observed, self.steady_state, self.summary, self.scenario.seed)

    @property
    def observed(self) -> Observed:
        """What intervals are computed from; not kept."""
        from moesim.figures.traffic import limits, met_own_limits
        from moesim.uncertainty.observations import observe

        of_class = limits(self.scenario)
        limited = any(value for each in of_class.values() for value in each.values())
        met_N = met_own_limits(self.request_columns, of_class) if limited else None
        gaps = self._gaps if self.raw.gaps is None else self.raw.gaps
        given = self.request_columns, self.total_columns, gaps, met_N
        return observe(*given, self.gpus, self.usd_per_gpu_hour)

    @cached_property
    def requests(self) -> pd.DataFrame:
        return self.request_columns.frame()

    @cached_property
    def request_columns(self) -> Columns:
        """`requests` for figures, which load no pandas."""
        from moesim.figures.tables import requests_table

        table = requests_table(self.raw)
        warm_N = self._warmup(table)
        gaps = self.raw.gaps
        return table.with_column("warmup", warm_N if gaps is None else gaps.whole_blocks(warm_N))

    def _warmup(self, table: Columns) -> NDArray[np.bool_]:
        from moesim.figures.metrics import warmup_mask

        # A recorded hour and a benchmark with its opening burst are measured whole.
        whole = isinstance(self.scenario.workload.arrivals, Replay | ClosedLoop | AllAtOnce)
        choice = self.scenario.measure.warmup
        mask = np.zeros(len(table), np.bool_)
        if isinstance(choice, int):
            mask[np.argsort(table["arrival_s"], kind="stable")[:choice]] = True
            return mask
        if choice == "none" or whole:
            return mask
        return warmup_mask(table["arrival_s"], table["ttft_s"])

    @cached_property
    def sessions(self) -> pd.DataFrame:
        from moesim.figures.traffic import sessions_table

        return sessions_table(self.requests)

    @cached_property
    def faults(self) -> pd.DataFrame:
        from moesim.figures.availability import faults_table

        return faults_table(self.raw.faults)

    @cached_property
    def rebalances(self) -> pd.DataFrame:
        from moesim.figures.rebalances import rebalances_table

        return rebalances_table(self.raw.rebalances)

    @cached_property
    def steps(self) -> pd.DataFrame:
        return self.step_columns.frame()

    @cached_property
    def step_columns(self) -> Columns:
        """`steps` for figures."""
        from moesim.figures.tables import steps_table

        return steps_table(self.raw)

    @cached_property
    def step_totals(self) -> pd.DataFrame:
        """All steps in sums: a row per step, in a streaming run per stretch of steps and kind."""
        return self.steps if self.raw.folded is None else self.total_columns.frame()

    @cached_property
    def total_columns(self) -> Columns:
        """`step_totals` for figures."""
        from moesim.figures.tables import totals_table

        return self.step_columns if self.raw.folded is None else totals_table(self.raw)

    @cached_property
    def background(self) -> pd.DataFrame:
        """The scenario's background transfers, a row each."""
        from moesim.figures.tables import background_table

        return background_table(self.raw, self.scenario.cluster.background)

    @cached_property
    def itl_s(self) -> NDArray[np.float64]:
        """Gaps between the output tokens of counted requests, stalls included.

        Tokens of one step come in one message: with speculative decoding gaps are between messages,
        as benchmark clients count them.
        """
        return self._gaps[0]

    @cached_property
    def itl(self) -> NDArray[np.float64] | Sketch:
        """`itl_s`, or in a streaming run their sketch."""
        if self.raw.gaps is None:
            return self.itl_s
        return self.raw.gaps.counted(self.request_columns["warmup"])

    @property
    def balance(self) -> tuple[Sketch, Sketch] | None:
        """Imbalance of counted steps without prompts and with, in a streaming run."""
        from moesim.figures.balance import kinds
        from moesim.figures.metrics import measured_window

        if self.raw.folded is None:
            return None
        return kinds(self.raw.folded, measured_window(self.request_columns))

    @cached_property
    def _gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(gaps between counted requests' tokens, rows of their requests)."""
        from moesim.figures.metrics import counted_rows
        from moesim.figures.tables import token_gaps

        return token_gaps(self.raw, counted_rows(self.request_columns), self._least_gap_s())

    def _least_gap_s(self) -> float:
        """Gaps that are no longer are none: those between tokens of one message."""
        drafts = [of.deployment.speculation.drafts for _, of in self.scenario.pools()]
        return 0.0 if any(drafts) else -1.0

    def _rebalancing(self) -> dict[str, Any]:
        """What the summary says of experts placed anew."""
        from moesim.figures.metrics import counted_rows
        from moesim.figures.rebalances import gaps_during, rebalancing_summary

        raw, table = self.raw, self.rebalances
        counted_N, least_s = counted_rows(self.request_columns), self._least_gap_s()
        of = raw.token_s, raw.requests, raw.ranks_per_replica
        gaps = gaps_during(table, *of, counted_N, least_s)
        folded = self.raw.folded  # gains are told from single steps, one behind the other
        steps = self.steps if folded is None or folded.spacing == 1 else self.steps.iloc[:0]
        began_s = self.request_columns["first_token_s"]
        until_s = float(np.nanmax(began_s)) if np.isfinite(began_s).any() else 0.0
        return rebalancing_summary(table, steps, gaps, until_s)

    @property
    def rank_tokens_LR(self) -> NDArray[np.float64]:
        return self.raw.rank_tokens_LR / max(1, self.raw.counted_steps)

    @property
    def rank_active_LR(self) -> NDArray[np.float64]:
        return self.raw.rank_active_LR / max(1, self.raw.counted_steps)

    @cached_property
    def summary(self) -> dict[str, Any]:
        from moesim.figures.metrics import plain, summarise
        from moesim.figures.traffic import limits, slo_attainment

        summary = summarise(
            self.request_columns,
            self.total_columns,
            self.itl,
            gpus=self.gpus,
            usd_per_gpu_hour=self.usd_per_gpu_hour,
            memory=self.memory,
            seed=self.scenario.seed,
            replicas=self.scenario.deployment.replicas,
            stages=self.scenario.deployment.parallelism.pipeline,
            balance=self._balance(),
        )
        summary["statistics"] = self._statistics()
        summary["slo_attainment"] = slo_attainment(self.request_columns, limits(self.scenario))
        summary["energy"] = self._energy()
        if self.raw.pools:
            from moesim.figures.pools import pools_summary, pools_utilisation

            given = self.total_columns, summary["duration_s"]
            summary["utilisation"] = pools_utilisation(self.raw.pools, *given)
            summary["pools"] = plain(pools_summary(self.raw.pools, self.request_columns, *given))
        summary |= self._traffic()
        summary["notes"] = list(self.notes)
        return {"name": self.name, **summary}

    def _balance(self) -> tuple[float | None, float | None] | None:
        from moesim.figures.balance import mean_and_p99
        from moesim.figures.metrics import measured_window

        if self.raw.folded is None:
            return None
        return mean_and_p99(
            self.raw.folded, self.total_columns, measured_window(self.request_columns)
        )

    def _statistics(self) -> dict[str, Any]:
        """How figures were made: from all values, or from what was counted."""
        from moesim.sim.bins import RELATIVE_ERROR

        gaps, folded = self.raw.gaps, self.raw.folded
        return {
            "kind": "exact" if folded is None else "streaming",
            "quantile_error": 0.0 if folded is None else RELATIVE_ERROR,
            "steps": int(self.raw.steps.size if folded is None else folded.totals["steps"].sum()),
            "step_spacing": 1 if folded is None else folded.spacing,
            "gaps": int(self.itl.size),
            "gaps_left_out": 0 if gaps is None else gaps.left_out,
        }

    def _energy(self) -> dict[str, float | None]:
        from moesim.figures.columns import equal
        from moesim.figures.energy import energy_summary

        deployment, pools = self.scenario.deployment, self.raw.pools
        shapes = [(self.gpus, deployment.replicas, deployment.parallelism.pipeline)]
        shapes = [(pool.gpus, pool.replicas, pool.stages) for pool in pools] or shapes
        totals = self.total_columns
        steps = [totals[equal(totals, "pool", pool.name)] for pool in pools] or [totals]
        return energy_summary(
            self.request_columns, steps, shapes=shapes, power_w=self.gpu_power_w, power=self.power
        )

    def _traffic(self) -> dict[str, Any]:
        """What the summary says of sessions, classes, tenants and lower memories, if there are."""
        from moesim.figures import traffic
        from moesim.figures.metrics import plain

        found: dict[str, Any] = {}
        if self.raw.threads is not None:
            found["sessions"] = traffic.sessions_summary(self.sessions)
        groups = self.raw.groups
        if groups is not None and groups.classes:
            limits = traffic.limits(self.scenario)
            found["classes"] = traffic.classes_summary(self.request_columns, groups.classes, limits)
        if groups is not None and groups.tenants:
            found["tenants"] = traffic.tenants_summary(
                self.request_columns, groups.tenants, traffic.service_weights(self.scenario)
            )
        if self.raw.tiers is not None:
            found["kv_tiers"] = self.raw.tiers
        found |= self._outages()
        if self.raw.rebalances is not None:
            found["rebalancing"] = self._rebalancing()
        return {key: plain(value) for key, value in found.items()}

    def _outages(self) -> dict[str, Any]:
        """What the summary says of faults and of replicas that come and go, if there are."""
        from moesim.figures.availability import faults_summary, scaling_summary
        from moesim.figures.traffic import limits, met_own_limits

        found: dict[str, Any] = {}
        replicas = self.scenario.deployment.replicas
        if self.raw.faults is not None and self.raw.outages is not None:
            within = met_own_limits(self.request_columns, limits(self.scenario))
            found["faults"] = faults_summary(
                self.request_columns, self.raw.faults, self.raw.outages, replicas, within
            )
        if self.raw.scaling is not None:
            found["autoscaling"] = scaling_summary(
                self.raw.scaling, self.request_columns, self.gpus // replicas, self.usd_per_gpu_hour
            )
        return found

    def __repr__(self) -> str:
        requests = self.summary["requests"]
        done = f"{requests['completed']} of {requests['submitted']} requests completed"
        return f"<moesim.Result {self.name!r}: {done} on {self.gpus} GPUs>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from moesim.findings.case import Case
        from moesim.report.notebook import run_html

        return run_html(self, Case(uncertainty=self.uncertainty))

    def save(self, folder: str | Path, told: Mapping[str, object] | None = None) -> None:
        """Write the tables (parquet), summary.json and scenario.yaml into `folder`.

        `told`: what summary.json holds besides the summary, of studies of the run.
        """
        from moesim.figures.saving import save_run

        tables = {"requests": self.requests, "steps": self.steps}
        if self.raw.threads is not None:
            tables["sessions"] = self.sessions
        if self.raw.faults is not None:
            tables["faults"] = self.faults
        if self.raw.rebalances is not None:
            tables["rebalances"] = self.rebalances
        if len(self.background):
            tables["background"] = self.background
        if self.raw.folded is not None:
            tables["step_totals"] = self.step_totals
        scenario = self.scenario.model_dump(mode="json")
        save_run(Path(folder), tables, self.itl, scenario, {**self.summary, **(told or {})})

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML report."""
        from moesim.findings.case import Case
        from moesim.report.page import write_report

        write_report([self], path, [Case(uncertainty=self.uncertainty)])

    def charts(self) -> dict[str, Any]:
        """Altair charts by name; each shows itself in a notebook."""
        from moesim.report.charts import all_charts

        return all_charts([self])
