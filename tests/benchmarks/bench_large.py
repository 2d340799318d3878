"""How long and how large a run grows: `python tests/benchmarks/bench_large.py [REQUESTS...]`.

Each size is simulated in a process of its own on 64 GPUs, every expert of every token counted, with
streaming statistics; by default 3,000, 10,000 and 30,000 requests. Printed as JSON: seconds of the
event loop and of the whole process (of the processor), peak memory (of the resident set, whole
process), tokens, steps, and between sizes the exponents of time and memory. A million requests take
as long as the speed printed for less: `python tests/benchmarks/bench_large.py 1000000`.

--model NAME, --trace FILE: Qwen3-235B with generated routing unless given. --statistics exact: to
compare. --replicas K: of EP8, 8 unless given. --rate R: requests a second and replica.
--prompt, --output: mean tokens; lengths are uniform from half to one and a half of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import simpy

from moesim.scenario import Scenario
from moesim.simulation import simulate

SIZES = (3_000, 10_000, 30_000)
MEGABYTE = 1e6


def scenario_of(requests: int, told: argparse.Namespace) -> Scenario:
    """Replicas of EP8 with data-parallel attention under Poisson arrivals that they carry."""
    shape = {"attention_tp": told.tp, "attention_dp": 8 // told.tp, "expert_parallel": 8}
    return Scenario.parse(
        {
            "name": f"{told.model}, {requests} requests",
            "model": told.model,
            "cluster": {"gpu": "h200-sxm", "nodes": told.replicas},
            "deployment": {"engine": "vllm", "replicas": told.replicas, "parallelism": shape},
            "routing": {"trace": told.trace},
            "workload": {
                "arrivals": {"poisson": {"rate_per_s": told.rate * told.replicas}},
                "requests": requests,
                "prompt": {"uniform": {"low": told.prompt // 2, "high": told.prompt * 3 // 2}},
                "output": {"uniform": {"low": told.output // 2, "high": told.output * 3 // 2}},
            },
            "measure": {"statistics": told.statistics},
        }
    )


def one(requests: int, told: argparse.Namespace) -> dict[str, Any]:
    """Simulate and measure, in this process."""
    simulate(scenario_of(20, told))  # compiled or loaded
    environment: Any = simpy.Environment
    run, spent = environment.run, [0.0]

    def timed(env: simpy.Environment, *until: Any) -> Any:
        start_s = time.process_time()
        try:
            return run(env, *until)
        finally:
            spent[0] += time.process_time() - start_s

    environment.run = timed
    start_s = time.process_time()
    result = simulate(scenario_of(requests, told))
    simulated_bytes = _peak_bytes()
    summary, uncertainty = result.summary, result.uncertainty
    raw = result.raw
    return {
        "requests": requests,
        "tokens": int((raw.requests["prompt_tokens"] + raw.requests["output_tokens"]).sum()),
        "output_tokens": int(raw.requests["output_tokens"].sum()),
        "steps": summary["statistics"]["steps"],
        "routed_ids": raw.routed_ids,
        "loop_s": spent[0],
        "all_s": time.process_time() - start_s,
        "simulated_mb": simulated_bytes / MEGABYTE,
        "peak_mb": _peak_bytes() / MEGABYTE,
        "statistics": summary["statistics"],
        "requests_per_s": summary["throughput"]["requests_per_s"],
        "itl_s": summary["itl_s"],
        "ttft_p99_s": summary["ttft_s"]["p99"],
        "intervals": sum(each.low is not None for each in uncertainty.estimates.values()),
    }


def _peak_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def exponents(found: list[dict[str, Any]], name: str) -> list[float]:
    """How `name` grows from each size to the next: it is proportional to requests ** exponent."""
    return [
        math.log(two[name] / one[name]) / math.log(two["requests"] / one["requests"])
        for one, two in itertools.pairwise(found)
    ]


def overall(found: list[dict[str, Any]], name: str) -> float:
    """The exponent over all sizes, least squares in logarithms."""
    x, y = (np.log([each[key] for each in found]) for key in ("requests", name))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requests", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--model", default="qwen3-235b-a22b")
    parser.add_argument("--trace", default="synthetic")
    parser.add_argument("--statistics", default="streaming")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--tp", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.alone:
        print(json.dumps(one(told.requests[0], told)))
        return
    options = [
        f"--{key}={getattr(told, key)}"
        for key in ("model", "trace", "statistics", "replicas", "tp", "rate", "prompt", "output")
    ]
    found: list[dict[str, Any]] = []
    for requests in told.requests:
        command = [sys.executable, __file__, "--alone", *options, str(requests)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output))
        print(json.dumps(found[-1]), flush=True)
    grown = {
        name: {"between": exponents(found, name), "overall": overall(found, name)}
        for name in ("loop_s", "all_s", "peak_mb")
        if len(found) > 1
    }
    print(json.dumps({"machine": platform.platform(), "exponents": grown}))


if __name__ == "__main__":
    main()
