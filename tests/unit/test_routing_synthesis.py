"""The generator: its sampling law exactly where that is possible, its statistics where not."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import RoutingTrace, marginals, sampling
from moesim.routing import statistics as stats
from moesim.routing.synthesis import SynthesisSettings, layer_strengths, synthesise

EVEN = {"strength": 0.0, "gini": 0.0, "max_over_mean": 1.0, "layer_spread": 0.0}


def make(
    settings: SynthesisSettings | None = None,
    layers: int = 4,
    experts: int = 16,
    top_k: int = 2,
    sequences: int = 40,
    tokens: tuple[Any, Any] = (50, 100),
    seed: int = 0,
) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    return synthesise(
        settings or SynthesisSettings(), layers, experts, top_k, sequences, tokens, rng
    )


def one_layer(
    bias_E: NDArray[np.float64], tokens: int, top_k: int, seed: int = 7
) -> NDArray[np.uint8]:
    """Choices of tokens whose latent is zero: logits are the biases (log2)."""
    ids = np.empty((tokens, 1, top_k), np.uint8)
    bias = np.asarray(bias_E, np.float32)[None]
    loading = np.zeros((1, 1, sampling.UNROLL, bias.shape[1]), np.float32)
    z = np.zeros((tokens, sampling.UNROLL), np.float32)
    sampling.choose(z, bias, loading, np.uint64(seed), ids)
    return ids[:, 0]


def test_draws_follow_the_plackett_luce_law() -> None:
    weights = np.array([8.0, 4.0, 2.0, 1.0])
    tokens = 200_000
    drawn = Counter(map(tuple, one_layer(np.log2(weights), tokens, 2).tolist()))
    for first, second in itertools.permutations(range(4), 2):
        law = weights[first] / 15 * weights[second] / (15 - weights[first])
        assert drawn[(first, second)] / tokens == pytest.approx(
            law, abs=5 * math.sqrt(law / tokens)
        )


@pytest.mark.parametrize("experts", [17, 40, 300])
def test_padding_and_columns_lose_no_expert(experts: int) -> None:
    rng = np.random.default_rng(experts)
    bias = rng.normal(0, 2, experts)
    tokens = 100_000
    ids = np.empty((tokens, 1, 1), np.uint16)
    sampling.choose(
        np.zeros((tokens, sampling.UNROLL), np.float32),
        bias.astype(np.float32)[None],
        np.zeros((1, 1, sampling.UNROLL, experts), np.float32),
        np.uint64(1),
        ids,
    )
    law = 2.0**bias / (2.0**bias).sum()
    share = np.bincount(ids.ravel(), minlength=experts) / tokens
    assert np.abs(share - law).max() < 5 * math.sqrt(law.max() / tokens)


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.array([sampling.unit(np.uint64(i)) for i in range(20_000)])
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert np.corrcoef(numbers[1:], numbers[:-1])[0, 1] == pytest.approx(0, abs=0.03)
    assert np.bincount((numbers * 16).astype(int)).min() > 1100


@settings(deadline=None, max_examples=60)
@given(
    experts=st.integers(1, 70),
    seed=st.integers(0, 2**32),
    spread=st.floats(0, 60),
    data=st.data(),
)
def test_chosen_experts_are_distinct_however_uneven_the_weights(
    experts: int, seed: int, spread: float, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    bias = np.random.default_rng(seed).normal(0, spread, experts)
    ids = np.sort(one_layer(bias, 20, top_k, seed), axis=1)
    assert ids.max() < experts
    assert (np.diff(ids.astype(int), axis=1) > 0).all()


def test_powers_of_two_are_close() -> None:
    y = np.linspace(-59, 59, 997, dtype=np.float32)
    z, weight = np.zeros((1, sampling.UNROLL), np.float32), np.empty_like(y)
    bits = np.empty(len(y), np.int32)
    loading = np.zeros((1, sampling.UNROLL, len(y)), np.float32)
    sampling.weigh(z, 0, y, loading, bits, bits.view(np.float32), weight)
    np.testing.assert_allclose(weight, np.exp2(y.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("rank", [8, 16])
def test_logits_are_bias_plus_loadings_times_latent(rank: int) -> None:
    rng = np.random.default_rng(rank)
    z = rng.standard_normal((3, rank)).astype(np.float32)
    bias = rng.standard_normal(20).astype(np.float32)
    loading = rng.standard_normal((rank // sampling.UNROLL, sampling.UNROLL, 20))
    bits, weight = np.empty(20, np.int32), np.empty(20, np.float32)
    arrays = bias, loading.astype(np.float32), bits, bits.view(np.float32), weight
    sampling.weigh(z, 2, *arrays)
    logits = bias + z[2] @ loading.reshape(rank, 20)
    np.testing.assert_allclose(np.log2(weight), logits, atol=1e-4)


def test_inclusion_is_the_mean_of_what_is_chosen() -> None:
    rng = np.random.default_rng(3)
    z = rng.standard_normal((40_000, sampling.UNROLL)).astype(np.float32)
    bias = rng.normal(0, 1, (2, 20)).astype(np.float32)
    loading = rng.normal(0, 1, (2, 1, sampling.UNROLL, 20)).astype(np.float32)
    ids = np.empty((len(z), 2, 3), np.uint8)
    sampling.choose(z, bias, loading, np.uint64(1), ids)
    chosen = np.array([np.bincount(ids[:, layer].ravel(), minlength=20) for layer in range(2)])
    expected = sampling.inclusion(z, bias, loading, 3, np.uint64(99))
    np.testing.assert_allclose(expected.sum(axis=1), 3, rtol=1e-5)
    assert np.abs(chosen / len(z) - expected).max() < 0.01


def test_persistence_is_the_lag_one_correlation() -> None:
    noise = np.random.default_rng(0).standard_normal((40_000, 8)).astype(np.float32)
    sampling.autoregress(noise, np.array([0, 20_000, 40_000]), np.float32(0.6))
    assert noise.std() == pytest.approx(1, abs=0.01)
    for lag, expected in ((1, 0.6), (2, 0.36)):
        found = (noise[lag:20_000] * noise[: 20_000 - lag]).mean()
        assert found == pytest.approx(expected, abs=0.02)
    assert (noise[20_000] * noise[19_999]).mean() != pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("experts", "gini", "busiest"), [(8, 0.06, 1.18), (32, 0.39, 2.5), (256, 0.43, 6.8)]
)
def test_skewed_shares_meet_both_targets(experts: int, gini: float, busiest: float) -> None:
    shares = marginals.skewed_shares(experts, gini, busiest, cap=30.0)
    assert shares.mean() == pytest.approx(1)
    assert shares.max() == pytest.approx(busiest)
    assert stats.gini(shares) == pytest.approx(gini, abs=1e-3)


def test_skewed_shares_stay_below_the_cap() -> None:
    shares = marginals.skewed_shares(16, 0.9, 100.0, cap=3.9)
    assert shares.max() == pytest.approx(3.9)
    assert shares.sum() == pytest.approx(16)
    assert marginals.skewed_shares(1, 0.4, 2.0, cap=1.0).tolist() == [1.0]


@pytest.mark.parametrize(("experts", "top_k"), [(16, 2), (64, 6), (256, 8)])
def test_experts_are_chosen_as_often_as_asked(experts: int, top_k: int) -> None:
    rng = np.random.default_rng(0)
    targets = marginals.draw_targets(np.ones(3), experts, top_k, 0.4, 2.5, rng)
    np.testing.assert_allclose(targets.sum(axis=1), top_k)
    z = rng.standard_normal((8000, sampling.UNROLL)).astype(np.float32)
    loading = rng.normal(0, 1.5, (3, 1, sampling.UNROLL, experts)).astype(np.float32)
    bias = marginals.calibrate_biases(targets, z, loading, top_k, np.uint64(5))
    present = sampling.inclusion(z, bias, loading, top_k, np.uint64(77))
    off = np.abs(present - targets).sum(axis=1) / targets.sum(axis=1)
    assert off.max() < 0.05


def test_a_trace_has_the_skew_that_was_asked_for() -> None:
    wanted = SynthesisSettings(gini=0.35, max_over_mean=3.0, layer_spread=0.0)
    counts = stats.expert_counts(make(wanted, experts=32, sequences=80))
    assert stats.gini(counts) == pytest.approx(0.35, abs=0.03)
    assert stats.max_over_mean(counts) == pytest.approx(3.0, rel=0.1)


def test_strength_zero_is_independent_sampling() -> None:
    trace = make(SynthesisSettings(**{**EVEN, "request_share": 1.0}), sequences=100)
    overlap = stats.overlap_by_lag(trace, [1, 8])
    np.testing.assert_allclose(overlap, 2 / 16, atol=0.01)


def test_request_share_is_locality_at_any_lag_persistence_at_small_ones() -> None:
    def overlap(**changed: float) -> NDArray[np.float64]:
        plain = {"request_share": 0.0, "persistence": 0.0, "first_layer_strength": 1.0}
        wanted = SynthesisSettings(**{**plain, **changed})
        return stats.overlap_by_lag(make(wanted), [1, 32]).mean(axis=1)

    neither, request, token = overlap(), overlap(request_share=0.5), overlap(persistence=0.7)
    assert neither[0] == pytest.approx(neither[1], abs=0.01)
    assert request[0] > neither[0] + 0.08
    assert request[1] == pytest.approx(request[0], abs=0.02)
    assert token[0] > neither[0] + 0.15
    assert token[1] == pytest.approx(neither[1], abs=0.02)


def test_requests_of_a_topic_share_experts() -> None:
    def between_topics(share: float) -> float:
        trace = make(
            SynthesisSettings(topics=2, topic_share=share, request_share=0.6), sequences=60
        )
        loads = [stats.expert_counts(trace.subset(trace.select([name]))) for name in trace.domains]
        shares = [load / load.sum(axis=1, keepdims=True) for load in loads]
        return float(np.abs(shares[0] - shares[1]).sum(axis=1).mean() / 2)

    assert between_topics(1.0) > 2 * between_topics(0.0)


def test_layers_differ_in_strength_and_skew() -> None:
    strengths = layer_strengths(SynthesisSettings(), 24)
    assert strengths[0] == pytest.approx(0.5)
    assert strengths[-1] == pytest.approx(4.0)
    assert 8 <= strengths.argmax() <= 13
    assert strengths.max() == pytest.approx(5.0, rel=0.01)
    assert layer_strengths(SynthesisSettings(), 1) == pytest.approx([5.0])
    trace = make(layers=12, experts=32, top_k=4)
    overlap = stats.overlap_by_lag(trace, [1])[0]
    assert overlap[0] < overlap[3:].min()


def test_template_tokens_are_alike_in_all_requests() -> None:
    wanted = SynthesisSettings(template_tokens=3, request_share=0.0, first_layer_strength=1.0)
    trace = make(wanted, sequences=60, tokens=(10, 10))

    def alike(position: int) -> float:
        """Share of experts that neighbouring requests have in common at a position."""
        ids = trace.ids_TLK[trace.sequence_start_S1[:-1] + position]
        same = ids[1:, :, :, None] == ids[:-1, :, None, :]
        return float(same.sum(axis=(2, 3)).mean() / trace.top_k)

    template = [alike(position) for position in (0, 1, 2, 10, 11, 12)]
    others = [alike(position) for position in (5, 6, 7, 15, 16, 17)]
    assert min(template) > max(others) + 0.15


def test_the_same_seed_gives_the_same_trace() -> None:
    first, again, other = make(), make(), make(seed=1)
    assert first.ids_TLK.tobytes() == again.ids_TLK.tobytes()
    assert first.provenance == again.provenance
    assert first.ids_TLK.tobytes() != other.ids_TLK.tobytes()


def test_lengths_phases_and_domains_are_kept() -> None:
    prompt, decode = np.array([3, 0, 5, 2, 2, 2, 2]), np.array([1, 4, 0, 2, 2, 2, 2])
    trace = make(SynthesisSettings(topics=3), sequences=7, tokens=(prompt, decode))
    assert trace.prompt_tokens_S.tolist() == prompt.tolist()
    assert trace.sequence_tokens_S.tolist() == (prompt + decode).tolist()
    assert sorted(np.bincount(trace.domain_S)) == [2, 2, 3]
    assert trace.provenance["source"] == "synthetic"
    assert make(sequences=2).domains == ("topic-0", "topic-1")


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 2), (8, 8), (300, 3)])
def test_small_and_large_shapes(experts: int, top_k: int) -> None:
    trace = make(layers=1, experts=experts, top_k=top_k, sequences=1, tokens=(0, 9))
    assert trace.ids_TLK.shape == (9, 1, top_k)
    assert trace.ids_TLK.dtype == (np.uint8 if experts <= 256 else np.uint16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sequences": 10**12}, "routing.sequences must be 1 to 10000000"),
        ({"tokens": (10**12, 0)}, "prompt must be 0 to 1000000000"),
        ({"sequences": 10**6, "tokens": (10**6, 0)}, "routing.tokens times layers and top_k"),
        ({"tokens": (-1, 5)}, "must be 0 to"),
        ({"tokens": (0, 0)}, "must sum to at least 1"),
        ({"tokens": (1.5, 0)}, "must be one whole number"),
        ({"tokens": ([1, 2], 0)}, "one for each of 40"),
        ({"layers": 0}, "routing.layers must be 1 to"),
        ({"experts": 0}, "routing.experts must be 1 to"),
        ({"top_k": 17}, "routing.top_k must be 1 to 16"),
    ],
)
def test_absurd_sizes_are_refused_before_allocating(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make(**changed)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("strength", -1), ("request_share", 1.5), ("persistence", 1.0), ("gini", 1.0)],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"routing\.settings\.{field}"):
        SynthesisSettings.parse({field: value}, "routing.settings")
