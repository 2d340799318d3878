"""Commands in processes of their own, timed from outside: wall clock, processor, peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOLD_CHARACTERS = 400
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Ran:
    """How a process ended. `peak_bytes`: of its resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    status: int
    told: str  # the end of what it printed, where it failed
    late: bool = False  # ended because its time was over


def run(
    command: Sequence[str],
    folder: Path,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """Run a command in `folder`, on one thread, for at most `limit_s`."""
    with tempfile.TemporaryFile() as output:
        start_s = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = not _ends(process.pid, limit_s)
        if late:
            os.killpg(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        told = output.read().decode(errors="replace").strip()[-TOLD_CHARACTERS:]
    return Ran(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        status=process.returncode,
        told="" if process.returncode == 0 else told,
        late=late,
    )


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Bytecode is kept even where the shell says otherwise: a user's is."""
    given = {**os.environ, **ONE_THREAD, **(more or {})}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


def _ends(pid: int, limit_s: float) -> bool:
    """Whether a process ends in time; it is left for wait4 to collect."""
    end_s = time.monotonic() + limit_s
    wait_s = 0.001
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end_s:
            return False
        time.sleep(wait_s)
        wait_s = min(0.01, wait_s * 1.5)
    return True
