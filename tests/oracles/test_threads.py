"""Sessions and chains by hand: who comes when, and what of a conversation is found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.sim.state import CANCELLED, COMPLETED, FAILED
from moesim.workload.demand import Demand, DemandStreams, draw_demand
from moesim.workload.workload import Workload
from tests.fixtures.engine import Harness, linear_costs, make_demand, make_threads

SECOND = linear_costs(per_step_s=1.0)


def drawn(**workload: Any) -> Demand:
    fields = {"arrivals": "all_at_once", "output": {"fixed": 33}, "prompt": {"fixed": 64}}
    return draw_demand(Workload.parse({**fields, **workload}), DemandStreams.from_seed(1))


@pytest.mark.parametrize("leap", [True, False])
def test_the_second_turn_finds_the_first_and_its_answer(leap: bool) -> None:
    """A token takes a second. The first turn computes 64 + 32 tokens (the last of 33 answers is
    never computed on): three blocks of 32. The second prompt is 64 + 33 + 64 = 161 tokens."""
    demand = drawn(requests=2, sessions={"turns": {"fixed": 2}, "think_time": 5})
    assert demand.prompt_tokens.tolist() == [64, 161]
    run = Harness(costs=linear_costs(1.0), leap=leap).run(demand)
    assert run.requests["arrival_s"].tolist() == [0, 96 + 5]
    assert run.requests["first_token_s"].tolist() == [64, 101 + 161 - 96]
    assert run.requests["finish_s"].tolist() == [96, 166 + 32]
    assert run.requests["cached_tokens"].tolist() == [0, 96]


def test_a_later_turn_finds_ever_more() -> None:
    """Blocks of turn t hold all but the last token of its prompt and answer."""
    demand = drawn(requests=4, sessions={"turns": {"fixed": 4}})
    run = Harness(costs=linear_costs(1.0)).run(demand)
    whole = 97 * np.arange(1, 5) - 1  # 64 new and 33 answered tokens a turn
    assert run.requests["cached_tokens"].tolist() == [0, *(whole[:-1] // 32 * 32).tolist()]


def test_sessions_keep_to_themselves_but_share_a_system_prompt() -> None:
    """Two sessions at once, one after the other on the only seat; the text is their first block."""
    demand = drawn(requests=4, sessions={"turns": {"fixed": 2}}, shared_prefix=40)
    run = Harness({"max_running": 1}, linear_costs(1.0)).run(demand)
    assert run.requests["cached_tokens"].tolist() == [0, 96, 32, 96]


def test_a_session_ends_before_its_context_is_too_long() -> None:
    demand = drawn(requests=5, sessions={"turns": {"fixed": 9}, "max_context": 200})
    # 64 + 33, then 161 + 33, then 258 + 33 would be too much.
    assert demand.prompt_tokens.tolist() == [64, 161, 64, 161, 64]


def test_a_closed_loop_holds_sessions_in_flight() -> None:
    """One session at a time: the next one starts when the second turn has ended, not in between."""
    loop = {"closed_loop": {"concurrency": 1}}
    demand = drawn(
        arrivals=loop,
        requests=4,
        sessions={"turns": {"fixed": 2}, "think_time": 7},
        output={"fixed": 2},
    )
    run = Harness(costs=SECOND).run(demand)
    assert run.requests["arrival_s"].tolist() == [0, 2 + 7, 11, 13 + 7]


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize(
    ("parallel", "arrivals"),
    [
        # The first request takes 1 s, a tool 0.5; children of 3 and 5 tokens then 3 and 5 s, side
        # by side: the chain goes on after the longer one.
        (True, [0, 1.5, 1.5, 6.5]),
        (False, [0, 1.5, 5.0, 10.0]),
    ],
)
def test_a_parent_waits_for_the_last_of_its_children(
    leap: bool, parallel: bool, arrivals: list[float]
) -> None:
    waits = [[], [0], [0] if parallel else [1], [1, 2]]
    demand = make_demand(
        [4] * 4, [1, 3, 5, 2], [0] + [np.nan] * 3, threads=make_threads(waits, [0, 0.5, 0.5, 0])
    )
    run = Harness(costs=SECOND, leap=leap).run(demand)
    assert run.requests["arrival_s"].tolist() == arrivals
    assert run.requests["finish_s"][3] == arrivals[3] + 2


def test_a_drawn_chain_has_the_shape_that_it_says() -> None:
    """Depth 2: each of two sub-agents calls two of its own; 1 + 2 x (1 + 2 + 1) + 1 requests."""
    chains = {"depth": 2, "fan_out": {"fixed": 2}, "tool_latency": 0.25}
    demand = drawn(requests=10, chains=chains)
    threads = demand.threads
    assert threads is not None
    waits = [
        threads.before_M[a:b].tolist()
        for a, b in zip(threads.before_start_N1, threads.before_start_N1[1:], strict=False)
    ]
    first = [[], [0], [1], [1], [2, 3]]
    assert waits == [*first, [0], [5], [5], [6, 7], [4, 8]]
    assert threads.delay_s_N.tolist() == [0, 0.25, 0.25, 0.25, 0, 0.25, 0.25, 0.25, 0, 0]
    # A parent reads its own prompt and answer again, and the children's answers.
    assert demand.prompt_tokens.tolist() == [64, 64, 64, 64, 163, 64, 64, 64, 163, 163]
    assert len(set(demand.prefix_of(4)) & set(demand.prefix_of(1))) == 3
    assert not set(demand.prefix_of(4)) & set(demand.prefix_of(0))


@pytest.mark.parametrize(("parallel", "delay_s"), [(True, 2.0), (False, 6.0)])
def test_tools_take_time_and_return_text(parallel: bool, delay_s: float) -> None:
    chains = {
        "calls": "tools",
        "fan_out": {"fixed": 3},
        "rounds": {"fixed": 2},
        "tool_latency": 2,
        "parallel": parallel,
        "result": {"fixed": 10},
    }
    demand = drawn(requests=3, chains=chains)
    assert demand.threads is not None
    assert demand.threads.delay_s_N.tolist() == [0, delay_s, delay_s]
    assert demand.prompt_tokens.tolist() == [64, 64 + 33 + 30, 127 + 33 + 30]


def test_who_waits_for_a_failed_request_is_never_asked() -> None:
    """The second request cannot fit; a chain of its own goes on."""
    waits: list[list[int]] = [[], [0], [1], [0, 2], []]
    demand = make_demand(
        [4, 999, 4, 4, 4],
        [1] * 5,
        [0, *[np.nan] * 3, 9],
        threads=make_threads(waits, thread=[0, 0, 0, 0, 1]),
    )
    rules = {"block_tokens": 1, "block_bytes": 1, "kv_capacity_bytes": 100}
    run = Harness(rules, SECOND).run(demand)
    ended = [COMPLETED, FAILED, CANCELLED, CANCELLED, COMPLETED]
    assert run.requests["status"].tolist() == ended
    assert np.isnan(run.requests["arrival_s"]).tolist() == [False, False, True, True, False]


def test_more_requests_are_the_same_ones_and_some_more() -> None:
    few, many = (
        drawn(
            requests=n,
            sessions={"turns": {"uniform": {"low": 1, "high": 6}}},
            output={"uniform": {"low": 1, "high": 90}},
        )
        for n in (40, 90)
    )
    for name in ("prompt_tokens", "output_tokens"):
        assert getattr(many, name)[:39].tolist() == getattr(few, name)[:39].tolist()
