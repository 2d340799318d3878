"""Result: what a run returns; tables, distributions, and the honest labels that go with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import replace_atomically
from moesim.scenario import Scenario
from moesim.sim.state import COMPLETED, NOBODY
from moesim.workload.arrivals import AllAtOnce, ClosedLoop, Replay

if TYPE_CHECKING:
    import pandas as pd


# Fewer requests than this say nothing about whether a run could have settled (they can be short).
MANY_REQUESTS = 100
# A larger share of the run after its last arrival is worth a note.
LONG_DRAIN = 0.2


@dataclass(frozen=True, eq=False)
class RawRun:
    """What the simulation leaves: request rows (REQUEST), step rows (STEP), token times."""

    requests: NDArray[Any]
    steps: NDArray[Any]
    token_s: NDArray[np.float64]
    rank_tokens_LR: NDArray[np.float64]
    rank_active_LR: NDArray[np.float64]
    routed_ids: int
    counted_steps: int
    ranks_per_replica: int


@dataclass(frozen=True, eq=False)
class Result:
    """One simulated scenario.

    requests: a row per request; steps: a row per engine step; itl_s: every gap between two output
    tokens of a counted request, in order of request; rank_tokens_LR, rank_active_LR: token-expert
    pairs and distinct active experts per step, mean over steps, for each MoE layer and rank of the
    expert-parallel group; summary: the object that ``moesim run --json`` prints; notes: what to
    know before believing the numbers. Columns are described in docs/reference/results.md.
    """

    scenario: Scenario
    raw: RawRun
    memory: Mapping[str, float]
    gpus: int
    usd_per_gpu_hour: float | None
    labels: tuple[str, ...]  # what is known before the run: profile, routing, rumoured models

    @property
    def name(self) -> str:
        return self.scenario.name

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Everything to know before believing the numbers, run length included."""
        return (*self._length_notes(), *self.labels)  # what makes figures void comes first

    def _length_notes(self) -> tuple[str, ...]:
        """Whether an open-loop run was long enough, and could have settled at all."""
        arrivals = self.scenario.workload.arrivals
        table = self.requests
        if isinstance(arrivals, ClosedLoop | AllAtOnce):
            return ()
        notes = []
        arrival_s = np.sort(table["arrival_s"].to_numpy())
        finish_s = np.sort(table["finish_s"].dropna().to_numpy())
        if finish_s.size == 0:
            return ()
        ends = arrival_s[[len(arrival_s) // 2, -1]]
        halfway, last = np.searchsorted(arrival_s, ends) - np.searchsorted(finish_s, ends)
        if len(table) >= MANY_REQUESTS and last > 1.5 * halfway + 10:
            notes.append(
                f"overload: {last} requests were under way at the last arrival, {halfway} halfway "
                "there; a longer run would be slower still"
            )
        drain = (finish_s[-1] - arrival_s[-1]) / (finish_s[-1] - arrival_s[0])
        if drain > LONG_DRAIN:
            notes.append(
                f"short run: {drain:.0%} of it passes after the last arrival, which makes "
                "throughput low and cost high; simulate more requests"
            )
        return tuple(notes)

    @cached_property
    def requests(self) -> pd.DataFrame:
        import pandas as pd

        from moesim.metrics import e2e, tpot, ttft

        raw = self.raw.requests
        completed = raw["status"] == COMPLETED
        rank = raw["rank"].astype(np.int64)
        placed = rank != NOBODY
        table = pd.DataFrame(
            {
                "request": np.arange(raw.size),
                "replica": np.where(placed, rank // self.raw.ranks_per_replica, -1),
                "rank": np.where(placed, rank % self.raw.ranks_per_replica, -1),
                "status": np.where(completed, "completed", "failed"),
                "arrival_s": raw["arrival_s"],
                "scheduled_s": raw["scheduled_s"],
                "first_token_s": raw["first_token_s"],
                "finish_s": raw["finish_s"],
                "prompt_tokens": raw["prompt_tokens"],
                "output_tokens": raw["output_tokens"],
                "cached_tokens": raw["cached_tokens"],
                "preemptions": raw["preemptions"],
                "queue_s": raw["scheduled_s"] - raw["arrival_s"],
                "ttft_s": ttft(raw["arrival_s"], raw["first_token_s"]),
                "tpot_s": tpot(raw["first_token_s"], raw["finish_s"], raw["output_tokens"]),
                "e2e_s": e2e(raw["arrival_s"], raw["finish_s"]),
            }
        )
        table["warmup"] = self._warmup(table)
        return table

    def _warmup(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        from moesim.metrics import warmup_mask

        # A recorded hour and a benchmark with its opening burst are measured whole.
        whole = isinstance(self.scenario.workload.arrivals, Replay | ClosedLoop | AllAtOnce)
        choice = self.scenario.measure.warmup
        if isinstance(choice, int):
            order = table["arrival_s"].argsort(kind="stable").to_numpy()
            mask = np.zeros(len(table), np.bool_)
            mask[order[:choice]] = True
            return mask
        if choice == "none" or whole:
            return np.zeros(len(table), np.bool_)
        return warmup_mask(table["arrival_s"], table["ttft_s"])

    @cached_property
    def steps(self) -> pd.DataFrame:
        import pandas as pd

        raw = self.raw.steps
        assert raw.dtype.names is not None
        table = pd.DataFrame({name: raw[name] for name in raw.dtype.names})
        table["dummy"] = table["dummy"].astype(bool)
        return table

    @cached_property
    def itl_s(self) -> NDArray[np.float64]:
        """Gaps between the output tokens of counted requests, stalls included."""
        from moesim.metrics import counted_rows, itl

        if self.raw.token_s.size == 0:
            return np.zeros(0)
        counted = counted_rows(self.requests)
        rows = self.raw.requests
        if not counted.all():
            keep = np.repeat(counted, rows["output_tokens"])
            times = self.raw.token_s[keep]
            output = rows["output_tokens"][counted].astype(np.int64)
            return itl(times, np.cumsum(output) - output)
        return itl(self.raw.token_s, rows["token_start"])

    @property
    def rank_tokens_LR(self) -> NDArray[np.float64]:
        return self.raw.rank_tokens_LR / max(1, self.raw.counted_steps)

    @property
    def rank_active_LR(self) -> NDArray[np.float64]:
        return self.raw.rank_active_LR / max(1, self.raw.counted_steps)

    @cached_property
    def summary(self) -> dict[str, Any]:
        from moesim.metrics import summarise

        summary = summarise(
            self.requests,
            self.steps,
            self.itl_s,
            gpus=self.gpus,
            usd_per_gpu_hour=self.usd_per_gpu_hour,
            memory=self.memory,
            seed=self.scenario.seed,
            replicas=self.scenario.deployment.replicas,
            stages=self.scenario.deployment.parallelism.pipeline,
        )
        summary["slo_attainment"] = self._slo_attainment()
        summary["notes"] = list(self.notes)
        return {"name": self.name, **summary}

    def _slo_attainment(self) -> float | None:
        """Share of counted and failed requests that met every limit; None without limits."""
        limits = {key: value for key, value in self.scenario.slo.model_dump().items() if value}
        if not limits:
            return None
        table = self.requests[~self.requests["warmup"]]
        met = (table["status"] == "completed").to_numpy()
        for column, limit in limits.items():
            # A request of one token has no TPOT and cannot miss it.
            met = met & (table[column].fillna(0.0) <= limit).to_numpy()
        return float(met.mean()) if met.size else None

    def __repr__(self) -> str:
        requests = self.summary["requests"]
        done = f"{requests['completed']} of {requests['submitted']} requests completed"
        return f"<moesim.Result {self.name!r}: {done} on {self.gpus} GPUs>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        from moesim.report import tables

        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        shown = f"{tables.latency_table(self)}{tables.other_table(self)}"
        return f"<h4>{escape(self.name)}</h4>{shown}<ul>{notes}</ul>"

    def save(self, folder: str | Path) -> None:
        """Write requests.parquet, steps.parquet, summary.json and scenario.yaml into `folder`."""
        import yaml

        target = Path(folder)
        for name, table in (("requests", self.requests), ("steps", self.steps)):
            with replace_atomically(target / f"{name}.parquet") as path:
                table.to_parquet(path, index=False)
        with replace_atomically(target / "itl_s.npy") as path, path.open("wb") as file:
            np.save(file, self.itl_s, allow_pickle=False)
        with replace_atomically(target / "scenario.yaml") as path:
            text = yaml.safe_dump(self.scenario.model_dump(mode="json"), sort_keys=False)
            path.write_text(text, encoding="utf-8")
        with replace_atomically(target / "summary.json") as path:
            path.write_text(json.dumps(self.summary, indent=2, allow_nan=False), encoding="utf-8")

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML report."""
        from moesim.report.page import write_report

        write_report([self], path)

    def charts(self) -> dict[str, Any]:
        """Altair charts by name; each shows itself in a notebook."""
        from moesim.report.charts import all_charts

        return all_charts([self])
