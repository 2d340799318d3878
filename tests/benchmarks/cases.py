"""What the suite simulates: cases by name, each a scenario and the numbers of its requests.

`FOUR` are four replicas under Poisson arrivals with the lengths of Vidur's documentation, the
workload on which peers are compared. `MATRIX` varies ranks, experts and the kind of work: closed
loops, so that batches are of the same size however fast a deployment is. `REAL` has arrivals and
routing that were recorded; it is left out where the recordings are not at hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = Path(os.environ.get("MOESIM_TEST_DATA", ROOT.parent / "shared" / "data"))
ARRIVALS = RECORDINGS / "workloads" / "AzureLLMInferenceTrace_conv.csv"
ROUTING = RECORDINGS / "routing" / "gptoss_20b_ids_00.npz"


@dataclass(frozen=True)
class Case:
    """A scenario without its number of requests.

    `requests`: run as often as medians need. `growth`: sizes for exponents, all with streaming
    statistics, as runs of more tokens than memory have. `policy`: batches are composed by a policy
    in plain Python. `recorded`: routing comes from `ROUTING`.
    """

    name: str
    scenario: Mapping[str, Any]
    requests: int
    quick: int
    growth: tuple[int, ...] = ()
    policy: bool = False
    recorded: bool = False

    def data(
        self, requests: int, trace: Path | None = None, streaming: bool = False
    ) -> dict[str, Any]:
        """The scenario as it stands in a file, with so many requests."""
        data = {"name": self.name, **self.scenario}
        data["workload"] = {**self.scenario["workload"], "requests": requests}
        if trace is not None:
            data["routing"] = {"trace": str(trace)}
        if streaming:
            data["measure"] = {"statistics": "streaming"}
        return data


POISSON = {
    "arrivals": {"poisson": {"rate_per_s": 8}},
    "prompt": {"uniform": {"low": 512, "high": 1536}},
    "output": {"uniform": {"low": 128, "high": 384}},
}
SIZES = (10_000, 100_000, 1_000_000)


def _four(model: str, parallelism: Mapping[str, int], nodes: int) -> dict[str, Any]:
    return {
        "question": "How fast is the simulator?",
        "model": model,
        "precision": {"weights": "fp8"},
        "cluster": {"gpu": "h200-sxm", "nodes": nodes},
        "deployment": {"engine": "vllm", "replicas": 4, "parallelism": dict(parallelism)},
        "workload": POISSON,
    }


_DENSE = _four("llama-2-70b", {"attention_tp": 4}, 2)
_EP8 = {"attention_tp": 8, "expert_parallel": 8}
_DEEPSEEK = _four("deepseek-v3", _EP8, 4)
# What Vidur simulates: the same hardware and formats, so that steps take about as long.
_PEER = {
    **_DENSE,
    "precision": {"weights": "bf16"},
    "cluster": {"gpu": "a100-80g", "nodes": 2},
}
FOUR = (
    Case("four-dense", _DENSE, 10_000, 1_000, SIZES),
    Case(
        "four-mixtral",
        _four("mixtral-8x22b", {"attention_tp": 4, "expert_parallel": 4}, 2),
        10_000,
        1_000,
        SIZES[:2],
    ),
    Case("four-qwen", _four("qwen3-235b-a22b", _EP8, 4), 10_000, 1_000, SIZES[:2]),
    Case("four-deepseek", _DEEPSEEK, 10_000, 1_000, SIZES[:2]),
    Case("four-dense-a100", _PEER, 10_000, 1_000),
    Case("python-policy-dense", _DENSE, 2_000, 500, policy=True),
    Case("python-policy-deepseek", _DEEPSEEK, 2_000, 500, policy=True),
)

PER_RANK = {"decode": 32, "prefill": 8}  # requests in flight on each attention rank
WORK = {
    "decode": {"prompt": {"fixed": 128}, "output": {"uniform": {"low": 256, "high": 512}}},
    "prefill": {
        "prompt": {"uniform": {"low": 3072, "high": 5120}},
        "output": {"uniform": {"low": 8, "high": 24}},
    },
}
# model, experts, attention ranks = expert-parallel ranks, redundant experts, waves of requests
SHAPES = (
    ("gpt-oss-20b", 32, 8, 0, 4),
    ("olmoe-1b-7b", 64, 8, 0, 4),
    ("gpt-oss-120b", 128, 8, 0, 4),
    ("deepseek-v3", 256, 8, 0, 4),
    ("deepseek-v3", 256, 64, 64, 2),
    ("qwen3.5-397b-a17b", 512, 64, 0, 2),
    ("deepseek-v3", 256, 320, 64, 1),
)


def _wide(model: str, ranks: int, redundant: int, workload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question": "How fast is the simulator?",
        "model": model,
        "cluster": {"gpu": "h200-sxm", "nodes": -(-ranks // 8)},
        "deployment": {
            "engine": "sglang",
            "parallelism": {"attention_dp": ranks, "expert_parallel": ranks},
            "placement": {"policy": "eplb", "redundant_experts": redundant},
            "exchange": "deepep",
            "batching": {"policy": "prefill-first", "token_budget": 8192, "max_requests": 256},
        },
        "workload": dict(workload),
    }


def _matrix() -> tuple[Case, ...]:
    cases = []
    for model, experts, ranks, redundant, waves in SHAPES:
        for work, lengths in WORK.items():
            flying = PER_RANK[work] * ranks
            workload = {"arrivals": {"closed_loop": {"concurrency": flying}}, **lengths}
            name = f"{work}-{ranks}-ranks-{experts}-experts"
            scenario = _wide(model, ranks, redundant, workload)
            cases.append(Case(name, scenario, waves * flying, flying // 2))
    return tuple(cases)


MATRIX = _matrix()
# 128 sequences decode on each of 144 ranks, all at once: simulated against real time.
REAL_TIME = Case(
    "real-time-144-ranks",
    _wide(
        "deepseek-v3",
        144,
        32,
        {
            "arrivals": {"closed_loop": {"concurrency": 128 * 144}},
            "prompt": {"fixed": 32},
            "output": {"fixed": 128},
        },
    ),
    128 * 144,
    16 * 144,
)
# Eight replicas of eight GPUs, and routing that was recorded.
MILLION = Case(
    "million-64-gpus",
    {
        "question": "How fast is the simulator?",
        "model": "gpt-oss-20b",
        "cluster": {"gpu": "h200-sxm", "nodes": 8},
        "deployment": {
            "engine": "vllm",
            "replicas": 8,
            "parallelism": {"attention_tp": 4, "attention_dp": 2, "expert_parallel": 8},
        },
        "workload": {**POISSON, "arrivals": {"poisson": {"rate_per_s": 160}}},
    },
    10_000,
    1_000,
    SIZES,
    recorded=True,
)
REAL = Case(
    "recorded-arrivals-and-routing",
    {
        "question": "How fast is the simulator?",
        "model": "gpt-oss-20b",
        "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4},
        "deployment": {"engine": "vllm", "replicas": 4},
        "workload": {"arrivals": {"replay": {}}, "trace": str(ARRIVALS)},
    },
    10_000,
    1_000,
    recorded=True,
)


def all_cases() -> tuple[Case, ...]:
    """Every case that can run here."""
    recorded = (REAL, MILLION) if ARRIVALS.is_file() and ROUTING.is_file() else ()
    return (*FOUR, *MATRIX, REAL_TIME, *recorded)
