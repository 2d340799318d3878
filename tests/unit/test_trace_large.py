"""Traces of the sizes that people have: a gigabyte does not fill memory, 215,000 tokens are quick.

Both run in processes of their own, started after the compiled code is in the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moesim.routing import RoutingTrace
from tests.fixtures.toy_traces import trace_of, uniform_ids

pytestmark = pytest.mark.slow

MB = 1e6

MEASURE = """
import sys
from moesim.routing import RoutingTrace
from moesim.routing.blocks import counts_by_blocks
from moesim.routing.study import study

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def resident():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    return status("VmRSS")

small, large = sys.argv[1:]
study(RoutingTrace.open(small), "small")
before = resident()
trace = RoutingTrace.open(large)
counts = counts_by_blocks(trace)
read = status("VmHWM") - before
before = resident()
found = study(trace, "large")
print(trace.ids_TLK.nbytes, read, status("VmHWM") - before)
assert counts.sum() == trace.ids_TLK.size
assert trace.ids_TLK.nbytes < 1e9 or found.is_sampled
"""


def save_large(path: Path, tokens: int, layers: int, experts: int, top_k: int) -> None:
    """Sequences of 500 tokens: blocks of 5,000 distinct tokens, over and over."""
    block = uniform_ids(np.random.default_rng(0), 5000, layers, experts, top_k).astype(np.uint8)
    rounds = tokens // len(block)
    trace_of(np.tile(block, (rounds, 1, 1)), experts, [500] * (10 * rounds)).save(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are released on Linux")
def test_a_gigabyte_is_read_with_little_memory(tmp_path: Path) -> None:
    save_large(tmp_path / "large.safetensors", 2_700_000, 48, 128, 8)
    save_large(tmp_path / "small.safetensors", 5000, 48, 128, 8)
    for size in ("small", "large"):  # the first run compiles, which takes memory of its own
        arguments = [str(tmp_path / f"{name}.safetensors") for name in ("small", size)]
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
        )
    file, read, studied = map(int, run.stdout.split())
    print(f"{file / MB:.0f} MB: {read / MB:.0f} MB to read, {studied / MB:.0f} MB to study")
    assert file > 1e9
    assert read > 1 * MB, "the peak is of this read"
    assert read < 100 * MB
    assert studied < 200 * MB


def test_215_000_tokens_of_24_layers_take_seconds(tmp_path: Path) -> None:
    """15 s for the whole process; CPU seconds, so that a busy machine fails no test."""
    path = tmp_path / "t.safetensors"
    save_large(path, 215_000, 24, 32, 4)
    assert RoutingTrace.open(path).tokens == 215_000
    command = [sys.executable, "-m", "moesim", "trace", "info", str(path), "--json"]
    subprocess.run(command, capture_output=True, check=True)  # compiles
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    print(f"{cpu_s:.1f} s of CPU, {time.perf_counter() - started:.1f} s")
    assert cpu_s < 15
