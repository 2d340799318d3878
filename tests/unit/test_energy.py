"""Energy by hand, and its parts."""

from __future__ import annotations

import pandas as pd
import pytest

from moesim.costs.profile import PowerProfile
from moesim.figures.energy import JOULES_PER_KWH, energy_summary

REQUESTS = pd.DataFrame(
    {
        "status": ["completed", "completed", "rejected"],
        "arrival_s": [1.0, 2.0, 3.0],
        "finish_s": [5.0, 9.0, float("nan")],
        "prompt_tokens": [30, 20, 99],
        "output_tokens": [4, 6, 99],
    }
)
STEPS = pd.DataFrame(
    {
        "start_s": [1.0, 4.0, 6.0],
        "duration_s": [2.0, 2.0, 3.0],
        "overhead_s": [0.5, 0.0, 1.0],
        "prefill_tokens": [50, 0, 0],
    }
)
POWER = PowerProfile(idle_fraction=0.1, prefill_fraction=0.9, decode_fraction=0.5)


def summary(gpus: int = 2, replicas: int = 1, stages: int = 1) -> dict[str, float | None]:
    shapes = [(gpus, replicas, stages)]
    return energy_summary(REQUESTS, [STEPS], shapes=shapes, power_w=100.0, power=POWER)


def test_a_run_of_three_steps_by_hand() -> None:
    """From 1 to 9 s on two GPUs of 100 W: 1.5 s of prefill, 2 + 2 s of decode, the rest idle."""
    energy = summary()
    prefill, decode, idle = 2 * 1.5 * 90, 2 * 4.0 * 50, 2 * (8 - 5.5) * 10
    assert energy["prefill_kwh"] == pytest.approx(prefill / JOULES_PER_KWH)
    assert energy["decode_kwh"] == pytest.approx(decode / JOULES_PER_KWH)
    assert energy["idle_kwh"] == pytest.approx(idle / JOULES_PER_KWH)
    whole = prefill + decode + idle
    assert energy["kwh"] == pytest.approx(whole / 3.6e6)
    assert energy["mean_power_w_per_gpu"] == pytest.approx(whole / 16)
    assert energy["joules_per_request"] == pytest.approx(whole / 2)
    assert energy["joules_per_output_token"] == pytest.approx(whole / 10)
    assert energy["prefill_joules_per_input_token"] == pytest.approx(prefill / 50)
    assert energy["decode_joules_per_output_token"] == pytest.approx(decode / 10)


def test_a_stage_of_a_pipeline_is_some_of_the_gpus() -> None:
    """Summed over stages a step lasts twice as long, on half the GPUs."""
    one, two = summary(), summary(stages=2)
    assert two["prefill_kwh"] == pytest.approx((one["prefill_kwh"] or 0) / 2)


def test_nothing_done_takes_nothing() -> None:
    none = energy_summary(
        REQUESTS.iloc[:0], [STEPS.iloc[:0]], shapes=[(2, 1, 1)], power_w=1.0, power=POWER
    )
    assert none["kwh"] == 0
    assert none["joules_per_output_token"] is None


def test_pools_of_different_size_add_up() -> None:
    """The first step on four GPUs, the others on one."""
    shapes = [(4, 1, 1), (1, 1, 1)]
    steps = [STEPS.iloc[:1], STEPS.iloc[1:]]
    energy = energy_summary(REQUESTS, steps, shapes=shapes, power_w=100.0, power=POWER)
    prefill, decode, idle = 4 * 1.5 * 90, 1 * 4.0 * 50, (5 * 8 - 4 * 1.5 - 4.0) * 10
    assert energy["kwh"] == pytest.approx((prefill + decode + idle) / 3.6e6)
