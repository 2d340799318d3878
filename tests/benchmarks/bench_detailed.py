"""The fast mode against the detailed one: `python tests/benchmarks/bench_detailed.py`.

One decode step on 32 GPUs (EP32), timed by both modes on the same batch, side by side in one run:
DeepSeek-V3 with routing drawn like recorded routing, and gpt-oss-20b with recorded routing where
that is at hand (REAL below).
"""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import simpy

from moesim.detailing import layers_of
from moesim.routing.importers import import_npz
from moesim.scenario import Scenario
from moesim.sim.advance import launch
from moesim.sim.detailed.links import OwnLinks, link_byte_s
from moesim.sim.detailed.steps import StepTimer
from moesim.sim.state import STEP, State
from tests.benchmarks.machine import processor
from tests.fixtures.priced import Priced

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "routing" / "gptoss_20b_ids_00.npz"
REPEATS = 5
KV_TOKENS = 2048
AT_LEAST = 50.0  # the target: times as fast


def scenario(model: str, trace: str) -> Scenario:
    """A model on four nodes of eight H200."""
    return Scenario.parse(
        {
            "name": "EP32",
            "model": model,
            "cluster": {"gpu": "h200-sxm", "nodes": 4},
            "deployment": {
                "engine": "sglang",
                "parallelism": {"attention_dp": 32, "expert_parallel": 32},
            },
            "routing": {"trace": trace},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 1,
                "prompt": {"fixed": 1024},
                "output": {"fixed": 1024},
            },
        }
    )


def batch(priced: Priced, requests: int) -> State:
    """Every rank decodes the first output token of so many requests, at the start of a piece."""
    state = priced.batch(requests, KV_TOKENS)
    state.requests["prompt_tokens"] = KV_TOKENS - 1
    state.requests["generated"] = 1
    state.requests["decode_rows_left"] = 0
    return state


def fast_s(priced: Priced, requests: int) -> tuple[float, float]:
    """Seconds of real time that pricing one step takes (median), and the step's own."""
    times = []
    for _ in range(REPEATS + 1):  # the first compiles
        state = batch(priced, requests)
        record, work = priced.scratch(state)
        parts = (state, priced.wired.routes, priced.wired.costs, work, record)
        start_s = time.perf_counter()
        launch(*parts, 0, 0.0, state.requests.size)
        times.append(time.perf_counter() - start_s)
    return float(np.median(times[1:])), float(record.steps["duration_s"][0])


def detailed_s(priced: Priced, requests: int) -> tuple[float, float]:
    """The same of the detailed mode."""
    times, costs = [], priced.wired.costs
    layers = layers_of(priced.deployment, costs)
    for _ in range(REPEATS):
        state = batch(priced, requests)
        record, work = priced.scratch(state)
        env = simpy.Environment()
        links = OwnLinks(env, state, work.condition, link_byte_s(costs))
        parts = (env, state, priced.wired.routes, costs, record, work.condition, links)
        timer = StepTimer(*parts, layers)
        row = np.zeros(1, STEP)
        start_s = time.perf_counter()
        env.process(timer.run(timer.begin(0, 0, row)))
        env.run()
        times.append(time.perf_counter() - start_s)
    return float(np.median(times)), float(row["duration_s"][0])


def compare(model: str, trace: str, what: str) -> None:
    priced = Priced(scenario(model, trace))
    print(f"\n{model}, EP32, {what} routing")
    print(f"{'requests of a rank':>20} {'fast':>12} {'detailed':>13} {'ratio':>7} {'step':>22}")
    for requests in (8, 32, 64, 128):
        fast, step = fast_s(priced, requests)
        detailed, detailed_step = detailed_s(priced, requests)
        told = f"{step * 1e3:.4f}, {detailed_step * 1e3:.4f} ms"
        short = "" if detailed / fast >= AT_LEAST else f"  below {AT_LEAST:.0f}"
        print(
            f"{requests:20} {fast * 1e3:9.3f} ms {detailed * 1e3:10.1f} ms "
            f"{detailed / fast:7.0f} {told:>22}{short}"
        )


def main() -> None:
    print(f"{processor()}, Python {platform.python_version()}; medians of {REPEATS}")
    compare("deepseek-v3", "synthetic", "synthetic")
    if REAL.is_file():
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "gpt-oss-20b.safetensors"
            import_npz(REAL, model="gpt-oss-20b", phase="decode").save(trace)
            compare("gpt-oss-20b", str(trace), "recorded")


if __name__ == "__main__":
    main()
