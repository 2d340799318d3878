"""Results of load generators, as one kind of record.

- vLLM's `vllm bench serve --save-result` (vllm/benchmarks/serve.py): one JSON object with
  `mean_ttft_ms`, `median_ttft_ms`, `p99_ttft_ms` and the same of tpot; with `--save-detailed` also
  `input_lens`, `output_lens` (tokens), `ttfts` and `itls` (seconds) of every request. SGLang's
  bench_serving writes the same names.
- AIPerf's `profile_export_aiperf.json` (ai-dynamo/aiperf, docs/tutorials/working-with-profile-
  exports.md) and GenAI-Perf's `profile_export_genai_perf.json` (triton-inference-server/perf_
  analyzer, genai-perf json_exporter): per metric an object with `unit`, `avg`, `p50`, `p99`.

Legend: N requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text
from moesim.workload.demand import Demand

FORMATS = ("auto", "vllm-bench", "aiperf", "genai-perf")
MAX_FILE_BYTES = 500e6
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 10_000_000
METRICS = ("ttft", "tpot")
# Statistic: its name in vLLM's files, its name in the others'.
STATISTICS = {"mean": ("mean", "avg"), "p50": ("median", "p50"), "p99": ("p99", "p99")}
UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class BenchResult:
    """One run of a load generator. `measured_s`: seconds by (metric, statistic).

    `concurrency` None: requests came by themselves, `rate_per_s` (inf: all at once).
    """

    name: str
    concurrency: int | None
    rate_per_s: float
    prompt_tokens: NDArray[np.int32]  # [N]
    output_tokens: NDArray[np.int32]  # [N]
    measured_s: Mapping[tuple[str, str], float]

    def demand(self, rng: np.random.Generator) -> Demand:
        """The same requests; those that came by themselves with exponential gaps."""
        requests = self.prompt_tokens.size
        gaps_s = np.zeros(requests)
        if self.concurrency is None and isfinite(self.rate_per_s):
            gaps_s = rng.standard_exponential(requests) / self.rate_per_s
        return Demand(
            arrival_s=np.cumsum(gaps_s) - gaps_s[0],
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            max_output_tokens=self.output_tokens,
            domain=np.zeros(requests, np.uint16),
            domains=(),
            concurrency=self.concurrency,
            prefix_start=np.zeros(requests + 1, np.int64),
            prefix_blocks=np.zeros(0, np.int32),
            prefix_block_tokens=0,
        )


def read_bench_result(path: Path, kind: str = "auto") -> BenchResult:
    """A result from its file. Raises InputError naming the file and what is missing."""
    where = path.name
    text = read_text(path, MAX_FILE_BYTES, "--results")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(where, "must be a JSON object")
    if kind == "auto":
        kind = "vllm-bench" if "mean_ttft_ms" in found else "genai-perf"
        if kind == "genai-perf" and not isinstance(found.get("time_to_first_token"), dict):
            raise InputError(where, "must be a result of vllm bench, aiperf or genai-perf")
    return _vllm(found, where) if kind == "vllm-bench" else _perf(found, where)


def _vllm(found: dict[str, Any], where: str) -> BenchResult:
    count = _whole(found.get("completed", found.get("num_prompts")), f"{where}: completed")
    measured = {
        (metric, name): float(found[f"{theirs}_{metric}_ms"]) / 1e3
        for metric in METRICS
        for name, (theirs, _) in STATISTICS.items()
        if _positive(found.get(f"{theirs}_{metric}_ms"))
    }
    prompt = _lengths(found, "input_lens", "total_input_tokens", count, where)
    output = _lengths(found, "output_lens", "total_output_tokens", count, where)
    kept = (prompt > 0) & (output > 0)  # failed requests have neither
    rate = found.get("request_rate")
    return _result(
        where,
        found.get("max_concurrency"),
        float(rate) if _positive(rate) else np.inf,
        (prompt[kept], output[kept]),
        measured,
    )


def _perf(found: dict[str, Any], where: str) -> BenchResult:
    """AIPerf's and GenAI-Perf's summaries differ in where the load stands."""
    names = {"ttft": "time_to_first_token", "tpot": "inter_token_latency"}
    measured = {}
    for metric, theirs in names.items():
        of = found.get(theirs)
        if not isinstance(of, dict):
            continue
        unit = UNITS_S.get(str(of.get("unit", "ms")))
        if unit is None:
            raise InputError(f"{where}: {theirs}.unit", "must be a time", of.get("unit"))
        for name, (_, key) in STATISTICS.items():
            if _positive(of.get(key)):
                measured[metric, name] = float(of[key]) * unit
    load = _mapping(found.get("input_config"))
    load = load | _mapping(load.get("loadgen"))
    load = load | _mapping(_mapping(load.get("perf_analyzer")).get("stimulus"))
    concurrency = load.get("concurrency")
    rate = load.get("request_rate")
    if concurrency is None and rate is None:
        raise InputError(f"{where}: input_config", "must hold concurrency or request_rate")
    count = _mapping(found.get("request_count")).get("avg", load.get("request_count"))
    requests = _whole(count, f"{where}: request_count")
    lengths = []
    for key in ("input_sequence_length", "output_sequence_length"):
        mean = _mapping(found.get(key)).get("avg")
        if not _positive(mean) or mean > MAX_TOKENS:
            raise InputError(f"{where}: {key}.avg", "must be a number of tokens", mean)
        lengths.append(np.full(requests, max(1, round(mean)), np.int32))
    return _result(
        where,
        concurrency,
        float(rate) if _positive(rate) else np.inf,
        (lengths[0], lengths[1]),
        measured,
    )


def _result(
    where: str,
    concurrency: object,
    rate_per_s: float,
    lengths: tuple[NDArray[np.int32], NDArray[np.int32]],
    measured: dict[tuple[str, str], float],
) -> BenchResult:
    if not measured:
        raise InputError(where, "must hold times to the first token or between tokens")
    if not lengths[0].size:
        raise InputError(where, "must hold a completed request")
    in_flight = None if concurrency is None else _whole(concurrency, f"{where}: concurrency")
    return BenchResult(where, in_flight, rate_per_s, *lengths, measured)


def _lengths(
    found: dict[str, Any], each: str, total: str, count: int, where: str
) -> NDArray[np.int32]:
    """Of every request where the file has them, else their mean."""
    values = found.get(each)
    if isinstance(values, list) and values:
        if any(type(value) is not int or not 0 <= value <= MAX_TOKENS for value in values):
            raise InputError(f"{where}: {each}", "must be whole numbers of tokens")
        if len(values) > MAX_REQUESTS:
            raise InputError(f"{where}: {each}", f"must be at most {MAX_REQUESTS}", len(values))
        return np.array(values, np.int32)
    tokens = found.get(total)
    if not _positive(tokens) or tokens > count * MAX_TOKENS:
        raise InputError(f"{where}: {total}", "must be a number of tokens", tokens)
    return np.full(count, max(1, round(tokens / count)), np.int32)


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InputError(where, "must be a whole number", value)
    if not 1 <= value <= MAX_REQUESTS:
        raise InputError(where, f"must be 1 to {MAX_REQUESTS}", value)
    return int(value)


def _positive(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) and value > 0


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
