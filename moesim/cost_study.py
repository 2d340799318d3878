"""What serving costs at one's own volume: self-hosting, managed APIs and a smaller dense model.

Capacity comes from simulation (moesim.self_hosted), everything else is arithmetic on it
(moesim.economics). Volumes are tokens a day, input and output together, at the demand's mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import moesim
from moesim.economics.api_prices import ApiPrice, prices_of_model
from moesim.economics.curves import CostCurve, api_curve, break_even
from moesim.economics.day import DayProfile, day_presets
from moesim.economics.owned import energy_prices
from moesim.economics.replicas import FleetDay, Rules, fleet_day
from moesim.economics.token_split import RULE, per_million
from moesim.errors import InputError
from moesim.findings.costs import CostFindings
from moesim.metrics import plain
from moesim.model import model_names
from moesim.scenario import Scenario
from moesim.self_hosted import SelfHosted, dense_scenario, self_hosted
from moesim.units import HOUR

VOLUMES = (1e6, 1e7, 1e8, 1e9, 1e10)
MOST_VOLUMES = 100
# Break-evens are sought up to the largest volume asked for, or so many full replicas.
FULL_REPLICAS = 100.0
BEYOND = 10.0
OUTSIDE = (
    "where data may go, contracts, lock-in, people, security work and the quality of answers are "
    "outside these figures; another model of the same size need not answer as well"
)
PROGRESS = Callable[[str, int], None]


@dataclass(frozen=True, eq=False)
class CostStudy:
    """`offers`: the scenario, then a dense model if one was asked for. `cached_share`: of prompt
    tokens, what an API is taken to find in its cache."""

    offers: tuple[SelfHosted, ...]
    apis: tuple[ApiPrice, ...]
    profile: DayProfile
    rules: Rules
    volumes: tuple[float, ...]
    cached_share: float
    percentile: float

    @property
    def own(self) -> SelfHosted:
        return self.offers[0]

    @property
    def upto(self) -> float:
        """The volume up to which break-evens are sought, in tokens a day."""
        full = self.own.replica.tokens_per_s * 24 * HOUR
        return max(BEYOND * max(self.volumes), FULL_REPLICAS * full)

    def day(self, offer: SelfHosted, tokens_per_day: float, by_hour: bool = False) -> FleetDay:
        """Replicas of each hour and the bill."""
        return fleet_day(tokens_per_day, self.profile, offer.replica, self.rules, by_hour)

    def api_curve(self, price: ApiPrice) -> CostCurve:
        return api_curve(price, self.own.input_tokens_share, self.cached_share)

    @cached_property
    def curves(self) -> dict[tuple[str, bool], CostCurve]:
        """By (offer, by the hour)."""
        return {
            (offer.name, by_hour): offer.curve(self.profile, self.rules, self.upto, by_hour)
            for offer in self.offers
            for by_hour in (False, True)
        }

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The object that ``moesim cost --json`` prints."""
        found = plain(
            {
                "name": self.own.name,
                "slo": {**self.own.scenario.slo.model_dump(), "percentile": self.percentile},
                "offers": [_offer(offer) for offer in self.offers],
                "profile": _profile(self.profile),
                "rules": asdict(self.rules),
                "apis": [self._api(price) for price in self.apis],
                "cached_share": self.cached_share,
                "volumes": [self._volume(volume) for volume in self.volumes],
                "break_even": list(self._break_evens()),
                "notes": self.notes,
                "version": moesim.__version__,
            }
        )
        assert isinstance(found, dict)
        return found

    @property
    def notes(self) -> list[str]:
        """What to know before believing the numbers."""
        result = self.own.capacity.result
        notes = []
        busiest = self.profile.busiest_over_mean
        if busiest and busiest > self.profile.peak_over_mean * self.rules.headroom * 1.02:
            notes.append(
                f"the busiest hour on record was {busiest:.2f} times the mean; the mean day's is "
                f"{self.profile.peak_over_mean:.2f}: --headroom "
                f"{busiest / self.profile.peak_over_mean:.2f} provides for it"
            )
        if not self.apis:
            notes.append("no managed API to compare with: name one with --api (`moesim prices`)")
        notes.append("replicas are taken one by one: a fleet carries a little more than they do")
        if len(self.offers) > 1:
            notes.append(
                "the dense model is given the same tokens; its tokeniser and answers differ"
            )
        notes.append(OUTSIDE)
        return [*notes, *(result.labels if result is not None else ())]

    def _api(self, price: ApiPrice) -> dict[str, Any]:
        return {**asdict(price), "usd_per_million_total": 1e6 * self.api_curve(price).usd_per_token}

    def _volume(self, volume: float) -> dict[str, Any]:
        bills = {offer.name: self._bills(offer, volume) for offer in self.offers}
        apis = {price.name: float(self.api_curve(price).usd_per_day(volume)) for price in self.apis}
        cheapest = {
            **{f"{name}, {how}": bill["usd_per_day"]
               for name, of in bills.items() for how, bill in of.items()},
            **apis,
        }  # fmt: skip
        return {
            "tokens_per_day": volume,
            "requests_per_day": volume / self.own.tokens_per_request,
            "self_hosted": bills,
            "apis_usd_per_day": apis,
            "cheapest": min(cheapest, key=lambda name: cheapest[name]),
        }

    def _bills(self, offer: SelfHosted, volume: float) -> dict[str, Any]:
        found = {}
        for how, by_hour in (("always on", False), ("by the hour", True)):
            day = self.day(offer, volume, by_hour)
            split = per_million(
                day.usd_per_day, volume, offer.input_tokens_share, offer.input_bill_share
            )
            found[how] = {
                "most_replicas": int(day.replicas_H.max()),
                "least_replicas": int(day.replicas_H.min()),
                "utilisation": day.utilisation,
                "usd_per_day": day.usd_per_day,
                "usd_idle_per_day": day.usd_idle_per_day,
                "usd_per_million": asdict(split),
            }
        return found

    def _break_evens(self) -> Iterator[dict[str, Any]]:
        """Every self-hosted offer against every API; then the scenario against the dense model."""
        for (name, by_hour), curve in self.curves.items():
            against = [self.api_curve(price) for price in self.apis]
            against += [
                self.curves[other.name, by_hour] for other in self.offers if other.name != name
            ]
            for other in against:
                yield {
                    "offer": name,
                    "how": "by the hour" if by_hour else "always on",
                    "against": other.name,
                    **asdict(break_even(curve, other, self.upto)),
                }

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML report."""
        from moesim.report.cost_page import write_cost_report

        write_cost_report(self.findings(), path)

    def findings(self, volume: float | None = None) -> CostFindings:
        """What a page draws; `volume`: the one that it speaks of, if one in particular."""
        lines = tuple(self.api_curve(price) for price in self.apis)
        return CostFindings(self.summary, self.curves, lines, self._days(), volume)

    def _days(self) -> tuple[FleetDay, FleetDay]:
        """Of the scenario at a volume whose busiest hour needs four replicas."""
        full = self.own.replica.tokens_per_s * 24 * HOUR
        volume = 3.5 * full / (self.profile.peak_over_mean * self.rules.headroom)
        return self.day(self.own, volume), self.day(self.own, volume, by_hour=True)


def cost_study(
    scenario: Scenario,
    *,
    volumes: Sequence[float] = VOLUMES,
    profile: DayProfile | None = None,
    apis: Sequence[ApiPrice] | None = None,
    dense: str | None = None,
    rules: Rules | None = None,
    percentile: float = 99.0,
    cached_share: float | None = None,
    progress: PROGRESS | None = None,
) -> CostStudy:
    """Simulate what the offers can serve, and work out what they cost.

    `apis` None: every shipped price of the scenario's model. `dense`: a dense model, `same-active`,
    or None. `cached_share` None: what the simulated prefix cache found. Raises InputError.
    """
    volumes = tuple(volumes)
    if not 1 <= len(volumes) <= MOST_VOLUMES or not all(0 < each <= 1e15 for each in volumes):
        rule = f"must be 1 to {MOST_VOLUMES} numbers above 0, of at most 1e15 tokens a day"
        raise InputError("--volume", rule, list(volumes)[:5])
    if cached_share is not None and not 0.0 <= cached_share <= 1.0:
        raise InputError("--cached-share", "must be from 0 to 1", cached_share)
    if dense is not None:
        dense_scenario(scenario, dense, 1.0)  # refuses before anything runs
    found = [_measured(scenario, percentile, progress)]
    if dense is not None:
        other = dense_scenario(scenario, dense, found[0].tokens_per_request)
        found.append(_measured(other, percentile, progress))
    known = scenario.model if scenario.model in model_names() else ""
    return CostStudy(
        offers=tuple(found),
        apis=prices_of_model(known) if apis is None and known else tuple(apis or ()),
        profile=profile or day_presets()["flat"],
        rules=rules or Rules(),
        volumes=volumes,
        cached_share=found[0].cached_share if cached_share is None else cached_share,
        percentile=percentile,
    )


def _measured(scenario: Scenario, percentile: float, progress: PROGRESS | None) -> SelfHosted:
    tell = None if progress is None else lambda trials: progress(scenario.name, trials)
    return self_hosted(scenario, percentile=percentile, progress=tell)


def _offer(offer: SelfHosted) -> dict[str, Any]:
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
        "requests_per_s": offer.capacity.requests_per_s,
        "fails_at_per_s": offer.capacity.fails_at_per_s,
        "fails_because": _first_miss(offer),
        "trials": len(offer.capacity.trials),
        "tokens_per_s": offer.replica.tokens_per_s,
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


def _profile(profile: DayProfile) -> dict[str, Any]:
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
