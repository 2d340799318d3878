"""The measured end-to-end runs of aiconfigurator-core: one mean TTFT and TPOT each.

`systems/silicon_sample.csv` of the PyPI package aiconfigurator-core 0.12.0 (Apache-2.0) holds
5,221 runs: dumps of SemiAnalysis InferenceX and NVIDIA's own gap-analysis files. Nothing is
repaired here; `labels.py` does that.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from datetime import date
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Literal

from moesim.errors import InputError
from moesim.files import read_text

Source = Literal[
    "inferencex-2026-03-25",
    "inferencex-2026-04-06",
    "inferencex-2026-04-27",
    "nvidia-inferencex",  # gap-analysis files that repeat InferenceX's runs (Kimi-K2.5, Qwen3.5)
    "nvidia",  # gap-analysis files with runs of NVIDIA's own
]
INFERENCEX: tuple[Source, ...] = (
    "inferencex-2026-03-25",
    "inferencex-2026-04-06",
    "inferencex-2026-04-27",
    "nvidia-inferencex",
)
MAX_FILE_BYTES = 50e6
DENSE_MODELS = ("llama-3.1", "qwen3-32b")


@dataclass(frozen=True)
class Parallelism:
    """How a run used its GPUs; the MoE side counts the same GPUs as the attention side."""

    tp: int
    attention_dp: int
    moe_tp: int
    moe_ep: int
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        return self.tp * self.attention_dp * self.pipeline


@dataclass(frozen=True)
class SiliconRun:
    """One measured run. `concurrency` counts requests in flight over the whole deployment."""

    row: int  # from 0, in file order
    id: str
    source: Source
    aggregated: bool
    engine: str
    version: str  # "" where unknown
    image: str
    model: str
    gpu: str
    precision: str
    gemm_format: str
    moe_format: str
    parallel: Parallelism
    isl: int
    osl: int
    concurrency: int | None
    measured: date | None
    workflow_run: str
    ttft_s: float
    tpot_s: float

    @property
    def is_moe(self) -> bool:
        return not any(name in self.model.lower() for name in DENSE_MODELS)

    @property
    def from_inferencex(self) -> bool:
        return self.source in INFERENCEX

    @property
    def sweep(self) -> tuple[object, ...]:
        """What the runs of one sweep over concurrency share; splits never cut through one."""
        return (
            *(self.engine, self.version, self.model, self.gpu, self.precision),
            *(self.moe_format, self.parallel, self.isl, self.osl, self.measured, self.source),
        )


def systems_folder(given: Path | None = None) -> Path:
    """The package's `systems` folder: the given one, or that of the installed package."""
    if given is not None:
        if not (given / "silicon_sample.csv").is_file():
            raise InputError("--systems", "must be a folder with silicon_sample.csv", str(given))
        return given
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "aiconfigurator-core",
            "is not installed",
            hint="pip install aiconfigurator-core==0.12.0, or give its folder with --systems",
        )
    return Path(found.submodule_search_locations[0]) / "systems"


def read_runs(systems: Path | None = None) -> tuple[SiliconRun, ...]:
    """The aggregated runs, in file order. Raises InputError naming the line."""
    return tuple(run for run in _read(systems) if run.aggregated)


def read_disaggregated(systems: Path | None = None) -> tuple[SiliconRun, ...]:
    """Runs with separate prefill and decode workers; their parallelism is the decode side's."""
    return tuple(run for run in _read(systems) if not run.aggregated)


def _read(systems: Path | None) -> list[SiliconRun]:
    path = systems_folder(systems) / "silicon_sample.csv"
    reader = csv.DictReader(io.StringIO(read_text(path, MAX_FILE_BYTES)))
    runs = []
    for index, row in enumerate(reader):
        try:
            runs.append(_run(index, row))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name} line {index + 2}", f"cannot be read: {error}") from None
    return runs


def _run(index: int, row: dict[str, str]) -> SiliconRun:
    about = row["silicon_data_source"]
    aggregated = row["mode"] == "agg"
    prefix = "" if aggregated else "decode_"
    parallel = _parallelism(row, prefix)
    concurrency = _found(r"silicon_concurrency=(\d+)", about)
    batch = _count(row[f"{prefix}batch_size"])
    in_flight = int(concurrency) if concurrency else batch * parallel.attention_dp or None
    day = _found(r"measured=(\d{4}-\d\d-\d\d)", about)
    run = SiliconRun(
        row=index,
        id=row["id"],
        source=_source(about),
        aggregated=aggregated,
        engine=row["backend"],
        version=row["backend_version"],
        image=_found(r"([\w.-]+(?:/[\w.-]+)*/[\w.-]+:[\w.+-]+)$", about),
        model=row["model_path"],
        gpu=row["system"],
        precision=row["precision"],
        gemm_format=row["gemm_quant_mode"],
        moe_format=row["moe_quant_mode"],
        parallel=parallel,
        isl=int(row["isl"]),
        osl=int(row["osl"]),
        concurrency=in_flight,
        measured=date.fromisoformat(day) if day else None,
        workflow_run=_found(r"workflow_run_id=(\d+)", about),
        ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
    )
    if not all(isfinite(value) and value > 0 for value in (run.ttft_s, run.tpot_s)):
        raise ValueError("TTFT and TPOT must be positive")
    if run.isl < 1 or run.osl < 1:
        raise ValueError("isl and osl must be at least 1")
    return run


def _parallelism(row: dict[str, str], prefix: str) -> Parallelism:
    tp = _count(row[f"{prefix}tp_size"]) or 1
    moe_tp = _count(row[f"{prefix}moe_tp_size"])
    moe_ep = _count(row[f"{prefix}moe_ep_size"]) or 1
    dp = _count(row[f"{prefix}attention_dp_size"])
    if not dp:  # NVIDIA's files leave it out: the MoE side counts all GPUs
        dp = moe_tp * moe_ep // tp if moe_tp * moe_ep > tp else 1
    of = Parallelism(tp, dp, moe_tp, moe_ep, _count(row[f"{prefix}pp_size"]) or 1)
    return of if moe_tp else replace(of, moe_tp=max(1, tp * dp // moe_ep))


def _source(about: str) -> Source:
    if about.startswith("db-dump/2026-04-27"):
        return "inferencex-2026-04-27"
    file = _found(r"source_file=([^;]+)", about).rpartition("/")[2]
    if file == "2026-03-25.csv":
        return "inferencex-2026-03-25"
    if file == "2026-04-06.csv":
        return "inferencex-2026-04-06"
    return "nvidia-inferencex" if file.endswith("-gap-analysis.csv") else "nvidia"


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""


def _count(text: str) -> int:
    """A whole number written as 4, 4.0 or nothing."""
    value = float(text or 0)
    if not value.is_integer() or not 0 <= value <= 1e6:
        raise ValueError(f"{text} is no count")
    return int(value)
