"""What a study of costs finds, as data that pages draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moesim.economics.curves import CostCurve
from moesim.economics.replicas import FleetDay

Bounds = Mapping[tuple[str, bool], tuple[CostCurve, CostCurve]]


@dataclass(frozen=True, eq=False)
class CostFindings:
    """`summary`: what ``moesim cost --json`` prints; `curves` by (offer, by the hour); `lines` of
    managed APIs; `days` of the first offer (always on, by the hour); `volume`: the tokens a day
    that a review speaks of, one of the summary's (None: none in particular); `bounds` of curves
    (least, most) where they are known."""

    summary: Mapping[str, Any]
    curves: Mapping[tuple[str, bool], CostCurve]
    lines: tuple[CostCurve, ...]
    days: tuple[FleetDay, FleetDay]
    volume: float | None = None
    bounds: Bounds = field(default_factory=dict)

    def at_volume(self) -> Mapping[str, Any] | None:
        """The bills at `volume`; None where there is none."""
        for each in self.summary["volumes"]:
            if self.volume is not None and each["tokens_per_day"] == self.volume:
                found: Mapping[str, Any] = each
                return found
        return None
