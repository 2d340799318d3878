"""How a run was made: load generator and server settings, per source, recipe and date.

The settings stand in recipes.csv with their source. NVIDIA's own gap-analysis files come without
scripts: their engines run with defaults, and what the load generator did is a reading of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from calibration.runs.conditions import matches, read_lines
from calibration.runs.rows import SiliconRun
from moesim.errors import InputError

# InferenceX's client warms the server up with 2 x concurrency requests since its commit d053ae24e.
WARMUP_SINCE = date(2026, 1, 21)


@dataclass(frozen=True)
class Client:
    """The load generator: a closed loop whose first `concurrency` requests arrive together.

    InferenceX: `sample_random_requests` draws input and output lengths each from
    randint(int(L x ratio), L + 1) with RANDOM_RANGE_RATIO 0.8 (benchmark-tmpl.yml, 2026-04), sends
    10 x concurrency prompts and reports means over all of them. `evidence` says whether the ratio
    is documented or a reading of the runs: fixed lengths fit NVIDIA's SGLang runs (median residual
    8 % instead of 20 %), 0.5 to 0.8 fits its TensorRT-LLM and vLLM runs (9 to 17 % instead of 24
    to 35 %).
    """

    prompts_per_slot: int
    range_ratio: float
    warmups_per_slot: int
    evidence: Literal["documented", "inferred"]


@dataclass(frozen=True)
class Server:
    """The engine's settings; None is its default.

    `recv_interval` is SGLang's scheduler-recv-interval, in steps; `wait_iters` and
    `wait_token_ratio` are TensorRT-LLM's batch_wait_timeout_iters and batch_wait_max_tokens_ratio:
    it delays prompts until they fill that share of the token budget, but no longer than so many
    steps. `memory_fraction` is gpu-memory-utilization, mem-fraction-static or
    free_gpu_memory_fraction (the last of what weights leave). `graphs`: steps with prompts replay
    piecewise CUDA graphs (TensorRT-LLM's enable_piecewise_cuda_graph), so that the host launches
    little. No recipe caches prefixes.
    """

    token_budget: int | None = None
    max_requests: int | None = None
    kv_format: Literal["bf16", "fp8"] = "bf16"
    memory_fraction: float | None = None
    recv_interval: int = 1
    wait_iters: int = 0
    wait_token_ratio: float = 0.0
    chunked: bool = True
    graphs: bool = False
    known: bool = True  # False: no recipe stands behind it


def client_of(run: SiliconRun) -> Client:
    """The load generator of a run's source."""
    if run.from_inferencex:
        warm = run.measured is not None and run.measured >= WARMUP_SINCE
        return Client(10, 0.8, 2 if warm else 0, "documented")
    return Client(10, 1.0 if run.engine == "sglang" else 0.8, 0, "inferred")


def server_of(run: SiliconRun) -> Server:
    """The server settings of a run: of all matching lines of recipes.csv the last."""
    found = None
    if run.from_inferencex:
        for line in _recipes():
            if matches(line, run):
                found = line
    # TensorRT-LLM computes whole prompts: no recipe turns chunked prefill on.
    chunked = run.engine != "trtllm"
    if found is None:
        kv_format: Literal["bf16", "fp8"] = "fp8" if run.precision == "fp4" else "bf16"
        return Server(kv_format=kv_format, chunked=chunked, known=False)
    concurrency = run.concurrency or 1
    recv = found["recv_from_16"] if concurrency >= 16 else found["recv_below_16"]
    return Server(
        token_budget=_budget(found["token_budget"], concurrency, run.isl),
        max_requests=concurrency if found["max_requests"] == "c" else _whole(found["max_requests"]),
        kv_format="fp8" if found["kv_format"] == "fp8" else "bf16",
        memory_fraction=float(found["memory_fraction"]) if found["memory_fraction"] else None,
        recv_interval=_whole(recv) or 1,
        wait_iters=_whole(found["wait_iters"]) or 0,
        wait_token_ratio=float(found["wait_token_ratio"] or 0.0),
        chunked=chunked,
        graphs=found["graphs"] == "yes",
    )


def without_waiting(server: Server) -> Server:
    """The same server, admitting prompts at every step."""
    return replace(server, recv_interval=1, wait_iters=0, wait_token_ratio=0.0)


@cache
def _recipes() -> tuple[Mapping[str, str], ...]:
    return read_lines(Path(__file__).with_name("recipes.csv"))


def _budget(text: str, concurrency: int, isl: int) -> int | None:
    if text == "2*isl":
        return 2 * isl
    if text.endswith("c+isl"):
        least = _whole(text.removesuffix("c+isl").rstrip("|")) or 0
        return max(least, (concurrency + isl + 64 + 63) // 64 * 64)
    return _whole(text)


def _whole(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit():
        raise InputError("recipes.csv", "must hold whole numbers there", text)
    return int(text)
