"""How fast whole runs are: `python tests/benchmarks/bench_hot_path.py [NAME...]`.

For each scenario: requests and steps a second in the event loop, routed token-expert pairs (ids) a
second, what reading these ids is of the memory's measured bandwidth, and seconds until the first
run has been compiled or loaded (set MOESIM_CACHE_DIR to an empty folder to see it cold). Seconds
are the processor's: other programs on the machine count little. REQUESTS=n in the environment
changes how many requests each run has, RUNS=n of how many the fastest is taken.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import Any

import numpy as np
import simpy

from moesim.results import Result
from moesim.scenario import Scenario, load_scenario
from moesim.simulation import simulate

ID_BYTES = 2
SHIPPED = (
    "demo",
    "deepseek-v3-one-node",
    "gpt-oss-120b-one-gpu",
    "moe-against-dense-same-active",
    "deepseek-v3-nine-nodes",
)
# Four replicas under Poisson arrivals, as Vidur's documentation has it.
WORKLOAD = {
    "arrivals": {"poisson": {"rate_per_s": 8}},
    "prompt": {"uniform": {"low": 512, "high": 1536}},
    "output": {"uniform": {"low": 128, "high": 384}},
}
FOUR: dict[str, tuple[str, dict[str, int], int]] = {
    "four-dense": ("llama-2-70b", {"attention_tp": 4}, 2),
    "four-mixtral": ("mixtral-8x22b", {"attention_tp": 4, "expert_parallel": 4}, 2),
    "four-qwen": ("qwen3-235b-a22b", {"attention_tp": 8, "expert_parallel": 8}, 4),
    "four-deepseek": ("deepseek-v3", {"attention_tp": 8, "expert_parallel": 8}, 4),
}


class Stopwatch:
    """Seconds that the processor spends in the event loop."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        environment: Any = simpy.Environment
        run = environment.run

        def timed(env: simpy.Environment, *until: Any) -> Any:
            start_s = time.process_time()
            try:
                return run(env, *until)
            finally:
                self.spent_s += time.process_time() - start_s

        environment.run = timed


def scenario_of(name: str, requests: int) -> Scenario:
    """A shipped scenario or one of FOUR, with routing replayed."""
    if name in FOUR:
        model, parallelism, nodes = FOUR[name]
        scenario = Scenario.parse(
            {
                "name": name,
                "question": "How fast is the simulator?",
                "model": model,
                "precision": {"weights": "fp8"},
                "cluster": {"gpu": "h200-sxm", "nodes": nodes},
                "deployment": {"engine": "vllm", "replicas": 4, "parallelism": parallelism},
                "workload": {**WORKLOAD, "requests": requests},
            }
        )
    else:
        scenario = load_scenario(name)
    workload = scenario.workload.model_copy(update={"requests": requests})
    routing = scenario.routing.model_copy(update={"mode": "replay"})
    return scenario.model_copy(update={"workload": workload, "routing": routing})


def read_bytes_per_s() -> float:
    """Reading memory in order, by one core."""
    words = np.ones(1 << 25, np.int64)
    best_s = np.inf
    for _ in range(5):
        start_s = time.process_time()
        words.max()
        best_s = min(best_s, time.process_time() - start_s)
    return words.nbytes / best_s


def digest(result: Result) -> str:
    """Of all numbers that a run leaves: the same before and after a change that changes none."""
    raw, sha = result.raw, hashlib.sha256()
    for rows in (raw.requests, raw.steps):
        for name in rows.dtype.names or ():
            sha.update(np.ascontiguousarray(rows[name]).tobytes())
    for numbers in (raw.token_s, raw.rank_tokens_LR, raw.rank_active_LR):
        sha.update(np.ascontiguousarray(numbers).tobytes())
    return sha.hexdigest()[:12]


def main() -> None:
    requests, runs = int(os.environ.get("REQUESTS", "0")), int(os.environ.get("RUNS", "3"))
    stopwatch, memory = Stopwatch(), read_bytes_per_s()
    print(f"reading memory: {memory / 1e9:.1f} GB/s")
    for name in sys.argv[1:] or [*SHIPPED, *FOUR]:
        start_s = time.process_time()
        simulate(scenario_of(name, 5))
        first_s = time.process_time() - start_s
        scenario = scenario_of(name, requests or (200 if "nine" in name else 2000))
        best_s = np.inf
        for _ in range(runs):
            stopwatch.spent_s = 0.0
            result = simulate(scenario)
            best_s = min(best_s, stopwatch.spent_s)
        raw = result.raw
        ids_per_s = raw.routed_ids / best_s
        print(
            f"{name:30} {raw.requests.size / best_s:8,.0f} requests/s, "
            f"{best_s / raw.steps.size * 1e6:7.1f} us/step, {ids_per_s / 1e9:5.2f} G ids/s = "
            f"{ids_per_s * ID_BYTES / memory:6.1%} of memory, first run {first_s:6.1f} s, "
            f"{digest(result)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
