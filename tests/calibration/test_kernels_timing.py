"""The arithmetic of timing, with a clock that the test makes itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from calibration.kernels.measure import plausible
from calibration.kernels.points import Measurement, Point
from calibration.kernels.timing import (
    ATTEMPTS,
    MOST_CALLS,
    Call,
    Effort,
    HostTimer,
    judge,
    time_calls,
)
from moesim.hardware import load_gpu

CALL_S = 1e-5
EFFORT = Effort(samples=8, sample_s=4e-3, list_s=1e-3, most_spread=0.05)


class Clock:
    """Every call takes CALL_S; sample number i is longer by the factor `noise[i % len]`."""

    launch = "graph"

    def __init__(self, noise: Sequence[float] = (1.0,)) -> None:
        self.noise, self.asked, self.recorded = noise, 0, 0

    def record(self, calls: Sequence[Call]) -> Call:
        self.recorded = len(calls)
        return HostTimer().record(calls)

    def seconds(self, run: Call, repeats: int) -> float:
        before = len(DONE)
        for _ in range(repeats):
            run()
        self.asked += 1
        return (len(DONE) - before) * CALL_S * self.noise[self.asked % len(self.noise)]


DONE: list[int] = []


def calls(number: int) -> list[Call]:
    return [lambda i=i: DONE.append(i) for i in range(number)]  # type: ignore[misc]


def test_the_median_is_of_one_call_however_many_are_timed_together() -> None:
    for number in (1, 3, 200):
        found = time_calls(Clock(), calls(number), "k", EFFORT)
        assert found.seconds == pytest.approx(CALL_S)
        assert found.sound
        assert (found.samples, found.kernel, found.launch) == (8, "k", "graph")


def test_short_calls_are_listed_until_the_list_is_long_enough() -> None:
    clock = Clock()
    time_calls(clock, calls(3), "k", EFFORT)
    assert clock.recorded * CALL_S >= EFFORT.list_s
    assert clock.recorded % 3 == 0  # whole rounds over the operands
    time_calls(clock, calls(MOST_CALLS), "k", EFFORT)
    assert clock.recorded == MOST_CALLS


def test_every_operand_is_used_equally_often() -> None:
    DONE.clear()
    time_calls(Clock(), calls(7), "k", EFFORT)
    assert len(set(np.bincount(DONE).tolist())) == 1


def test_scattered_samples_are_refused_after_several_attempts_and_say_so() -> None:
    clock = Clock(noise=(1.0, 1.2))
    found = time_calls(clock, calls(4), "k", EFFORT)
    assert not found.sound
    assert "spread 1" in found.why
    assert "5% allowed" in found.why
    assert clock.asked == 4 + ATTEMPTS * EFFORT.samples


def test_one_outlier_neither_moves_the_median_nor_refuses_it() -> None:
    found = judge(np.array([1.0] * 8 + [50.0]), "k", "graph", 0.05)
    assert (found.seconds, found.spread, found.sound) == (1.0, 0.0, True)


def test_no_time_is_no_measurement() -> None:
    assert "no time passed" in judge(np.zeros(5), "k", "graph", math.inf).why


def test_a_time_beyond_the_speed_of_light_is_refused() -> None:
    gpu = load_gpu("h100-sxm")
    gemm = Point("gemm", (("dtype", "bfloat16"), ("n", 8192), ("k", 8192)), 8192)
    light_s = 2 * 8192**3 / gpu.flops("bf16")
    for factor, sound in ((0.5, False), (0.84, False), (0.86, True), (1.3, True)):
        measured = Measurement(factor * light_s, 0.0, 9, "torch_mm", "graph")
        assert plausible(gemm, measured, gpu).sound is sound
    assert (
        "2.00 times as fast"
        in plausible(gemm, Measurement(0.5 * light_s, 0.0, 9, "torch_mm", "graph"), gpu).why
    )
