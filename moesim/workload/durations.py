"""How long somebody thinks or a tool runs: distributions of seconds as functions of a quantile."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from moesim.spec import Spec, one_of
from moesim.workload.lengths import no_flag

Seconds = Annotated[float, Field(ge=0, le=1e7), BeforeValidator(no_flag)]
Float = NDArray[np.float64]


class FixedTime(Spec):
    """Always the same."""

    seconds: Seconds

    def seconds_at(self, quantile_N: Float) -> Float:
        return np.full(len(quantile_N), self.seconds)


class ExponentialTime(Spec):
    """Memoryless, with mean `mean_s`."""

    mean_s: Seconds

    def seconds_at(self, quantile_N: Float) -> Float:
        return np.asarray(-np.log1p(-quantile_N) * self.mean_s)


class LognormalTime(Spec):
    """Log-normal around `median_s`, cut at `high_s`; `sigma` as in the lengths."""

    median_s: Annotated[float, Field(gt=0, le=1e7), BeforeValidator(no_flag)]
    sigma: Annotated[float, Field(ge=0, le=10), BeforeValidator(no_flag)]
    high_s: Seconds = 3600.0

    def seconds_at(self, quantile_N: Float) -> Float:
        from scipy.special import ndtri

        log_s = math.log(self.median_s) + self.sigma * np.maximum(ndtri(quantile_N), -40.0)
        return np.asarray(np.minimum(np.exp(np.minimum(log_s, 20.0)), self.high_s))


def _number_is_fixed(value: object) -> object:
    """``think_time: 5`` is short for ``think_time: {fixed_time: {seconds: 5}}``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"fixed_time": {"seconds": value}}
    return value


Duration = FixedTime | ExponentialTime | LognormalTime
DurationChoice = Annotated[
    Duration,
    one_of("duration", FixedTime, ExponentialTime, LognormalTime),
    BeforeValidator(_number_is_fixed),
]
