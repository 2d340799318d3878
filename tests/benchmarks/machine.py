"""The machine that figures come from: what it is, and how fast its memory is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

READ_WORDS = 1 << 25  # 256 MB: larger than any cache
REPEATS = 7
PACKAGES = ("numpy", "numba", "simpy", "pandas")


def processor() -> str:
    """What the machine calls its processor; virtual ones tell little but family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    pairs = (line.partition(":")[::2] for line in reversed(lines))
    told = {name.strip(): value.strip() for name, value in pairs}
    if "model name" not in told:
        return platform.machine()
    numbers = [f"{name.removeprefix('cpu ')} {told[name]}"
               for name in ("cpu family", "model") if name in told]  # fmt: skip
    return " ".join([told["model name"], *([f"({', '.join(numbers)})"] if numbers else [])])


def describe() -> dict[str, Any]:
    """Processor, memory, system, versions and how busy the machine is now."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def bandwidth() -> dict[str, float]:
    """Bytes a second that one core reads in order, and copies; the best of some tries."""
    words = np.arange(READ_WORDS, dtype=np.int64)
    copy = np.empty_like(words)
    read_s, copy_s = [], []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        words.max()
        read_s.append(time.perf_counter() - start_s)
        start_s = time.perf_counter()
        np.copyto(copy, words)
        copy_s.append(time.perf_counter() - start_s)
    return {
        "read_bytes_per_s": words.nbytes / min(read_s),
        "copy_bytes_per_s": words.nbytes / min(copy_s),
    }
