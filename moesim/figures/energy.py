"""What a run takes in energy, by phase: GPUs only, without hosts, switches and cooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.costs.profile import PowerProfile
from moesim.figures.columns import Table, equal, floats, known, total
from moesim.figures.steps import ends_s
from moesim.units import HOUR

JOULES_PER_KWH = 1000.0 * HOUR


def energy_summary(
    requests: Table,
    steps: Sequence[Table],
    *,
    shapes: Sequence[tuple[int, int, int]],
    power_w: float,
    power: PowerProfile,
) -> dict[str, float | None]:
    """Energy of all GPUs from the first arrival to the end of the last step, and per token.

    A step with prompts draws `prefill_fraction` of `power_w` on every GPU of its stage, any other
    step (dummies too) `decode_fraction`; while the GPUs wait for the engine's own work, and at all
    other times, they draw `idle_fraction`. So kwh = prefill_kwh + decode_kwh + idle_kwh.
    `steps` and (GPUs, replicas, stages) are those of each pool, or of the one deployment.
    Per token: prefill energy over prompt tokens that were computed or found, decode energy and the
    whole over output tokens, of completed requests; the whole over completed requests.
    """
    prefill_s = decode_s = 0.0
    for own, (gpus, replicas, stages) in zip(steps, shapes, strict=True):
        stage_gpus = gpus / (replicas * stages)
        # A pipeline step's duration is the sum over its stages, each on GPUs of its own.
        busy_s = floats(own, "duration_s") - floats(own, "overhead_s")
        prompts = floats(own, "prefill_tokens") > 0
        prefill_s += float(busy_s[prompts].sum()) * stage_gpus
        decode_s += float(busy_s[~prompts].sum()) * stage_gpus
    all_gpus = sum(gpus for gpus, *_ in shapes)
    idle_s = max(0.0, _span_s(requests, steps) * all_gpus - prefill_s - decode_s)
    parts = {
        "prefill": prefill_s * power.prefill_fraction * power_w,
        "decode": decode_s * power.decode_fraction * power_w,
        "idle": idle_s * power.idle_fraction * power_w,
    }
    joules = sum(parts.values())
    gpu_s = prefill_s + decode_s + idle_s
    done = requests[equal(requests, "status", "completed")]
    prompt_tokens, output_tokens = total(done, "prompt_tokens"), total(done, "output_tokens")
    return {
        "kwh": joules / JOULES_PER_KWH,
        **{f"{phase}_kwh": part / JOULES_PER_KWH for phase, part in parts.items()},
        "mean_power_w_per_gpu": joules / gpu_s if gpu_s > 0 else None,
        "joules_per_request": joules / len(done) if len(done) else None,
        "joules_per_output_token": joules / output_tokens if output_tokens else None,
        "prefill_joules_per_input_token": parts["prefill"] / prompt_tokens
        if prompt_tokens
        else None,
        "decode_joules_per_output_token": parts["decode"] / output_tokens
        if output_tokens
        else None,
    }


def _span_s(requests: Table, steps: Sequence[Table]) -> float:
    """From the first arrival to the end of the last step."""
    last = [ends_s(own).max() for own in steps if len(own)]
    if not last:
        return 0.0
    last_s = float(max(*last, known(requests, "finish_s").max(initial=-np.inf)))
    return last_s - float(known(requests, "arrival_s").min())
