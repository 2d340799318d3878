"""Speculative decoding by hand: who computes how many tokens, which are accepted, what they cost.

Steps take one second unless a test says otherwise, so times can be read as step numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moesim.sim.speculation import MOST_DRAFTS
from moesim.sim.state import CHUNKED_PREFILL, COMPLETED, FAILED, IN_FLIGHT, PREFILL_FIRST, STATIC
from tests.fixtures.engine import Harness, linear_costs, make_demand, make_trace

SECOND = linear_costs(per_step_s=1.0)
POLICIES = (CHUNKED_PREFILL, PREFILL_FIRST, STATIC, IN_FLIGHT)
ALWAYS, NEVER = (1.0, 1.0), (0.0, 0.0)


def run(acceptance: tuple[float, ...], demand: Any, costs: Any = SECOND, **rules: Any) -> Any:
    rules = {"drafts": len(acceptance), "draft_seed": 3} | rules
    return Harness(rules, costs, log=True, acceptance=acceptance).run(demand)


@pytest.mark.parametrize("policy", POLICIES)
def test_accepted_drafts_come_with_their_step_and_no_more_than_asked(policy: int) -> None:
    done = run(ALWAYS, make_demand([4, 3], [7, 5]), policy=policy)
    assert done.token_times(0).tolist() == [1, 2, 2, 2, 3, 3, 3]
    assert done.token_times(1).tolist() == [1, 2, 2, 2, 3]  # two of the last step's were too many
    assert [sorted(batch.of(0)) for batch in done.batches] == [
        [(0, 4), (1, 3)],
        [(0, 3), (1, 3)],
        [(0, 3), (1, 3)],
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_rejected_drafts_are_computed_for_nothing(policy: int) -> None:
    done = run(NEVER, make_demand([4], [4]), policy=policy)
    assert done.token_times(0).tolist() == [1, 2, 3, 4]
    assert [batch.of(0) for batch in done.batches] == [[(0, 4)], [(0, 3)], [(0, 3)], [(0, 3)]]


def test_a_draft_counts_only_behind_accepted_ones() -> None:
    assert run((0.0, 1.0), make_demand([4], [3])).token_times(0).tolist() == [1, 2, 3]
    assert run((1.0, 0.0), make_demand([4], [5])).token_times(0).tolist() == [1, 2, 2, 3, 3]


def plain_accepted(seed: int, r: int, position: int, acceptance: tuple[float, ...]) -> int:
    """The hash in plain Python."""
    mask = (1 << 64) - 1
    for i, chance in enumerate(acceptance):
        z = seed ^ (r * 0x9E3779B97F4A7C15 & mask)
        z = (z + (position * MOST_DRAFTS + i + 1) * 0xD1B54A32D192ED03) & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        if ((z ^ (z >> 31)) >> 11) / 2**53 >= chance:
            return i
    return len(acceptance)


def test_acceptance_is_a_hash_of_request_and_position() -> None:
    """Whatever else is in the batch; and as often as asked."""
    acceptance = (0.8, 0.5)
    done = run(acceptance, make_demand([3] * 4, [200] * 4))
    for r in range(4):
        times, position = [1.0], 1
        while position < 200:
            n = 1 + plain_accepted(3, r, position, acceptance)
            times += [times[-1] + 1] * n
            position += n
        assert done.token_times(r).tolist() == times[:200]
    alone = run(acceptance, make_demand([3], [200], [0.0]), kv_capacity_bytes=10**6)
    assert alone.token_times(0).tolist() == done.token_times(0).tolist()


def test_mean_tokens_of_a_step() -> None:
    """1 + a + a^2 with a = 0.7: 2.19 a step."""
    done = run((0.7, 0.7), make_demand([2] * 20, [400] * 20))
    per_step = np.mean([399 / (done.token_times(r).max() - 1) for r in range(20)])
    assert per_step == pytest.approx(2.19, rel=0.02)


def test_drafts_need_blocks_and_rejected_ones_keep_them() -> None:
    """Blocks of 4: behind a prompt of 4 the first decode needs 1 + 3 tokens, one block; the second,
    whose drafts were rejected, 1 + 3 more from token 5 on: a third block."""
    rules = {"block_tokens": 4, "block_bytes": 4, "kv_capacity_bytes": 40}
    free = []
    harness = Harness(
        {"drafts": 3, **rules},
        SECOND,
        acceptance=(0.0,) * 3,
        leap=False,
        audit=lambda state: free.append(int(state.ranks["kv_free_bytes"][0])),
    )
    done = harness.run(make_demand([4], [4]))
    assert sorted(set(free), reverse=True) == [40, 36, 32, 28]
    assert done.state.ranks["kv_free_bytes"].tolist() == [40]


def test_who_could_not_draft_at_its_end_is_refused() -> None:
    """8 + 9 - 1 tokens fill four blocks of 4; with a draft they need a fifth."""
    rules = {"block_tokens": 4, "block_bytes": 4, "kv_capacity_bytes": 16}
    assert run((), make_demand([8], [9]), **rules).requests["status"].tolist() == [COMPLETED]
    assert run((0.5,), make_demand([8], [9]), **rules).requests["status"].tolist() == [FAILED]


def test_a_request_computed_again_accepts_the_same() -> None:
    """Memory for one and a half: one is preempted, and computing it again yields one token; all
    other steps accept what is due at their position."""
    acceptance = (0.6, 0.6)
    rules = {"block_tokens": 1, "block_bytes": 1, "kv_capacity_bytes": 60}
    done = run(acceptance, make_demand([10, 10], [30, 30]), **rules)
    preemptions = int(done.requests["preemptions"].sum())
    assert preemptions > 0
    other = 0
    for r in (0, 1):
        _, tokens = np.unique(done.token_times(r), return_counts=True)
        position = 1
        for n in tokens[1:].tolist():
            due = 1 + plain_accepted(3, r, position, acceptance)
            other += n != min(due, 30 - position)
            position += n
    assert other <= preemptions


# --- cost -----------------------------------------------------------------------------------------


def test_drafts_cost_gemms_logits_and_a_layer_each() -> None:
    """Three requests with two drafts: nine rows. Two layers: a draft takes half of them, and logits
    of three requests."""
    n = np.arange(101)
    zero = 0.0 * n
    costs = dataclasses.replace(
        linear_costs(full_layers=2, most_tokens=100),
        token_s=np.stack([np.stack([1e-3 * n, zero, zero])] * 2),
        head_s=1e-4 * n,
    )
    step = run(ALWAYS, make_demand([1] * 3, [7] * 3), costs).steps[1]
    assert step["attention_s"] == pytest.approx(9e-3)
    assert step["dense_s"] == pytest.approx(9e-4)
    assert step["draft_s"] == pytest.approx(2 * (4.5e-3 + 3e-4))
    assert step["duration_s"] == pytest.approx(9e-3 + 9e-4 + 9.6e-3)
    assert step["decode_tokens"] == 9


def test_queries_of_a_request_read_its_keys_once() -> None:
    """Prompt of 5, two drafts: 5 + 3 keys are read; 6 + 7 + 8 pairs are computed."""
    read = run(ALWAYS, make_demand([5], [4]), linear_costs(kv_token_s=1e-3)).steps[1]
    assert read["attention_s"] == pytest.approx(8e-3)
    expanded = run(ALWAYS, make_demand([5], [4]), linear_costs(kv_token_s=1e-3), expand_drafts=1)
    assert expanded.steps["attention_s"][1] == pytest.approx(21e-3)  # 6 + 7 + 8
    computed = run(ALWAYS, make_demand([5], [4]), linear_costs(decode_pair_s=1e-3)).steps[1]
    assert computed["attention_s"] == pytest.approx(21e-3)


@pytest.mark.parametrize(("acceptance", "rows"), [(ALWAYS, 3), (NEVER, 1)])
def test_routes_follow_the_sequence_and_rejected_drafts_look_ahead(
    acceptance: tuple[float, ...], rows: int
) -> None:
    """Row t of the trace goes to expert t: a decode step counts the next three rows, and takes as
    many as were accepted."""
    ids = np.arange(64)[:, None, None] % 64
    trace = make_trace(ids, 64, [64], [10])
    costs = linear_costs(per_step_s=1.0, layers=1, ranks=64, most_tokens=64)
    harness = Harness({"drafts": 2}, costs, trace, acceptance=acceptance, log=True)
    done = harness.run(make_demand([10], [8]))
    steps = done.batches
    first = np.flatnonzero(steps[1].rank_tokens_LR[0]).tolist()
    second = np.flatnonzero(steps[2].rank_tokens_LR[0]).tolist()
    assert first == [10, 11, 12]
    assert second == [10 + rows, 11 + rows, 12 + rows]
