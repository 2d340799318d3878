"""How sweeps grow with workers, and what a worker holds: `python tests/benchmarks/bench_sweep.py`.

`--runs N` runs of a sweep with one and with two workers, one after the other, `--times` times;
medians and their ratio. One worker is a process of its own here, as two are. Then the resident
memory of workers whose traces are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from moesim.routing.trace import RoutingTrace
from moesim.sweeping import sweep

OWN = "of its own"
RATE = "workload.arrivals.poisson.rate_per_s"
SCENARIO: dict[str, Any] = {
    "name": "Mixtral-8x7B",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8, "nodes": 8},
    "deployment": {"parallelism": {"attention_dp": 8, "expert_parallel": 8}, "replicas": 8},
    "routing": {"tokens": 16_384},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 100}},
        "prompt": {"uniform": {"low": 512, "high": 1536}},
        "output": {"uniform": {"low": 128, "high": 384}},
    },
}
CODE = """
import json, sys
from moesim.sweeping import sweep
given = json.loads(sys.argv[1])
sweep(given["scenario"], {given["path"]: given["values"]}, workers=given["workers"],
      out=given["out"])
"""


def timed(workers: int, runs: int, requests: int) -> float:
    """Seconds of a whole sweep in a fresh process."""
    scenario = {**SCENARIO, "workload": {**SCENARIO["workload"], "requests": requests}}
    with tempfile.TemporaryDirectory() as out:
        given = {"scenario": scenario, "path": RATE, "values": [100 + n for n in range(runs)],
                 "workers": workers, "out": out}  # fmt: skip
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", CODE, json.dumps(given)], check=True)
        return time.perf_counter() - began_s


def descendants(of: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == of:
                found += [int(name), *descendants(int(name))]
    return found


def memory_mb(process: int) -> dict[str, float]:
    """Resident, proportional (shared pages divided by those who share them), and no file's."""
    names = {"Rss": "resident", "Pss": "proportional", "Anonymous": OWN}
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    pairs = (line.split()[:2] for line in lines)
    return {names[k.rstrip(":")]: int(v) / 1024 for k, v in pairs if k.rstrip(":") in names}


def workers_memory(tokens: int) -> None:
    """The most that each of two workers holds, with a trace of so many tokens, 32 layers, top-2."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        first = rng.integers(0, 8, (tokens, 32, 1), dtype=np.uint8)
        second = (first + rng.integers(1, 8, first.shape, dtype=np.uint8)) % 8
        trace = RoutingTrace(
            ids_TLK=np.concatenate([first, second], axis=2),
            sequence_start_S1=np.arange(0, tokens + 1, 512),
            prompt_tokens_S=np.full(tokens // 512, 256, np.int32),
            domain_S=np.zeros(tokens // 512, np.uint16),
            domains=("all",),
            layers_L=np.arange(32, dtype=np.int32),
            experts=8,
            model="mixtral-8x7b",
        )
        path = Path(folder) / "trace.safetensors"
        trace.save(path)
        mapped_mb = path.stat().st_size / 2**20
        most: dict[int, dict[str, float]] = {}
        last: dict[int, dict[str, float]] = {}
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                for process in descendants(os.getpid()):
                    try:
                        seen = memory_mb(process)
                    except (OSError, ValueError):
                        continue
                    if seen.get(OWN, 0.0) > most.get(process, {}).get(OWN, 0.0):
                        most[process] = seen
                    last[process] = seen

        scenario = {**SCENARIO, "routing": {"trace": str(path)},
                    "workload": {**SCENARIO["workload"], "requests": 400}}  # fmt: skip
        watcher = threading.Thread(target=watch)
        watcher.start()
        sweep(scenario, {RATE: [100 + n for n in range(8)]}, workers=2, out=folder)
        done.set()
        watcher.join()
        print(f"trace of {mapped_mb:.0f} MB, placed on slots {2 * mapped_mb:.0f} MB; two workers:")
        workers = sorted(last, key=lambda process: -last[process].get("resident", 0.0))[:2]
        for when, of in (("at most, the first while it places the trace", most),
                         ("at the end", last)):  # fmt: skip
            for process in workers:
                told = ", ".join(f"{name} {mb:.0f} MB" for name, mb in of[process].items())
                print(f"  {when}: {told}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--requests", type=int, default=1000)
    options.add_argument("--times", type=int, default=5)
    options.add_argument("--tokens", type=int, default=4_194_304)
    given = options.parse_args()
    timed(1, 2, given.requests)  # compiled, and the trace drawn
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.times):
        for workers, each in seconds.items():
            each.append(timed(workers, given.runs, given.requests))
    one, two = (statistics.median(each) for each in seconds.values())
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"{given.runs} runs of {given.requests} requests, medians of {given.times}:")
    print(f"  one worker {one:.1f} s, two {two:.1f} s; ratio {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    if given.tokens:
        workers_memory(given.tokens)


if __name__ == "__main__":
    main()
