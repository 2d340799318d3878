"""One simulation in a fresh process: `python one_run.py SCENARIO.yaml OUT.json [--policy]`.

Run as a file with PYTHONPATH set to a checkout of moesim, so that two checkouts can be compared in
one run of the suite. Writes what the process measured of itself.
"""

from __future__ import annotations

import time

BEGAN_S = time.perf_counter()

import hashlib  # noqa: E402 (the clock starts before anything is imported)
import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import simpy  # noqa: E402


class LoopClock:
    """Seconds spent in SimPy's event loop: of the wall clock and of the processor."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        environment: Any = simpy.Environment
        run: Callable[..., Any] = environment.run

        def timed(env: simpy.Environment, *until: Any) -> Any:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            try:
                return run(env, *until)
            finally:
                self.wall_s += time.perf_counter() - wall_s
                self.cpu_s += time.process_time() - cpu_s

        environment.run = timed


def digest(raw: Any) -> str:
    """Of all numbers that a run leaves: the same before and after a change that changes none."""
    sha = hashlib.sha256()
    for rows in (raw.requests, raw.steps):
        for name in sorted(rows.dtype.names or ()):
            sha.update(np.ascontiguousarray(rows[name]).tobytes())
    for numbers in (raw.token_s, raw.rank_tokens_LR, raw.rank_active_LR):
        sha.update(np.ascontiguousarray(numbers).tobytes())
    return sha.hexdigest()[:12]


def figures(raw: Any, loop: LoopClock) -> dict[str, Any]:
    """What was simulated, and how long the event loop took for it."""
    requests, steps = raw.requests, raw.steps
    done = requests[~np.isnan(requests["finish_s"])]
    gaps = np.maximum(1, done["output_tokens"] - 1)
    tpot_s = (done["finish_s"] - done["first_token_s"]) / gaps
    return {
        "requests": int(requests.size),
        "completed": int(done.size),
        "prompt_tokens": int(done["prompt_tokens"].sum(dtype=np.int64)),
        "output_tokens": int(done["output_tokens"].sum(dtype=np.int64)),
        "steps": int(steps.size),
        "routed_ids": int(raw.routed_ids),
        "simulated_s": float(np.nanmax(requests["finish_s"])) if done.size else 0.0,
        "tpot_s": float(np.median(tpot_s)) if done.size else 0.0,
        "loop_s": loop.wall_s,
        "loop_cpu_s": loop.cpu_s,
    }


def main(arguments: list[str]) -> None:
    """Simulate and write the figures."""
    from moesim.scenario import load_scenario
    from moesim.simulation import simulate

    imported_s = time.perf_counter()
    source, target, *options = arguments
    loop = LoopClock()
    policy: Any = None
    if "--policy" in options:
        from python_policy import first_come_first_served as policy
    result = simulate(load_scenario(source), batching=policy)
    ended_s = time.perf_counter()
    of = figures(result.raw, loop)
    of["import_s"] = imported_s - BEGAN_S
    of["set_up_s"] = ended_s - imported_s - loop.wall_s
    if "--digest" in options:
        of["digest"] = digest(result.raw)
    with open(target, "w", encoding="utf-8") as file:
        json.dump(of, file)


if __name__ == "__main__":
    main(sys.argv[1:])
