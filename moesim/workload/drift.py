"""Drift: a mix of domains that changes over time.

Legend: N requests, M mixes, D domains.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from moesim.errors import InputError
from moesim.spec import Spec
from moesim.workload.lengths import no_flag

MAX_DOMAINS = 1000
Domains = dict[
    Annotated[str, Field(min_length=1, max_length=200)],
    Annotated[float, Field(ge=0, le=1e9), BeforeValidator(no_flag)],
]


class DriftPoint(Spec):
    """Weights of domains from a time on."""

    at_s: Annotated[float, Field(ge=0, le=1e9), BeforeValidator(no_flag)]
    domains: Domains = Field(min_length=1, max_length=MAX_DOMAINS)


def domain_names(points: Sequence[DriftPoint]) -> tuple[str, ...]:
    """Every domain of all mixes, in order of first appearance."""
    return tuple(dict.fromkeys(name for point in points for name in point.domains))


def check_drift(points: Sequence[DriftPoint], known: Sequence[str]) -> None:
    """InputError unless every domain of all mixes is one of the routing trace's."""
    for i, point in enumerate(points):
        for name in point.domains:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise InputError(
                    f"workload.drift.{i}.domains",
                    f"must name domains of the routing trace ({', '.join(known[:12])})",
                    name,
                    f"did you mean {close[0]}?" if close else "",
                )


def drifting_domains(
    points: Sequence[DriftPoint],
    linear: bool,
    arrival_s: NDArray[np.float64],
    quantile_N: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Domain of each request, an index into `domain_names`, from a uniform number of its own.

    `linear`: between two points the shares change in proportion to time, else they step.
    """
    names = domain_names(points)
    share_MD = np.array([[point.domains.get(name, 0.0) for name in names] for point in points])
    share_MD /= share_MD.sum(axis=1, keepdims=True)
    cumulative_MD = np.cumsum(share_MD, axis=1)
    at_M = np.array([point.at_s for point in points])
    domain_N = np.zeros(arrival_s.size, np.int64)
    for d in range(len(names)):
        if linear:
            upto_N = np.interp(arrival_s, at_M, cumulative_MD[:, d])
        else:
            upto_N = cumulative_MD[np.searchsorted(at_M, arrival_s, side="right") - 1, d]
        # Rounding must not let a request into a domain of weight 0 behind the last one.
        domain_N += (quantile_N >= upto_N) & (upto_N < 1.0 - 1e-12)
    return domain_N
