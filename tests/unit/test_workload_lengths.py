"""Length distributions against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moesim.errors import InputError
from moesim.workload.lengths import (
    Fixed,
    Histogram,
    Length,
    Lognormal,
    Quantiles,
    RangeRatio,
    Uniform,
)

EVEN = (np.arange(1_000_000) + 0.5) / 1_000_000


def drawn(length: Length, count: int = 200_000) -> np.ndarray:
    return length.tokens_at(np.random.default_rng(0).random(count))


def test_fixed() -> None:
    assert set(drawn(Fixed(tokens=1024), 10)) == {1024}


def test_uniform_includes_both_ends_equally() -> None:
    values, counts = np.unique(Uniform(low=3, high=7).tokens_at(EVEN), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7]
    assert counts.tolist() == [200_000] * 5


@pytest.mark.parametrize(("tokens", "ratio"), [(1024, 0.8), (1000, 0.55), (10, 0.0), (7, 1.0)])
def test_range_ratio_is_the_benchmark_clients_rule(tokens: int, ratio: float) -> None:
    """randint(int(L * r), L + 1): the upper end is excluded, so L itself is the largest."""
    low = max(1, int(tokens * ratio))
    values, counts = np.unique(
        RangeRatio(tokens=tokens, ratio=ratio).tokens_at(EVEN), return_counts=True
    )
    assert values.tolist() == list(range(low, tokens + 1))
    assert counts.max() - counts.min() <= 1
    reference = np.random.RandomState(0).randint(low, tokens + 1, 200_000)
    found = drawn(RangeRatio(tokens=tokens, ratio=ratio))
    if low < tokens:
        assert stats.ks_2samp(reference, found).pvalue > 0.01


def test_lognormal_has_its_median_and_sigma() -> None:
    found = drawn(Lognormal(median=800, sigma=1.1, low=1, high=32768))
    assert np.median(found) == pytest.approx(800, rel=0.01)
    inside = found[(found > 1) & (found < 32768)]
    assert np.log(inside).std() == pytest.approx(1.1, rel=0.01)
    # half a token of rounding is far below the KS resolution at these lengths
    assert stats.kstest(inside, stats.lognorm(1.1, scale=800).cdf).pvalue > 0.01


def test_lognormal_counts_what_is_outside_at_the_bounds() -> None:
    length = Lognormal(median=800, sigma=1.1, low=100, high=2000)
    found = length.tokens_at(EVEN)
    assert (found == 2000).mean() == pytest.approx(
        1 - stats.lognorm(1.1, scale=800).cdf(1999.5), abs=1e-4
    )
    assert (found.min(), found.max()) == (100, 2000)


def test_lognormal_survives_the_widest_tail() -> None:
    length = Lognormal(median=1, sigma=10, low=1, high=100_000_000)
    found = length.tokens_at(np.array([0.0, 0.5, np.nextafter(1.0, 0.0)]))
    assert found.tolist() == [1, 1, 100_000_000]


def test_histogram_follows_its_weights() -> None:
    length = Histogram(edges=(1, 11, 21, 101), weights=(1, 0, 3))
    found = length.tokens_at(EVEN)
    assert ((found >= 1) & (found <= 10)).mean() == pytest.approx(0.25)
    assert not ((found >= 11) & (found <= 20)).any()
    assert (found.min(), found.max()) == (1, 100)
    assert found.mean() == pytest.approx(length.mean_tokens(), rel=1e-4)


def test_quantiles_pass_through_their_points_and_keep_steps() -> None:
    length = Quantiles(probabilities=(0, 0.25, 0.5, 1), tokens=(10, 100, 100, 10_000))
    at = length.tokens_at(np.array([0.0, 0.25, 0.3, 0.5, 0.75, 1 - 1e-12]))
    assert at.tolist() == [10, 100, 100, 100, 1000, 10_000]
    assert (length.tokens_at(EVEN) == 100).mean() == pytest.approx(0.25, abs=0.01)
    assert length.tokens_at(EVEN).mean() == pytest.approx(length.mean_tokens(), rel=1e-3)


whole = st.integers(1, 100_000)
weight_lists = st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-6)


@st.composite
def lengths(draw: st.DrawFn) -> Length:
    low, high = sorted((draw(whole), draw(whole)))
    kind = draw(st.sampled_from(["fixed", "uniform", "ratio", "log", "bins", "table"]))
    if kind == "fixed":
        return Fixed(tokens=low)
    if kind == "uniform":
        return Uniform(low=low, high=high)
    if kind == "ratio":
        return RangeRatio(tokens=high, ratio=draw(st.floats(0, 1)))
    if kind == "log":
        return Lognormal(median=(low + high) / 2, sigma=draw(st.floats(0, 10)), low=low, high=high)
    if kind == "bins":
        weights = draw(weight_lists)
        count = len(weights) + 1
        edges = draw(st.lists(whole, min_size=count, max_size=count, unique=True))
        return Histogram(edges=tuple(sorted(edges)), weights=tuple(weights))
    tokens = sorted(draw(st.lists(whole, min_size=2, max_size=8)))
    probabilities = tuple(np.linspace(0, 1, len(tokens)).tolist())
    return Quantiles(probabilities=probabilities, tokens=tuple(tokens))


def bounds(length: Length) -> tuple[int, int]:
    match length:
        case Fixed():
            return length.tokens, length.tokens
        case RangeRatio():
            return length.low, length.tokens
        case Histogram():
            return length.edges[0], length.edges[-1] - 1
        case Quantiles():
            return length.tokens[0], length.tokens[-1]
        case _:
            return length.low, length.high


@settings(max_examples=200, deadline=None)
@given(lengths(), st.integers(0, 2**32))
def test_lengths_stay_within_bounds_and_never_descend(length: Length, seed: int) -> None:
    quantiles = np.sort(np.random.default_rng(seed).random(200))
    quantiles = np.concatenate([[0.0], quantiles, [np.nextafter(1.0, 0.0)]])
    found = length.tokens_at(quantiles)
    low, high = bounds(length)
    assert found.dtype == np.int32
    assert low <= found.min()
    assert found.max() <= high
    assert np.all(np.diff(found) >= 0)
    assert low - 1 <= length.mean_tokens() <= high + 1


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (Fixed, {"tokens": 0}, "tokens must be at least 1"),
        (Fixed, {"tokens": 10**12}, "tokens must be at most 100000000"),
        (Fixed, {"tokens": True}, "tokens must be a number"),
        (Fixed, {"tokens": 10.5}, "tokens must be a whole number"),
        (Uniform, {"low": 5, "high": 4}, r"high must be at least low \(5\); got 4"),
        (RangeRatio, {"tokens": 5, "ratio": 1.2}, "ratio must be at most 1"),
        (RangeRatio, {"tokens": 5, "ratio": float("nan")}, "ratio must be a finite number"),
        (Lognormal, {"median": 5, "sigma": -1}, "sigma must be at least 0"),
        (Lognormal, {"median": 5, "sigma": 1, "high": 4}, "median must lie between low"),
        (Histogram, {"edges": [1, 2], "weights": [1, 2]}, "weights must have one number for each"),
        (Histogram, {"edges": [2, 1], "weights": [1]}, "edges must ascend"),
        (Histogram, {"edges": [1, 2], "weights": [0]}, "weights must have a positive"),
        (Histogram, {"edges": [1, 2], "weights": [-1]}, "weights.0 must be at least"),
        (Quantiles, {"probabilities": [0, 0.5], "tokens": [1, 2]}, "probabilities must start at 0"),
        (Quantiles, {"probabilities": [0, 0, 1], "tokens": [1, 2, 3]}, "probabilities must ascend"),
        (Quantiles, {"probabilities": [0, 1], "tokens": [2, 1]}, "tokens must never descend"),
        (
            Quantiles,
            {"probabilities": [0, 1], "tokens": [1]},
            "tokens tuple should have at least 2",
        ),
    ],
)
def test_impossible_lengths_are_refused(cls: type[Length], data: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cls.parse(data)
    assert "\n" not in str(caught.value)
