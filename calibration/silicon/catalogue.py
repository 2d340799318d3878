"""Which tables are read, and what their columns mean.

Every table becomes curves: rows with equal keys, a positive axis, and seconds. Sources of the
meanings: column names, `collector/` and `sdk/perf_database.py` of ai-dynamo/aiconfigurator 0.12;
message sizes of collectives are elements (a megabyte reading would exceed NVLink's bandwidth).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Folder of the package -> name of the GPU in moesim.
GPUS: Mapping[str, str] = {
    "a100_sxm": "a100-80g",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "gb200": "gb200-nvl72",
    "l40s": "l40s",
}
ENGINES = ("vllm", "sglang", "trtllm")
BALANCED = "balanced"


@dataclass(frozen=True)
class Table:
    """One kind of table. `keys` maps our key to the column it is read from."""

    name: str
    family: str
    file: str
    keys: Mapping[str, str]
    axis: str
    axis_from: str


_ATTENTION = {
    "kernel": "kernel_source",
    "dtype": "attn_dtype",
    "kv_dtype": "kv_cache_dtype",
    "heads": "num_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window": "window_size",
    "batch": "batch_size",
}
_MLA = {
    "kernel": "kernel_source",
    "dtype": "mla_dtype",
    "kv_dtype": "kv_cache_dtype",
    "heads": "num_heads",
    "batch": "batch_size",
}
_MLA_MODULE = {
    "kernel": "kernel_source",
    "dtype": "mla_dtype",
    "kv_dtype": "kv_cache_dtype",
    "gemm_dtype": "gemm_type",
    "heads": "num_heads",
    "batch": "batch_size",
}
_DSA_MODULE = {**_MLA_MODULE, "architecture": "architecture"}
_MOE = {
    "kernel": "kernel_source",
    "dtype": "moe_dtype",
    "hidden": "hidden_size",
    "inter": "inter_size",
    "topk": "topk",
    "experts": "num_experts",
    "tp": "moe_tp_size",
    "ep": "moe_ep_size",
    "distribution": "distribution",
}
_DEEPEP = {
    "kernel": "kernel_source",
    "phase": "phase",
    "nodes": "node_num",
    "hidden": "hidden_size",
    "topk": "num_topk",
    "experts": "num_experts",
}
_EXCHANGE = {
    "dtype": "comm_dtype",
    "ep": "ep_size",
    "nodes": "node_num",
    "hidden": "hidden_size",
    "topk": "topk",
    "experts": "num_experts",
}

TABLES: tuple[Table, ...] = (
    Table(
        "gemm",
        "gemm",
        "gemm_perf",
        {"kernel": "kernel_source", "dtype": "gemm_dtype", "n": "n", "k": "k"},
        "tokens",
        "m",
    ),
    Table("context_attention", "attention", "context_attention_perf", _ATTENTION, "tokens", "isl"),
    Table(
        "generation_attention", "attention", "generation_attention_perf", _ATTENTION, "kv_len", ""
    ),
    Table("context_mla", "mla", "context_mla_perf", _MLA, "tokens", "isl"),
    Table("generation_mla", "mla", "generation_mla_perf", _MLA, "kv_len", ""),
    Table("context_mla_module", "mla", "mla_context_module_perf", _MLA_MODULE, "tokens", "isl"),
    Table("generation_mla_module", "mla", "mla_generation_module_perf", _MLA_MODULE, "kv_len", ""),
    Table("wideep_context_mla", "mla", "wideep_context_mla_perf", _MLA_MODULE, "tokens", "isl"),
    Table("wideep_generation_mla", "mla", "wideep_generation_mla_perf", _MLA_MODULE, "kv_len", ""),
    Table(
        "mla_bmm",
        "mla_bmm",
        "mla_bmm_perf",
        {"kernel": "kernel_source", "phase": "op_name", "dtype": "bmm_dtype", "heads": "num_heads"},
        "tokens",
        "num_tokens",
    ),
    Table(
        "context_dsa_module",
        "sparse_attention",
        "dsa_context_module_perf",
        {**_DSA_MODULE, "prefix": "step"},
        "tokens",
        "isl",
    ),
    Table(
        "generation_dsa_module",
        "sparse_attention",
        "dsa_generation_module_perf",
        _DSA_MODULE,
        "kv_len",
        "",
    ),
    Table(  # axis: tokens of each prompt of a context batch, requests of a generation batch
        "linear_attention",
        "linear_attention",
        "gdn_perf",
        {
            "kernel": "kernel_source",
            "part": "kernel_source",
            "phase": "phase",
            "k_heads": "num_k_heads",
            "v_heads": "num_v_heads",
            "batch": "batch_size",
        },
        "tokens",
        "",
    ),
    Table(  # with scales that are known
        "quantize",
        "quantize",
        "scale_matrix_perf",
        {"kernel": "kernel_source", "dtype": "quant_dtype", "k": "k"},
        "tokens",
        "m",
    ),
    Table(  # what finding the scales takes longer than that
        "quantize_scale",
        "quantize",
        "computescale_perf",
        {"kernel": "kernel_source", "dtype": "quant_dtype", "k": "k"},
        "tokens",
        "m",
    ),
    Table("moe", "moe", "moe_perf", _MOE, "tokens", "num_tokens"),
    Table(
        "wideep_moe",
        "moe",
        "wideep_moe_perf",
        {**_MOE, "slots": "num_slots"},
        "tokens",
        "num_tokens",
    ),
    Table("deepep_context_moe", "moe", "wideep_context_moe_perf", _MOE, "tokens", "num_tokens"),
    Table(
        "deepep_generation_moe", "moe", "wideep_generation_moe_perf", _MOE, "tokens", "num_tokens"
    ),
    Table(
        "nccl",
        "comm",
        "nccl_perf",
        {"kernel": "kernel_source", "phase": "op_name", "dtype": "nccl_dtype", "gpus": "num_gpus"},
        "bytes",
        "",
    ),
    Table(
        "custom_all_reduce",
        "comm",
        "custom_allreduce_perf",
        {"kernel": "kernel_source", "dtype": "allreduce_dtype", "gpus": "num_gpus"},
        "bytes",
        "",
    ),
    Table(
        "deepep_normal",
        "comm",
        "wideep_deepep_normal_perf",
        {**_DEEPEP, "sms": "dispatch_sms"},
        "tokens",
        "num_token",
    ),
    Table("deepep_low_latency", "comm", "wideep_deepep_ll_perf", _DEEPEP, "tokens", "num_token"),
    Table(
        "moe_exchange",
        "comm",
        "moe_a2a_perf",
        {"kernel": "comm_backend", "phase": "phase", **_EXCHANGE},
        "tokens",
        "num_tokens",
    ),
    Table(
        "trtllm_exchange",
        "comm",
        "trtllm_alltoall_perf",
        {
            "kernel": "kernel_source",
            "phase": "op_name",
            "dtype": "moe_dtype",
            "ep": "moe_ep_size",
            "hidden": "hidden_size",
            "topk": "topk",
            "experts": "num_experts",
        },
        "tokens",
        "num_tokens",
    ),
)


def table(name: str) -> Table:
    """The table of that name."""
    return next(each for each in TABLES if each.name == name)
