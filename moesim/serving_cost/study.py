"""What serving costs at one's own volume: self-hosting, managed APIs and a smaller dense model.

Capacity comes from simulation (moesim.serving_cost.offers), everything else is arithmetic on it
(moesim.economics). Volumes are tokens a day, input and output together, at the demand's mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.economics.api_prices import ApiPrice, check_all_day, prices_of_model
from moesim.economics.curves import CostCurve, api_curve, break_even
from moesim.economics.day import DayProfile, day_presets
from moesim.economics.replicas import FleetDay, Replica, Rules, fleet_day
from moesim.economics.token_split import per_million
from moesim.errors import InputError
from moesim.figures.metrics import plain
from moesim.findings.costs import CostFindings
from moesim.model import model_names
from moesim.scenario import Scenario
from moesim.serving_cost.offers import SelfHosted, dense_scenario, self_hosted
from moesim.serving_cost.telling import offer_json, profile_json
from moesim.simulation import as_scenario
from moesim.units import HOUR

if TYPE_CHECKING:
    import pandas as pd

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

    def day(
        self,
        offer: SelfHosted,
        tokens_per_day: float,
        by_hour: bool = False,
        replica: Replica | None = None,
    ) -> FleetDay:
        """Replicas of each hour and the bill, of the offer's own replica or of another."""
        return fleet_day(
            tokens_per_day, self.profile, replica or offer.replica, self.rules, by_hour
        )

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
    def bounds(self) -> dict[tuple[str, bool], tuple[CostCurve, CostCurve]]:
        """As `curves`, (least, most) by the interval of what a replica serves; where there is one.

        The dearer curve is that of the replica that serves less.
        """
        return {
            (offer.name, by_hour): (
                offer.curve(self.profile, self.rules, self.upto, by_hour, of[1]),
                offer.curve(self.profile, self.rules, self.upto, by_hour, of[0]),
            )
            for offer in self.offers
            if (of := offer.replicas_at_bounds) is not None
            for by_hour in (False, True)
        }

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The object that ``moesim cost --json`` prints."""
        found = plain(
            {
                "name": self.own.name,
                "slo": {**self.own.scenario.slo.model_dump(), "percentile": self.percentile},
                "offers": [offer_json(offer) for offer in self.offers],
                "profile": profile_json(self.profile),
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
        notes += [
            f"{price.name} sells another product of the model's shape: {price.product}"
            for price in self.apis
            if price.product
        ]
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
                "usd_per_million_interval": self._total_interval(offer, volume, by_hour),
            }
        return found

    def _total_interval(
        self, offer: SelfHosted, volume: float, by_hour: bool
    ) -> list[float] | None:
        """USD per million tokens, (low, high)."""
        of = self.bounds.get((offer.name, by_hour))
        return None if of is None else [float(curve.usd_per_million(volume)) for curve in of]

    def _break_evens(self) -> Iterator[dict[str, Any]]:
        """Every self-hosted offer against every API; then the scenario against the dense model."""
        for (name, by_hour), curve in self.curves.items():
            own = self.bounds.get((name, by_hour))
            against = [(line, (line, line)) for line in map(self.api_curve, self.apis)]
            against += [
                (self.curves[key], self.bounds.get(key, (self.curves[key],) * 2))
                for key in ((other.name, by_hour) for other in self.offers)
                if key[0] != name
            ]
            for other, bounds in against:
                even = break_even(curve, other, self.upto)
                yield {
                    "offer": name,
                    "how": "by the hour" if by_hour else "always on",
                    "against": other.name,
                    **asdict(even),
                    **self._even_intervals(own, bounds),
                }

    def _even_intervals(
        self, own: tuple[CostCurve, CostCurve] | None, other: tuple[CostCurve, CostCurve]
    ) -> dict[str, list[float | None] | None]:
        """(low, high) of both volumes: the cheapest against the dearest, and the reverse."""
        if own is None:
            return {"first_interval": None, "for_good_interval": None}
        low, high = (break_even(own[n], other[1 - n], self.upto) for n in (0, 1))
        return {
            "first_interval": [low.first, high.first],
            "for_good_interval": [low.for_good, high.for_good],
        }

    def table(self) -> pd.DataFrame:
        """A row for each volume and way of being served."""
        import pandas as pd

        from moesim.report import cost_rows

        rows = cost_rows.volume_rows(self.summary)
        return pd.DataFrame(
            [[name, *cells] for name, cells in rows],
            columns=["tokens a day", *cost_rows.VOLUME_HEADER],
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from moesim.report.cost_page import in_short

        return in_short(self.summary)

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML report."""
        from moesim.report.cost_page import write_cost_report

        write_cost_report(self.findings(), path)

    def findings(self, volume: float | None = None) -> CostFindings:
        """What a page draws; `volume`: the one that it speaks of, if one in particular."""
        lines = tuple(self.api_curve(price) for price in self.apis)
        return CostFindings(self.summary, self.curves, lines, self._days(), volume, self.bounds)

    def _days(self) -> tuple[FleetDay, FleetDay]:
        """Of the scenario at a volume whose busiest hour needs four replicas."""
        full = self.own.replica.tokens_per_s * 24 * HOUR
        volume = 3.5 * full / (self.profile.peak_over_mean * self.rules.headroom)
        return self.day(self.own, volume), self.day(self.own, volume, by_hour=True)


def cost_study(
    scenario: Scenario | Mapping[str, object] | str | Path,
    *,
    volumes: Sequence[float] = VOLUMES,
    profile: DayProfile | None = None,
    apis: Sequence[ApiPrice] | None = None,
    dense: str | None = None,
    rules: Rules | None = None,
    percentile: float = 99.0,
    cached_share: float | None = None,
    seeds: int = 1,
    progress: PROGRESS | None = None,
) -> CostStudy:
    """Simulate what the offers can serve, and work out what they cost.

    `apis` None: every shipped price of the scenario's model. `dense`: a dense model, `same-active`,
    or None. `cached_share` None: what the simulated prefix cache found. `seeds`: under how many
    capacity is searched for; two or more give intervals. Raises InputError.
    """
    scenario = as_scenario(scenario)
    volumes = tuple(volumes)
    if not 1 <= len(volumes) <= MOST_VOLUMES or not all(0 < each <= 1e15 for each in volumes):
        rule = f"must be 1 to {MOST_VOLUMES} numbers above 0, of at most 1e15 tokens a day"
        raise InputError("--volume", rule, list(volumes)[:5])
    if cached_share is not None and not 0.0 <= cached_share <= 1.0:
        raise InputError("--cached-share", "must be from 0 to 1", cached_share)
    for price in apis or ():
        check_all_day(price)
    if dense is not None:
        dense_scenario(scenario, dense, 1.0)  # refuses before anything runs
    found = [_measured(scenario, percentile, seeds, progress)]
    if dense is not None:
        other = dense_scenario(scenario, dense, found[0].tokens_per_request)
        found.append(_measured(other, percentile, seeds, progress))
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


def _measured(
    scenario: Scenario, percentile: float, seeds: int, progress: PROGRESS | None
) -> SelfHosted:
    tell = None if progress is None else lambda trials: progress(scenario.name, trials)
    return self_hosted(scenario, percentile=percentile, seeds=seeds, progress=tell)
