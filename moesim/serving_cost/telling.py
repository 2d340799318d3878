"""Offers and profiles as the plain data that ``moesim cost --json`` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moesim.economics.day import DayProfile
from moesim.economics.owned import energy_prices
from moesim.economics.token_split import RULE, per_million
from moesim.findings.estimates import Estimate
from moesim.serving_cost.offers import SelfHosted
from moesim.units import HOUR


def interval(estimate: Estimate) -> tuple[float, float] | None:
    """(low, high), or None where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


def offer_json(offer: SelfHosted) -> dict[str, Any]:
    """One offer: its price, what a replica serves, hosting and tokens apart."""
    usd_per_kwh, pue, energy = energy_prices(offer.scenario.economics)
    full = per_million(
        offer.usd_per_million_when_full, 1e6, offer.input_tokens_share, offer.input_bill_share
    )
    return {
        "name": offer.name,
        "model": offer.scenario.model,
        "gpu": offer.scenario.cluster.gpu,
        "gpus": offer.gpus,
        "usd_per_gpu_hour": offer.price.usd,
        "price": offer.price.note,
        "usd_per_hour": offer.replica.usd_per_hour,
        "seeds": offer.seeds,
        "requests_per_s": offer.requests_per_s.value,
        "requests_per_s_interval": interval(offer.requests_per_s),
        "fails_at_per_s": offer.capacity.fails_at_per_s,
        "fails_because": _first_miss(offer),
        "trials": offer.trials,
        "tokens_per_s": offer.tokens_per_s.value,
        "tokens_per_s_interval": interval(offer.tokens_per_s),
        "prompt_tokens": offer.prompt_tokens,
        "output_tokens": offer.output_tokens,
        "cached_share": offer.cached_share,
        "start_s": offer.start_s,
        "input_bill_share": offer.input_bill_share,
        "split_rule": RULE,
        "usd_per_million_when_full": asdict(full),
        "hosting": {
            **asdict(offer.hosting),
            "usd_per_hour": offer.hosting.least_gpus * offer.price.usd,
        },
        "light": {
            name: {
                "flops": token.flops,
                "bytes": token.bytes_read,
                "gpu_s": token.gpu_s,
                "bound": token.bound,
                "usd_per_million": token.gpu_s * 1e6 * offer.price.usd / HOUR,
            }
            for name, token in offer.light.items()
        },
        "electricity": {
            "kwh_per_million_tokens": offer.kwh_per_million_tokens,
            "usd_per_million_tokens": offer.kwh_per_million_tokens * pue * usd_per_kwh,
            "prices": energy,
        },
    }


def _first_miss(offer: SelfHosted) -> str:
    failed = [trial for trial in offer.capacity.trials if trial.missed]
    return "; ".join(min(failed, key=lambda trial: trial.rate_per_s).missed) if failed else ""


def profile_json(profile: DayProfile) -> dict[str, Any]:
    """The demand of a day by the hour."""
    return {
        "name": profile.name,
        "description": profile.description,
        "source": profile.source,
        "date": profile.date,
        "trust": profile.trust,
        "peak_over_mean": profile.peak_over_mean,
        "night_over_mean": profile.night_over_mean,
        "busiest_over_mean": profile.busiest_over_mean,
        "relative": profile.relative_H,
    }
