"""What was asked of the predictions, and what others reach on the same runs.

AIC is AIConfigurator 0.12; the prototype is a 150-line discrete-event simulation on its tables.
Both columns are their published errors on these runs (2026-11-21), MAPE / median APE in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calibration.validation.rows import PredictedRows

BIAS_RANGE = (0.92, 1.08)
MEDIAN_S_PER_ROW = 0.5


@dataclass(frozen=True)
class Target:
    """An upper bound on the errors of one group of rows; None where nothing was asked."""

    name: str
    ledger: Literal["blind", "anchored", "dense"]
    metric: Literal["ttft", "tpot"]
    engine: str | None
    aic: str
    prototype: str
    mape: float
    median_ape: float | None

    def rows(self, blind: PredictedRows, dense: PredictedRows) -> PredictedRows:
        """The rows that it is about."""
        if self.ledger == "dense":
            return dense
        engine = self.engine
        chosen = blind if engine is None else blind.where(lambda run: run.engine == engine)
        return chosen.anchored() if self.ledger == "anchored" else chosen

    def met(self, rows: PredictedRows) -> bool:
        """Whether the errors, as printed to 0.01 %, keep the bound. Without any they do not."""
        found = rows.score(self.metric)
        mape, median = round(100 * found.mape, 2), round(100 * found.median_ape, 2)
        return mape <= self.mape and (self.median_ape is None or median <= self.median_ape)


def _targets(
    ledger: Literal["blind", "anchored"], rows: Sequence[tuple[str, str, str, float, float]]
) -> list[Target]:
    found = []
    for name, aic, prototype, mape, median in rows:
        engine = ENGINES.get(name.removeprefix("TTFT "))
        metric: Literal["ttft", "tpot"] = "ttft" if name.startswith("TTFT") else "tpot"
        found.append(
            Target(f"{ledger}: {name}", ledger, metric, engine, aic, prototype, mape, median)
        )
    return found


ENGINES = {"vLLM": "vllm", "SGLang": "sglang", "TensorRT-LLM": "trtllm"}
ENGINE_NAMES = {name: shown for shown, name in ENGINES.items()}
TARGETS = (
    *_targets(
        "blind",
        [
            ("TTFT vLLM", "35.4 / 28.8", "22.3 / 17.8", 17, 12),
            ("TTFT SGLang", "53.9 / 58.6", "32.1 / 27.7", 22, 16),
            ("TTFT TensorRT-LLM", "55.6 / 44.6", "63.6 / 42.2", 30, 20),
            ("TPOT, all engines", "26.1 / 16.9", "25.8 / 17.6", 15, 10),
        ],
    ),
    *_targets(
        "anchored",
        [
            ("TTFT vLLM", "34.4 / 33.1", "14.0 / 7.5", 10, 6),
            ("TTFT SGLang", "32.8 / 30.9", "23.2 / 15.8", 16, 10),
            ("TTFT TensorRT-LLM", "23.2 / 16.4", "19.1 / 10.4", 14, 8),
            ("TPOT, all engines", "7-16 / 4-12", "9-15 / 6-11", 7, 5),
        ],
    ),
    Target("dense: TPOT", "dense", "tpot", None, "20.1 / 12.9", "", 12, None),
    Target("dense: TTFT", "dense", "ttft", None, "47.5 / 45.1", "", 20, None),
)
