"""The law of a layer's time that step costs imply, against the engine's own pricing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.costs.layer_time import layer_law
from moesim.costs.step import StepCosts
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.placement.layer_law import rank_seconds
from moesim.scenario import load_scenario
from moesim.sim.cost_tables import DECODE, PROMPT
from moesim.sim.detailed.experts import expert_s
from moesim.sim.experts import of_group, rank_s
from moesim.sim.setup import build_costs
from tests.fixtures.engine import linear_costs

RANKS, SLOTS, TOKENS = 4, 24, 900


def assumed() -> StepCosts:
    return linear_costs(
        layers=3,
        ranks=RANKS,
        expert_weight_s=9.1e-6,
        expert_pair_s=2.3e-8,
        expert_flop_s=1.7e-7,
        expert_kernel_s=21e-6,
        tile_shift=4,
    )


def measured() -> StepCosts:
    rng = np.random.default_rng(0)
    return replace(
        linear_costs(
            layers=3,
            ranks=RANKS,
            expert_pair_s=2.3e-8,
            expert_token_s=1.1e-9,
            expert_kernel_s=21e-6,
            tile_shift=6,
        ),
        expert_tile_s=np.concatenate([[0.0], 8e-6 + np.cumsum(rng.random(15)) * 3e-6]),
        expert_ratio=0.7 + 0.6 * rng.random((2, TOKENS + 1)),
    )


def shipped(name: str) -> StepCosts:
    scenario = load_scenario(name)
    return step_costs(scenario, deploy(scenario))


MADE = {"assumed": assumed, "measured": measured}


def counts(costs: StepCosts, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(SLOTS, 0.3), 3)
    return np.stack([rng.multinomial(TOKENS, each) for each in share])


def engine_s(costs: StepCosts, tokens_LP: np.ndarray, kind: int, group: int) -> np.ndarray:
    """[L, R] by the compiled engine's function, its Python form, kernels' fixed time included."""
    c = build_costs(costs, tokens_LP.shape[1], np.arange(2, dtype=np.int32))
    of_rank, of_all = (getattr(each, "py_func", each) for each in (rank_s, of_group))
    cost, ranks = c.scalars[0], c.domain_of_rank.size
    shift = int(cost["tile_shift"])
    scalars = c.scalars.view(np.recarray)
    found = np.zeros((tokens_LP.shape[0], ranks))
    for at in np.ndindex(found.shape):
        own = tokens_LP[at[0]].reshape(ranks, -1)[at[1]]
        tiles = (own + (1 << shift) - 1) >> shift
        tile_s = c.expert_tile_s[tiles].sum() if c.expert_tile_s.size else 0.0
        sums = (int((own > 0).sum()), int(own.sum()), int(tiles.sum()), float(tile_s))
        plain = c._replace(scalars=scalars)
        found[at] = of_rank(plain, *sums, *of_all(plain, kind, group))
    return found + float(cost["expert_kernel_s"])


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("prompts", [True, False])
def test_the_law_is_what_the_engine_prices(made: str, prompts: bool) -> None:
    costs, kind = MADE[made](), PROMPT if prompts else DECODE
    for seed, group in ((0, TOKENS), (1, 1), (2, 333)):
        tokens_LP = counts(costs, seed)
        found = rank_seconds(layer_law(costs, prompts, group), tokens_LP, RANKS)
        assert found == pytest.approx(engine_s(costs, tokens_LP, kind, group), rel=1e-12)
        plain = build_costs(costs, SLOTS, np.arange(2, dtype=np.int32))
        detailed = expert_s(plain, tokens_LP, kind, group) + costs.rates["expert_kernel_s"]
        assert found == pytest.approx(detailed, rel=1e-12)


@pytest.mark.parametrize("name", ["deepseek-v3-one-node", "gpt-oss-120b-eight-gpus"])
def test_the_law_of_shipped_scenarios(name: str) -> None:
    """Whatever profile they have."""
    costs = shipped(name)
    ranks = costs.domain_of_rank.size
    rng = np.random.default_rng(3)
    tokens_LP = rng.multinomial(512, rng.dirichlet(np.full(8 * ranks, 0.5), 4))
    for prompts in (True, False):
        found = rank_seconds(layer_law(costs, prompts, 256), tokens_LP, ranks)
        kind = PROMPT if prompts else DECODE
        assert found == pytest.approx(engine_s(costs, tokens_LP, kind, 256), rel=1e-12)


def test_refuses_what_the_costs_do_not_hold() -> None:
    with pytest.raises(InputError, match=f"at most {TOKENS} tokens"):
        layer_law(measured(), True, TOKENS + 1)
    with pytest.raises(InputError, match="routed experts"):
        layer_law(linear_costs(), True, 1)
