"""How long a library takes for an expert exchange: its law, and the fitted numbers of each.

    t = max(floor, base + network + expert x experts on other nodes
            + pair x messages of the hottest pair + message x messages posted by the busiest GPU
            + bytes x max(copies on the hottest scale-up port / its rate, on the hottest NIC / its))

A port reaches the share `up_share` of what its link reaches (moesim.hardware.Link), and no more
than the communication kernels' SMs copy; a NIC `out_share`. `network` and `expert` hold where the
group has several domains. The numbers are in `presets/collectives.csv`, fitted by
`calibration/collectives_fit.py` on published timings; docs/explanation/collectives.md shows the
residuals.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.costs.traffic import Floats, Kind
from moesim.hardware import Link
from moesim.presets import read_preset
from moesim.units import GB, US

PHASES = ("dispatch", "combine")

# A law on given links, as compiled code reads it (moesim.sim.exchange): times of a copy of
# `copy_bytes` on the hottest port and NIC; `near_out` 1 where copies within a domain take the NIC.
_NUMBERS = (
    "base_s",
    "floor_s",
    "pair_s",
    "message_s",
    "up_copy_s",
    "out_copy_s",
    "copy_bytes",
    "near_out",
)
EXCHANGE: np.dtype[np.void] = np.dtype((np.record, [(name, np.float64) for name in _NUMBERS]))


@dataclass(frozen=True)
class ExchangeLaw:
    """Parameters of one library and phase; microseconds, shares, and GB/s of one SM (0: no limit).

    `traffic`: what is sent (moesim.costs.traffic); `network_only`: nothing takes the scale-up
    links. `ep_low` to `ep_high` GPUs were fitted.
    """

    library: str
    phase: str
    traffic: Kind
    network_only: bool = False
    base_us: float = 0.0
    floor_us: float = 0.0
    network_us: float = 0.0
    expert_us: float = 0.0
    pair_us: float = 0.0
    message_us: float = 0.0
    up_share: float = 1.0
    out_share: float = 1.0
    sm_gb_per_s: float = 0.0
    sms: float = 0.0
    ep_low: int = 0
    ep_high: int = 0
    fitted_on: str = ""
    rows: int = 0
    mape_percent: float = 0.0
    held_out_percent: float = 0.0
    trust: str = ""
    date: str = ""
    source: str = ""

    def up_bytes_per_s(self, link: Link) -> float:
        """What a scale-up port carries: the link, or the SMs that copy."""
        rate = link.effective_bytes_per_s * self.up_share
        if self.sm_gb_per_s <= 0.0:
            return rate
        return min(rate, self.sms * self.sm_gb_per_s * GB)

    def out_bytes_per_s(self, link: Link) -> float:
        """What a NIC carries."""
        return link.effective_bytes_per_s * self.out_share

    def base_s(self, domains: int, experts: int) -> float:
        """Time that does not depend on the tokens, of a group in so many domains."""
        base = self.base_us
        if domains > 1 or self.network_only:
            others = experts * (1.0 - 1.0 / domains)
            base += self.network_us + self.expert_us * others
        return base * US

    def numbers(
        self, links: tuple[Link, Link], copy_bytes: float, domains: int, experts: int
    ) -> tuple[float, ...]:
        """A row of EXCHANGE."""
        up_s = 0.0 if self.network_only else copy_bytes / self.up_bytes_per_s(links[0])
        return (
            self.base_s(domains, experts),
            self.floor_us * US,
            self.pair_us * US,
            self.message_us * US,
            up_s,
            copy_bytes / self.out_bytes_per_s(links[1]),
            copy_bytes,
            float(self.network_only),
        )


def exchange_s(
    numbers: NDArray[np.void], up: ArrayLike, out: ArrayLike, pair: ArrayLike, sent: ArrayLike
) -> Floats:
    """Seconds of one phase by a row of EXCHANGE; copies as in traffic.Load, arrays of one shape."""
    near = float(numbers["near_out"])
    up_n, out_n = np.asarray(up, dtype=np.float64), np.asarray(out, dtype=np.float64)
    out_n = out_n + near * up_n
    byte_s = np.maximum(up_n * numbers["up_copy_s"], out_n * numbers["out_copy_s"])
    sent_n = np.asarray(sent, dtype=np.float64) + near * up_n
    posted_s = np.asarray(pair) * numbers["pair_s"] + sent_n * numbers["message_s"]
    seconds: Floats = np.maximum(numbers["floor_s"], numbers["base_s"] + posted_s + byte_s)
    return seconds


def load_law(library: str, phase: str) -> ExchangeLaw:
    """The fitted law of a library's phase (dispatch, combine); KeyError if there is none."""
    return laws()[library, phase]


@functools.cache
def laws() -> Mapping[tuple[str, str], ExchangeLaw]:
    """Every shipped law by (library, phase)."""
    lines = (x for x in read_preset("collectives.csv").splitlines() if x[:1] != "#")
    return {(law.library, law.phase): law for law in map(_law, csv.DictReader(lines))}


def _law(row: Mapping[str, str]) -> ExchangeLaw:
    values: dict[str, Any] = {}
    for each in fields(ExchangeLaw):
        text = row[each.name]
        if isinstance(each.default, bool):
            values[each.name] = text == "yes"
        elif isinstance(each.default, int | float):
            values[each.name] = type(each.default)(text or 0)
        else:
            values[each.name] = text
    return ExchangeLaw(**values)
