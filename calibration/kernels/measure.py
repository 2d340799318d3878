"""Measure a plan's points one after the other, each kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from calibration.kernels.collectives import measure_collectives
from calibration.kernels.device import Device
from calibration.kernels.operations import Bench, Calls, builders
from calibration.kernels.points import Measurement, Point, PointStore, refused
from calibration.kernels.timing import CudaTimer, Effort, HostTimer, Timer, time_calls
from moesim.costs.measured.expert_work import ExpertShape, count_work, light_s
from moesim.costs.measured.light import (
    CACHE_BYTES,
    context_attention_work,
    gemm_work,
    generation_attention_work,
)
from moesim.hardware import GPU

Tell = Callable[[int, int], None]
Build = Callable[[Point, Bench], Calls]
# No time is shorter than this share of what the datasheet allows: boost clocks lie a few percent
# above those of the datasheet's rates; more means another GPU, or operands found in a cache.
LEAST_OF_LIGHT = 0.85
# For the estimate: operands, warm-up and capture of a point; kernels beside their speed of light; a
# process of a collective.
SETUP_S, PER_LIGHT, PROCESS_S, COLLECTIVE_S = 0.15, 2.0, 15.0, 0.1
CPU_POINT_S = 0.02


def measure_points(
    device: Device,
    gpu: GPU,
    points: Sequence[Point],
    store: PointStore,
    effort: Effort,
    tell: Tell = lambda done, total: None,
) -> None:
    """Measure those of the points that the store has no sound time of; `tell` counts all."""
    todo = store.todo(points)
    done = len(points) - len(todo)
    tell(done, len(points))
    alone = [point for point in todo if point.table != "nccl"]
    together = [point for point in todo if point.table == "nccl"]
    bench, makers = Bench(device), builders()
    timer: Timer = CudaTimer(device.torch) if device.is_cuda else HostTimer()
    if alone:
        device.spin_up()
        bench.synchronize()
    found: Iterable[tuple[Point, Measurement]]
    for found in (
        ((point, attempt(bench, timer, point, effort, makers)) for point in alone),
        measure_collectives(device, together, effort),
    ):
        for point, measured in found:
            sound = measured if not device.is_cuda else plausible(point, measured, gpu)
            store.add(point, sound)
            done += 1
            tell(done, len(points))
        bench.release()


def attempt(
    bench: Bench, timer: Timer, point: Point, effort: Effort, makers: Mapping[str, Build]
) -> Measurement:
    """One point's time; what torch or the memory refuses is a measurement with a reason.

    torch's scaled and grouped multiplications are private: a version that lacks one, or takes other
    arguments, raises AttributeError or TypeError, which costs that point and not the session.
    """
    try:
        calls, kernel = makers[point.table](point, bench)
        return time_calls(timer, calls, kernel, effort)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError) as error:
        bench.release()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return refused(lines[0][:200])


def plausible(point: Point, found: Measurement, gpu: GPU) -> Measurement:
    """Refused where the time beats the datasheet."""
    light = point_light_s(point, gpu)
    if not found.sound or found.seconds >= LEAST_OF_LIGHT * light:
        return found
    why = f"{light / found.seconds:.2f} times as fast as the datasheet of {gpu.name} allows"
    return Measurement(**{**vars(found), "why": why})


def point_light_s(point: Point, gpu: GPU) -> float:
    """The time that the datasheet's rates allow at best; 0 where only links limit it."""
    of = point.of
    if point.table == "gemm":
        work = gemm_work(str(of["dtype"]), point.x, of["n"], of["k"])
        return float(work.light_s(gpu))
    if point.table.endswith("attention"):
        shape = of["heads"], of["kv_heads"], of["head_dim"], of["window"]
        how = CACHE_BYTES[str(of["kv_dtype"])], of["batch"], point.x
        if point.table == "context_attention":
            return float(context_attention_work(*shape, *how).light_s(gpu))
        return float(generation_attention_work(*shape, *how).light_s(gpu))
    if point.table == "moe":
        counts = count_work(np.array(point.counts), float(point.x), 1)
        shape_of = ExpertShape(
            *(point.number(name) for name in ("hidden", "inter", "topk", "experts"))
        )
        return float(light_s(shape_of, str(of["dtype"]), of["tp"], counts, gpu))
    if point.table == "copy" and of["phase"] == "d2d":
        return 2.0 * point.x / gpu.memory_bytes_per_s
    return 0.0


def estimated_s(device: Device, gpu: GPU, points: Sequence[Point], effort: Effort) -> float:
    """About how long measuring these points takes."""
    if not device.is_cuda:
        return CPU_POINT_S * len(points)
    total_s = 0.0
    for point in points:
        if point.table == "nccl":
            total_s += COLLECTIVE_S
            continue
        call_s = PER_LIGHT * point_light_s(point, gpu)
        total_s += SETUP_S + (effort.samples + 4) * max(effort.sample_s, call_s)
    groups = {point.of["gpus"] for point in points if point.table == "nccl"}
    return total_s + PROCESS_S * len(groups)
