"""Which copy serves a token, inside a step: by hand, and against the choice made outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.placement.copies import copy_table
from moesim.placement.placement import Placement
from moesim.placement.replica_choice import ACTIVE, HASH, LEAST_LOADED, LP, NEAREST, spread
from moesim.sim.cost_tables import LOW_LATENCY, NORMAL, Costs, slot_tokens
from moesim.sim.setup import build_costs, build_work
from tests.fixtures.engine import (
    Harness,
    Run,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)

COPY = 1e3  # bytes of a token
UP_S, OUT_S = 1e-9, 1e-8


def run(
    ids_TLK: Any,
    slot_expert_LP: Any,
    choice: int,
    prompts: list[int],
    exchange: int = LOW_LATENCY,
    domain_of_rank: tuple[int, ...] = (0, 0, 1, 1),
    **rates: float,
) -> Run:
    """One step that computes these prompts, one on each rank; request n begins at row 0."""
    slots = np.asarray(slot_expert_LP, np.int32)
    costs = linear_costs(
        layers=slots.shape[0],
        ranks=len(domain_of_rank),
        domain_of_rank=list(domain_of_rank),
        expert_pair_s=1e-3,
        prefill_exchange=exchange,
        decode_exchange=exchange,
        exchange=exchange_rows(COPY, COPY, up_byte_s=UP_S, out_byte_s=OUT_S),
        replica_choice=choice,
        **rates,
    )
    placement = Placement(slots, len(domain_of_rank))
    trace = make_trace(ids_TLK, int(slots.max()) + 1)
    rules = {"ranks": len(prompts)}
    return Harness(rules, costs, trace, placement).run(make_demand(prompts, [1] * len(prompts)))


# Two experts, each in both nodes of two ranks: rank 0 has a copy of 0, 1 of 1, 2 of 0, 3 of 1.
IN_BOTH_NODES = [[0, 1, 0, 1]]


def test_the_nearest_copy_keeps_tokens_in_their_node() -> None:
    """Every rank's two tokens choose both experts: one copy is its own, one its neighbour's."""
    ids = [[[0, 1]]] * 2
    step = run(ids, IN_BOTH_NODES, NEAREST, [2, 2, 2, 2]).steps[0]
    assert step["scale_out_bytes"] == 0.0
    assert step["scale_up_bytes"] == 2 * 2 * COPY
    assert (step["imbalance"], step["active_experts"]) == (1.0, 4)
    # By hash, rows 0 and 1 go to one node or the other whoever asks.
    assert run(ids, IN_BOTH_NODES, HASH, [2, 2, 2, 2]).steps[0]["scale_out_bytes"] > 0.0


def test_shares_come_from_the_counts_of_all_ranks() -> None:
    """Rank 0 holds experts 0 and 1, rank 1 0 and 2, ranks 2 and 3 the others. Four tokens of ranks
    0 and 1 each take rows 0-3, one of ranks 2 and 3 each row 0: 10 choose expert 0, 6 expert 1 and
    4 expert 3. The 16 of ranks 0 and 1 are 8 each if 2 of the 10 go to rank 0."""
    ids = [[[0, 1]], [[0, 1]], [[0, 3]], [[0, 3]]]
    slots = [[0, 1, 0, 2, 3, 4, 5, 6]]
    found = run(ids, slots, LP, [4, 4, 1, 1], exchange=LOW_LATENCY)
    counts = slot_tokens(found.work)[0]
    assert counts.tolist() == [2, 6, 8, 0, 4, 0, 0, 0]


def test_dealing_is_proportional_for_every_sender() -> None:
    """All 16 tokens of four ranks choose expert 0, which ranks 0 and 2 share 8 to 8: each sender
    gives 2 of its 4 to either."""
    ids = [[[0]]] * 4
    slots = [[0, 1, 0, 2]]
    step = run(ids, slots, LP, [4, 4, 4, 4]).steps[0]
    # Rank 0 and rank 2 receive 2 + 2 across and 2 inside (from their neighbour).
    assert step["scale_out_bytes"] == 2 * 4 * COPY
    assert step["scale_up_bytes"] == 2 * 2 * COPY
    normal = run(ids, slots, LP, [4, 4, 4, 4], exchange=NORMAL).steps[0]
    assert normal["imbalance"] == step["imbalance"] == 2.0
    # One copy to the same place in the other node: 2 tokens of each sender, none more than once.
    assert normal["scale_out_bytes"] == 2 * 2 * COPY


@pytest.mark.parametrize("choice", [LEAST_LOADED, LP, ACTIVE])
@pytest.mark.parametrize("exchange", [0, NORMAL, LOW_LATENCY])
def test_a_step_computes_what_the_choice_outside_says(choice: int, exchange: int) -> None:
    rng = np.random.default_rng(4)
    ids = np.argsort(rng.random((64, 3, 6)) * np.arange(1, 7), axis=2)[..., :3]  # 0 is hot
    slots = np.stack([rng.permutation(np.r_[:6, :4, [0, 0]]) for _ in range(3)])
    prompts = [10, 17, 3, 30]
    found = run(ids, slots, choice, prompts, exchange=exchange, expert_weight_s=2e-3)
    tokens_LE = np.zeros((3, 6), np.int64)
    for n in prompts:
        for layer in range(3):
            tokens_LE[layer] += np.bincount(ids[:n, layer].ravel(), minlength=6)
    expected = outside(choice, tokens_LE, Placement(slots, 4))
    assert (slot_tokens(found.work) == expected).all()
    assert found.record.rank_tokens_LR.sum() == sum(prompts) * 3 * 3


def outside(choice: int, tokens_LE: NDArray[np.int64], placement: Placement) -> NDArray[np.int32]:
    """[L, P] tokens of copies, by the function that the replay uses."""
    costs: Costs = build_costs(
        linear_costs(
            layers=3, ranks=4, expert_pair_s=1e-3, expert_weight_s=2e-3, replica_choice=choice
        ),
        placement.slots,
        np.arange(2, dtype=np.int32),
    )
    of = build_work(1, 1, costs).chosen
    start_LE1, slot_LP = copy_table(placement)
    tokens_LP = np.zeros_like(slot_LP)
    for layer in range(placement.layers):
        table = start_LE1[layer], slot_LP[layer], placement.rank_of_slot_P()
        spread(choice, of.law, tokens_LE[layer], *table, tokens_LP[layer], of.scratch)
    return tokens_LP


def test_choosing_takes_its_time_in_every_layer() -> None:
    ids = [[[0], [0]]] * 4
    slots = [[0, 1, 0, 2]] * 2
    steps = [run(ids, slots, LP, [4] * 4, choice_s=each).steps[0] for each in (0.0, 0.125)]
    assert steps[1]["dispatch_s"] - steps[0]["dispatch_s"] == pytest.approx(0.25, rel=1e-12)
    assert steps[1]["duration_s"] - steps[0]["duration_s"] == pytest.approx(0.25, rel=1e-12)
