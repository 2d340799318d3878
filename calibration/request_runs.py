"""Measured serving runs with the times of every request, and how far a prediction is from one.

A folder holds `meta.json` (the engine's settings) and `requests.jsonl`: per request input_toks,
output_toks, arrival_time (wall clock) and queued_ts, scheduled_ts, first_token_ts, last_token_ts
(engine clock), all in seconds; the format of casys-kaist/LLMServingSim, bench/examples. Legend: N
requests, in order of arrival.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text
from moesim.workload.demand import Demand

Floats = NDArray[np.float64]
MAX_FILE_BYTES = 500e6
MAX_REQUESTS = 1_000_000
STATISTICS = ("mean", "p50", "p90", "p99")
SHARES = MappingProxyType({"p50": 0.5, "p90": 0.9, "p99": 0.99})


@dataclass(frozen=True)
class Settings:
    """What the engine of a run was started with."""

    model: str
    version: str
    tensor_parallel: int
    data_parallel: int
    expert_parallel: bool
    max_requests: int
    token_budget: int
    max_context: int | None
    kv_format: str


@dataclass(frozen=True)
class RequestRun:
    """One run. Times are seconds on the engine's clock from the first request's arrival there.

    All [N]: submitted_s (when the client sent the request), arrival_s (when the engine queued it:
    it looks between steps only), scheduled_s, first_token_s, finish_s, prompt_tokens,
    output_tokens.
    """

    name: str
    settings: Settings
    device: str
    submitted_s: Floats
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    arrival_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    finish_s: Floats

    @property
    def ttft_s(self) -> Floats:
        """[N] from the engine's queue to the first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """[N] mean time between output tokens; NaN for one token."""
        gaps = self.output_tokens.astype(np.float64) - 1.0
        return (self.finish_s - self.first_token_s) / np.where(gaps > 0, gaps, np.nan)

    @property
    def e2e_s(self) -> Floats:
        """[N] from the engine's queue to the last token."""
        return self.finish_s - self.arrival_s

    def demand(self) -> Demand:
        """What was asked, at the times it was asked; clients declared their exact output length."""
        requests = len(self.arrival_s)
        return Demand(
            arrival_s=self.submitted_s - min(0.0, float(self.submitted_s.min())),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            max_output_tokens=self.output_tokens,
            domain=np.zeros(requests, np.uint16),
            domains=(),
            concurrency=None,
            prefix_start=np.zeros(requests + 1, np.int64),
            prefix_blocks=np.zeros(0, np.int32),
            prefix_block_tokens=0,
        )


@dataclass(frozen=True)
class RelativeError:
    """Predicted / measured - 1 of one statistic, with both values in seconds."""

    metric: str
    statistic: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1.0


def read_request_run(folder: Path) -> RequestRun:
    """A run from its folder. Raises InputError naming the file and line."""
    meta = _object(read_text(folder / "meta.json", 1e6), "meta.json")
    columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
    sent_s: list[float] = []
    text = read_text(folder / "requests.jsonl", MAX_FILE_BYTES)
    for number, line in enumerate(text.splitlines(), 1):
        if number > MAX_REQUESTS:
            raise InputError("requests.jsonl", f"must hold at most {MAX_REQUESTS} requests")
        row = _object(line, f"requests.jsonl line {number}")
        sent = row.get("arrival_time")
        known = isinstance(sent, int | float) and not isinstance(sent, bool)
        sent_s.append(float(sent) if known else np.nan)  # type: ignore[arg-type]
        for name, values in columns.items():
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"requests.jsonl line {number}: {name}", "must be a number", value)
            values.append(float(value))
    if not columns["queued_ts"]:
        raise InputError("requests.jsonl", "must hold at least one request")
    columns["arrival_time"] = sent_s
    of = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    order_N = np.argsort(of["queued_ts"], kind="stable")
    of = {name: values[order_N] for name, values in of.items()}
    if (of["input_toks"] < 1).any() or (of["output_toks"] < 1).any():
        raise InputError("requests.jsonl", "must have input_toks and output_toks of at least 1")
    start = of["queued_ts"][0]
    times = [of[name] - start for name in _TIMES]
    if any((later < earlier).any() for earlier, later in pairwise(times)):
        raise InputError("requests.jsonl", "must have times in the order of a request's life")
    return RequestRun(
        folder.name,
        _settings(meta),
        _device(meta, folder.name),
        _submitted_s(of["arrival_time"], of["queued_ts"]) - start,
        of["input_toks"].astype(np.int32),
        of["output_toks"].astype(np.int32),
        *times,
    )


def compare(
    run: RequestRun, ttft_s: Floats, tpot_s: Floats, e2e_s: Floats
) -> tuple[RelativeError, ...]:
    """Mean, p50, p90 and p99 of TTFT, TPOT and end-to-end latency against the measured ones.

    Percentiles by linear interpolation over completed requests (NaN is left out).
    """
    predicted = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s}
    measured = {"ttft": run.ttft_s, "tpot": run.tpot_s, "e2e": run.e2e_s}
    return tuple(
        RelativeError(metric, name, statistic(measured[metric], name), statistic(values, name))
        for metric, values in predicted.items()
        for name in STATISTICS
    )


def statistic(values_N: Floats, name: str) -> float:
    """The mean or a percentile of the values that are numbers."""
    if name == "mean":
        return float(np.nanmean(values_N))
    return float(np.nanquantile(values_N, SHARES[name]))


_TIMES = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_COLUMNS = ("input_toks", "output_toks", *_TIMES)


def _submitted_s(wall_s: Floats, queued_s: Floats) -> Floats:
    """When clients sent requests, on the engine's clock: the shortest way into the queue took no
    time. Where a file has no such times, requests were sent when they were queued."""
    if not np.isfinite(wall_s).all():
        return queued_s
    return wall_s - float((wall_s - queued_s).max())


def _device(meta: dict[str, object], folder: str) -> str:
    """The GPU's name, as the engine saw it; else what the folder's name begins with."""
    hardware = meta.get("hardware")
    if isinstance(hardware, dict) and isinstance(hardware.get("device_name"), str):
        return str(hardware["device_name"])
    return folder.partition("_")[0]


def _settings(meta: dict[str, object]) -> Settings:
    engine = meta.get("engine_kwargs")
    if not isinstance(engine, dict):
        raise InputError("meta.json: engine_kwargs", "must be a JSON object")

    def whole(name: str) -> int:
        value = engine.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"meta.json: engine_kwargs.{name}", "must be a whole number", value)
        return value

    kv_format = str(engine.get("kv_cache_dtype", "auto"))
    return Settings(
        model=str(meta.get("model", "")),
        version=str(meta.get("vllm_version", "")),
        tensor_parallel=whole("tensor_parallel_size"),
        data_parallel=whole("data_parallel_size"),
        expert_parallel=bool(engine.get("enable_expert_parallel", False)),
        max_requests=whole("max_num_seqs"),
        token_budget=whole("max_num_batched_tokens"),
        max_context=None if engine.get("max_model_len") is None else whole("max_model_len"),
        kv_format="fp8" if kv_format.startswith("fp8") else "bf16",
    )


def _object(text: str, where: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(where, "must be a JSON object")
    return found
