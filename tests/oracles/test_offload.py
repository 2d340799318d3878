"""Prefix blocks in lower memories by hand: what goes down, what comes back, and how fast."""

from __future__ import annotations

import pytest

from moesim.deployment_spec import KVTier
from tests.fixtures.engine import Harness, Run, idle_of, linear_costs, make_demand

# A byte a token; prompts of blocks of 4 tokens, room for six of them.
SMALL = {"block_tokens": 4, "block_bytes": 4, "kv_capacity_bytes": 24}
HOST = KVTier(name="host", capacity_bytes=100, bytes_per_s=1.0, latency_s=2.0)
PREFIXES = [[0, 1], [2, 3], [4, 5, 6], [0, 1]]


def run(tiers: tuple[KVTier, ...], leap: bool = True, **more: object) -> Run:
    """a (blocks 0 1), b (2 3), then c (4 5 6), which evicts 1 and 0; at 300 a comes again."""
    demand = make_demand([9, 9, 13, 9], [1] * 4, [0, 100, 200, 300], None, PREFIXES, 4)
    return Harness(SMALL, linear_costs(1.0), tiers=tiers, leap=leap, **more).run(demand)  # type: ignore[arg-type]


@pytest.mark.parametrize("leap", [True, False])
def test_evicted_blocks_are_loaded_instead_of_computed_again(leap: bool) -> None:
    """Two blocks of 4 bytes at 1 byte/s after 2 s: the last prompt starts at 310 with 8 tokens."""
    done = run((HOST,), leap)
    assert done.requests["scheduled_s"].tolist() == [0, 100, 200, 310]
    assert done.requests["finish_s"][3] == 311
    assert done.requests["cached_tokens"].tolist() == [0, 0, 0, 8]
    assert done.requests["loaded_tokens"].tolist() == [0, 0, 0, 8]
    without = run((), leap)
    assert without.requests["finish_s"][3] == 309
    assert without.requests["cached_tokens"].tolist() == [0] * 4


def test_what_is_loaded_takes_the_place_of_the_least_recently_used() -> None:
    """Loading 0 and 1 evicts 3 and 2; the leaf is evicted before its stem, as ever."""
    done = run((HOST,))
    # 24 bytes: c's blocks 6 5 4 and a's 1 0, and one that a's last token took is free again.
    assert idle_of(done.state, 0) == [6, 5, 4, 1, 0]
    assert done.state.below[0].tolist() == [False, False, True, True, False, False, False]


def test_a_full_tier_hands_on_its_oldest_to_the_next() -> None:
    """Host memory for one block: 1 goes first and on to the disk, 0 stays. Both load at once."""
    host = KVTier(name="host", capacity_bytes=4, bytes_per_s=1.0, latency_s=2.0)
    disk = KVTier(name="disk", capacity_bytes=100, bytes_per_s=0.5, latency_s=5.0)
    done = run((host, disk))
    assert done.requests["scheduled_s"][3] == 300 + max(2 + 4 / 1.0, 5 + 4 / 0.5)


def test_behind_the_last_tier_blocks_are_lost() -> None:
    """Only block 0 remains: it is loaded, block 1 is computed."""
    done = run((KVTier(name="host", capacity_bytes=4, bytes_per_s=1.0),))
    assert done.requests["loaded_tokens"][3] == 4
    assert done.requests["finish_s"][3] == 300 + 4 + 5


def test_transfers_of_a_tier_queue_up() -> None:
    """a and b come back together: a's two blocks arrive after 10 s, b's after 20."""
    prefixes = [[0, 1], [2, 3], [4, 5, 6, 7, 8], [0, 1], [2, 3]]
    demand = make_demand([9, 9, 21, 9, 9], [1] * 5, [0, 100, 200, 300, 300], None, prefixes, 4)
    done = Harness(SMALL, linear_costs(1.0), tiers=(HOST,)).run(demand)
    assert done.requests["loaded_tokens"].tolist() == [0, 0, 0, 8, 8]
    assert done.requests["scheduled_s"][3:].tolist() == [310, 320]


def test_who_wants_what_is_on_its_way_waits_for_that() -> None:
    demand = make_demand(
        [9, 9, 13, 9, 9], [1] * 5, [0, 100, 200, 300, 304], None, [*PREFIXES, [0, 1]], 4
    )
    done = Harness(SMALL, linear_costs(1.0), tiers=(HOST,)).run(demand)
    assert done.requests["scheduled_s"][3:].tolist() == [310, 310]


def test_others_are_served_while_blocks_are_loaded() -> None:
    demand = make_demand(
        [9, 9, 13, 9, 3], [1] * 5, [0, 100, 200, 300, 301], None, [*PREFIXES, []], 4
    )
    done = Harness(SMALL, linear_costs(1.0), tiers=(HOST,)).run(demand)
    assert done.requests["scheduled_s"][3:].tolist() == [310, 301]
