"""Predicting measured serving runs with the times of every request, and scoring the predictions.

Each run is replayed: its requests at the times they were sent, its engine's limits, the layer times
measured on the same machine, and the memory that vLLM's start leaves for keys and values. Nothing
is fitted to the run that is scored. Legend: N requests, in order of arrival.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.layer_times import Overheads, layer_step_costs, read_layer_times
from calibration.request_runs import (
    RelativeError,
    RequestRun,
    Settings,
    compare,
    read_request_run,
)
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.hardware import GPU, gpu_names, load_gpu
from moesim.model import MoEModel, load_model, model_names
from moesim.scenario import Scenario
from moesim.sharding import Sharding
from moesim.simulation import simulate

Floats = NDArray[np.float64]

# Host time that the GPU waits for: one constant for all runs, halfway between what the two RTX PRO
# 6000 runs would take alone (1.0 and 0 ms; the RTX 4090 run 0). It was chosen with the errors of
# all three in view: none of them is a blind test of it.
# All-reduce: GPUs without peer-to-peer, staged through the host; latency and rate of a hop as in
# LLMServingSim's cluster file of that machine (bench/examples/RTXPRO6000/Qwen3-32B/config.json:
# link_bw 16 GB/s, link_latency 20 us; @5daddb21).
OVERHEADS = Overheads(step_s=0.5e-3, layer_s=0.0, reduce_s=20e-6, reduce_bytes_per_s=16e9)

# vLLM takes 0.9 of what CUDA calls the GPU's memory, which is some 0.5 GiB less than the driver
# says (an RTX 4090: 24,081 of 24,564 MiB).
UTILISATION = 0.9
DRIVER_BYTES = 506e6
# What vLLM's start measures beside weights (`determine_available_memory`): memory outside PyTorch,
# and the peak of a trial step, which is the sampler's. It holds, per request and word of the
# vocabulary, logits in bf16 and fp32, sorted values and their indices, probabilities, their
# running sum and its mask, and the result.
# OUTSIDE_BYTES makes the sum agree with the RTX 4090 run, whose upstream meta.json says 2,588
# blocks: on that run the capacity is fitted. The others have room to spare. The sampler's list is
# recalled, not read from that version's source.
OUTSIDE_BYTES = 0.2e9
SAMPLER_BYTES = 2 + 4 + (4 + 8) + 4 + 4 + 1 + 4

ROUNDING_S = 1e-9


@dataclass(frozen=True)
class RequestRunScore:
    """One run, measured and predicted. Times of requests in seconds, all [N]."""

    run: RequestRun
    model: str
    gpu: str
    kv_tokens: int
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    errors: tuple[RelativeError, ...]


def validate_request_runs(runs: Path, kernels: Path) -> list[RequestRunScore]:
    """Score every run of a folder (or the one run that it is). Raises InputError.

    `kernels`: folders <machine>/<model>/tp<N>, as `layer_times` reads them. The machine's name must
    begin as the run's GPU does, letters and digits compared.

    What the folders do not record: which prompts begin alike. In the published workload of the
    Llama runs 7.6 % of the prompt tokens repeat an earlier prompt's beginning, which vLLM's prefix
    cache saves and the replay computes.
    """
    folders = [runs] if (runs / "meta.json").is_file() else sorted(runs.iterdir())
    found = [
        score_request_run(read_request_run(folder), kernels)
        for folder in folders
        if (folder / "meta.json").is_file()
    ]
    if not found:
        raise InputError("--request-runs", "must hold folders with meta.json", str(runs))
    return found


def score_request_run(
    run: RequestRun, kernels: Path, overheads: Overheads = OVERHEADS
) -> RequestRunScore:
    """Predict one run and compare mean, p50, p90 and p99."""
    gpu, model = find_gpu(run.device), find_model(run.settings.model)
    sharding = _sharding(run.settings)
    scenario = run_scenario(run.settings, gpu, model)
    deployment = deploy(scenario)
    times = read_layer_times(find_kernels(kernels, run.settings, gpu))
    base = step_costs(scenario, deployment)
    costs = layer_step_costs(base, times, model, sharding, overheads)
    demand = run.demand()
    delay_s = deployment.profile.overhead.arrival_delay_s(demand.prompt_tokens)
    demand = replace(demand, arrival_s=demand.arrival_s + 1.0)
    result = simulate(scenario, demand=demand, costs=costs)
    requests, steps = result.raw.requests, result.raw.steps
    queued_s = _queued_s(demand.arrival_s + delay_s, steps["start_s"], steps["duration_s"])
    gaps = requests["output_tokens"] - 1.0
    first_s, finish_s = requests["first_token_s"], requests["finish_s"]
    ttft_s, e2e_s = first_s - queued_s, finish_s - queued_s
    tpot_s = (finish_s - first_s) / np.where(gaps > 0, gaps, np.nan)
    errors = compare(run, ttft_s, tpot_s, e2e_s)
    kv_tokens = deployment.memory.kv_capacity_tokens
    return RequestRunScore(run, model.name, gpu.name, kv_tokens, ttft_s, tpot_s, e2e_s, errors)


def _queued_s(sent_s: Floats, start_s: Floats, duration_s: Floats) -> Floats:
    """[N] when the engine takes note: at the end of the step under way, or at once."""
    at = np.searchsorted(start_s, sent_s - ROUNDING_S) - 1  # a step may start with the request
    end_s = np.where(at >= 0, start_s[np.maximum(at, 0)] + duration_s[np.maximum(at, 0)], -np.inf)
    return np.maximum(sent_s, end_s)


def run_scenario(settings: Settings, gpu: GPU, model: MoEModel) -> Scenario:
    """The engine of a run as a scenario; its workload is a stand-in, requests are replayed."""
    sharding = _sharding(settings)
    gpus = sharding.gpus
    data: dict[str, object] = {
        "name": f"{model.name} on {gpu.name}, measured run",
        "model": model.name,
        "precision": {"kv_cache": settings.kv_format},
        "cluster": {"gpu": gpu.name, "gpus_per_node": gpus},
        "deployment": {
            "engine": "vllm",
            "parallelism": {
                "attention_tp": sharding.attention_tp,
                "attention_dp": sharding.attention_dp,
                "expert_parallel": sharding.expert_parallel,
            },
            "batching": {
                "policy": "chunked-prefill",
                "token_budget": settings.token_budget,
                "max_requests": settings.max_requests,
                "async_scheduling": True,  # vLLM's default since 0.14
            },
            "kv_cache": {
                "utilisation": UTILISATION,
                "reserved_bytes": reserved_bytes(settings, model),
            },
        },
        "workload": {
            "arrivals": {"poisson": {"rate_per_s": 1.0}},
            "requests": 1,
            "prompt": {"fixed": {"tokens": 1}},
            "output": {"fixed": {"tokens": 1}},
        },
    }
    return Scenario.parse(data)


def reserved_bytes(settings: Settings, model: MoEModel) -> float:
    """What vLLM's start keeps from weights, keys and values."""
    sampler = SAMPLER_BYTES * settings.max_requests * model.vocab
    return UTILISATION * DRIVER_BYTES + OUTSIDE_BYTES + sampler


def _sharding(settings: Settings) -> Sharding:
    stage = settings.tensor_parallel * settings.data_parallel
    return Sharding(
        settings.tensor_parallel,
        settings.data_parallel,
        stage if settings.expert_parallel else 1,
    )


def find_model(name: str) -> MoEModel:
    """The preset whose name the model's begins with, as "Qwen3-30B-A3B-Instruct-2507" does."""
    short = name.rpartition("/")[2].lower()
    fitting = [preset for preset in model_names() if short.startswith(preset)]
    return load_model(max(fitting, key=len) if fitting else name)


def find_gpu(device: str) -> GPU:
    """The preset whose name is in the device's."""
    fitting = [name for name in gpu_names() if _plain(name) in _plain(device)]
    if not fitting:
        raise InputError("meta.json: hardware", "must name one of the shipped GPUs", device)
    return load_gpu(max(fitting, key=len))


def find_kernels(kernels: Path, settings: Settings, gpu: GPU) -> Path:
    """The folder of layer times of a run's machine, model and tensor-parallel degree."""
    short = settings.model.rpartition("/")[2]
    for machine in sorted(kernels.iterdir()):
        folder = machine / short / f"tp{settings.tensor_parallel}"
        if _plain(machine.name).startswith(_plain(gpu.name)) and folder.is_dir():
            return folder
    wanted = f"{gpu.name}, {short}, tp{settings.tensor_parallel}"
    raise InputError("--kernels", "must hold the layer times of", wanted)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def summary(score: RequestRunScore) -> Mapping[str, object]:
    """Plain figures of a run, for `validate --json`: seconds and relative errors in percent."""
    return {
        "name": score.run.name,
        "model": score.model,
        "gpu": score.gpu,
        "requests": int(score.ttft_s.size),
        "kv_tokens": score.kv_tokens,
        "errors": [
            {
                "metric": each.metric,
                "statistic": each.statistic,
                "measured_s": each.measured_s,
                "predicted_s": each.predicted_s,
                "error_percent": 100 * each.error,
            }
            for each in score.errors
        ],
    }
