"""The kinds of attention layers, and what each keeps of a request's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The index cache holds fp8 keys with one float32 scale per 128 values (DeepSeek-V3.2 inference
# code, `act_quant`; vLLM `DeepseekV32IndexerCache`: 132 bytes for 128 values).
INDEX_BYTES_PER_VALUE = 1.0 + 4.0 / 128


@dataclass(frozen=True)
class Attention:
    """One softmax layer's attention. `gqa` covers multi-head and multi-query attention too.

    For `mla` (multi-head latent attention) `head_dim` is nope + rope, `kv_heads` equals `heads`
    and the cache holds `kv_lora_rank + rope_head_dim` values per token; for `gqa` the five
    MLA fields are 0 except `v_head_dim`, which equals `head_dim`. With an `output_gate` the query
    projection is twice as wide; its second half gates the output.
    """

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool
    qk_norm: bool
    sinks: bool
    q_lora_rank: int
    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    v_head_dim: int
    output_bias: bool = False
    qk_norm_weights: int = 0  # weights of the query and key norms together, in one layer
    output_gate: bool = False

    @property
    def cached_values_per_token(self) -> int:
        """Values that one token adds to the KV cache in one layer, before any sharding."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def query_heads(self) -> int:
        """Heads that the query projection computes, gates included."""
        return 2 * self.heads if self.output_gate else self.heads


@dataclass(frozen=True)
class SparseIndex:
    """DeepSeek sparse attention: an indexer scores every cached token, attention reads `top_k`.

    `layers` have an indexer, with keys of its own in the cache; the others use the choice of the
    last layer before them that has. Attention is on the latent itself, in prefill too.
    Source: DeepSeek-V3.2-Exp report (2025-09), equation 1.
    """

    heads: int
    head_dim: int
    top_k: int
    layers: tuple[int, ...]

    @property
    def key_bytes(self) -> float:
        """Bytes of one token's index key in one layer, whole on every GPU."""
        return self.head_dim * INDEX_BYTES_PER_VALUE


@dataclass(frozen=True)
class LinearAttention:
    """Gated delta-rule layers (Qwen3-Next, Qwen3.5): a state of fixed size instead of a KV cache.

    A request keeps, in each of `layers`, one [key_head_dim, value_head_dim] matrix per value head
    in float32 (`mamba_ssm_dtype`) and the last `conv_kernel - 1` inputs of the convolution in
    bfloat16, however long it is. Source: transformers 4.57, `modeling_qwen3_next.py`.
    """

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    layers: tuple[int, ...]

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_head_dim

    @property
    def small_weights(self) -> int:
        """Weights of one layer beside its projections: convolution, decay, time step and norm."""
        channels = 2 * self.key_width + self.value_width
        return channels * self.conv_kernel + 2 * self.value_heads + self.value_head_dim

    @property
    def state_bytes(self) -> float:
        """Bytes that one request keeps in one layer, before any sharding."""
        matrices = self.value_heads * self.key_head_dim * self.value_head_dim * 4.0
        inputs = (2 * self.key_width + self.value_width) * (self.conv_kernel - 1) * 2.0
        return matrices + inputs

    @property
    def flops_per_token(self) -> float:
        """Delta rule of one token in one layer: decay, read, correct, write and query the state,
        8 FLOP per value of it (decay 1, k S 2, the update 3, q S 2)."""
        return 8.0 * self.value_heads * self.key_head_dim * self.value_head_dim
