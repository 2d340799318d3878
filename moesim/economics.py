"""What tokens cost: GPU-hours at a rental price."""

from __future__ import annotations

from moesim.errors import InputError
from moesim.hardware import GPU
from moesim.units import HOUR

_MILLION = 1e6


def gpu_hour_price(gpu: GPU, usd_per_gpu_hour: float | None = None, kind: str = "") -> float:
    """USD per GPU-hour: the given one, else the GPU's of that `kind`, else its default.

    Raises InputError for a price that is negative or not finite, or a kind the GPU has no price of.
    """
    if usd_per_gpu_hour is not None:
        if not 0 <= usd_per_gpu_hour < float("inf"):
            field = "economics.usd_per_gpu_hour"
            raise InputError(field, "must be a finite price of at least 0", usd_per_gpu_hour)
        return usd_per_gpu_hour
    if not kind:
        return gpu.usd_per_gpu_hour
    for price in gpu.prices:
        if price.kind == kind:
            return price.usd_per_gpu_hour
    known = ", ".join(price.kind for price in gpu.prices)
    raise InputError("economics.kind", f"must be a price known for {gpu.name}: {known}", kind)


def price_note(gpu: GPU, usd_per_gpu_hour: float | None = None) -> str:
    """Where the price comes from, for people."""
    if usd_per_gpu_hour is not None:
        return f"{usd_per_gpu_hour:.2f} USD per GPU-hour, as given"
    price = gpu.prices[0]
    return (
        f"{price.usd_per_gpu_hour:.2f} USD per GPU-hour: {price.kind}, {price.date}, "
        f"trust {price.trust}, {price.source}"
    )


def cost_summary(
    gpus: int, usd_per_gpu_hour: float, duration_s: float, output_tokens: int, input_tokens: int
) -> dict[str, float | None]:
    """Cost of `gpus` rented for `duration_s`, in all and per million tokens.

    Keys usd_per_hour, usd_per_million_output_tokens (the whole bill over output tokens alone) and
    usd_per_million_total_tokens (over input and output); None where there are no tokens.
    """
    usd_per_hour = gpus * usd_per_gpu_hour
    usd = usd_per_hour * duration_s / HOUR
    total_tokens = output_tokens + input_tokens
    return {
        "usd_per_hour": usd_per_hour,
        "usd_per_million_output_tokens": usd / output_tokens * _MILLION if output_tokens else None,
        "usd_per_million_total_tokens": usd / total_tokens * _MILLION if total_tokens else None,
    }
