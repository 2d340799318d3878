"""Number formats of weights, KV cache and dispatched tokens: bytes, and the units that compute."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from moesim.errors import InputError

Compute = Literal["bf16", "fp8", "fp4"]
Activation = Literal["bf16", "fp8"]


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is stored (`bytes_per_parameter` includes scales) and how it is multiplied."""

    name: str
    bytes_per_parameter: float
    compute: Compute


BF16 = WeightFormat("bf16", 2.0, "bf16")
# One float32 scale per 128 x 128 block, as DeepSeek-V3 ships it (config.json weight_block_size).
FP8 = WeightFormat("fp8", 1.0 + 4.0 / (128 * 128), "fp8")
# One bfloat16 scale per group of 128 (AWQ and GPTQ checkpoints); multiplied in bfloat16.
INT4 = WeightFormat("int4", 0.5 + 2.0 / 128, "bf16")
# One fp8 scale per 16 values (NVIDIA NVFP4); the float32 scale per tensor is negligible.
NVFP4 = WeightFormat("nvfp4", 0.5 + 1.0 / 16, "fp4")
# One 8-bit exponent per 32 values (OCP MX v1.0); engines run it weight-only, in bfloat16.
MXFP4 = WeightFormat("mxfp4", 0.5 + 1.0 / 32, "bf16")

WEIGHT_FORMATS = (BF16, FP8, INT4, NVFP4, MXFP4)
BYTES_OF_ACTIVATION: dict[Activation, float] = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Precision:
    """Formats of one deployment.

    `linear` holds for attention, dense MLPs and shared experts; embeddings, LM head, router and
    norms stay in bfloat16, as the shipped quantised checkpoints keep them. `dispatch` is what the
    all-to-all before the experts carries; combine always returns bfloat16.
    """

    experts: WeightFormat
    linear: WeightFormat
    embedding: WeightFormat
    kv_cache: Activation
    dispatch: Activation

    @property
    def kv_bytes_per_value(self) -> float:
        return BYTES_OF_ACTIVATION[self.kv_cache]

    @property
    def dispatch_bytes_per_value(self) -> float:
        return BYTES_OF_ACTIVATION[self.dispatch]


def make_precision(
    weights: str, experts: str | None = None, kv_cache: str = "bf16", dispatch: str | None = None
) -> Precision:
    """The precision that a scenario's four words describe.

    `weights` holds for every linear layer; `experts` overrides it for routed experts. `dispatch`
    defaults to fp8 where experts compute in fp8 or fp4 and to bf16 elsewhere. Raises InputError
    under `precision.<word>`.
    """
    linear = weight_format(weights, "precision.weights")
    routed = linear if experts is None else weight_format(experts, "precision.experts")
    if dispatch is None:
        dispatch = "bf16" if routed.compute == "bf16" else "fp8"
    return Precision(
        experts=routed,
        linear=linear,
        embedding=BF16,
        kv_cache=_activation(kv_cache, "precision.kv_cache"),
        dispatch=_activation(dispatch, "precision.dispatch"),
    )


def native_formats(native_precision: str, is_moe: bool) -> tuple[str, str | None]:
    """(weights, experts) for `make_precision` that store a model as its authors published it.

    Four-bit checkpoints of MoE models quantise the routed experts only (gpt-oss, Kimi-K2-Thinking).
    """
    if is_moe and native_precision in ("int4", "nvfp4", "mxfp4"):
        return "bf16", native_precision
    return native_precision, None


def weight_format(name: str, field: str = "precision.weights") -> WeightFormat:
    """The format of that name; InputError under `field` otherwise."""
    names = [each.name for each in WEIGHT_FORMATS]
    for each in WEIGHT_FORMATS:
        if each.name == name:
            return each
    close = difflib.get_close_matches(str(name).lower(), names, n=1)
    meant = f"did you mean {close[0]}?" if close else ""
    raise InputError(field, f"must be one of {', '.join(names)}", name, meant)


def _activation(name: str, field: str) -> Activation:
    if name == "bf16":
        return "bf16"
    if name == "fp8":
        return "fp8"
    raise InputError(field, "must be bf16 or fp8", name)
