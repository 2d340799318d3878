"""The yardstick: exact on tiny layers, a bound that no heuristic beats on larger ones."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.eplb import eplb
from moesim.placement.lpt import lpt
from moesim.placement.milp import best_placement, mean_busiest


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("experts", "ranks"), [(6, 2), (6, 3), (4, 4), (7, 1)])
def test_finds_what_trying_everything_finds(experts: int, ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens_DE = rng.poisson(rng.lognormal(1.0, 1.0, experts), (4, experts))
    best = min(
        mean_busiest(tokens_DE, np.array(order, np.int32), ranks)
        for order in permutations(range(experts))
    )
    found = best_placement(tokens_DE, ranks)
    assert sorted(found.slot_expert_P.tolist()) == list(range(experts))
    assert found.objective == mean_busiest(tokens_DE, found.slot_expert_P, ranks)
    assert found.objective == pytest.approx(best)
    assert found.bound == pytest.approx(best)
    assert found.gap == pytest.approx(0.0, abs=1e-9)


def test_sees_what_sums_hide() -> None:
    """Experts 0 and 1 are hot together, 2 and 3 together: over all steps every pairing is even."""
    tokens_DE = np.array([[10, 10, 0, 0], [0, 0, 10, 10]])
    found = best_placement(tokens_DE, 2)
    assert (found.objective, found.bound) == (10.0, 10.0)
    assert mean_busiest(tokens_DE, np.array([0, 1, 2, 3], np.int32), 2) == 20.0


def test_no_heuristic_is_below_its_bound() -> None:
    rng = np.random.default_rng(0)
    tokens_DE = rng.poisson(rng.lognormal(2.0, 1.0, 32), (8, 32))
    found = best_placement(tokens_DE, 4, limit_s=2.0)
    total_LE = tokens_DE.sum(axis=0)[None]
    others = [eplb(total_LE, 32, 1, 1, 4)[0], lpt(total_LE, 32, 4)[0]]
    others += [rng.permutation(32).astype(np.int32) for _ in range(20)]
    for other in others:
        assert found.bound <= found.objective <= mean_busiest(tokens_DE, other, 4)
    assert 0.0 <= found.gap < 0.05


def test_comes_back_in_time_with_at_least_lpt() -> None:
    rng = np.random.default_rng(1)
    tokens_DE = rng.poisson(rng.lognormal(2.0, 1.0, 64), (12, 64))
    found = best_placement(tokens_DE, 8, limit_s=0.01)
    plain = lpt(tokens_DE.sum(axis=0)[None], 64, 8)[0]
    assert found.bound <= found.objective <= mean_busiest(tokens_DE, plain, 8)
    assert found.bound >= tokens_DE.sum(axis=1).mean() / 8


def test_no_tokens_at_all() -> None:
    found = best_placement(np.zeros((2, 4), np.int64), 2)
    assert (found.objective, found.bound, found.gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "ranks", "limit_s", "words"),
    [
        (np.ones((2, 256), int), 8, 1.0, "experts x ranks <= 1024"),
        (np.ones((1000, 128), int), 8, 1.0, "with steps <= 500000"),
        (np.ones((2, 8), int), 3, 1.0, "must divide 8 experts over the ranks; got 3"),
        (np.ones((2, 8)), 2, 1.0, "must be given whole tokens"),
        (-np.ones((2, 8), int), 2, 1.0, "no negative tokens; got -1"),
        (np.ones((2, 8), int), 2, 0.0, "must stop within 3600 s"),
        (np.ones((2, 8), int), 2, float("nan"), "must stop within 3600 s"),
    ],
)
def test_what_is_too_large_or_unsound_is_refused(
    tokens: np.ndarray, ranks: int, limit_s: float, words: str
) -> None:
    with pytest.raises(InputError) as error:
        best_placement(tokens, ranks, limit_s)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
