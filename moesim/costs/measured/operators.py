"""The operators of one model, so sharded and stored, timed from measured kernels.

Every method answers for one layer of one GPU with a `Timing`, which says where the seconds come
from. What is summed over a step, and what the engine adds, is said in `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.architecture import MoEModel
from moesim.costs.measured.dense import (
    context_attention_s,
    gemm_s,
    generation_attention_s,
)
from moesim.costs.measured.exchange import all_reduce_s
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import ExpertAnchor, expert_anchor
from moesim.costs.measured.kernels import MeasuredKernels
from moesim.costs.measured.light import TABLE_FORMATS, Floats
from moesim.costs.measured.mla import MLATiming, mla_context_s, mla_generation_s
from moesim.costs.measured.timing import ROOFLINE, Timing
from moesim.operators import Linear, attention_work, linear_operators
from moesim.precision import Precision, WeightFormat
from moesim.sharding import Sharding

# Kinds of attention layers: reading every cached token, the last `window`, or a fixed state.
FULL, WINDOW, LINEAR = range(3)
MLA_PROJECTIONS = ("q_a", "q_b", "kv_a", "kv_b", "o")
KIND_NAMES = ("attention", "window attention", "linear attention")


@dataclass(frozen=True)
class MeasuredOperators:
    """One deployment's operators; `kernels` are those of its GPU and engine."""

    model: MoEModel
    sharding: Sharding
    precision: Precision
    kernels: MeasuredKernels

    def linear(self, operator: Linear, tokens: Floats) -> Timing:
        """One matrix multiplication of `tokens` rows."""
        dtype = self.table_format(operator.format, "gemm")
        return gemm_s(
            self.kernels, dtype, tokens, operator.out_features, operator.in_features
        )

    def context(self, kind: int, new: Floats, prefix: Floats) -> Timing:
        """Attention of one prompt's chunk of `new` tokens behind `prefix` cached ones."""
        if kind == LINEAR:
            return self._linear_attention(new)
        heads, kv_heads = self._heads()
        if self.model.attention.kind == "mla":
            window = self.model.index.top_k if self.model.index else 0
            seen = np.minimum(prefix, window) if window else prefix
            return self._mla_chunks(heads, new, seen)
        return context_attention_s(
            self.kernels,
            heads,
            kv_heads,
            self.model.attention.head_dim,
            new,
            prefix=prefix,
            window=self._window(kind),
            kv_dtype=self._cache_format(),
        )

    def generation(self, kind: int, batch: Floats, kv_tokens: Floats) -> Timing:
        """Attention of `batch` requests' next tokens, each behind `kv_tokens` cached ones."""
        if kind == LINEAR:
            return self._linear_state(batch)
        heads, kv_heads = self._heads()
        if self.model.attention.kind == "mla":
            if self.model.index:
                kv_tokens = np.minimum(kv_tokens, self.model.index.top_k)
            timed = mla_generation_s(self.kernels, heads, batch, kv_tokens, **self._mla_formats())
            return self._without_projections(timed, batch)
        return generation_attention_s(
            self.kernels,
            heads,
            kv_heads,
            self.model.attention.head_dim,
            batch,
            kv_tokens,
            window=self._window(kind),
            kv_dtype=self._cache_format(),
        )

    def reduce(self, tokens: Floats, eager: bool) -> Timing:
        """One all-reduce over the tensor-parallel group of `tokens` rows in bfloat16."""
        size = tokens * self.model.hidden * 2.0
        return all_reduce_s(self.kernels, self.sharding.attention_tp, np.maximum(size, 1.0), eager)

    def experts(self, group_tokens: Floats) -> ExpertAnchor:
        """The routed experts of one rank, for each number of tokens of the expert group."""
        model = self.model
        shape = ExpertShape(model.hidden, model.expert_width, model.top_k, model.experts)
        return expert_anchor(
            self.kernels,
            shape,
            self.table_format(self.precision.experts, "moe"),
            group_tokens,
            self.sharding.expert_parallel,
            self.sharding.moe_tp,
        )

    def layers_of(self, kind: int) -> int:
        """How many layers of the replica attend in this way."""
        work = attention_work(self.model, self.sharding, self.precision)
        if self.model.index:
            return self.model.layers if kind == FULL else 0
        return (work.layers_full, work.layers_sliding, work.layers_linear)[kind]

    def table_format(self, weights: WeightFormat, table: str) -> str:
        """The tables' word for a weight format: of its variants the first that was measured.

        Models published in fp8 have one scale per block of 128 x 128; others are quantised with
        one scale per tensor.
        """
        names = TABLE_FORMATS[weights.name]
        gpu = self.kernels.gpu
        if weights.name == "mxfp4" and gpu.flops("fp4") > gpu.flops("fp8"):
            names = names[::-1]  # Blackwell multiplies it with fp8 activations
        if weights.name == "fp8" and self.model.native_precision != "fp8":
            names = ("fp8", "fp8_block")
        found = (name for name in names if self.kernels.find(table, dtype=name))
        return next(found, names[0])

    def _heads(self) -> tuple[int, int]:
        of, tp = self.model.attention, self.sharding.attention_tp
        return -(-of.heads // tp), max(1, of.kv_heads // tp)

    def _window(self, kind: int) -> int:
        return max(self.model.window_of_layer) if kind == WINDOW else 0

    def _cache_format(self) -> str:
        return "fp8" if self.precision.kv_cache == "fp8" else "bfloat16"

    def _mla_formats(self) -> dict[str, str]:
        return {
            "kv_dtype": self._cache_format(),
            "gemm_dtype": self.table_format(self.precision.linear, "gemm"),
        }

    def _mla_chunks(self, heads: int, new: Floats, prefix: Floats) -> Timing:
        """Chunks behind prefixes, one query for each distinct prefix."""
        new, prefix = np.broadcast_arrays(new, prefix)
        seconds, light = np.zeros(new.shape), np.zeros(new.shape)
        origin = np.zeros(new.shape, dtype=np.uint8)
        source = ""
        for value in np.unique(prefix):
            at = prefix == value
            chunk = mla_context_s(
                self.kernels, heads, new[at], prefix=float(value), **self._mla_formats()
            )
            timed = self._without_projections(chunk, new[at])
            seconds[at], light[at], origin[at] = timed.seconds, timed.light_s, timed.origin
            source = timed.source
        return Timing(seconds, origin, light, source)

    def _without_projections(self, timed: MLATiming, tokens: Floats) -> Timing:
        """Attention proper: where a whole module was measured, less its matrix multiplications,
        which are timed by themselves; a tenth of the module at least."""
        whole = timed.timing
        if not timed.projections:
            return whole
        projections = sum(
            (
                self.linear(operator, tokens).seconds
                for operator in linear_operators(self.model, self.sharding, self.precision)
                if operator.name in MLA_PROJECTIONS
            ),
            np.zeros(whole.seconds.shape),
        )
        seconds = np.maximum(whole.seconds - projections, 0.1 * whole.seconds)
        return Timing(seconds, whole.origin, np.minimum(whole.light_s, seconds), whole.source)

    def _linear_attention(self, tokens: Floats) -> Timing:
        """Delta rule of a chunk: no table, at half the datasheet's rates."""
        work = attention_work(self.model, self.sharding, self.precision)
        gpu = self.kernels.gpu
        light = tokens * work.linear_flops_per_token / gpu.flops("bf16")
        light = light + work.state_bytes_per_request * 2.0 / gpu.memory_bytes_per_s
        return _roofline(light)

    def _linear_state(self, batch: Floats) -> Timing:
        work = attention_work(self.model, self.sharding, self.precision)
        return _roofline(
            batch * 2.0 * work.state_bytes_per_request / self.kernels.gpu.memory_bytes_per_s
        )


def _roofline(light_s: Floats) -> Timing:
    origin = np.full(light_s.shape, ROOFLINE, dtype=np.uint8)
    return Timing(5e-6 + 2.0 * light_s, origin, light_s, "no table: half of the datasheet's rates")
