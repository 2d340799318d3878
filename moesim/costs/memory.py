"""What fits: weights, the engine's reserve, and the keys and values that the rest can hold."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.errors import InputError
from moesim.hardware import GPU
from moesim.model import MoEModel
from moesim.precision import Precision
from moesim.sharding import (
    APART,
    Sharding,
    ffn_bytes_per_gpu,
    kv_bytes_per_token_per_gpu,
    weight_bytes_per_gpu,
)
from moesim.units import GB


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU by use, and the tokens whose keys and values fit an attention rank."""

    weights_bytes: dict[str, float]
    reserved_bytes: float
    kv_bytes: float
    total_bytes: float
    kv_full_bytes_per_token: float
    kv_window_bytes_per_token: float
    window: int
    state_bytes_per_request: float = 0.0
    ffn_weights_bytes: float = 0.0  # of a GPU for FFN alone, the rest being of attention's GPUs

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of one long sequence that fit (windows hold at most their length)."""
        left = self.kv_bytes - self.state_bytes_per_request
        left -= self.window * self.kv_window_bytes_per_token
        if self.kv_full_bytes_per_token > 0 and left > 0:
            return int(left / self.kv_full_bytes_per_token)
        per_token = self.kv_full_bytes_per_token + self.kv_window_bytes_per_token
        return int(self.kv_bytes / per_token)


def plan_memory(
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    slots_per_rank: float | None,
    gpu: GPU,
    utilisation: float,
    reserved_bytes: float,
    kv_capacity_tokens: int | None,
    kv_share: float = 1.0,
) -> MemoryPlan:
    """KV = kv_share x (utilisation x HBM - weights - reserve); InputError if nothing is left.

    vLLM's rule has kv_share 1, TensorRT-LLM's utilisation 1; SGLang's sets the reserve.
    `kv_capacity_tokens` takes less than the rule leaves: what one long sequence of so many takes.
    """
    weights = weight_bytes_per_gpu(model, sharding, precision, slots_per_rank)
    usable = gpu.memory_bytes * utilisation
    ffn = ffn_bytes_per_gpu(model, sharding, precision, slots_per_rank)
    if ffn and ffn["total"] + reserved_bytes > usable:
        raise InputError(
            f"{APART}.expert_gpus",
            f"must hold all FFN weights: {ffn['total'] / GB:.1f} GB on each and reserve "
            f"{reserved_bytes / GB:.1f} GB exceed the usable {usable / GB:.1f} GB of {gpu.name}",
            sharding.expert_gpus,
        )
    kv = kv_bytes_per_token_per_gpu(model, sharding, precision)
    left = kv_share * (usable - weights["total"] - reserved_bytes)
    if left < (kv.full + kv.sliding) * 16 + kv.state:
        raise InputError(
            "deployment.parallelism",
            f"must leave memory for keys and values: weights {weights['total'] / GB:.1f} GB and "
            f"reserve {reserved_bytes / GB:.1f} GB exceed the usable {usable / GB:.1f} GB of "
            f"{gpu.name}",
            hint="use more GPUs per replica, a smaller weight format, or a larger GPU",
        )
    if kv_capacity_tokens is not None:
        windowed = min(kv_capacity_tokens, kv.window) * kv.sliding
        asked = kv_capacity_tokens * kv.full + windowed + kv.state
        if asked > left:
            raise InputError(
                "deployment.kv_cache.capacity_tokens",
                f"must fit the {left / GB:.1f} GB that weights and reserve leave; "
                f"{asked / GB:.1f} GB are asked for by",
                kv_capacity_tokens,
            )
        left = asked
    return MemoryPlan(
        weights_bytes={part: size for part, size in weights.items() if part != "total"},
        reserved_bytes=reserved_bytes,
        kv_bytes=left,
        total_bytes=gpu.memory_bytes,
        kv_full_bytes_per_token=kv.full,
        kv_window_bytes_per_token=kv.sliding,
        window=kv.window,
        state_bytes_per_request=kv.state,
        ffn_weights_bytes=ffn.get("total", 0.0),
    )
