"""All figures of a validation, as the JSON object that `moesim validate --json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibration.ledger import log_slope
from calibration.prediction_store import Outcome
from calibration.runs.labels import RULES, LabelledRun
from calibration.runs.rows import SiliconRun
from calibration.validation.budget import budget
from calibration.validation.pools import POOLS, SPLIT_TEXT
from calibration.validation.rows import METRICS, PredictedRows, rounded
from calibration.validation.targets import BIAS_RANGE, MEDIAN_S_PER_ROW, TARGETS, Target
from moesim import __version__

UNITS = {
    "mape": "percent",
    "median_ape": "percent",
    "bias": "median of predicted / measured",
    "coverage": "percent of the rows that have a prediction",
}
KEYS: dict[str, Callable[[SiliconRun], str]] = {
    "model": lambda run: run.model,
    "gpu": lambda run: run.gpu,
    "engine": lambda run: run.engine,
}
Values = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Validation:
    """What was measured and predicted.

    `outcomes`: by split ("blind", "leave_one_gpu_out", "in_sample"), then by run id. `peer`: TTFT
    and TPOT of the peer by run id, if its table was given. `sampled`: the ids of a sample, None for
    all. `request_runs`: one mapping of plain figures per run that has per-request times.
    """

    labelled: Sequence[LabelledRun]
    outcomes: Mapping[str, Mapping[str, Outcome]]
    peer: Values | None = None
    sampled: frozenset[str] | None = None
    machine: str = ""
    request_runs: Sequence[Mapping[str, Any]] = field(default=())

    def rows(self, pool: str, split: str = "blind") -> PredictedRows:
        """A pool with the predictions of a split."""
        found = self.outcomes[split]
        values = {key: each.values for key, each in found.items() if each.values is not None}
        return PredictedRows.of(self._runs(pool), values)

    def peer_rows(self, pool: str) -> PredictedRows:
        """A pool with the peer's predictions. Those of repaired labels were made of the wrong
        configuration: leave them out of any comparison."""
        return PredictedRows.of(self._runs(pool), self.peer or {})

    def _runs(self, pool: str) -> tuple[SiliconRun, ...]:
        runs = POOLS[pool].of(self.labelled)
        if self.sampled is None:
            return runs
        return tuple(run for run in runs if run.id in self.sampled)


def figures(of: Validation) -> dict[str, Any]:
    """The object of `validate --json`: percentages, except for bias; null where nothing is known.

    A sample says nothing about flagged rows, which it leaves out: `all_rows` is null there.
    """
    headline, table = of.rows("moe"), of.rows("inferencex")
    return {
        "headline": {"pool": POOLS["moe"].rows, "split": "blind", **headline.to_json()},
        "slices": _slices(headline),
        "units": UNITS,
        "split": SPLIT_TEXT,
        "version": __version__,
        "sampled": None if of.sampled is None else len(of.sampled),
        "targets": targets(of),
        "by_engine": _by_engine(table),
        "bias_by_band": bias_by_band(table),
        "bias_target": bias_target(table),
        "log_slope": _log_slopes(table),
        "anchored": _by_engine(table.anchored()),
        "budget": {name: budget(each) for name, each in table.groups(KEYS["engine"]).items()},
        "leave_one_gpu_out": _other_split(of, "leave_one_gpu_out"),
        "in_sample": _other_split(of, "in_sample"),
        "dense": {
            "inferencex": of.rows("dense_inferencex").to_json(),
            "all": of.rows("dense").to_json(),
        },
        "inferencex_moe": of.rows("inferencex_moe").to_json(),
        "data_parallel": _by_engine(of.rows("data_parallel")),
        "all_rows": _all_rows(of),
        "peer": peer(of),
        "exclusions": exclusions(of),
        "coverage": reasons(of),
        "request_runs": [dict(each) for each in of.request_runs],
        "speed": speed(of),
    }


def _slices(rows: PredictedRows) -> dict[str, Any]:
    by = {
        name: {label: each.to_json() for label, each in rows.groups(key).items()}
        for name, key in KEYS.items()
    }
    return {**by, "concurrency": {label: each.to_json() for label, each in rows.bands().items()}}


def _by_engine(rows: PredictedRows) -> dict[str, Any]:
    engines = {name: each.to_json() for name, each in rows.groups(KEYS["engine"]).items()}
    return {"all": rows.to_json(), **engines}


def bias_by_band(rows: PredictedRows) -> dict[str, Any]:
    """Rows and bias of both metrics, per engine ("all" too) and concurrency band."""
    found = {}
    for engine, part in {"all": rows, **rows.groups(KEYS["engine"])}.items():
        found[engine] = {
            label: {
                "rows": len(each.runs),
                **{metric: rounded(each.score(metric).bias, 4) for metric in METRICS},
            }
            for label, each in part.bands().items()
        }
    return found


def bias_target(rows: PredictedRows) -> dict[str, Any]:
    """Which engines and bands keep the TTFT bias within what was asked."""
    low, high = BIAS_RANGE
    kept: dict[bool, list[str]] = {True: [], False: []}
    for engine, by_band in bias_by_band(rows).items():
        for label, found in by_band.items():
            within = found["ttft"] is not None and low <= found["ttft"] <= high
            kept[within].append(f"{engine} {label}")
    return {"ttft_between": list(BIAS_RANGE), "kept": kept[True], "broken": kept[False]}


def _log_slopes(rows: PredictedRows) -> dict[str, Any]:
    """Slope of log(predicted / measured) over log(concurrency), per engine and metric."""
    found = {}
    for engine, part in rows.groups(KEYS["engine"]).items():
        found[engine] = {
            metric: rounded(
                log_slope(
                    part.concurrency_N,
                    part.predicted_N2[:, column],
                    part.measured_N2[:, column],
                ),
                4,
            )
            for metric, column in METRICS.items()
        }
    return found


def _other_split(of: Validation, split: str) -> dict[str, Any] | None:
    if split not in of.outcomes:
        return None
    return {
        "headline": of.rows("moe", split).to_json(),
        "by_engine": _by_engine(of.rows("inferencex", split)),
        "dense": of.rows("dense", split).to_json(),
    }


def _all_rows(of: Validation) -> dict[str, Any] | None:
    if of.sampled is not None:
        return None
    return {
        "moe": of.rows("all_moe").to_json(),
        "inferencex": _by_engine(of.rows("all_inferencex")),
        "every": of.rows("all").to_json(),
    }


def targets(of: Validation) -> list[dict[str, Any]]:
    """Each target with what moesim reaches, also with all rows, and whether the bound is kept."""
    blind, dense = of.rows("inferencex"), of.rows("dense")
    # The same table for all rows: flagged ones and data parallelism included.
    wide = None if of.sampled is not None else (of.rows("all_inferencex"), _all_dense(of))
    found = []
    for target in TARGETS:
        rows = target.rows(blind, dense)
        all_rows = None if wide is None else target.rows(*wide)
        found.append(
            {
                "name": target.name,
                "rows": len(rows.runs),
                "metric": target.metric,
                "moesim": _pair(rows, target),
                "all_rows": None if all_rows is None else _pair(all_rows, target),
                "at_most": {"mape": target.mape, "median_ape": target.median_ape},
                "aic_published": target.aic,
                "prototype_published": target.prototype,
                "met": target.met(rows),
            }
        )
    return found


def _all_dense(of: Validation) -> PredictedRows:
    return of.rows("all").where(lambda run: not run.is_moe)


def _pair(rows: PredictedRows, target: Target) -> dict[str, float | None]:
    found = rows.score(target.metric)
    return {
        "mape": rounded(100 * found.mape, 2),
        "median_ape": rounded(100 * found.median_ape, 2),
        "bias": rounded(found.bias, 4),
    }


def peer(of: Validation) -> dict[str, Any] | None:
    """The peer and moesim on the same rows: those that both predict and whose labels needed no
    repair. Per engine: raw, and with one median factor per engine x GPU x model; anchored."""
    if of.peer is None:
        return None
    found: dict[str, Any] = {}
    kinds: dict[str, Callable[[SiliconRun], bool]] = {
        "moe": lambda run: run.is_moe,
        "dense": lambda run: not run.is_moe,
        "all": lambda run: True,
    }
    theirs, own = same_rows(of)
    for name, keep in kinds.items():
        raw, ours = theirs.where(keep), own.where(keep)
        found[name] = {
            "aic": _by_engine(raw),
            "aic_median_factor": _by_engine(raw.with_median_factors()),
            "aic_anchored": _by_engine(raw.anchored()),
            "moesim": _by_engine(ours),
            "moesim_median_factor": _by_engine(ours.with_median_factors()),
            "moesim_anchored": _by_engine(ours.anchored()),
        }
    return found


def same_rows(of: Validation) -> tuple[PredictedRows, PredictedRows]:
    """(peer, moesim) on the InferenceX runs that both predict and that needed no repair."""
    theirs, ours = of.peer_rows("unrepaired"), of.rows("unrepaired")
    return theirs.predicted_by(ours), ours.predicted_by(theirs)


def exclusions(of: Validation) -> list[dict[str, Any]]:
    """The rules that keep runs out of headline figures, and how many distinct runs each flags."""
    distinct = [each for each in of.labelled if not each.copy_of]
    return [
        {
            "rule": rule.name,
            "rows": sum(rule.name in each.flags for each in distinct),
            "evidence": rule.evidence,
            "why": rule.why,
        }
        for rule in RULES
        if rule.excluded
    ]


def reasons(of: Validation) -> dict[str, Any]:
    """How many runs have no blind prediction, and why, over everything that was tried."""
    tried = of.outcomes["blind"]
    why = Counter(each.why for each in tried.values() if each.values is None)
    notes = Counter(note for each in tried.values() for note in each.notes)
    return {
        "tried": len(tried),
        "unpredicted": sum(why.values()),
        "reasons": [{"reason": text, "rows": count} for text, count in why.most_common()],
        "notes": [{"note": text, "rows": count} for text, count in notes.most_common(20)],
    }


def speed(of: Validation) -> dict[str, Any]:
    """Seconds of one core per prediction, and the machine."""
    took = [each.took_s for each in of.outcomes["blind"].values() if each.values is not None]
    known = bool(took)
    return {
        "rows": len(took),
        "median_s_per_row": rounded(float(np.median(took)), 4) if known else None,
        "p90_s_per_row": rounded(float(np.quantile(took, 0.9)), 4) if known else None,
        "at_most_s_per_row": MEDIAN_S_PER_ROW,
        "machine": of.machine,
    }
