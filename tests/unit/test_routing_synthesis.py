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
from moesim.routing.latents import draw_latents
from moesim.routing.settings import SynthesisSettings, over_depth
from moesim.routing.synthesis import synthesise

EVEN = {"strength": 0.0, "gini": (0.0,), "max_over_mean": (1.0,)}
CONTEXT = {"locality": (1.0,), "passage_share": 0.0}


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
    bias_E: NDArray[np.float64], tokens: int, top_k: int, seed: int = 7, stray: float = 0.0
) -> NDArray[np.uint16]:
    """Choices of tokens whose latent is zero: logits are the biases (nats)."""
    experts = len(bias_E)
    ids = np.empty((tokens, 1, top_k), np.uint16)
    z_TD = np.zeros((tokens, sampling.RANK), np.float32)
    sampling.choose(
        z_TD,
        z_TD,
        np.arange(tokens),
        np.ones((1, 2), np.float32),
        np.array([stray * 2.0**32], np.uint64),
        np.asarray(bias_E, np.float32)[None],
        np.zeros((1, sampling.RANK, experts), np.float32),
        sampling.gumbel_table(np.random.default_rng(seed), experts),
        np.uint64(seed),
        ids,
    )
    return ids[:, 0]


def test_draws_follow_the_plackett_luce_law() -> None:
    """Within what 65,536 numbers of a table, each used several times, know of the law."""
    weights = np.array([8.0, 4.0, 2.0, 1.0])
    tokens = 200_000
    drawn = Counter(map(tuple, one_layer(np.log(weights), tokens, 2).tolist()))
    for first, second in itertools.permutations(range(4), 2):
        law = weights[first] / 15 * weights[second] / (15 - weights[first])
        assert drawn[(first, second)] / tokens == pytest.approx(
            law, abs=5 * math.sqrt(law / sampling.TABLE)
        )


def test_strays_take_any_other_expert() -> None:
    """Exact: the first follows its weight, the second is uniform over the others."""
    tokens = 100_000
    drawn = one_layer(np.log([7.0, 1.0, 1.0, 1.0]), tokens, 2, stray=1.0)
    first = np.bincount(drawn[:, 0], minlength=4) / tokens
    assert first == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.01)
    after = np.bincount(drawn[drawn[:, 0] == 1, 1], minlength=4) / (drawn[:, 0] == 1).sum()
    assert after == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.03)


@pytest.mark.parametrize("experts", [17, 40, 300])
def test_padding_and_columns_lose_no_expert(experts: int) -> None:
    bias = np.random.default_rng(experts).normal(0, 2, experts)
    tokens = 100_000
    law = np.exp(bias) / np.exp(bias).sum()
    share = np.bincount(one_layer(bias, tokens, 1).ravel(), minlength=experts) / tokens
    assert np.abs(share - law).max() < 5 * math.sqrt(law.max() / sampling.TABLE)


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (5, 3), (32, 4), (70, 8)])
def test_choices_are_the_largest_noisy_logits(experts: int, top_k: int) -> None:
    """Against a sort of the same numbers in plain numpy."""
    rng = np.random.default_rng(experts)
    tokens, layers = 50, 3
    context_TD, token_TD = rng.standard_normal((2, tokens, sampling.RANK)).astype(np.float32)
    share_L2 = rng.random((layers, 2)).astype(np.float32)
    bias_LE = rng.normal(0, 2, (layers, experts)).astype(np.float32)
    loading_LDE = rng.normal(0, 2, (layers, sampling.RANK, experts)).astype(np.float32)
    gumbel_N = sampling.gumbel_table(rng, experts)
    ids = np.empty((tokens, layers, top_k), np.uint8)
    sampling.choose(
        context_TD, token_TD, np.arange(tokens), share_L2, np.zeros(layers, np.uint64), bias_LE,
        loading_LDE, gumbel_N, np.uint64(3), ids,
    )  # fmt: skip
    for t, layer in itertools.product(range(tokens), range(layers)):
        hashed = int(sampling.mixed(np.uint64(3 + t * layers + layer))) >> 48
        z_D = share_L2[layer, 0] * context_TD[t] + share_L2[layer, 1] * token_TD[t]
        logit_E = bias_LE[layer] + z_D @ loading_LDE[layer] + gumbel_N[hashed:][:experts]
        assert ids[t, layer].tolist() == np.argsort(-logit_E)[:top_k].tolist()


def test_places_in_the_table_are_uniform() -> None:
    places = np.array([int(sampling.mixed(np.uint64(i))) >> 48 for i in range(20_000)])
    assert np.bincount(places >> 12, minlength=16).min() > 1100
    assert np.corrcoef(places[1:], places[:-1])[0, 1] == pytest.approx(0, abs=0.03)


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


def test_inclusion_is_the_mean_of_choices() -> None:
    rng = np.random.default_rng(2)
    z_TD = rng.standard_normal((20_000, sampling.RANK)).astype(np.float32)
    share_L2 = np.array([[1, 0], [0.6, 0.8]], np.float32)
    bias_LE = rng.normal(0, 2, (2, 20)).astype(np.float32)
    loading_LDE = rng.normal(0, 1, (2, sampling.RANK, 20)).astype(np.float32)
    gumbel_N = sampling.gumbel_table(rng, 20)
    ids = np.empty((len(z_TD), 2, 3), np.uint8)
    router = (bias_LE, loading_LDE, gumbel_N)
    sampling.choose(
        z_TD, z_TD, np.arange(len(z_TD)), share_L2, np.zeros(2, np.uint64), *router,
        np.uint64(1), ids,
    )  # fmt: skip
    chosen = np.array([np.bincount(ids[:, layer].ravel(), minlength=20) for layer in range(2)])
    none_L = np.zeros(2, np.uint64)
    found, slope = sampling.inclusion(z_TD, z_TD, share_L2, none_L, *router, 3, np.uint64(99))
    np.testing.assert_allclose(found.sum(axis=1), 3, rtol=1e-2)
    assert np.abs(chosen / len(z_TD) - found).max() < 0.012
    bias_LE = bias_LE.copy()
    bias_LE[0, 4] += 0.5
    more, _ = sampling.inclusion(
        z_TD, z_TD, share_L2, none_L, bias_LE, *router[1:], 3, np.uint64(99)
    )
    assert more[0, 4] - found[0, 4] == pytest.approx(0.5 * slope[0, 4], rel=0.2)


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
@pytest.mark.parametrize("strength", [0.0, 3.0, 7.0])
def test_experts_are_chosen_as_often_as_asked(experts: int, top_k: int, strength: float) -> None:
    """The total variation left is what so few independent tokens cannot avoid."""
    rng = np.random.default_rng(0)
    targets = marginals.draw_targets(np.full(3, 0.4), np.full(3, 2.5), experts, top_k, rng)
    np.testing.assert_allclose(targets.sum(axis=1), top_k)
    settings = SynthesisSettings(
        strength=strength, locality=(0.0,), request_share=0.0, passage_share=0.0
    )
    trace = synthesise(
        settings, 3, experts, top_k, 20, (0, 400), np.random.default_rng(1), wanted_LE=targets
    )
    present = stats.expert_counts(trace) / trace.tokens
    off = np.abs(present - targets).sum(axis=1) / (2 * top_k)
    assert off.max() < 0.035


def test_a_trace_has_the_skew_that_was_asked_for() -> None:
    wanted = SynthesisSettings(gini=(0.3, 0.4), max_over_mean=(2.5, 3.5), request_share=0.1)
    counts = stats.expert_counts(make(wanted, layers=2, experts=32, sequences=150))
    assert stats.gini(counts) == pytest.approx([0.3, 0.4], abs=0.03)
    assert stats.max_over_mean(counts) == pytest.approx([2.5, 3.5], rel=0.1)


def test_measured_loads_are_kept_in_their_order() -> None:
    load = tuple(tuple(row) for row in np.random.default_rng(3).random((2, 8)) + 0.3)
    wanted = SynthesisSettings(load=load, request_share=0.1)
    counts = stats.expert_counts(make(wanted, layers=2, experts=8, sequences=150))
    expected = np.array(load) / np.mean(load, axis=1, keepdims=True)
    assert counts / counts.mean(axis=1, keepdims=True) == pytest.approx(expected, abs=0.12)


def test_measured_loads_keep_their_gini_at_other_sizes() -> None:
    rng = np.random.default_rng(3)
    load = rng.lognormal(0, 0.6, (2, 48))
    targets = marginals.resize_loads(load[None], 5, 64, 4, rng)[0]
    assert targets.shape == (5, 64)
    np.testing.assert_allclose(targets.sum(axis=1), 4)
    assert stats.gini(targets) == pytest.approx(stats.gini(load)[[0, 0, 0, 1, 1]], abs=0.04)
    assert (marginals.resize_loads(load[None], 3, 6, 6, rng) == 1).all()


def test_resized_loads_of_topics_stay_of_the_same_experts() -> None:
    """Topics that load experts alike, or oppositely, still do at another number of experts."""
    load = np.linspace(0.2, 1.8, 10)
    both = np.array([[load], [load], [load[::-1]]]) + np.array([0.02, 0.02, 0.0])[:, None, None]
    first, again, other = marginals.resize_loads(both, 1, 25, 2, np.random.default_rng(0))[:, 0]
    assert first == pytest.approx(again)
    assert np.corrcoef(first, other)[0, 1] == pytest.approx(-1, abs=0.01)


def test_topics_keep_the_loads_that_they_were_given() -> None:
    rng = np.random.default_rng(5)
    load = rng.random((2, 3, 8)) + 0.2
    nested = tuple(tuple(map(tuple, each)) for each in load.tolist())
    wanted = SynthesisSettings(domain_load=nested, topics=2, request_share=0.1)
    trace = make(wanted, layers=3, experts=8, sequences=200)
    for topic, name in enumerate(trace.domains):
        counts = stats.expert_counts(trace.subset(trace.select([name])))
        expected = load[topic] / load[topic].mean(axis=1, keepdims=True)
        assert counts / counts.mean(axis=1, keepdims=True) == pytest.approx(expected, abs=0.15)
    again = make(wanted, layers=3, experts=8, sequences=200)
    assert trace.ids_TLK.tobytes() == again.ids_TLK.tobytes()


def test_topics_of_one_load_are_drawn_as_without_topics() -> None:
    """Exact: where topics' loads are equal, grouping tokens changes nothing but rounding."""
    load = (tuple(np.linspace(0.5, 1.5, 8).tolist()),)
    one = make(SynthesisSettings(load=load, topics=1, topic_share=0.0), layers=1, experts=8)
    same = SynthesisSettings(domain_load=(load,), topics=1, topic_share=0.0)
    assert make(same, layers=1, experts=8).ids_TLK.tobytes() == one.ids_TLK.tobytes()


def test_a_topic_without_a_load_is_refused() -> None:
    load = ((1.0, 2.0, 3.0, 2.0),)
    wanted = SynthesisSettings(domain_load=(load, load), topics=2)
    with pytest.raises(InputError, match=r"routing.topic must be below 2"):
        synthesise(
            wanted, 1, 4, 2, 3, (0, 5), np.random.default_rng(0), topic_S=np.array([0, 1, 2])
        )


@pytest.mark.parametrize("stray", [0.4, 1.0])
def test_strays_leave_experts_as_often_chosen_as_asked(stray: float) -> None:
    targets = np.array([[0.45, 0.4, 0.3, 0.3, 0.2, 0.15, 0.1, 0.1]])
    wanted = SynthesisSettings(stray=(stray,), request_share=0.0, passage_share=0.0)
    trace = synthesise(wanted, 1, 8, 2, 50, (0, 400), np.random.default_rng(1), wanted_LE=targets)
    found = stats.expert_counts(trace) / trace.tokens
    possible = np.maximum(targets, stray * 0.9 / 7)  # strays reach every expert
    assert found == pytest.approx(possible, abs=0.03)


def test_strength_zero_is_independent_sampling() -> None:
    trace = make(SynthesisSettings(**{**EVEN, "request_share": 0.9}), sequences=100)
    overlap = stats.overlap_by_lag(trace, [1, 8])
    np.testing.assert_allclose(overlap, 2 / 16, atol=0.01)


def test_request_share_is_locality_at_any_lag_persistence_at_small_ones() -> None:
    def overlap(**changed: float) -> NDArray[np.float64]:
        plain = {**CONTEXT, "request_share": 0.0, "persistence": 0.0}
        wanted = SynthesisSettings(**{**plain, **changed})
        return stats.overlap_by_lag(make(wanted), [1, 8, 32]).mean(axis=1)

    neither, request = overlap(), overlap(request_share=0.5)
    phrase, passage = overlap(persistence=0.7), overlap(passage_share=0.7)
    assert neither[0] == pytest.approx(neither[2], abs=0.01)
    assert request[0] > neither[0] + 0.08
    assert request[2] == pytest.approx(request[0], abs=0.02)
    assert phrase[0] > neither[0] + 0.15
    assert phrase[2] == pytest.approx(neither[2], abs=0.02)
    assert passage[0] > passage[1] + 0.03 > passage[2] + 0.06


def test_layers_without_context_forget_the_token_before() -> None:
    overlap = stats.overlap_by_lag(make(SynthesisSettings(locality=(0.0, 0.5, 1.0)), 3), [1])[0]
    assert overlap[0] + 0.05 < overlap[1] < overlap[2] - 0.05


def test_requests_of_a_topic_share_experts() -> None:
    def between_topics(share: float) -> float:
        trace = make(
            SynthesisSettings(topics=2, topic_share=share, request_share=0.6, locality=(1.0,)),
            sequences=60,
        )
        loads = [stats.expert_counts(trace.subset(trace.select([name]))) for name in trace.domains]
        shares = [load / load.sum(axis=1, keepdims=True) for load in loads]
        return float(np.abs(shares[0] - shares[1]).sum(axis=1).mean() / 2)

    assert between_topics(1.0) > 2 * between_topics(0.0)


def test_values_by_depth() -> None:
    assert over_depth((1.0, 3.0), 5).tolist() == [1, 1.5, 2, 2.5, 3]
    assert over_depth((2.0, 9.0, 4.0), 3).tolist() == [2, 9, 4]
    assert over_depth((7.0,), 3).tolist() == [7, 7, 7]
    assert over_depth((1.0, 5.0, 3.0), 1).tolist() == [5]


def test_template_tokens_choose_the_same_experts_in_all_requests() -> None:
    """Exact: latent and noise are the same ones."""
    wanted = SynthesisSettings(prompt_template_tokens=3, output_template_tokens=2, topics=2)
    trace = make(wanted, sequences=20, tokens=(10, 10))
    start_S = trace.sequence_start_S1[:-1]

    def alike(position: int, topic: int | None = None) -> bool:
        of_topic = start_S if topic is None else start_S[trace.domain_S == topic]
        ids = trace.ids_TLK[of_topic + position]
        return bool((ids == ids[0]).all())

    assert all(alike(position) for position in (10, 11))
    assert not any(alike(position) for position in (0, 1, 2, 3, 9, 12))
    assert all(alike(position, topic) for position in (0, 1, 2) for topic in (0, 1))


def test_templates_end_with_their_phase_and_some_requests_leave_them() -> None:
    short = SynthesisSettings(prompt_template_tokens=30, output_template_tokens=30, topics=1)
    trace = make(short, sequences=6, tokens=(4, 3))
    ids = trace.ids_TLK.reshape(6, 7, 4, 2)
    assert (ids == ids[:1]).all()
    wanted = short.model_copy(update={"template_agreement": 0.75})
    starts = np.arange(2001, dtype=np.int64)
    latents = draw_latents(
        wanted, starts, np.ones(2000, np.int64), np.zeros(2000, np.int64), np.random.default_rng(0)
    )
    followed = (latents.luck_T >= 2000).mean()
    assert followed == pytest.approx(0.75, abs=0.04)


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
    [
        ("strength", -1),
        ("request_share", 1.5),
        ("passage_share", 0.8),
        ("persistence", 1.0),
        ("gini", [1.0]),
        ("locality", []),
        ("load", [[1, 2], [1]]),
        ("load", [[0, 0]]),
        ("load", [[1.0] * 60_000] * 6),
        ("domain_load", [[[1, 2]], [[1, 2]]]),
        ("domain_load", [[[1, 2]], [[1, 2], [1, 2]], [[1, 2]]]),
        ("domain_load", [[[0, 0]]]),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"routing\.settings\.{field}"):
        SynthesisSettings.parse({field: value}, "routing.settings")
