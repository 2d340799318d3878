"""How many tokens a prompt or an output has: distributions as functions of a quantile.

Legend: N requests, B bins, Q probabilities of a table.

Every choice answers the same two questions: `tokens_at(quantile_N)`, the lengths that belong to
numbers drawn uniformly from [0, 1), and `mean_tokens()`. Drawing by quantile consumes one number a
request whatever the distribution, so changing one length never shifts another request's draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from moesim.spec import Spec, broken_rule, one_of

# Ten times the longest context window on offer (Llama 4 Scout, 10 million tokens, 2025-04).
MAX_TOKENS = 100_000_000
# The 128k context of most models of 2024 and 2025: where a heavy tail is cut unless told otherwise.
CONTEXT_128K = 131_072
MAX_TABLE = 100_000

Float = NDArray[np.float64]
Tokens_N = NDArray[np.int32]


def no_flag(value: object) -> object:
    """Refuse true and false where a number is meant, which Python would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def or_short(short: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Say in a record's JSON Schema that a plain value, described by `short`, may stand for it."""

    def widen(schema: dict[str, Any]) -> None:
        record = dict(schema)
        schema.clear()
        schema["anyOf"] = [short, record]

    return widen


Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS), BeforeValidator(no_flag)]


class Fixed(Spec):
    """Always the same; ``{fixed: 1024}`` is short for ``{fixed: {tokens: 1024}}``."""

    model_config = ConfigDict(json_schema_extra=or_short({"type": "integer", "minimum": 1}))

    tokens: Tokens

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: object) -> object:
        return data if isinstance(data, Mapping | Spec) else {"tokens": data}

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        return np.full(len(quantile_N), self.tokens, np.int32)

    def mean_tokens(self) -> float:
        return float(self.tokens)


class Uniform(Spec):
    """Whole numbers from `low` to `high`, both included, equally likely."""

    low: Tokens
    high: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise broken_rule("high", f"must be at least low ({self.low})", self.high)
        return self

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        return _whole_numbers(self.low, self.high, quantile_N)

    def mean_tokens(self) -> float:
        return (self.low + self.high) / 2


class RangeRatio(Spec):
    """Benchmark clients' rule ``randint(int(tokens * ratio), tokens + 1)``, upper end excluded.

    Source: InferenceX benchmark_serving.py, `sample_random_requests`, with RANDOM_RANGE_RATIO 0.8
    in benchmark-tmpl.yml (2026-04). A lower end of 0 counts as 1. The later vLLM meaning,
    tokens * (1 +- ratio), is `uniform`.
    """

    tokens: Tokens
    ratio: Annotated[float, Field(ge=0, le=1), BeforeValidator(no_flag)]

    @property
    def low(self) -> int:
        return max(1, int(self.tokens * self.ratio))

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        return _whole_numbers(self.low, self.tokens, quantile_N)

    def mean_tokens(self) -> float:
        return (self.low + self.tokens) / 2


class Lognormal(Spec):
    """Log-normal around `median`; what falls outside `low` to `high` counts as the nearer bound.

    `sigma` is the standard deviation of the natural logarithm. Cutting at the bounds, as clients
    and context windows do, keeps the median exact.
    """

    median: Annotated[float, Field(ge=1, le=MAX_TOKENS), BeforeValidator(no_flag)]
    sigma: Annotated[float, Field(ge=0, le=10), BeforeValidator(no_flag)]
    low: Tokens = 1
    high: Tokens = CONTEXT_128K

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            rule = f"must lie between low ({self.low}) and high ({self.high})"
            raise broken_rule("median", rule, self.median)
        return self

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        from scipy.special import ndtri

        # log space, where a quantile of 0 (minus infinity) and wide sigmas cannot overflow
        log_tokens_N = math.log(self.median) + self.sigma * np.maximum(ndtri(quantile_N), -40.0)
        bounded_N = np.clip(log_tokens_N, math.log(self.low), math.log(self.high))
        return np.clip(np.rint(np.exp(bounded_N)), self.low, self.high).astype(np.int32)

    def mean_tokens(self) -> float:
        return min(float(self.high), self.median * math.exp(self.sigma**2 / 2))


class Histogram(Spec):
    """A bin i is drawn by `weights[i]`, then a whole number in [`edges[i]`, `edges[i + 1]`)."""

    edges: Annotated[tuple[Tokens, ...], Field(min_length=2, max_length=MAX_TABLE)]
    weights: Annotated[
        tuple[Annotated[float, Field(ge=0), BeforeValidator(no_flag)], ...],
        Field(min_length=1, max_length=MAX_TABLE),
    ]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.weights) != len(self.edges) - 1:
            rule = f"must have one number for each of the {len(self.edges) - 1} bins"
            raise broken_rule("weights", rule, len(self.weights))
        if any(right <= left for left, right in zip(self.edges, self.edges[1:], strict=False)):
            raise broken_rule("edges", "must ascend")
        if not 0 < sum(self.weights) < math.inf:
            raise broken_rule("weights", "must have a positive, finite sum", sum(self.weights))
        return self

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        share_B = np.asarray(self.weights) / sum(self.weights)
        cumulative_B1 = np.concatenate([[0.0], np.cumsum(share_B)])
        bin_N = np.searchsorted(cumulative_B1, quantile_N * cumulative_B1[-1], side="right") - 1
        bin_N = np.minimum(bin_N, np.flatnonzero(share_B)[-1])
        edges_B1 = np.asarray(self.edges, np.int64)
        inside_N = (quantile_N * cumulative_B1[-1] - cumulative_B1[bin_N]) / share_B[bin_N]
        low_N, high_N = edges_B1[bin_N], edges_B1[bin_N + 1] - 1
        return _whole_numbers(low_N, high_N, np.clip(inside_N, 0.0, 1.0))

    def mean_tokens(self) -> float:
        edges_B1 = np.asarray(self.edges, np.float64)
        middle_B = (edges_B1[:-1] + edges_B1[1:] - 1) / 2
        return float(np.average(middle_B, weights=np.asarray(self.weights) / sum(self.weights)))


class Quantiles(Spec):
    """A table of quantiles of real lengths; between two of them the logarithm is linear.

    `probabilities` ascend from 0 to 1 and `tokens` never descend: equal neighbours are a length
    that many requests share. Linear in the logarithm because lengths span three to four decades.
    """

    probabilities: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1), BeforeValidator(no_flag)], ...],
        Field(min_length=2, max_length=MAX_TABLE),
    ]
    tokens: Annotated[tuple[Tokens, ...], Field(min_length=2, max_length=MAX_TABLE)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        steps = zip(self.probabilities, self.probabilities[1:], strict=False)
        if self.probabilities[0] != 0 or self.probabilities[-1] != 1:
            raise broken_rule("probabilities", "must start at 0 and end at 1")
        if any(right <= left for left, right in steps):
            raise broken_rule("probabilities", "must ascend")
        if len(self.tokens) != len(self.probabilities):
            rule = f"must have one number for each of the {len(self.probabilities)} probabilities"
            raise broken_rule("tokens", rule, len(self.tokens))
        if any(right < left for left, right in zip(self.tokens, self.tokens[1:], strict=False)):
            raise broken_rule("tokens", "must never descend")
        return self

    def tokens_at(self, quantile_N: Float) -> Tokens_N:
        log_N = np.interp(quantile_N, self.probabilities, np.log(self.tokens))
        return np.rint(np.exp(log_N)).astype(np.int32)

    def mean_tokens(self) -> float:
        low, high = np.asarray(self.tokens[:-1], float), np.asarray(self.tokens[1:], float)
        growth = np.log(high / low)
        logarithmic_mean = np.where(growth > 0, (high - low) / np.maximum(growth, 1e-300), low)
        return float(np.sum(np.diff(self.probabilities) * logarithmic_mean))


Length = Fixed | Uniform | RangeRatio | Lognormal | Histogram | Quantiles
LengthChoice = Annotated[
    Length, one_of("length", Fixed, Uniform, RangeRatio, Lognormal, Histogram, Quantiles)
]


def _whole_numbers(
    low: int | NDArray[np.int64], high: int | NDArray[np.int64], quantile_N: Float
) -> Tokens_N:
    """The whole numbers `low` to `high` (included), each for an equal share of [0, 1)."""
    drawn_N = low + np.floor(quantile_N * (np.asarray(high) - low + 1)).astype(np.int64)
    return np.minimum(drawn_N, high).astype(np.int32)
