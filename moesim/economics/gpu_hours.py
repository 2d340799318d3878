"""What a GPU-hour costs, and a run at that price."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.economics.owned import energy_prices, owned_parts
from moesim.errors import InputError
from moesim.hardware import GPU
from moesim.price_spec import EconomicsSpec
from moesim.units import HOUR

_MILLION = 1e6


@dataclass(frozen=True)
class GpuHour:
    """The price of a GPU-hour, electricity included, and where it comes from."""

    usd: float
    kind: str
    date: str
    trust: str
    source: str

    @property
    def note(self) -> str:
        """For people."""
        price = f"{self.usd:.2f} USD per GPU-hour"
        if self.kind == "given":
            return f"{price}, as given"
        told = (self.kind, self.date, self.trust and f"trust {self.trust}", self.source)
        return f"{price}: {', '.join(part for part in told if part)}"


def gpu_hour(spec: EconomicsSpec, gpu: GPU) -> GpuHour:
    """The price that a scenario chooses: given, owned, of a kind, else the GPU's default.

    Raises InputError for a kind that the GPU has no price of.
    """
    if spec.usd_per_gpu_hour is not None:
        return GpuHour(spec.usd_per_gpu_hour, "given", "", "", "")
    if spec.owned is not None:
        usd_per_kwh, pue, energy = energy_prices(spec)
        parts = owned_parts(spec.owned, gpu.power_w, usd_per_kwh, pue)
        told = ", ".join(f"{name} {usd:.3f}" for name, usd in parts.items())
        return GpuHour(sum(parts.values()), "owned", "", "", f"{told}; {energy}")
    kinds = {price.kind: price for price in gpu.prices}
    if spec.price is not None and spec.price not in kinds:
        rule = f"must be a price known for {gpu.name}: {', '.join(kinds)}"
        raise InputError("economics.price", rule, spec.price)
    price = gpu.prices[0] if spec.price is None else kinds[spec.price]
    return GpuHour(price.usd_per_gpu_hour, price.kind, price.date, price.trust, price.source)


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
