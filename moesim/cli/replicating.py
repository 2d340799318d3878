"""Options and JSON of replications, which `run` and `compare` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.findings.estimates import Uncertainty

SeedsOption = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Replicate: intervals from N runs, drawn anew from the scenario's seed on.",
        show_default=False,
    ),
]
VaryOption = Annotated[
    str | None,
    typer.Option(
        "--vary",
        metavar="A,B",
        help="What replications draw anew: demand, routing, calibration; all unless given.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    float | None,
    typer.Option(
        "--precision",
        metavar="X",
        help="Replicate until figures are known to this share (0.05: 5 %), 100 times at most.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Asked:
    """Replications that were asked for."""

    seeds: int
    sources: tuple[str, ...]
    precision: float | None

    def given(self) -> dict[str, Any]:
        """As arguments of replicate."""
        return {"seeds": self.seeds, "sources": self.sources, "precision": self.precision}


def asked(seeds: int | None, vary: str | None, precision: float | None) -> Asked | None:
    """What the options ask for; None where they ask for no replications. Raises InputError."""
    if seeds is None and precision is None:
        if vary is not None:
            raise InputError("--vary", "needs --seeds N or --precision X", vary)
        return None
    from moesim.replications.runner import SOURCES
    from moesim.replications.study import DEFAULT_SEEDS, FEWEST_REPLICATIONS

    sources = SOURCES if vary is None else tuple(word.strip() for word in vary.split(","))
    fewest = DEFAULT_SEEDS if precision is None else FEWEST_REPLICATIONS
    return Asked(fewest if seeds is None else seeds, sources, precision)


def plain_uncertainty(found: Uncertainty) -> Mapping[str, object]:
    """`intervals` and what else --json says of them."""
    return {
        "intervals": {
            path: {"value": each.value, "low": each.low, "high": each.high}
            for path, each in found.estimates.items()
        },
        "method": found.method,
        "seeds": list(found.seeds),
        "vary": list(found.sources),
        "settled": found.settled,
    }
