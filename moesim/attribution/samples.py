"""Latencies of measured requests, in the form that resampling needs.

Legend: N requests, T largest values, B resamples. A request may have many values (gaps between its
tokens), one, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.findings.attribution import METRICS
from moesim.results import Result
from moesim.sim.state import COMPLETED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of the values, so many of the largest are kept: 1 % of ten seeds' may all be one seed's.
TAIL_SHARE = 0.1
MOST_SEEDS = 10
LEAST_TAIL = 1_000
TAIL = 0.01  # behind p99
MOST_VALUES = 10_000_000  # of one request, where a file says so
AT_ONCE = 4e6  # values of a resample that are looked at together


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of one latency: how many each request has, their mean and squared distances from it
    [N]; the largest of all, descending, and whose they are [T]."""

    count_N: Ints
    mean_N: Floats
    squares_N: Floats
    tail_T: Floats
    owner_T: Ints

    @classmethod
    def of(cls, values: Floats, owner: Ints, requests: int) -> Self:
        """Of these values and the requests, [0, `requests`), that they belong to."""
        count_N = np.bincount(owner, minlength=requests)
        some_N = np.maximum(count_N, 1)
        mean_N = np.bincount(owner, values, requests) / some_N
        squares_N = np.asarray(
            np.bincount(owner, (values - mean_N[owner]) ** 2, requests), np.float64
        )
        kept = min(values.size, max(LEAST_TAIL, int(np.ceil(TAIL_SHARE * values.size))))
        order = np.argsort(-values, kind="stable")[:kept]
        return cls(count_N.astype(np.int64), mean_N, squares_N, values[order], owner[order])

    @classmethod
    def together(cls, samples: Sequence[Sample]) -> Sample:
        """Of the requests of all of them, one sample after the other."""
        first = np.cumsum([0, *(each.count_N.size for each in samples)])
        tail = np.concatenate([each.tail_T for each in samples])
        owner = np.concatenate(
            [each.owner_T + at for each, at in zip(samples, first, strict=False)]
        )
        order = np.argsort(-tail, kind="stable")
        return cls(
            np.concatenate([each.count_N for each in samples]),
            np.concatenate([each.mean_N for each in samples]),
            np.concatenate([each.squares_N for each in samples]),
            tail[order],
            owner[order],
        )

    def only(self, keep_N: NDArray[np.bool_]) -> Sample:
        """Without the values of other requests, which stay as requests without any."""
        kept_T = keep_N[self.owner_T]
        return Sample(
            self.count_N * keep_N,
            self.mean_N * keep_N,
            self.squares_N * keep_N,
            self.tail_T[kept_T],
            self.owner_T[kept_T],
        )

    def statistics(self, times_BN: Ints) -> Floats:
        """[B, 3] mean, variance (of the population) and p99 (linear between neighbours), each
        request taken times_BN times; NaN where there is no value."""
        found = np.full((len(times_BN), 3), np.nan)
        if not self.count_N.any():
            return found
        count_B = times_BN @ self.count_N
        centre = float(self.count_N @ self.mean_N) / float(self.count_N.sum())
        off_N = self.mean_N - centre
        with np.errstate(invalid="ignore", divide="ignore"):
            off_B = (times_BN @ (self.count_N * off_N)) / count_B
            squares_B = times_BN @ (self.squares_N + self.count_N * off_N**2)
            found[:, 0] = centre + off_B
            found[:, 1] = np.maximum(0.0, squares_B / count_B - off_B**2)
        step = max(1, int(AT_ONCE / max(1, self.tail_T.size)))
        for first in range(0, len(times_BN), step):
            part = slice(first, first + step)
            found[part, 2] = self._p99(times_BN[part], count_B[part])
        found[count_B == 0] = np.nan
        return found

    def _p99(self, times_BN: Ints, count_B: Ints) -> Floats:
        """From the largest values down: the one that 1 % of all lie above."""
        upto_BT = np.cumsum(times_BN[:, self.owner_T], axis=1)
        place_B = np.maximum(count_B - 1, 0) * TAIL
        above_B = np.floor(place_B).astype(np.int64)
        last = self.tail_T.size - 1
        at_B = np.minimum((upto_BT <= above_B[:, None]).sum(axis=1), last)
        next_B = np.minimum((upto_BT <= above_B[:, None] + 1).sum(axis=1), last)
        share_B = place_B - above_B
        return np.asarray(self.tail_T[at_B] * (1 - share_B) + self.tail_T[next_B] * share_B)

    def to_json(self) -> dict[str, list[float]]:
        """Numbers that JSON gives back as they are."""
        return {name: getattr(self, name).tolist() for name in FIELDS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` made; ValueError, KeyError, TypeError or OverflowError for all else."""
        made: dict[str, Any] = {name: np.asarray(data[name], of) for name, of in FIELDS.items()}
        shapes = {name: array.shape for name, array in made.items()}
        if any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError("a sample has lists")
        if len({shapes[name] for name in ("count_N", "mean_N", "squares_N")}) > 1:
            raise ValueError("a sample has as many means as requests")
        owner_T = made["owner_T"]
        inside = ((owner_T >= 0) & (owner_T < made["count_N"].size)).all()
        if owner_T.shape != shapes["tail_T"] or not inside:
            raise ValueError("each of a sample's largest values has an owner")
        if (made["count_N"] < 0).any() or (made["count_N"] > MOST_VALUES).any():
            raise ValueError("a request has some number of values")
        if not all(np.isfinite(array).all() for array in made.values()):
            raise ValueError("a sample's values are finite")
        return cls(
            owner_T=owner_T,
            count_N=made["count_N"],
            mean_N=made["mean_N"],
            squares_N=made["squares_N"],
            tail_T=made["tail_T"],
        )


FIELDS = {
    "count_N": np.int64,
    "mean_N": np.float64,
    "squares_N": np.float64,
    "tail_T": np.float64,
    "owner_T": np.int64,
}

Samples = dict[str, Sample]  # by metric


def samples_of(result: Result, warmup: int, delay_s: float) -> tuple[Samples, Samples]:
    """TTFT, ITL and end-to-end latency of the completed requests behind the first `warmup`, in
    order of the demand: as they were, and less the wait for each one's first step.

    `delay_s`: from arrival to the scheduler, which is no wait.
    """
    rows = result.raw.requests
    order = np.arange(rows.size)[warmup:]
    rows_N = rows[order]
    done_N = rows_N["status"] == COMPLETED
    wait_N = rows_N["scheduled_s"] - rows_N["arrival_s"] - delay_s
    times = {
        "ttft_s": rows_N["first_token_s"] - rows_N["arrival_s"],
        "e2e_s": rows_N["finish_s"] - rows_N["arrival_s"],
    }
    gaps = _gaps(result, order, done_N)
    told: list[Samples] = []
    for less_N in (np.zeros(order.size), wait_N):
        made = {name: _one_each(value_N - less_N, done_N) for name, value_N in times.items()}
        made["itl_s"] = gaps
        told.append({metric: made[metric] for metric in METRICS})
    return told[0], told[1]


def _one_each(value_N: Floats, done_N: NDArray[np.bool_]) -> Sample:
    owner = np.flatnonzero(done_N)
    return Sample.of(np.ascontiguousarray(value_N[owner]), owner, done_N.size)


def _gaps(result: Result, order: Ints, done_N: NDArray[np.bool_]) -> Sample:
    """Gaps between the tokens of each request; those of one message are none."""
    raw = result.raw
    if raw.token_s.size == 0:
        return Sample.of(np.zeros(0), np.zeros(0, np.int64), done_N.size)
    drafts = any(of.deployment.speculation.drafts for _, of in result.scenario.pools())
    least_s = 0.0 if drafts else -1.0
    values, owners = [], []
    for n, request in enumerate(order.tolist()):
        if not done_N[n]:
            continue
        start = int(raw.requests["token_start"][request])
        gap = np.diff(raw.token_s[start : start + int(raw.requests["output_tokens"][request])])
        gap = gap[gap > least_s]
        values.append(gap)
        owners.append(np.full(gap.size, n, np.int64))
    nothing: list[Any] = [np.zeros(0)]
    return Sample.of(
        np.concatenate(values or nothing),
        np.concatenate(owners or [np.zeros(0, np.int64)]),
        done_N.size,
    )
