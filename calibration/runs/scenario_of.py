"""A measured run as a scenario: the model, the machine and the load it was measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.runs.recipes import Client, Server, client_of, server_of
from calibration.runs.rows import SiliconRun
from moesim.errors import InputError
from moesim.hardware import load_gpu
from moesim.scenario import Scenario

GPUS = {
    "a100_sxm": "a100-80g",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "l40s": "l40s",
}
# Presets by what the measured model's name holds; quantised checkpoints have the same shape.
MODELS = (
    ("DeepSeek-R1", "deepseek-v3"),
    ("DeepSeek-V3", "deepseek-v3"),
    ("MiniMax-M2", "minimax-m2"),
    ("gpt-oss-120b", "gpt-oss-120b"),
    ("Qwen3.5-397B", "qwen3.5-397b-a17b"),
    ("Qwen3-235B", "qwen3-235b-a22b"),
    ("Qwen3-32B", "qwen3-32b"),
    ("Kimi-K2.5", "kimi-k2.5"),
    ("GLM-5", "glm-5"),
    ("Llama-3.1-8B", "llama-3.1-8b"),
    ("Llama-3.1-70B", "llama-3.1-70b"),
)
# attention_dp_config of InferenceX's TensorRT-LLM scripts (recipes.csv names the commit).
RANKS_BALANCED = {"balance_ranks": True, "batching_wait_iters": 0, "timeout_iters": 60}


def model_name(run: SiliconRun) -> str:
    """The preset of a measured model; InputError for a model that has none."""
    for part, preset in MODELS:
        if part in run.model:
            return preset
    raise InputError("model", "must be one of the measured models with a preset", run.model)


def weight_formats(run: SiliconRun) -> tuple[str, str | None]:
    """(weights, experts) as a scenario's precision names them.

    NVFP4 checkpoints of MoE models leave attention in bfloat16 (exclude_modules of
    hf_quant_config.json of nvidia/DeepSeek-V3.1-NVFP4, GLM-5-NVFP4, Qwen3.5-397B-A17B-NVFP4 and
    MiniMax-M2.5-NVFP4); dense ones quantise everything but the LM head.
    """
    if "gpt-oss" in run.model:
        return "bf16", "mxfp4"  # the only checkpoint there is; fp4 and fp8 name the activations
    if run.precision == "int4":
        return "bf16", "int4"
    if run.precision == "fp4":
        return ("bf16", "nvfp4") if run.is_moe else ("nvfp4", None)
    if run.precision == "fp8" or "fp8" in run.model.lower() or run.moe_format.startswith("fp8"):
        return "fp8", None
    return ("fp8", None) if "DeepSeek" in run.model else ("bf16", None)


def scenario_of(
    run: SiliconRun, profile: str = "assumed", engine_version: str | None = None, **overrides: Any
) -> Scenario:
    """The scenario of a run whose labels are already repaired. Raises InputError.

    `overrides` replaces top-level fields of the scenario.
    """
    client, server = client_of(run), server_of(run)
    if run.concurrency is None:
        raise InputError("concurrency", "is not known of this run", run.id)
    weights, experts = weight_formats(run)
    given: dict[str, Any] = {
        "name": run.id[:200],
        "model": model_name(run),
        "precision": {"weights": weights, "experts": experts, "kv_cache": server.kv_format},
        "cluster": _cluster(run),
        "deployment": {
            "engine": run.engine,
            "parallelism": {
                "attention_tp": run.parallel.tp,
                "attention_dp": run.parallel.attention_dp,
                "expert_parallel": run.parallel.moe_ep if run.is_moe else 1,
                "pipeline": run.parallel.pipeline,
            },
            "batching": batching_of(run, server),
            "kv_cache": kv_cache_of(server),
            "profile": profile,
            "engine_version": engine_version,
        },
        "workload": workload_of(run, client),
        "measure": {"warmup": "none"},
        "seed": 0,
    }
    return Scenario.parse({**given, **overrides})


def workload_of(run: SiliconRun, client: Client) -> dict[str, Any]:
    """The closed loop of a run: lengths by the client's range rule, outputs never cut short."""
    assert run.concurrency is not None
    lengths = {
        name: {"fixed": tokens}
        if client.range_ratio == 1.0
        else {"range_ratio": {"tokens": tokens, "ratio": client.range_ratio}}
        for name, tokens in (("prompt", run.isl), ("output", run.osl))
    }
    return {
        "arrivals": {"closed_loop": {"concurrency": run.concurrency}},
        "requests": client.prompts_per_slot * run.concurrency,
        "max_output_tokens": "exact",
        **lengths,
    }


def batching_of(run: SiliconRun, server: Server) -> dict[str, Any]:
    """The engine's scheduler settings."""
    budget = server.token_budget
    if run.engine == "sglang":
        settings: dict[str, Any] = {
            "policy": "prefill-first",
            "recv_interval": server.recv_interval,
        }
        if budget is not None:
            settings["max_prefill_tokens"] = max(16_384, budget)
    elif run.engine == "trtllm":
        settings = {
            "policy": "in-flight",
            "chunked_prefill": server.chunked,
            "wait_iters": server.wait_iters,
            "wait_token_ratio": server.wait_token_ratio,
        }
        if run.from_inferencex and run.parallel.attention_dp > 1:
            settings |= RANKS_BALANCED
        if not server.chunked:  # the run was measured, so its prompts were not refused
            budget = max(budget or 8192, run.isl + 64)
    else:
        settings = {"policy": "chunked-prefill"}
    return {**settings, "token_budget": budget, "max_requests": server.max_requests}


def kv_cache_of(server: Server) -> dict[str, Any]:
    """How much memory the engine takes: its own fraction, which a scenario reads as it does."""
    return {"prefix_caching": False, "utilisation": server.memory_fraction}


def _cluster(run: SiliconRun) -> dict[str, Any]:
    if run.gpu not in GPUS:
        raise InputError("gpu", f"must be one of {', '.join(GPUS)}", run.gpu)
    gpu = load_gpu(GPUS[run.gpu])
    per_node = 4 if gpu.name.endswith("nvl72") else 8
    return {
        "gpu": gpu.name,
        "gpus_per_node": per_node,
        "nodes": max(1, -(-run.parallel.gpus // per_node)),
    }


def model_config(run: SiliconRun, package: Path) -> Path:
    """The real config.json of a run's model in aiconfigurator-core."""
    renamed = {
        "zhipuai/GLM-5": "zai-org/GLM-5",
        "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
        "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
        "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
        "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
        "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    }
    name = renamed.get(run.model, run.model).replace("/", "--")
    return package / "model_configs" / f"{name}_config.json"
