"""NCCL's collectives between the GPUs of this machine, one process each (gloo without GPUs).

A message of b bytes is what every GPU holds: the all-reduce's operand, the all-gather's result, the
reduce-scatter's operand, an all-to-all's whole buffer (NCCL tests' sizes). Launched by the host,
many in a row; of every sample the slowest GPU's time counts.
"""

from __future__ import annotations

import queue as queues
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from calibration.kernels.device import Device, load_torch
from calibration.kernels.points import Measurement, Point, refused
from calibration.kernels.timing import Call, CudaTimer, Effort, HostTimer, Timer, judge

WAIT_S = 1.0
# All GPUs must call as often: by the message's bytes, not by the clock.
ROUND_BYTES, MOST_ROUNDS = 2**28, 100
# Launched by hosts that are not in step: small messages scatter more than kernels do.
MOST_SPREAD = 0.2


@dataclass(frozen=True)
class Job:
    """What one process needs to know; picklable."""

    gpus: int
    points: tuple[Point, ...]
    effort: Effort
    cuda: bool
    meeting: str  # a file where the processes meet


def measure_collectives(
    device: Device, points: Sequence[Point], effort: Effort
) -> Iterator[tuple[Point, Measurement]]:
    """Every point with its time, as they come; processes are ended where the caller stops."""
    ordered = sorted(points, key=lambda point: point.number("gpus"))
    for gpus, group in groupby(ordered, key=lambda point: point.number("gpus")):
        with tempfile.TemporaryDirectory() as folder:
            meeting = str(Path(folder) / "meeting")
            job = Job(gpus, tuple(group), effort, device.is_cuda, meeting)
            yield from _run(device.torch, job)


def _run(torch: Any, job: Job) -> Iterator[tuple[Point, Measurement]]:
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, job, answers), daemon=True)
        for rank in range(job.gpus)
    ]
    left = list(job.points)
    try:
        for process in processes:
            process.start()
        while left:
            try:
                point, found = answers.get(timeout=WAIT_S)
            except queues.Empty:
                if all(process.is_alive() for process in processes):
                    continue
                break
            left.remove(point)
            yield point, found
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
    for point in left:
        yield point, refused(f"a process of {job.gpus} GPUs ended early")


def work(rank: int, job: Job, answers: Any) -> None:
    """One GPU's process: the same calls as all others; rank 0 answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent acts on Ctrl-C, and ends this
    torch = load_torch()
    dist = torch.distributed
    place, backend = (f"cuda:{rank}", "nccl") if job.cuda else ("cpu", "gloo")
    if job.cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{job.meeting}", rank=rank, world_size=job.gpus
    )
    allowed = max(MOST_SPREAD, job.effort.most_spread)
    timer: Timer = CudaTimer(torch, graphs=False) if job.cuda else HostTimer()
    for point in job.points:
        samples = _samples(torch, timer, point, job, place)
        if rank == 0:
            answers.put((point, judge(samples, f"torch_{backend}", "eager", allowed)))
    dist.barrier()
    dist.destroy_process_group()


def _samples(torch: Any, timer: Timer, point: Point, job: Job, place: str) -> np.ndarray:
    """Seconds of one call, the slowest GPU's, [samples]."""
    dist = torch.distributed
    call = collective(torch, str(point.of["phase"]), point.x, job.gpus, place)
    rounds = max(2, min(MOST_ROUNDS, ROUND_BYTES // point.x)) if job.cuda else 2
    run = timer.record([call] * rounds)
    timer.seconds(run, 1)
    found = []
    for _ in range(job.effort.samples):
        dist.barrier()
        found.append(timer.seconds(run, 1) / rounds)
    slowest = torch.tensor(found, dtype=torch.float64, device=place)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return np.asarray(slowest.cpu().numpy())


def collective(torch: Any, phase: str, message_bytes: int, gpus: int, place: str) -> Call:
    """One call of a collective of half-precision values between `gpus` processes."""
    dist = torch.distributed
    part = max(1, message_bytes // 2 // gpus)
    share, whole, other = (
        torch.zeros(size, dtype=torch.float16, device=place)
        for size in (part, part * gpus, part * gpus)
    )
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, share),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(share, whole),
        "alltoall": lambda: dist.all_to_all_single(other, whole),
    }
    return calls[phase]
