"""What a study measures, on traces whose statistics are known in closed form."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from moesim.errors import InputError
from moesim.routing import RoutingTrace, blocks, imbalance, predict, shift
from moesim.routing import statistics as stats
from moesim.routing.coactivation import chance_pairs, measure_coactivation
from moesim.routing.collapse import find_collapse
from moesim.routing.load import Load, measure_load
from moesim.routing.locality import measure_locality, measure_requests
from tests.fixtures.toy_traces import alternating, identical, round_robin, trace_of, uniform_ids

SEEDS = st.integers(0, 10_000)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def load_of(trace: RoutingTrace) -> Load:
    return measure_load(stats.expert_counts(trace), trace.top_k)


# --- load


def test_identical_tokens_load_k_experts() -> None:
    load = load_of(identical())
    assert_allclose(load.max_over_mean_L, 8 / 2)
    assert_allclose(load.gini_L, (8 - 2) / 8)
    assert_allclose(load.entropy_L, log(2) / log(8))
    assert_allclose(load.effective_experts_L, 2)
    assert_allclose(load.busiest_share_L, 1 / 2)
    assert_allclose(load.chosen_by_L, 1)
    assert load.relative_LE[0].tolist() == [4, 4, 0, 0, 0, 0, 0, 0]
    assert load.tokens == 400


def test_a_round_robin_is_even() -> None:
    load = load_of(round_robin(400, 2, 8, 2))
    assert_allclose(load.max_over_mean_L, 1)
    assert_allclose(load.gini_L, 0, atol=1e-12)
    assert_allclose(load.entropy_L, 1)
    assert_allclose(load.effective_experts_L, 8)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any))
def test_effective_experts_lie_between_one_and_those_in_use(counts: list[int]) -> None:
    load = measure_load(np.array([counts]), 1)
    used = sum(map(bool, counts))
    assert 1 - 1e-9 <= load.effective_experts_L[0] <= used + 1e-9
    assert 0 <= load.entropy_L[0] <= 1 + 1e-12


# --- locality and requests


def test_identical_tokens_share_everything() -> None:
    found = measure_locality(identical(), rng())
    assert found.lags == (1, 2, 4, 8, 16, 32)  # sequences of 40 tokens
    for overlap in (found.overlap_GL, found.independent_L, found.shuffled_L, found.any_shared_GL):
        assert_allclose(overlap, 1)
    requests = measure_requests(identical(), rng())
    assert_allclose(requests.ratio_SL, 8 / 2)
    assert_allclose(requests.mixed_SL, 8 / 2)


def test_disjoint_neighbours_share_nothing_at_odd_lags() -> None:
    found = measure_locality(alternating(), rng(), (1, 2, 3, 4))
    assert_allclose(found.overlap_GL.mean(axis=1), [0, 1, 0, 1])
    assert_allclose(found.independent_L, 4 * 0.5**2 / 2)
    assert_allclose(found.shuffled_L, 0.5, atol=0.06)


def test_a_sequence_of_one_token_has_no_locality() -> None:
    found = measure_locality(trace_of([[[0]]], 2), rng())
    assert found.lags == (1,)
    assert np.isnan(found.overlap_GL).all()
    assert measure_requests(trace_of([[[0]]], 2), rng()).ratio_SL.shape == (0, 1)


def test_requests_with_favourites_stand_out_from_mixed_tokens() -> None:
    """Each of 8 requests takes one expert: 8 times the mean inside, about 1 once mixed."""
    ids = np.repeat(np.arange(8), 500)[:, None, None]
    found = measure_requests(trace_of(ids, 8, [500] * 8), rng())
    assert_allclose(found.ratio_SL, 8)
    assert found.mixed_SL.max() < 1.6


# --- prediction


def test_a_layer_that_follows_from_the_last_is_guessed() -> None:
    first = uniform_ids(rng(), 6000, 1, 16, 3)
    permuted = rng(1).permutation(16)[first]
    trace = trace_of(np.concatenate([first, permuted], axis=1), 16)
    found = predict.measure_prediction(trace)
    assert np.isnan(found.recall_L[0])
    assert found.recall_L[1] == 1.0
    assert found.baseline_L[1] == pytest.approx(3 / 16, abs=0.02)
    assert found.tokens == 3000


def test_independent_layers_are_not_guessed() -> None:
    found = predict.measure_prediction(trace_of(uniform_ids(rng(), 8000, 2, 16, 3), 16))
    assert found.recall_L[1] == pytest.approx(3 / 16, abs=0.02)


def test_what_is_always_the_same_is_guessed_by_the_busiest() -> None:
    found = predict.measure_prediction(identical())
    assert_allclose(found.recall_L[1:], 1)
    assert_allclose(found.baseline_L[1:], 1)


@settings(max_examples=25)
@given(seed=SEEDS, top_k=st.integers(1, 3))
def test_hits_agree_with_sorting(seed: int, top_k: int) -> None:
    """The K highest scores, the lower id first among equals, found by a plain sort."""
    draws = rng(seed)
    ids = uniform_ids(draws, 40, 2, 6, top_k)
    trace = trace_of(ids, 6)
    pairs = predict.successors(trace.ids_TLK, 0, 20, 6)
    plain = np.zeros((6, 6), int)
    for token in ids[:20]:
        for e in token[0]:
            plain[e, token[1]] += 1
    assert pairs.tolist() == plain.tolist()
    prior, lift = predict.fit_lifts(pairs, 20, top_k)
    assert np.isfinite(prior).all()
    assert np.isfinite(lift).all()
    rows = np.arange(20, 40)
    expected = 0
    for t in rows:
        score = prior.copy()
        for e in ids[t, 0]:
            score += lift[e]
        expected += len(set(np.argsort(-score, kind="stable")[:top_k]) & set(ids[t, 1]))
    assert predict.hits(trace.ids_TLK, 0, rows, prior, lift) == expected


def test_halves_are_of_whole_sequences() -> None:
    ids = uniform_ids(rng(), 100, 2, 4, 1)
    assert predict.half_way(trace_of(ids, 4, [10, 30, 60])) == 40
    assert predict.half_way(trace_of(ids, 4, [5, 95])) == 5
    assert predict.half_way(trace_of(ids, 4)) == 50
    assert np.isnan(predict.measure_prediction(trace_of(ids[:1], 4)).recall_L).all()


# --- co-activation


def test_pairs_that_always_meet() -> None:
    """Half of the tokens take {0, 1}, half {2, 3}; by chance each of the 6 pairs has a sixth:
    (2 |1/2 - 1/6| + 4 |0 - 1/6|) / 2 = 2/3."""
    found = measure_coactivation(alternating())
    assert_allclose(found.distance_L, 2 / 3)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(0, 1), (2, 3)}
    assert_allclose([pair.lift for pair in found.pairs], 3)
    assert_allclose([pair.share_of_tokens for pair in found.pairs], 0.5)
    assert found.shown_EE[0, 1] == pytest.approx(3)
    assert np.isnan(found.shown_EE[0, 0])


def test_experts_that_are_always_taken_meet_as_their_loads_say() -> None:
    assert_allclose(measure_coactivation(identical()).distance_L, 0, atol=1e-12)


def test_independent_tokens_are_at_the_noise() -> None:
    found = measure_coactivation(trace_of(uniform_ids(rng(), 4000, 3, 12, 3), 12))
    assert_allclose(found.distance_L, found.noise_L, rtol=0.25)


def test_one_expert_a_token_has_no_pairs() -> None:
    found = measure_coactivation(trace_of(uniform_ids(rng(), 50, 2, 4, 1), 4))
    assert np.isnan(found.distance_L).all()
    assert found.pairs == ()


@given(seed=SEEDS, experts=st.integers(4, 10))
def test_chance_pairs_keep_every_load(seed: int, experts: int) -> None:
    ids = uniform_ids(rng(seed), 200, 1, experts, 3)
    met = np.zeros((experts, experts))
    for token in ids[:, 0]:
        for e in token:
            met[e, [f for f in token if f != e]] += 1
    chance = chance_pairs(met.sum(axis=1))
    assert_allclose(chance.sum(axis=1), met.sum(axis=1), rtol=1e-6)
    assert_allclose(chance, chance.T)
    assert not chance.diagonal().any()


# --- batches


def test_neighbours_of_a_round_robin_take_each_expert_once() -> None:
    trace = round_robin(400, 2, 8, 2)
    found = imbalance.measure_batches(trace, rng(), (1, 2, 4, 8), 8)
    assert_allclose(found.distinct_prefill_BL, [[2, 2], [4, 4], [8, 8], [8, 8]])
    for ranks in (2, 4, 8):
        place = found.at(4, ranks)
        assert place is not None
        assert_allclose(found.imbalance_prefill_BRL[place], 1)
    assert_allclose(found.distinct_decode_BL[0], 2)
    assert np.isnan(found.distinct_decode_BL[1:]).all(), "one request cannot decode twice at once"


def test_identical_tokens_burden_one_rank_whatever_the_batch() -> None:
    found = imbalance.measure_batches(identical(), rng(), (1, 8, 512), 4, draws=5)
    assert_allclose(found.distinct_decode_BL[:2], 2)
    assert found.ranks == (2, 4, 8)
    for batch in found.imbalance_random_BRL:  # with 8 ranks the two experts have one each
        assert_allclose(batch, [[2, 2], [4, 4], [4, 4]])
    assert_allclose(found.spread_BR, 0, atol=1e-12)
    assert np.isnan(found.imbalance_prefill_BRL[2]).all(), "512 tokens are more than there are"


@given(
    experts=st.integers(1, 300),
    top_k=st.integers(1, 8),
    sizes=st.lists(st.integers(1, 4096), min_size=1),
)
def test_the_uniform_formula_rises_from_k_to_all(
    experts: int, top_k: int, sizes: list[int]
) -> None:
    k = min(top_k, experts)
    touched = imbalance.uniform_distinct([1, *sorted(sizes)], experts, k)
    assert touched[0] == pytest.approx(k)
    assert (np.diff(touched) >= -1e-9).all()
    assert touched[-1] <= experts


def test_uniform_routing_is_measured_as_the_formula_and_the_even_router_say() -> None:
    trace = trace_of(uniform_ids(rng(), 20_000, 2, 16, 4), 16, [100] * 200)
    found = imbalance.measure_batches(trace, rng(), (1, 4, 32, 512, 2048), 8)
    for measured in (found.distinct_decode_BL[:3], found.distinct_prefill_BL[:3]):
        assert_allclose(measured.mean(axis=1), found.distinct_uniform_B[:3], rtol=0.02)
    assert_allclose(
        found.imbalance_random_BRL.mean(axis=2) - 1, found.imbalance_even_BR - 1, rtol=0.2
    )


def test_ranks_are_powers_of_two_that_divide() -> None:
    assert imbalance.rank_choices(60) == (2, 4)
    assert imbalance.rank_choices(60, 12) == (2, 4, 12)
    assert imbalance.rank_choices(60, 8) == (2, 4)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any), min_size=1, max_size=6)
)
def test_phases_part_a_trace(lengths: list[tuple[int, int]]) -> None:
    total = sum(p + d for p, d in lengths)
    ids = np.arange(total)[:, None, None] % 256
    trace = trace_of(ids, 256, [p + d for p, d in lengths], [p for p, _ in lengths])
    mark = np.concatenate([[True] * p + [False] * d for p, d in lengths])
    for phase, wanted in (("prompt", mark), ("decode", ~mark)):
        part = imbalance.phase_part(trace, phase)  # type: ignore[arg-type]
        rows = np.flatnonzero(wanted) if wanted.any() else np.arange(total)
        assert part.ids_TLK[:, 0, 0].tolist() == (rows % 256).tolist()


# --- shift


def test_total_variation_from_alike_to_disjoint() -> None:
    first = np.array([[4, 4, 0, 0], [1, 1, 1, 1]])
    assert shift.total_variation(first, 3 * first).tolist() == [0, 0]
    second = np.array([[0, 0, 7, 0], [4, 0, 0, 0]])
    assert shift.total_variation(first, second).tolist() == [1, 0.75]


@given(seed=SEEDS)
def test_total_variation_is_a_distance(seed: int) -> None:
    a, b, c = rng(seed).integers(1, 20, (3, 2, 5))
    ab, bc, ac = (shift.total_variation(*pair) for pair in ((a, b), (b, c), (a, c)))
    assert_allclose(ab, shift.total_variation(b, a))
    assert (ac <= ab + bc + 1e-12).all()


def test_domains_are_told_apart_and_alike_sequences_have_no_noise() -> None:
    """Domain x alternates on experts 0 to 3, y on 2 to 5: one half of the load is shared."""
    x, y = np.arange(40)[:, None, None] % 4, np.arange(40)[:, None, None] % 4 + 2
    trace = trace_of(
        np.concatenate([x, y] * 10), 6, [40] * 20, domains=("x", "y", "never"), domain=[0, 1] * 10
    )
    kinds = shift.workloads(trace, rng())
    assert [kind.name for kind in kinds] == ["x", "y"]
    (found,) = shift.shifts(kinds)
    assert_allclose(found.distance_L, 0.5)
    assert_allclose(found.noise_L, 0, atol=1e-12)
    assert all(kind.whole_sequences for kind in kinds)
    assert sum(kind.counts_LE.sum() for kind in kinds) == 800


def test_few_sequences_are_cut_and_say_so() -> None:
    trace = trace_of(uniform_ids(rng(), 800, 1, 8, 2), 8, [300, 500])
    found = shift.whole(trace, "w", rng())
    assert not found.whole_sequences
    assert (found.counts_HLE.sum(axis=(1, 2)) == 200).all()
    assert 0 < found.noise_L()[0] < 0.1


def test_other_experts_cannot_be_compared() -> None:
    first, second = (shift.whole(round_robin(64, 1, e, 2), str(e), rng()) for e in (8, 16))
    assert not shift.comparable(first, second)
    with pytest.raises(
        InputError, match="must be comparable with 8: 16 has another number of experts"
    ):
        shift.measure_shift(first, second)


# --- collapse


def test_one_dead_expert_is_found() -> None:
    ids = uniform_ids(rng(), 2000, 3, 7, 2)
    ids[:, 0] += ids[:, 0] >= 5  # layer 0 of 8 experts never takes expert 5
    ids[:, 2] += ids[:, 2] >= 0  # layer 2 never takes expert 0
    ids[:1000, 1] += 1
    found = find_collapse(load_of(trace_of(ids, 8)), (10, 11, 12))
    assert found.decidable
    assert [(f.layer, f.experts) for f in found.dead] == [(10, (5,)), (12, (0,))]
    assert found.dominating == found.collapsed == ()
    (text,) = found.warnings
    assert "2 of 24 (layer, expert) places were chosen by none of 2,000 tokens" in text
    assert "layer 10 (expert 5); layer 12 (expert 0)" in text


def test_identical_tokens_are_a_collapse() -> None:
    found = find_collapse(load_of(identical()), (0, 1))
    assert [f.experts for f in found.dead] == [(2, 3, 4, 5, 6, 7)] * 2
    assert [f.experts for f in found.dominating] == [(0, 1)] * 2
    assert [f.layer for f in found.collapsed] == [0, 1]
    assert [text.split()[0] for text in found.warnings] == ["Dead", "Dominating", "Routing"]


def test_even_routing_and_small_models_are_no_collapse() -> None:
    assert find_collapse(load_of(round_robin(400, 2, 8, 2)), (0, 1)).warnings == ()
    two_of_four = find_collapse(load_of(identical(experts=4)), (0, 1))
    assert two_of_four.dominating == two_of_four.collapsed == ()


def test_nothing_is_called_dead_on_too_few_tokens() -> None:
    found = find_collapse(load_of(identical(tokens=40)), (0, 1))
    assert not found.decidable
    assert found.dead == found.dominating == found.collapsed == ()
    assert "Too few tokens" in found.warnings[0]
    (text,) = find_collapse(load_of(identical(tokens=10, experts=40)), (0, 1)).warnings
    assert "a fair share would be 0.5 tokens" in text


# --- large traces


def test_counts_by_blocks_are_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = trace_of(uniform_ids(rng(), 1000, 2, 8, 2), 8)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 77 * 4)
    assert np.array_equal(blocks.counts_by_blocks(trace), stats.expert_counts(trace))


def test_a_small_trace_is_its_own_sample() -> None:
    trace = identical()
    assert blocks.sampled(trace, rng()) is trace


@settings(max_examples=30)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 300), min_size=2, max_size=30))
def test_a_sample_is_made_of_stretches_of_the_trace(seed: int, lengths: list[int]) -> None:
    total = sum(lengths)
    number = np.arange(total)
    ids = np.stack([number % 251, number // 251], axis=1)[:, :, None]  # tells each token apart
    prompts = [length // 2 for length in lengths]
    trace = trace_of(ids, 256, lengths, prompts, ("a", "b"), [n % 2 for n in range(len(lengths))])
    most = max(2, total)  # half of the 2 * total ids
    sample = blocks.sampled(trace, rng(seed), most)
    assert sample.tokens <= max(1, most // 2)
    window = max(1, most // 2 // blocks.LEAST_WINDOWS)
    rows = sample.ids_TLK[:, 1, 0].astype(int) * 251 + sample.ids_TLK[:, 0, 0]
    last = -1
    for s in range(sample.sequences):
        own = rows[sample.sequence_start_S1[s] : sample.sequence_start_S1[s + 1]]
        source = int(np.searchsorted(trace.sequence_start_S1, own[0], "right")) - 1
        assert source > last, "sequences keep their order"
        last = source
        assert len(own) <= window
        assert (np.diff(own) == 1).all()
        assert own[-1] < trace.sequence_start_S1[source + 1]
        assert sample.domain_S[s] == trace.domain_S[source]
        prompt = (own - trace.sequence_start_S1[source] < prompts[source]).sum()
        assert sample.prompt_tokens_S[s] == prompt
