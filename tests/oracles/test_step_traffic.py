"""Steps and transfers take from each other: by hand for one step, and end to end on two nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy

from moesim.fabric import build_fabric, gpu
from moesim.hardware import Link, make_cluster
from moesim.results import Result
from moesim.sharding import Sharding
from moesim.sim.cost_tables import ALL_GATHER, LOW_LATENCY, NORMAL
from moesim.sim.setup import build_state
from moesim.sim.state import RECENT_S, STEP_PARTS
from moesim.sim.step_traffic import StepFlow, stand_for_steps, step_load
from moesim.sim.transfers import Transfers
from moesim.simulation import simulate
from moesim.topology import Topology
from tests.fixtures.engine import RULES, make_demand
from tests.oracles.test_exchange import (
    BASE_S,
    COMBINE_BYTES,
    LOW_LATENCY_BYTES,
    NORMAL_BYTES,
    OUT_S,
    UP_S,
    one_step,
)

GB = 1e9
NETWORK = Link("net", 0.0, 16 * GB, 0.5)


def standing(
    nodes: int = 2, dp: int = 16, all_pairs: bool = True, **cluster: Any
) -> tuple[Transfers, Any, list[tuple[StepFlow, StepFlow]]]:
    """Transfers on nodes of 8 GPUs, the state of two idle replicas, and their standing flows."""
    made = make_cluster("h200-sxm", nodes, 8, NETWORK, **cluster)
    replicas = nodes * 8 // dp
    state = build_state({**RULES, "replicas": replicas, "ranks": dp}, make_demand([1], [1]))
    transfers = Transfers(simpy.Environment(), build_fabric(made))
    flows = stand_for_steps(transfers, state, Sharding(1, dp, dp, 1), all_pairs)
    return transfers, state, flows


def test_a_replica_loads_every_nic_once_and_every_scale_up_port_once() -> None:
    fabric = build_fabric(make_cluster("h200-sxm", 2, 8, NETWORK))
    for all_pairs in (True, False):
        up, out = step_load(fabric, Sharding(1, 16, 16, 1), 0, all_pairs)
        assert {fabric.ports[p].name.split(" ", 1)[1] for p in up} == {
            "scale-up out",
            "scale-up in",
        }
        assert len(up) == len(out) == 32
        assert set(up.values()) == set(out.values()) == {1.0}


def test_what_crosses_rails_and_leaves_depends_on_who_sends_to_whom() -> None:
    """Two nodes, a leaf a rail. To all eight GPUs over there: 7/8 to other rails."""
    rails = {"nodes_per_leaf": 2, "rail_optimised": True}
    over_spine = build_fabric(
        make_cluster("h200-sxm", 2, 8, NETWORK, topology=Topology(**rails, cross_rail="spine"))
    )
    over_nvlink = build_fabric(make_cluster("h200-sxm", 2, 8, NETWORK, topology=Topology(**rails)))
    sharding = Sharding(1, 16, 16, 1)

    def weights(fabric: Any, all_pairs: bool) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {}
        for port, weight in step_load(fabric, sharding, 0, all_pairs)[1].items():
            found.setdefault(fabric.ports[port].name.split(" ", 1)[1], set()).add(weight)
        return found

    spine = weights(over_spine, True)
    # 16 GPUs x 7/8 of their bytes over 8 uplinks: 1.75 GPUs' bytes each.
    assert spine["uplink"] == spine["downlink"] == {1.75}
    nvlink = weights(over_nvlink, True)
    assert set(nvlink) == {"nic out", "nic in", "scale-up out", "scale-up in"}
    assert nvlink["scale-up out"] == {7 / 8}
    # To the GPU of the same place only: neither spine nor NVLink.
    for fabric in (over_spine, over_nvlink):
        assert weights(fabric, False) == {"nic out": {1.0}, "nic in": {1.0}}


def test_a_transfer_halves_what_steps_have_of_a_nic_and_gives_it_back() -> None:
    transfers, state, [(up, out)] = standing()
    row = state.replicas[0]
    arrived = transfers.send(gpu(0), gpu(8), 4 * GB)
    transfers.env.run(until=0.01)
    assert (out.share, row["out_slowdown"]) == (0.5, 2.0)
    assert (up.share, row["up_slowdown"]) == (1.0, 1.0)
    transfers.env.run(arrived)
    assert transfers.env.now == pytest.approx(0.5)  # no step has run: nothing to give way to
    transfers.env.run(until=0.6)
    assert (out.share, row["out_slowdown"]) == (1.0, 1.0)


def test_a_transfer_inside_a_node_slows_the_scale_up_links_only() -> None:
    transfers, state, _ = standing()
    transfers.send(gpu(0), gpu(1), 40 * GB)
    transfers.env.run(until=0.01)
    row = state.replicas[0]
    assert (row["up_slowdown"], row["out_slowdown"]) == (2.0, 1.0)


def test_a_transfer_gets_what_recent_steps_leave() -> None:
    transfers, state, _ = standing()
    state.replicas["out_bytes"] = 2 * GB * RECENT_S  # as if 2 GB/s had just been moved
    arrived = transfers.send(gpu(0), gpu(8), 0.06 * GB)
    transfers.env.run(arrived)
    assert transfers.env.now == pytest.approx(0.01, rel=1e-9)  # 6 GB/s


def test_an_oversubscribed_spine_slows_steps_whose_bytes_cross_it() -> None:
    """4:1, a node a leaf: 8 NICs of 8 GB/s send 64 GB/s into 16 GB/s. A wide leaf: nothing."""
    narrow = {"oversubscription": 4.0, "topology": Topology(nodes_per_leaf=1)}
    transfers, state, _ = standing(**narrow)
    transfers.env.run(until=0.0001)
    assert state.replicas["out_slowdown"].tolist() == [4.0]
    # Half of a replica's peers outside its node sit on its leaf where four nodes hang on two.
    wide = {"oversubscription": 4.0, "topology": Topology(nodes_per_leaf=2)}
    transfers, state, _ = standing(nodes=4, dp=32, **wide)
    transfers.env.run(until=0.0001)
    # Of 24 outer GPUs 16 sit behind the spine: 16 senders x 2/3 on 16 NICs / 4.
    assert state.replicas["out_slowdown"].tolist() == pytest.approx([8 / 3])
    transfers, state, _ = standing(nodes=4, dp=16, **wide)
    transfers.env.run(until=0.0001)
    assert state.replicas["out_slowdown"].tolist() == [1.0, 1.0]


def test_replicas_on_one_uplink_slow_each_other() -> None:
    """Two replicas of four nodes, three nodes a leaf: nodes 0-2, 3 and 4, 5 | 6, 7 under leaves.

    Leaf 1 has node 3 of replica 0, whose 8 GPUs send all their bytes up, and nodes 4 and 5 of
    replica 1, whose 16 GPUs send two thirds. 24 NICs under 3:1 have uplinks of 64 GB/s.
    """
    shape = {"nodes": 8, "dp": 32, "oversubscription": 3.0, "topology": Topology(nodes_per_leaf=3)}
    transfers, state, _ = standing(**shape)
    transfers.env.run(until=0.0001)
    # Alone, 64 / 8 = 8 GB/s, as much as a NIC has; and 64 / (16 x 2/3) = 6.
    assert state.replicas["out_slowdown"].tolist() == pytest.approx([1.0, 8 / 6])
    transfers, state, _ = standing(**shape)
    state.replicas["out_bytes"] = 1 * GB * RECENT_S
    transfers.env.run(until=0.0001)
    # Beside the other's 1 GB/s a GPU: (64 - 16 x 2/3) / 8 = 20/3 and (64 - 8) / (16 x 2/3) = 5.25.
    assert state.replicas["out_slowdown"].tolist() == pytest.approx([1.2, 8 / 5.25])


@pytest.mark.parametrize(("up", "out"), [(1.0, 2.0), (3.0, 1.0), (8.0, 1.5), (1.0, 1.0)])
def test_a_slowdown_stretches_the_bytes_of_an_exchange(up: float, out: float) -> None:
    """Hand-computed in test_exchange: two tokens on the busiest link of each kind, or four."""
    for exchange, sent, bytes_out in (
        (NORMAL, NORMAL_BYTES, 2),
        (LOW_LATENCY, LOW_LATENCY_BYTES, 4),
    ):
        slowed = slowed_step(exchange, up, out)
        byte_s = max(2 * UP_S * up, bytes_out * OUT_S * out)
        assert slowed["dispatch_s"] == pytest.approx(BASE_S + byte_s * sent, rel=1e-12)
        assert slowed["combine_s"] == pytest.approx(BASE_S + byte_s * COMBINE_BYTES, rel=1e-12)
        assert slowed["scale_out_bytes"] == bytes_out * (sent + COMBINE_BYTES)


def slowed_step(exchange: int, up: float, out: float, **rates: float) -> Any:
    """The step of test_exchange with slowdowns in the byte times, as `exchange_layer` has them."""
    return one_step("abcd", exchange, slowdown=(up, out), **rates).steps[0]


def test_a_slowdown_stretches_an_all_gather_and_an_all_reduce() -> None:
    """8 tokens; 3 bytes a token up, 5 out. The all-reduce: 7 and 11 bytes for each of 2 tokens."""
    rates = {"gather_up_bytes": 3e6, "gather_out_bytes": 5e6, "reduce_up_bytes": 7e6}
    step = slowed_step(ALL_GATHER, 2.0, 4.0, reduce_out_bytes=11e6, **rates)
    more_s = 3e6 * UP_S * 1.0 + 5e6 * OUT_S * 3.0
    assert step["dispatch_s"] == pytest.approx(BASE_S + 8 * (1e-6 + more_s), rel=1e-12)
    assert step["all_reduce_s"] == pytest.approx(2 * (7e6 * UP_S + 11e6 * OUT_S * 3), rel=1e-12)
    assert step["duration_s"] == pytest.approx(sum(step[name] for name in STEP_PARTS), rel=1e-12)


TWO_NODES: dict[str, Any] = {
    "name": "two nodes",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "nodes": 2},
    "deployment": {
        "engine": "sglang",
        "parallelism": {"attention_dp": 16, "expert_parallel": 16},
        "exchange": "deepep",
    },
    "routing": {"trace": "uniform", "tokens": 4096},
    "workload": {
        "requests": 160,
        "arrivals": {"poisson": {"rate_per_s": 80}},
        "prompt": {"fixed": 2000},
        "output": {"uniform": {"low": 40, "high": 80}},
    },
}
NIC = 50e9 * 0.9


def run(background: list[dict[str, Any]], leap: bool = True, **changes: Any) -> Result:
    cluster = {**TWO_NODES["cluster"], "background": background}
    return simulate({**TWO_NODES, "cluster": cluster, **changes}, leap=leap)


def transfer(size_bytes: float, at_s: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"at_s": at_s, "source": "gpu0", "target": "gpu8", "size_bytes": size_bytes, **more}


def test_background_traffic_on_a_nic_slows_steps_while_it_lasts_and_steps_slow_it() -> None:
    free, shared = run([]), run([transfer(0.5 * NIC)])
    start_s, end_s = 1.0, float(shared.background["finish_s"][0])
    before = shared.steps["start_s"] < start_s
    assert before.sum() > 5
    assert shared.steps[before].equals(free.steps[before])
    # The first step beside it has the same batch as without it: where the network binds, its bytes
    # take twice as long. It does but for phases so small that their least time had bound.
    first = [one.steps.iloc[int(before.sum())] for one in (free, shared)]
    assert first[0]["prefill_tokens"] == first[1]["prefill_tokens"] > 0
    exchange_s = [one["dispatch_s"] + one["combine_s"] for one in first]
    bytes_s = first[0]["scale_out_bytes"] / NIC
    assert 0.95 < (exchange_s[1] - exchange_s[0]) / bytes_s < 1.0 + 1e-9
    # Alone it would take half a second. The rest of the NIC went to the steps, as lately seen.
    during = shared.steps["start_s"].between(start_s, end_s, inclusive="left")
    lost = (end_s - start_s) * NIC - 0.5 * NIC
    assert 0.4 < lost / shared.steps["scale_out_bytes"][during].sum() < 1.2
    assert shared.background["bytes_per_s"][0] == pytest.approx(0.5 * NIC / (end_s - start_s))
    assert shared.summary["e2e_s"]["mean"] > free.summary["e2e_s"]["mean"]
    assert shared.summary["requests"]["completed"] == 160


def test_leaps_and_single_steps_agree_beside_background_traffic() -> None:
    plans = [transfer(0.2 * NIC), transfer(0.3 * NIC, 1.11, rate_cap_bytes_per_s=20e9)]
    leaping, stepping = (run(plans, leap=leap) for leap in (True, False))
    assert leaping.raw.requests.tobytes() == stepping.raw.requests.tobytes()
    assert leaping.raw.steps.tobytes() == stepping.raw.steps.tobytes()
    assert leaping.background.equals(stepping.background)


def test_a_topology_that_narrows_nothing_changes_no_number() -> None:
    shaped = {**TWO_NODES["cluster"], "topology": {"nodes_per_leaf": 1, "rail_optimised": True}}
    free, same = simulate(TWO_NODES), simulate({**TWO_NODES, "cluster": shaped})
    assert same.raw.requests.tobytes() == free.raw.requests.tobytes()
    assert same.raw.steps.tobytes() == free.raw.steps.tobytes()


def test_averaged_routing_is_slowed_as_well() -> None:
    routing = {**TWO_NODES["routing"], "mode": "averaged"}
    free, shared = run([], routing=routing), run([transfer(0.5 * NIC)], routing=routing)
    exchange_s = [one.steps["dispatch_s"].mean() for one in (free, shared)]
    assert exchange_s[1] > exchange_s[0]
    total_s = sum(shared.raw.steps[part] for part in STEP_PARTS)
    assert np.abs(total_s / shared.raw.steps["duration_s"] - 1).max() < 1e-12
