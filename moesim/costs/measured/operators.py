"""The operators of one model, so sharded and stored, timed from measured kernels.

Every method answers for one layer of one GPU with a `Timing`, which says where the seconds come
from. What is summed over a step, and what the engine adds, is said in `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moesim.architecture import MoEModel
from moesim.costs.measured.dense import (
    context_attention_s,
    gemm_s,
    generation_attention_s,
)
from moesim.costs.measured.exchange import all_reduce_s
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import ExpertAnchor, exchanged_anchor, expert_anchor
from moesim.costs.measured.kernels import MeasuredKernels, version_key
from moesim.costs.measured.light import TABLE_FORMATS, Floats
from moesim.costs.measured.linear_attention import (
    linear_attention_context_s,
    linear_attention_generation_s,
)
from moesim.costs.measured.mla import MLATiming, mla_bmm_s, mla_context_s, mla_generation_s
from moesim.costs.measured.sparse_attention import dsa_context_s, dsa_generation_s
from moesim.costs.measured.timing import Timing, total
from moesim.hardware import Link
from moesim.operators import Linear, linear_operators
from moesim.precision import Precision, WeightFormat
from moesim.sharding import Sharding

# Kinds of attention layers: reading every cached token, the last `window`, or a fixed state.
FULL, WINDOW, LINEAR = range(3)
KINDS = ("attention", "window attention", "linear attention")
# A message so small that its size does not matter.
NORM_BYTES = 256.0
# A decode step of no more tokens runs shared experts on a second stream, beside the routed ones:
# vLLM VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD, SGLang DUAL_STREAM_TOKEN_THRESHOLD (in CUDA
# graphs), TensorRT-LLM maybe_execute_in_parallel (in CUDA graphs, whatever the tokens).
SECOND_STREAM_TOKENS = {"vllm": 256, "sglang": 1_024, "trtllm": 1 << 30}
# Families whose all-reduce SGLang fuses with the norm behind it by default. The families are those
# that server_args.py turns enable_flashinfer_allreduce_fusion on for; since which release is known
# only roughly (the list grew between 0.5.4 and 0.5.10), and 0.5.9 stands for "in between".
SGLANG_FUSES = {
    "deepseek_v3": "0.5.4",
    "gpt_oss": "0.5.4",
    "glm4_moe": "0.5.9",
    "qwen3_moe": "0.5.9",
    "kimi_k2": "0.5.9",
    "qwen3_5_moe_text": "0.5.10",
}
# Projections that a measured module of latent attention contains.
PROJECTIONS = ("qkv_a", "q_b", "kv_b", "o", "index_q", "index_k", "index_weights")


class AttentionFormats(NamedTuple):
    """The tables' words for what the cache holds and what projections compute in."""

    kv_dtype: str
    gemm_dtype: str


def rank_heads(model: MoEModel, sharding: Sharding) -> tuple[int, int]:
    """(query heads, key-value heads) of one GPU."""
    of, tp = model.attention, sharding.attention_tp
    return -(-of.heads // tp), max(1, of.kv_heads // tp)


@dataclass(frozen=True)
class MeasuredOperators:
    """One deployment's operators; `kernels` are those of its GPU and engine.

    `scale_out` joins the GPUs of a tensor-parallel group that leaves its node. `exchanged`: a
    library sends every rank the tokens of its own experts; else each has all tokens of the group.
    """

    model: MoEModel
    sharding: Sharding
    precision: Precision
    kernels: MeasuredKernels
    scale_out: Link | None = None
    exchanged: bool = False

    def linears(self, decode: bool) -> tuple[Linear, ...]:
        """Matrix multiplications that are timed by themselves.

        Decode of latent attention absorbs `kv_b` into queries and outputs: its products are timed
        with attention.
        """
        every = linear_operators(self.model, self.sharding, self.precision)
        if decode and self._absorbed:
            return tuple(operator for operator in every if operator.name != "kv_b")
        return every

    def linear(self, operator: Linear, tokens: Floats, decode: bool = False) -> Timing:
        """One matrix multiplication of `tokens` rows.

        What runs beside the routed experts costs them the bytes and FLOP it takes: its time at the
        speed of light.
        """
        dtype = self.table_format(operator.format, "gemm")
        timed = gemm_s(self.kernels, dtype, tokens, operator.out_features, operator.in_features)
        if decode and operator.part == "shared":
            beside = tokens <= SECOND_STREAM_TOKENS[self.kernels.engine]
            return replace(
                timed, seconds=np.minimum(timed.seconds, np.where(beside, timed.light_s, np.inf))
            )
        return timed

    def context(self, kind: int, new: Floats, prefix: Floats) -> Timing:
        """Attention of one prompt's chunk of `new` tokens behind `prefix` cached ones."""
        model, formats = self.model, self._attention_formats()
        if kind == LINEAR:
            return linear_attention_context_s(self.kernels, *self._linear_heads(), new)
        heads, kv_heads = self._heads()
        if model.index:
            whole = dsa_context_s(
                self.kernels, model.hidden, heads, new, prefix=prefix, **formats._asdict()
            )
            return self._proper(whole, new)
        if model.attention.kind == "mla":
            return self._mla_chunks(heads, new, prefix)
        return context_attention_s(
            self.kernels,
            heads,
            kv_heads,
            model.attention.head_dim,
            new,
            prefix=prefix,
            window=self._window(kind),
            kv_dtype=formats.kv_dtype,
        )

    def generation(self, kind: int, batch: Floats, kv_tokens: Floats) -> Timing:
        """Attention of `batch` requests' next tokens, each behind `kv_tokens` cached ones."""
        model, formats = self.model, self._attention_formats()
        if kind == LINEAR:
            return linear_attention_generation_s(self.kernels, *self._linear_heads(), batch)
        heads, kv_heads = self._heads()
        if model.index:
            whole = dsa_generation_s(
                self.kernels, model.hidden, heads, batch, kv_tokens, **formats._asdict()
            )
            return self._proper(whole, batch)
        if model.attention.kind == "mla":
            timed = mla_generation_s(self.kernels, heads, batch, kv_tokens, **formats._asdict())
            proper = self._proper(timed, batch)
            return total(proper, mla_bmm_s(self.kernels, heads, batch))
        return generation_attention_s(
            self.kernels,
            heads,
            kv_heads,
            model.attention.head_dim,
            batch,
            kv_tokens,
            window=self._window(kind),
            kv_dtype=formats.kv_dtype,
        )

    def reduce(self, message_bytes: Floats, eager: bool) -> Timing:
        """One all-reduce over the tensor-parallel group."""
        tp = self.sharding.attention_tp
        return all_reduce_s(
            self.kernels, tp, message_bytes, eager, self.scale_out, self.fuses_reduce
        )

    @property
    def fuses_reduce(self) -> bool:
        """Whether the engine fuses an all-reduce with the norm behind it (FlashInfer's kernel, on
        NVLink from Hopper on; vLLM `enable_allreduce_rms_fusion`, without data parallelism)."""
        gpu, kernels = self.kernels.gpu, self.kernels
        if gpu.scale_up_domain == 1 or "fp8" not in gpu.flops_per_s or self.scale_out:
            return False
        if self.sharding.attention_dp > 1:
            return False
        if kernels.engine == "sglang":
            since = SGLANG_FUSES.get(self.model.family)
            return since is not None and version_key(kernels.version) >= version_key(since)
        return kernels.engine == "vllm"

    @property
    def reduces(self) -> int:
        """All-reduces of a step: one behind attention, one behind the MLP or the experts, but
        none behind experts that tokens of data-parallel attention are exchanged with, or that have
        GPUs of their own."""
        model, sharding = self.model, self.sharding
        if sharding.attention_tp == 1:
            return 0
        if sharding.expert_gpus:
            return model.layers
        routed = len(model.moe_layers)
        return 2 * model.layers - (routed if sharding.attention_dp > 1 else 0)

    @property
    def norm_reduces(self) -> int:
        """Small all-reduces of a step: norms of queries and keys over the whole width need the
        other ranks' sums, two a layer (MiniMax-M2: vLLM `MiniMaxText01RMSNormTP`)."""
        of = self.model.attention
        whole_width = of.qk_norm_weights > 2 * of.head_dim
        return 2 * self.model.layers if whole_width and self.sharding.attention_tp > 1 else 0

    def norm_reduce_s(self) -> float:
        """Seconds of all of them."""
        once = self.norm_reduce()
        return self.norm_reduces * float(once.seconds[0]) if once else 0.0

    def norm_reduce(self) -> Timing | None:
        """One of them; None where there are none."""
        if not self.norm_reduces:
            return None
        return all_reduce_s(self.kernels, self.sharding.attention_tp, [NORM_BYTES])

    def experts(self, group_tokens: Floats, prompts: bool = False) -> ExpertAnchor:
        """The routed experts of one rank, for each number of tokens of the expert group."""
        model, ep = self.model, self.sharding.expert_parallel
        shape = ExpertShape(model.hidden, model.expert_width, model.top_k, model.experts)
        dtype = self.table_format(self.precision.experts, "moe")
        if self.exchanged:
            return exchanged_anchor(self.kernels, shape, dtype, group_tokens, ep, prompts)
        return expert_anchor(self.kernels, shape, dtype, group_tokens, ep, self.sharding.moe_tp)

    def layers_of(self, kind: int) -> int:
        """How many layers of the replica attend in this way; a sparse one counts as full."""
        model = self.model
        if kind == LINEAR:
            return len(model.linear.layers) if model.linear else 0
        if model.index:
            return model.layers if kind == FULL else 0
        windowed = sum(window > 0 for window in model.window_of_layer)
        return windowed if kind == WINDOW else len(model.softmax_layers) - windowed

    def table_format(self, weights: WeightFormat, table: str) -> str:
        """The tables' word for a weight format: of its variants the first that was measured.

        Models published in fp8 have one scale per block of 128 x 128; others are quantised with
        one scale per tensor. Blackwell multiplies mxfp4 weights with mxfp8 activations.
        """
        names = TABLE_FORMATS[weights.name]
        gpu = self.kernels.gpu
        per_tensor = weights.name == "fp8" and self.model.native_precision != "fp8"
        if per_tensor or (weights.name == "mxfp4" and gpu.flops("fp4") > gpu.flops("fp8")):
            names = names[::-1]
        measured = (name for name in names if self.kernels.find(table, dtype=name))
        return next(measured, names[0])

    @property
    def _absorbed(self) -> bool:
        return self.model.attention.kind == "mla" and not self.model.index

    def _heads(self) -> tuple[int, int]:
        return rank_heads(self.model, self.sharding)

    def _linear_heads(self) -> tuple[int, int]:
        of, tp = self.model.linear, self.sharding.attention_tp
        assert of is not None
        return max(1, of.key_heads // tp), max(1, of.value_heads // tp)

    def _window(self, kind: int) -> int:
        return max(self.model.window_of_layer) if kind == WINDOW else 0

    def _attention_formats(self) -> AttentionFormats:
        return AttentionFormats(
            "fp8" if self.precision.kv_cache == "fp8" else "bfloat16",
            self.table_format(self.precision.linear, "gemm"),
        )

    def _mla_chunks(self, heads: int, new: Floats, prefix: Floats) -> Timing:
        """Chunks behind prefixes, one query for each distinct prefix."""
        formats = self._attention_formats()
        new, prefix = np.broadcast_arrays(new, prefix)
        seconds, light = np.zeros(new.shape), np.zeros(new.shape)
        origin = np.zeros(new.shape, dtype=np.uint8)
        source = ""
        for value in np.unique(prefix):
            at = prefix == value
            chunk = mla_context_s(
                self.kernels, heads, new[at], prefix=float(value), **formats._asdict()
            )
            timed = self._proper(chunk, new[at])
            seconds[at], light[at], origin[at] = timed.seconds, timed.light_s, timed.origin
            source = timed.source
        return Timing(seconds, origin, light, source)

    def _proper(self, timed: MLATiming, tokens: Floats) -> Timing:
        """Attention proper: where a whole module was measured, less its matrix multiplications,
        which are timed by themselves; a tenth of the module at least."""
        whole = timed.timing
        if not timed.projections:
            return whole
        projections = [
            self.linear(operator, tokens).seconds
            for operator in linear_operators(self.model, self.sharding, self.precision)
            if operator.name in PROJECTIONS
        ]
        seconds = np.maximum(whole.seconds - sum(projections), 0.1 * whole.seconds)
        return Timing(seconds, whole.origin, np.minimum(whole.light_s, seconds), whole.source)
