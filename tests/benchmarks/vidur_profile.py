"""Operator timings in the form that Vidur learns from, for Llama-2-70B on four A100s.

Vidur 0.0.26 fetches recorded timings from a hub; these come from a roofline instead, so that it
runs without a network. Where they come from does not change how fast it is; how many steps they
make does, and `peers.py` reports these. Peak rates are the A100 80 GB datasheet's (NVIDIA, 2021:
312 TFLOP/s bf16, 2,039 GB/s, 600 GB/s NVLink in both directions), of which the fractions below are
reached: with them a step takes about as long as moesim's.
"""

from __future__ import annotations

import csv
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

MODEL, DEVICE, NETWORK = "meta-llama/Llama-2-70b-hf", "a100", "a100_dgx"
TENSOR_PARALLEL = 4
FLOP_PER_MS, BYTES_PER_MS, LINK_BYTES_PER_MS = 0.6 * 312e9, 0.7 * 2.039e9, 0.7 * 300e6
LAUNCH_MS = 0.005
WIDTH, KV_WIDTH, INNER, VOCABULARY = 8192, 1024, 28_672, 32_768
BYTES = 2  # bf16
BLOCK_TOKENS = 16
TOKENS = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128)
CONTEXTS = (0, 256, 512, 1024, 2048, 4096)

Row = Mapping[str, object]


def _gemm_ms(tokens: int, inputs: int, outputs: int) -> float:
    weights = inputs * outputs / TENSOR_PARALLEL
    return LAUNCH_MS + max(2 * tokens * weights / FLOP_PER_MS, weights * BYTES / BYTES_PER_MS)


def _light_ms(tokens: int, width: int) -> float:
    return LAUNCH_MS / 2 + 2 * tokens * width * BYTES / BYTES_PER_MS


def compute_rows() -> Iterator[Row]:
    """Times of a layer's dense operators by number of tokens."""
    shared = {
        "n_head": 64,
        "n_kv_head": 8,
        "n_embd": WIDTH,
        "n_expanded_embd": INNER,
        "use_gated_mlp": True,
        "vocab_size": VOCABULARY,
        "num_tensor_parallel_workers": TENSOR_PARALLEL,
    }
    for tokens in TOKENS:
        times_ms = {
            "attn_pre_proj": _gemm_ms(tokens, WIDTH, WIDTH + 2 * KV_WIDTH),
            "attn_post_proj": _gemm_ms(tokens, WIDTH, WIDTH),
            "mlp_up_proj": _gemm_ms(tokens, WIDTH, 2 * INNER),
            "mlp_down_proj": _gemm_ms(tokens, INNER, WIDTH),
            "mlp_act": _light_ms(tokens, 2 * INNER // TENSOR_PARALLEL),
            "input_layernorm": _light_ms(tokens, WIDTH),
            "post_attention_layernorm": _light_ms(tokens, WIDTH),
            "attn_rope": _light_ms(tokens, WIDTH // TENSOR_PARALLEL),
            "add": _light_ms(tokens, WIDTH),
        }
        yield {**shared, "num_tokens": tokens, **_medians(times_ms)}


def attention_rows() -> Iterator[Row]:
    """Times of a layer's attention: chunks of prompts, and batches that decode."""
    shared = {
        "n_embd": WIDTH,
        "n_q_head": 64,
        "n_kv_head": 8,
        "block_size": BLOCK_TOKENS,
        "num_tensor_parallel_workers": TENSOR_PARALLEL,
    }
    for context in CONTEXTS:
        for chunk in TOKENS[3:]:
            flop = 4 * chunk * (context + chunk / 2) * WIDTH / TENSOR_PARALLEL
            times_ms = {
                "attn_kv_cache_save": _light_ms(chunk, KV_WIDTH),
                "attn_prefill": LAUNCH_MS + flop / FLOP_PER_MS,
                "attn_decode": 0.0,
            }
            sizes = {"prefill_chunk_size": chunk, "batch_size": 1, "kv_cache_size": context}
            yield {**shared, **sizes, **_medians(times_ms)}
        for batch in BATCHES:
            kv_bytes = batch * context * 2 * KV_WIDTH * BYTES / TENSOR_PARALLEL
            times_ms = {
                "attn_kv_cache_save": _light_ms(batch, KV_WIDTH),
                "attn_prefill": 0.0,
                "attn_decode": LAUNCH_MS + kv_bytes / BYTES_PER_MS,
            }
            sizes = {"prefill_chunk_size": 0, "batch_size": batch, "kv_cache_size": context}
            yield {**shared, **sizes, **_medians(times_ms)}


def all_reduce_rows() -> Iterator[Row]:
    """Times of an all-reduce within the replica, by bytes."""
    for tokens in TOKENS:
        size = tokens * WIDTH * BYTES
        moved = 2 * (TENSOR_PARALLEL - 1) / TENSOR_PARALLEL * size
        yield {
            "num_workers": TENSOR_PARALLEL,
            "devices_per_node": TENSOR_PARALLEL,
            "collective": "all_reduce",
            "size": size,
            **_medians({"all_reduce": 0.010 + moved / LINK_BYTES_PER_MS}),
        }


def _medians(times_ms: Mapping[str, float]) -> dict[str, float]:
    return {f"time_stats.{name}.median": time_ms for name, time_ms in times_ms.items()}


def write(folder: Path) -> tuple[Path, Path]:
    """The two folders that Vidur would fetch: of the model, and of the network."""
    compute, network = folder / "compute", folder / "network"
    for path in (compute, network):
        path.mkdir(parents=True, exist_ok=True)
    _write_table(compute / "mlp.csv.xz", compute_rows())
    _write_table(compute / "attention.csv.xz", attention_rows())
    _write_table(network / "all_reduce.csv.xz", all_reduce_rows())
    (compute / "config.json").write_text(json.dumps({"model": MODEL, "device_sku": DEVICE}))
    (network / "config.json").write_text(json.dumps({"sku": NETWORK}))
    return compute, network


def _write_table(path: Path, rows: Iterable[Row]) -> None:
    listed = list(rows)
    with lzma.open(path, "wt", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(listed[0]))
        table.writeheader()
        table.writerows(listed)
