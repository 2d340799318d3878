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
        late, peak_bytes = _watch(process.pid, limit_s)
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
        # What wait4 tells includes the memory of this process, from which the other was forked.
        peak_bytes=peak_bytes or usage.ru_maxrss * 1024,
        status=process.returncode,
        told="" if process.returncode == 0 else told,
        late=late,
    )


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Bytecode is kept even where the shell says otherwise: a user's is."""
    given = {**os.environ, **ONE_THREAD, **(more or {})}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


def _watch(pid: int, limit_s: float) -> tuple[bool, int]:
    """Wait for a process, which is left for wait4 to collect: (whether its time is over, the most
    bytes of resident memory it had)."""
    end_s = time.monotonic() + limit_s
    wait_s, peak_bytes = 0.001, 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak_bytes = max(peak_bytes, _peak_bytes(pid))
        if time.monotonic() > end_s:
            return True, peak_bytes
        time.sleep(wait_s)
        wait_s = min(0.01, wait_s * 1.5)
    return False, peak_bytes


def _peak_bytes(pid: int) -> int:
    """Linux's high-water mark of a process; 0 where it is not told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else 0
