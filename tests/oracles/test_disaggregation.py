"""Prefill and decode in two pools, by hand: every time follows from bytes, rates and steps.

A step of the prefill pool takes 2 s, one of the decode pool 0.25 s; a token has a GB of keys and
values, and 8 GB/s lead from one node to the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.hardware import Link
from moesim.sim.kv_sending import KVTransfer
from moesim.sim.state import BY_PRIORITY, COMPLETED, FAILED
from tests.fixtures.engine import make_demand, make_threads
from tests.fixtures.pools import GB, ONE_FLOW, PoolsHarness, PoolsRun

PUSH: dict[str, Any] = {"direction": "push"}
LEAPS = pytest.mark.parametrize("leap", [True, False])


def way(**more: Any) -> KVTransfer:
    return KVTransfer(**{"flows": ONE_FLOW, "first_token": "prefill", **more})


def times(run: PoolsRun, *names: str) -> list[Any]:
    found = [run.handed[name].tolist() for name in names]
    return found if len(found) > 1 else found[0]


@LEAPS
def test_one_request(leap: bool) -> None:
    """Prompt at 2; 0.5 s of setup, 8 GB at 8 GB/s and the path's latency; then 0.25 s a token."""
    harness = PoolsHarness(way(setup_s=0.5), network=Link("net", 2.0**-10, 16 * GB, 0.5), leap=leap)
    run = harness.run(make_demand([8], [3]))
    landed_s = 2.0 + 0.5 + 1.0 + 2.0**-10
    assert times(run, "prefilled_s", "reserved_s", "landed_s") == [[2.0], [2.0], [landed_s]]
    assert run.token_times(0) == [2.0, landed_s + 0.25, landed_s + 0.5]
    assert run.requests["first_token_s"][0] == 2.0
    assert run.requests["finish_s"][0] == landed_s + 0.5
    assert run.handed["kv_bytes"][0] == 8 * GB


@LEAPS
@pytest.mark.parametrize("direction", ["pull", "push"])
def test_who_hands_out_the_first_token(direction: str, leap: bool) -> None:
    """By the decode pool: when it has come, at 3, or computed there in a step of its own."""
    demand = make_demand([8, 8], [3, 1], [0.0, 100.0])

    def run(first_token: str) -> PoolsRun:
        return PoolsHarness(way(first_token=first_token, direction=direction), leap=leap).run(
            demand
        )

    come, computed = run("transfer"), run("decode")
    assert come.token_times(0) == [3.0, 3.25, 3.5]
    assert computed.token_times(0) == [3.25, 3.5, 3.75]
    assert come.token_times(1) == [103.0]
    assert computed.token_times(1) == [103.25]
    given = run("prefill")
    assert given.token_times(1) == [102.0]
    # Who fetches knows that there is nothing to fetch for.
    assert given.handed["kv_bytes"][1] == (0.0 if direction == "pull" else 8 * GB)
    for done in (come, computed, given):
        assert (done.requests["status"] == COMPLETED).all()
        for state in (done.prefill, done.decode):
            assert state.ranks["kv_free_bytes"][0] == state.rules["kv_capacity_bytes"][0]


@LEAPS
def test_two_transfers_share_a_nic(leap: bool) -> None:
    """Both leave GPU 0 for GPU 8 at 2: 4 GB/s each. From two GPUs to two they do not meet."""
    demand = make_demand([8, 8], [2, 2])
    run = PoolsHarness(way(), leap=leap).run(demand)
    assert times(run, "landed_s") == [4.0, 4.0]
    apart = PoolsHarness(way(), {"ranks": 2}, {"ranks": 2}, leap=leap)
    assert times(apart.run(demand), "landed_s") == [3.0, 3.0]
    into_one = PoolsHarness(way(), {"ranks": 2}, {"ranks": 1}, leap=leap)
    assert times(into_one.run(demand), "landed_s") == [4.0, 4.0]


def test_a_rate_cap_holds_a_flow_back() -> None:
    run = PoolsHarness(way(rate_cap=2 * GB)).run(make_demand([8], [2]))
    assert times(run, "landed_s") == [2.0 + 4.0]


@LEAPS
def test_chunks_leave_while_the_next_one_is_computed(leap: bool) -> None:
    """Two chunks of 4 GB: at 2 and at 4; only the second is waited for."""
    of_chunks = {"token_budget": 4}
    demand = make_demand([8], [2])
    chunks = PoolsHarness(way(**PUSH, granularity="chunk"), of_chunks, leap=leap).run(demand)
    assert times(chunks, "prefilled_s", "sent_s", "landed_s") == [[4.0], [2.0], [4.5]]
    whole = PoolsHarness(way(**PUSH), of_chunks, leap=leap).run(demand)
    assert times(whole, "sent_s", "landed_s") == [[4.0], [5.0]]
    assert chunks.handed["kv_bytes"][0] == whole.handed["kv_bytes"][0] == 8 * GB


@LEAPS
def test_layer_by_layer_only_the_last_layer_remains(leap: bool) -> None:
    """A step of 2 s and four layers: 2 GB each half second, which take a quarter to send."""
    by = way(**PUSH, granularity="layer", layers=4)
    run = PoolsHarness(by, leap=leap).run(make_demand([8], [2]))
    assert times(run, "sent_s", "landed_s") == [[0.5], pytest.approx([2.25])]
    assert run.token_times(0) == pytest.approx([2.0, 2.5])


def test_layer_by_layer_over_a_slow_link_is_one_long_transfer() -> None:
    """8 GB at 2 GB/s from the end of the first layer on, at 0.5."""
    by = way(**PUSH, granularity="layer", layers=4, rate_cap=2 * GB)
    assert times(PoolsHarness(by).run(make_demand([8], [2])), "landed_s") == pytest.approx([4.5])


def test_layers_of_chunks_go_one_after_the_other() -> None:
    """Two chunks of 4 GB, computed until 2 and until 4, over four layers: 1 GB an eighth."""
    by = way(**PUSH, granularity="layer", layers=4)
    run = PoolsHarness(by, {"token_budget": 4}).run(make_demand([8], [2]))
    assert times(run, "sent_s", "landed_s") == [[0.5], pytest.approx([4.125])]


@LEAPS
def test_a_full_decode_pool_holds_up_prefill(leap: bool) -> None:
    """Room for one request there, and for two prompts here: the third waits for the first's KV.

    a: prompt until 2, there at 3, tokens at 3.25 and 3.5. b: blocks at 3.5, there at 4.5, ends at
    5. The third prompt finds room when a's blocks are let go at 3: until 5, there at 6.
    """
    harness = PoolsHarness(way(), {"kv_capacity_bytes": 16}, {"kv_capacity_bytes": 10}, leap=leap)
    run = harness.run(make_demand([8, 8, 8], [3, 3, 3]))
    assert run.prefill.requests["scheduled_s"].tolist() == [0.0, 0.0, 3.0]
    assert times(run, "prefilled_s") == [2.0, 2.0, 5.0]
    assert times(run, "reserved_s") == [2.0, 3.5, 5.0]
    assert run.requests["finish_s"].tolist() == [3.5, 5.0, 6.5]


@LEAPS
def test_push_takes_blocks_before_prefill_begins(leap: bool) -> None:
    """The second prompt is not even computed before the first request has ended, at 3.5."""
    run = PoolsHarness(way(**PUSH), {}, {"kv_capacity_bytes": 10}, leap=leap).run(
        make_demand([8, 8], [3, 3])
    )
    assert times(run, "reserved_s") == [0.0, 3.5]
    assert run.prefill.requests["scheduled_s"].tolist() == [0.0, 3.5]
    assert run.requests["finish_s"].tolist() == [3.5, 3.5 + 2.0 + 1.0 + 0.5]


def test_room_is_left_for_output_to_come() -> None:
    """20 tokens: two requests of 9 fit, but not with 2 more of each left free."""
    demand = make_demand([8, 8], [3, 3])
    without = PoolsHarness(way(**PUSH), {}, {"kv_capacity_bytes": 20}).run(demand)
    assert times(without, "reserved_s") == [0.0, 0.0]
    leaving = {"kv_capacity_bytes": 20, "reserve_tokens": 2}
    assert times(PoolsHarness(way(**PUSH), {}, leaving).run(demand), "reserved_s") == [0.0, 3.5]


def preempted(**rules: int) -> PoolsRun:
    """Two of 8 + 4 tokens at most, where 20 fit: the second leaves when the first wants a tenth."""
    decode = {"kv_capacity_bytes": 20, **rules}
    return PoolsHarness(way(rate_cap=8 * GB), {}, decode).run(make_demand([8, 8], [5, 5]))


def test_who_loses_its_blocks_computes_its_prompt_again_there() -> None:
    """Both are there at 4. Tokens at 4.25, 4.5; b leaves at 4.5, with three tokens out of five.

    a ends at 5; b computes 11 tokens in one step and has its last two at 5.25 and 5.5.
    """
    run = preempted()
    assert run.token_times(0) == [2.0, 4.25, 4.5, 4.75, 5.0]
    assert run.token_times(1) == [2.0, 4.25, 4.5, 5.25, 5.5]
    assert run.requests["preemptions"].tolist() == [0, 1]
    steps = run.fleets[1].step_chunks[0]
    assert steps["prefill_tokens"].sum() == 11


def test_or_finds_them_in_host_memory() -> None:
    """Ten of its tokens over PCIe, 64 GB/s x reached; no step computes a prompt."""
    run = preempted(reload=1)
    rate = run.transfers.capacity_P[run.transfers.fabric.first["pcie in"] + 8]
    back_s = 10 * GB / min(rate, 8 * GB)
    assert run.token_times(1)[3] == pytest.approx(5.0 + back_s + 0.25, abs=1e-4)
    assert run.fleets[1].step_chunks[0]["prefill_tokens"].sum() == 0
    assert run.handed["kv_bytes"][1] == 8 * GB


def test_what_the_decode_pool_has_in_its_cache_is_not_sent() -> None:
    """The second prompt begins with two blocks of the first one, in both pools."""
    demand = make_demand([9, 9], [2, 2], [0, 100], None, [[0, 1], [0, 1]], 4)
    run = PoolsHarness(way()).run(demand)
    assert run.handed["kv_bytes"].tolist() == [9 * GB, 1 * GB]
    assert run.prefill.requests["cached_tokens"].tolist() == [0, 8]
    without = PoolsHarness(way(), {}, {"prefix_block_tokens": 0}).run(demand)
    assert without.handed["kv_bytes"].tolist() == [9 * GB, 9 * GB]
    assert without.prefill.requests["cached_tokens"].tolist() == [0, 8]


@pytest.mark.parametrize("granularity", ["request", "chunk", "layer"])
def test_what_prefill_found_in_its_cache_is_sent_all_the_same(granularity: str) -> None:
    demand = make_demand([9, 9], [2, 2], [0, 100], None, [[0, 1], [0, 1]], 4)
    by = way(**PUSH, granularity=granularity, layers=4)
    run = PoolsHarness(by, {}, {"prefix_block_tokens": 0}).run(demand)
    assert run.handed["kv_bytes"].tolist() == [9 * GB, 9 * GB]


@LEAPS
def test_the_next_turn_waits_for_the_last_token_of_the_decode_pool(leap: bool) -> None:
    demand = make_demand([8, 8], [3, 3], [0, np.nan], threads=make_threads([[], [0]], [0.0, 5.0]))
    run = PoolsHarness(way(), leap=leap).run(demand)
    assert run.prefill.requests["arrival_s"].tolist() == [0.0, 3.5 + 5.0]


@LEAPS
@pytest.mark.parametrize("output", [1, 3])
def test_a_closed_loop_goes_on_when_a_request_has_ended(output: int, leap: bool) -> None:
    demand = make_demand([8] * 3, [output] * 3, concurrency=1)
    run = PoolsHarness(way(), leap=leap).run(demand)
    each_s = 2.0 if output == 1 else 3.5
    assert run.prefill.requests["arrival_s"].tolist() == [0.0, each_s, 2 * each_s]


@LEAPS
@pytest.mark.parametrize("concurrency", [None, 4])
def test_of_one_priority_who_came_first_decodes_first(concurrency: int | None, leap: bool) -> None:
    """Prompts at 2, 4, 6 and 8; each decodes for 0.25 s x 39 and receives for 1 s before."""
    own: dict[str, int | float] = {"max_running": 1, "queue_order": BY_PRIORITY}
    demand = make_demand([8] * 4, [40] * 4, [0.0] * 4, concurrency)
    run = PoolsHarness(way(), own, own, leap=leap).run(demand)
    assert np.diff(run.requests["finish_s"]).min() > 0.0


def test_what_fits_only_one_of_the_pools_is_refused() -> None:
    demand = make_demand([8, 8], [3, 30])
    run = PoolsHarness(way(), {}, {"kv_capacity_bytes": 20}).run(demand)
    assert run.requests["status"].tolist() == [COMPLETED, FAILED]
    assert run.prefill.requests["status"].tolist() == [COMPLETED, FAILED]
