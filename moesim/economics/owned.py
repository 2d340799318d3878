"""What an hour of one's own GPU costs: capital, upkeep, electricity and the place it stands in."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from moesim.presets import read_preset
from moesim.price_spec import EconomicsSpec, OwnedSpec

HOURS_PER_YEAR = 8760.0
# A server of eight H100s is rated 10.2 kW (NVIDIA DGX H100) for 8 x 700 W of GPUs.
SERVER_OVER_GPUS = 10.2e3 / (8 * 700.0)


@dataclass(frozen=True)
class Figure:
    """One number of the shipped energy prices, with its date and source."""

    value: float
    date: str
    trust: str
    source: str


@functools.cache
def energy_presets() -> Mapping[str, Figure]:
    """`usd_per_kwh` and `pue`, as shipped."""
    lines = (line for line in read_preset("energy.csv").splitlines() if line[:1] != "#")
    return {
        row["name"]: Figure(float(row["value"]), row["date"], row["trust"], row["source"])
        for row in csv.DictReader(lines)
    }


def energy_prices(spec: EconomicsSpec) -> tuple[float, float, str]:
    """(USD per kWh, PUE, where they come from) of a scenario."""
    presets = energy_presets()
    parts, values = [], []
    for name, given in (("usd_per_kwh", spec.usd_per_kwh), ("pue", spec.pue)):
        preset = presets[name]
        values.append(preset.value if given is None else given)
        words = "as given" if given is not None else f"{preset.date}, {preset.source}"
        parts.append(f"{name} {values[-1]:g} ({words})")
    return values[0], values[1], "; ".join(parts)


def annuity(years: float, interest: float) -> float:
    """Share of a sum paid back each year, evenly over `years`: r / (1 - (1 + r)^-n); 1 / n at 0."""
    return 1.0 / years if interest == 0.0 else interest / (1.0 - (1.0 + interest) ** -years)


def owned_parts(
    spec: OwnedSpec, gpu_power_w: float, usd_per_kwh: float, pue: float
) -> dict[str, float]:
    """USD per GPU-hour in service: capital, upkeep, electricity, hosting; they add up to the whole.

    capital = capex x annuity / 8760; upkeep = capex x upkeep / 8760; electricity = kW x load x PUE
    x USD per kWh; hosting = kW x USD per kW and month x 12 / 8760; each over `in_service`.
    """
    power_w = gpu_power_w * SERVER_OVER_GPUS if spec.power_w is None else spec.power_w
    kilowatts = power_w / 1e3
    hourly = {
        "capital": spec.capex_usd_per_gpu * annuity(spec.years, spec.interest) / HOURS_PER_YEAR,
        "upkeep": spec.capex_usd_per_gpu * spec.upkeep / HOURS_PER_YEAR,
        "electricity": kilowatts * spec.load * pue * usd_per_kwh,
        "hosting": kilowatts * spec.hosting_usd_per_kw_month * 12.0 / HOURS_PER_YEAR,
    }
    return {name: usd / spec.in_service for name, usd in hourly.items()}
