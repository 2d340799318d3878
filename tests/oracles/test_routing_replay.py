"""Which rows of the trace the tokens of a request take, told by a trace that names its rows.

Row t of the trace chooses expert t, and every expert has a rank of its own: the load of the ranks
in a step says which rows the step took.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.sim.state import PREFILL_FIRST
from tests.fixtures.engine import Batch, Harness, Run, linear_costs, make_demand, make_trace

ROWS = 200
MASK = 2**64 - 1


def naming_harness(
    rules: dict[str, Any], trace_settings: dict[str, Any], per_token_s: float = 1e-3
) -> Harness:
    """A run that keeps its batches, over a trace of ROWS rows that names them."""
    trace = make_trace(np.arange(ROWS).reshape(-1, 1, 1), ROWS, **trace_settings)
    costs = linear_costs(per_token_s, layers=1, ranks=ROWS)
    return Harness(rules, costs, trace, log=True)


def rows(batch: Batch) -> list[int]:
    """Rows of the trace that a batch took, ascending; each as often as it was taken."""
    return np.repeat(np.arange(ROWS), batch.rank_tokens_LR[0].astype(int)).tolist()


def all_rows(run: Run) -> list[list[int]]:
    return [rows(batch) for batch in run.batches]


def hashed(seed: int, request: int, count: int) -> int:
    """splitmix64 of (seed, request, count), in plain integers."""
    z = seed ^ (request * 0x9E3779B97F4A7C15 & MASK)
    z = z + (count + 1) * 0xD1B54A32D192ED03 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def test_a_request_walks_its_sequence_in_order_and_draws_anew_when_it_ends() -> None:
    """Ten sequences of 20 rows, the first 12 of each prefilled, the other 8 decoded."""
    settings = {"sequence_tokens": [20] * 10, "prompt_tokens": [12] * 10}
    run = naming_harness({"token_budget": 10}, settings).run(make_demand([30], [12]))
    drawn = [hashed(7, 0, i) % 10 for i in range(3)]
    assert len(set(drawn)) > 1
    prompt = [20 * drawn[i // 12] + i % 12 for i in range(30)]
    output = [20 * drawn[i // 8] + 12 + i % 8 for i in range(11)]
    assert all_rows(run) == [
        sorted(prompt[:10]),
        sorted(prompt[10:20]),
        sorted(prompt[20:]),
        *[[row] for row in output],
    ]


def test_prompt_and_output_share_sequences_where_the_trace_does_not_tell_them_apart() -> None:
    run = naming_harness({}, {"sequence_tokens": [20] * 10}).run(make_demand([5], [4]))
    first = 20 * (hashed(7, 0, 0) % 10)
    assert all_rows(run) == [list(range(first, first + 5)), [first], [first + 1], [first + 2]]


def test_sequences_without_a_decoded_part_are_passed_over_where_others_have_one() -> None:
    settings = {"sequence_tokens": [50] * 4, "prompt_tokens": [50, 0, 20, 50]}
    run = naming_harness({}, settings).run(make_demand([20] * 6, [5] * 6, np.arange(6.0)))
    assert {row // 50 for taken in all_rows(run) for row in taken} == {2}


def test_requests_draw_apart_and_the_seed_changes_all_of_them() -> None:
    settings = {"sequence_tokens": [4] * 50}
    demand = make_demand([4] * 30, [1] * 30, np.arange(30.0))
    runs = [naming_harness({"seed": seed}, settings).run(demand) for seed in (7, 8, 7)]
    taken = [[found[0] // 4 for found in all_rows(run)] for run in runs]
    assert taken[0] == [hashed(7, r, 0) % 50 for r in range(30)]
    assert taken[0] == taken[2] != taken[1]
    assert len(set(taken[0])) > 15


@pytest.mark.parametrize("policy", [0, PREFILL_FIRST])
def test_computing_again_meets_the_same_experts(policy: int) -> None:
    """One of two is preempted; what it computes again takes the rows it took before."""
    settings = {"sequence_tokens": [20] * 10, "prompt_tokens": [12] * 10}
    rules = {
        "policy": policy,
        "block_tokens": 4,
        "block_bytes": 4,
        "kv_capacity_bytes": 64,
        "clip_output_tokens": 0,
    }
    harness = naming_harness(rules, settings, per_token_s=1e-3)
    run = harness.run(make_demand([25, 25], [20, 20]))
    assert sorted(run.requests["preemptions"].tolist()) == [0, 1]
    for request in (0, 1):
        prompt = [20 * (hashed(7, request, i // 12) % 10) + i % 12 for i in range(25)]
        output = [20 * (hashed(7, request, i // 8) % 10) + 12 + i % 8 for i in range(19)]
        sequence = prompt + output
        computed = 0
        for batch in run.batches:
            tokens = dict(batch.of(0)).get(request, 0)
            if tokens > 1 and computed:
                computed = 0  # preempted: from the first token again
            own = sequence[computed : computed + tokens]
            computed += tokens
            left = rows(batch)
            for row in own:
                left.remove(row)  # fails where the step did not take it
        assert computed == 44


def test_tokens_found_in_the_prefix_cache_take_no_expert_but_pass_their_rows() -> None:
    settings = {"sequence_tokens": [100] * 2}
    demand = make_demand([80, 80], [1, 1], [0, 9], None, [[0, 1], [0, 1]], 32)
    run = naming_harness({"block_tokens": 16}, settings).run(demand)
    first = 100 * (hashed(7, 1, 0) % 2)
    assert rows(run.batches[1]) == list(range(first + 64, first + 80))


def test_a_domain_draws_from_its_own_sequences_only() -> None:
    """Demand names domains in another order than the trace, and not all of them."""
    settings = {
        "sequence_tokens": [10] * 20,
        "domain": [i % 3 for i in range(20)],
        "domains": ("code", "chat", "maths"),
    }
    domain = [0, 1] * 15
    demand = make_demand(
        [25] * 30, [3] * 30, np.arange(30.0), domain=domain, domains=("maths", "code")
    )
    run = naming_harness({}, settings).run(demand)
    wanted = {0: 2, 1: 0}
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for batch in run.batches:
        asked = domain[batch.parts[0][1]]
        sequences = {row // 10 for row in rows(batch)}
        assert {s % 3 for s in sequences} == {wanted[asked]}
        seen[asked] |= sequences
    assert len(seen[0]) > 3
    assert len(seen[1]) > 3


def test_a_domain_that_the_trace_lacks_is_refused() -> None:
    demand = make_demand([5], [1], domain=[0], domains=("poetry",))
    with pytest.raises(InputError, match=r"workload\.domains.*must name domains.*poetry"):
        naming_harness({}, {}).run(demand)
