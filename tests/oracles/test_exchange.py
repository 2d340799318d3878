"""Dispatch and combine by hand: two nodes of two GPUs, one layer, eight experts, two a GPU.

Expert e lives on GPU e // 2; GPUs 0, 1 are node 0 and GPUs 2, 3 node 1. Each attention rank holds
two tokens of three experts each:

    source   token        experts   GPUs        token        experts   GPUs
    a        first        0 2 5     0 1 2       second       4 5 7     2 2 3
    b        first        1 0 3     0 0 1       second       6 7 2     3 3 1
    c        first        0 1 2     0 0 1       second       4 6 5     2 3 2
    d        first        3 7 6     1 3 3       second       1 3 0     0 1 0
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moesim.costs.collectives import Group, all_gather, all_reduce
from moesim.costs.exchanges import EXCHANGES
from moesim.costs.profile import load_profile
from moesim.costs.step import build_step_costs
from moesim.hardware import Link, make_cluster
from moesim.model import load_model
from moesim.precision import make_precision
from moesim.sharding import Sharding
from moesim.sim.cost_tables import ALL_GATHER, ALL_REDUCE, LAYERED, LOW_LATENCY, NO_EXCHANGE, NORMAL
from tests.fixtures.engine import (
    Harness,
    Run,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)

TOKENS = {
    "a": [[0, 2, 5], [4, 5, 7]],
    "b": [[1, 0, 3], [6, 7, 2]],
    "c": [[0, 1, 2], [4, 6, 5]],
    "d": [[3, 7, 6], [1, 3, 0]],
}
# DeepSeek-V3: hidden 7,168; FP8 with a scale per 128, 16 bytes of header in low latency; BF16 back.
NORMAL_BYTES, LOW_LATENCY_BYTES, COMBINE_BYTES = 7392.0, 7408.0, 14336.0
UP_S, OUT_S = 1 / 160e9, 1 / 40e9
BASE_S = 1e-5


def one_step(
    sources: str,
    exchange: int,
    attention_tp: int = 1,
    slowdown: tuple[float, float] = (1.0, 1.0),
    law: dict[str, float] | None = None,
    replaced: dict[str, Any] | None = None,
    **rates: float,
) -> Run:
    """One step in which attention rank i computes the two tokens of source i.

    `slowdown`: of the bytes on the scale-up and the scale-out links, by traffic of others.
    """
    ids = np.array([TOKENS[name] for name in sources]).reshape(-1, 1, 3)
    trace = make_trace(
        ids, 8, [2] * len(sources), domain=range(len(sources)), domains=tuple(sources)
    )
    numbers: dict[str, float] = {
        "attention_tp": attention_tp,
        "prefill_exchange": exchange,
        "decode_exchange": exchange,
        "gather_base_s": BASE_S,
        "gather_token_s": 1e-6,
        "up_byte_s": UP_S,
        "out_byte_s": OUT_S,
    }
    sent = NORMAL_BYTES if exchange == NORMAL else LOW_LATENCY_BYTES
    plain = {"up_byte_s": UP_S, "out_byte_s": OUT_S, "base_s": BASE_S}
    costs = linear_costs(
        layers=1,
        domain_of_rank=[0, 0, 1, 1],
        exchange=exchange_rows(sent, COMBINE_BYTES, **(plain | (law or {}))),
        **(numbers | rates),
    )
    costs = dataclasses.replace(costs, **(replaced or {}))
    run = Harness({"ranks": len(sources)}, costs, trace, slowdown=slowdown).run(
        make_demand(
            [2] * len(sources),
            [1] * len(sources),
            domain=range(len(sources)),
            domains=tuple(sources),
        )
    )
    assert len(run.steps) == 1
    return run


def test_normal_mode_sends_one_copy_to_each_node_and_fans_out_there() -> None:
    run = one_step("abcd", NORMAL)
    # Over the network (tokens, once per node): a 2, b 1, c 1, d 2; they land on the GPU in the
    # sender's place: a's and c's on GPUs 2 and 0, b's and d's on GPUs 3 and 1.
    assert run.work.send_out_LR[0].tolist() == [2, 1, 1, 2]
    assert run.work.recv_out_LR[0].tolist() == [1, 2, 2, 1]
    # Inside: GPU 0 sends a's token to 1 and c's, landed there, to 1; GPU 1 sends b's and d's to 0;
    # GPU 2 sends a's and c's to 3; GPU 3 sends nothing, for what lands there stays.
    assert run.work.send_up_LR[0].tolist() == [2, 2, 2, 0]
    assert run.work.recv_up_LR[0].tolist() == [2, 2, 0, 2]
    step = run.steps[0]
    # Two tokens on the busiest link of each kind; the network, four times slower, binds.
    assert step["dispatch_s"] == pytest.approx(BASE_S + 2 * NORMAL_BYTES / 40e9, rel=1e-12)
    assert step["combine_s"] == pytest.approx(BASE_S + 2 * COMBINE_BYTES / 40e9, rel=1e-12)
    assert step["scale_up_bytes"] == 2 * (7392 + 14336)
    assert step["scale_out_bytes"] == 2 * (7392 + 14336)


def test_low_latency_mode_sends_every_token_to_every_expert() -> None:
    run = one_step("abcd", LOW_LATENCY)
    # a: one to GPU 1, three to 2, one to 3. b: two to 0, two to 3. c: two to 0, one to 1, one to 3.
    # d: two to 0, two to 1. What stays on its own GPU is not sent.
    assert run.work.send_up_LR[0].tolist() == [1, 2, 1, 0]
    assert run.work.recv_up_LR[0].tolist() == [2, 1, 0, 1]
    assert run.work.send_out_LR[0].tolist() == [4, 2, 3, 4]
    assert run.work.recv_out_LR[0].tolist() == [4, 3, 3, 3]
    step = run.steps[0]
    assert step["dispatch_s"] == pytest.approx(BASE_S + 4 * LOW_LATENCY_BYTES / 40e9, rel=1e-12)
    assert step["combine_s"] == pytest.approx(BASE_S + 4 * COMBINE_BYTES / 40e9, rel=1e-12)
    assert step["scale_up_bytes"] == 2 * (7408 + 14336)
    assert step["scale_out_bytes"] == 4 * (7408 + 14336)


def test_layered_mode_dispatches_once_to_each_node_and_combines_every_message() -> None:
    run = one_step("abcd", LAYERED)
    # The first row counts copies as normal mode does, the second messages as low latency does.
    assert run.work.send_out_LR.tolist() == [[2, 1, 1, 2], [4, 2, 3, 4]]
    assert run.work.recv_up_LR.tolist() == [[2, 2, 0, 2], [2, 1, 0, 1]]
    step = run.steps[0]
    assert step["dispatch_s"] == pytest.approx(BASE_S + 2 * LOW_LATENCY_BYTES / 40e9, rel=1e-12)
    assert step["combine_s"] == pytest.approx(BASE_S + 4 * COMBINE_BYTES / 40e9, rel=1e-12)


def test_pplx_waits_for_its_hottest_pair_or_for_its_busiest_sender() -> None:
    """Each a sends three messages to GPU 2 and one to 3, c two to 0 and one to 1, d two each."""
    bandless = {"up_byte_s": 0.0, "out_byte_s": 0.0}
    run = one_step("aacd", LOW_LATENCY, law=bandless | {"pair_s": 1e-3})
    assert run.work.pair_L.tolist() == [3.0]
    assert run.steps[0]["dispatch_s"] == pytest.approx(BASE_S + 3e-3, rel=1e-12)
    # Nobody posts more than four; the six that reach GPU 2 are posted there on the way back.
    run = one_step("aacd", LOW_LATENCY, law=bandless | {"message_s": 1e-3})
    assert run.work.send_out_LR[0].tolist() == [4, 4, 3, 4]
    assert run.work.recv_out_LR[0].tolist() == [4, 3, 6, 2]
    assert run.steps[0]["dispatch_s"] == pytest.approx(BASE_S + 4e-3, rel=1e-12)
    assert run.steps[0]["combine_s"] == pytest.approx(BASE_S + 6e-3, rel=1e-12)


def test_without_nvlink_the_nic_carries_what_stays_in_the_node_too() -> None:
    run = one_step("abcd", LOW_LATENCY, law={"near_out": 1.0, "up_byte_s": 0.0})
    # Sent by each GPU: a 1 + 4, b 2 + 2, c 1 + 3, d 0 + 4; received: 2 + 4, 1 + 3, 0 + 3, 1 + 3.
    assert run.steps[0]["dispatch_s"] == pytest.approx(BASE_S + 6 * 7408 / 40e9, rel=1e-12)
    assert run.steps[0]["scale_up_bytes"] == 0.0
    assert run.steps[0]["scale_out_bytes"] == 6 * (7408 + 14336)


def test_one_sided_copies_hide_behind_its_floor() -> None:
    law = {"floor_s": 5e-5, "base_s": 1e-5, "out_byte_s": 0.0}
    assert one_step("abcd", NORMAL, law=law).steps[0]["dispatch_s"] == 5e-5
    slow = one_step("abcd", NORMAL, law=law | {"up_byte_s": 1e-6}).steps[0]
    assert slow["dispatch_s"] == pytest.approx(1e-5 + 2 * 7392 * 1e-6, rel=1e-12)


def test_a_measured_exchange_scales_the_law_by_tokens_of_the_group() -> None:
    ratio = np.ones((2, 2, 100))
    ratio[0, 0, 8], ratio[0, 1, 8] = 3.0, 0.5  # eight tokens of prompts
    plain = one_step("abcd", NORMAL).steps[0]
    exact = one_step("abcd", NORMAL, replaced={"exchange_ratio": ratio}).steps[0]
    assert exact["dispatch_s"] == pytest.approx(3.0 * plain["dispatch_s"], rel=1e-12)
    assert exact["combine_s"] == pytest.approx(0.5 * plain["combine_s"], rel=1e-12)
    assert exact["scale_out_bytes"] == plain["scale_out_bytes"]


def test_an_all_gather_across_nodes_takes_its_table() -> None:
    gathered = np.linspace(0.0, 1.0, 101)
    step = one_step("abcd", ALL_GATHER, replaced={"gather_s": gathered}).steps[0]
    assert step["dispatch_s"] == step["combine_s"] == gathered[8]


def test_the_slower_of_the_two_links_binds() -> None:
    run = one_step("abcd", LOW_LATENCY, law={"out_byte_s": UP_S / 4})
    assert run.steps[0]["dispatch_s"] == pytest.approx(BASE_S + 2 * 7408 / 160e9, rel=1e-12)


def test_normal_mode_with_two_gpus_to_an_attention_rank() -> None:
    """a on GPUs 0 and 1, c on GPUs 2 and 3: each GPU sends half of its rank's tokens."""
    run = one_step("ac", NORMAL, attention_tp=2)
    # a sends two tokens to node 1, one from each GPU; c one to node 0, half from each.
    assert run.work.send_out_LR[0].tolist() == [1, 1, 0.5, 0.5]
    assert run.work.recv_out_LR[0].tolist() == [0.5, 0.5, 1, 1]
    # Landed on GPU 3, a's half for GPU 2 (two tokens) travels on: the busiest way inside.
    assert run.work.send_up_LR[0].tolist() == [1, 1, 1, 1.5]
    assert run.work.recv_up_LR[0].tolist() == [1, 1, 1.5, 1]
    assert run.steps[0]["scale_up_bytes"] == 1.5 * (7392 + 14336)
    assert run.steps[0]["dispatch_s"] == pytest.approx(BASE_S + 1 * 7392 / 40e9, rel=1e-12)


def test_low_latency_mode_with_two_gpus_to_an_attention_rank() -> None:
    run = one_step("ac", LOW_LATENCY, attention_tp=2)
    # a: 1, 1 near (half of each stays), 3, 1 far. c: 2, 1 far, 2, 1 near (half stays).
    assert run.work.recv_up_LR[0].tolist() == [0.5, 0.5, 1, 0.5]
    assert run.work.send_up_LR[0].tolist() == [0.5, 0.5, 0.5, 1]
    assert run.work.recv_out_LR[0].tolist() == [2, 1, 3, 1]
    assert run.work.send_out_LR[0].tolist() == [2, 2, 1.5, 1.5]
    assert run.steps[0]["combine_s"] == pytest.approx(BASE_S + 3 * 14336 / 40e9, rel=1e-12)


def test_all_gather_moves_every_token_whoever_its_experts_are() -> None:
    step = one_step("abcd", ALL_GATHER).steps[0]
    assert step["dispatch_s"] == pytest.approx(BASE_S + 8 * 1e-6, rel=1e-12)
    assert step["combine_s"] == step["dispatch_s"]
    skewed = one_step("aaaa", ALL_GATHER).steps[0]
    assert skewed["dispatch_s"] == step["dispatch_s"]


def test_all_gather_pads_decode_to_the_fullest_rank() -> None:
    trace = make_trace(np.zeros((4, 1, 1)), 4)
    costs = linear_costs(
        per_step_s=1e-3, layers=1, ranks=4, decode_exchange=ALL_GATHER, gather_token_s=1e-6
    )
    # Requests 0 and 4 decode on rank 0, the others alone on theirs: four times two rows.
    run = Harness({"ranks": 4}, costs, trace).run(make_demand([1] * 5, [2] * 5))
    decode = run.steps[run.steps["decode_tokens"] == 5]
    assert decode["dispatch_s"] == pytest.approx([8e-6])


@pytest.mark.parametrize("exchange", [NORMAL, LOW_LATENCY, LAYERED, ALL_GATHER])
def test_infinite_bandwidth_leaves_the_fixed_time(exchange: int) -> None:
    law = {"up_byte_s": 0.0, "out_byte_s": 0.0}
    step = one_step("abcd", exchange, law=law, gather_token_s=0.0).steps[0]
    assert step["dispatch_s"] == step["combine_s"] == BASE_S


@pytest.mark.parametrize("exchange", [NO_EXCHANGE, ALL_REDUCE])
def test_without_an_exchange_none_takes_time(exchange: int) -> None:
    step = one_step("abcd", exchange).steps[0]
    assert step["dispatch_s"] == step["combine_s"] == step["scale_out_bytes"] == 0.0


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_single_gpu_exchanges_nothing(exchange: str) -> None:
    model = load_model("olmoe-1b-7b")
    costs = build_step_costs(
        model,
        Sharding(1, 1, 1, 1),
        make_precision("bf16", None, "bf16", None),
        make_cluster("h100-sxm", 1, 8, "infiniband-ndr400"),
        load_profile("assumed"),
        (exchange, exchange),
        512,
    )
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(64), (40, 16, 1)), axis=2)[..., :8]
    run = Harness(costs=costs, trace=make_trace(ids, 64)).run(make_demand([30, 40], [9, 5]))
    for part in ("dispatch_s", "combine_s", "all_reduce_s", "pipeline_s", "expert_imbalance_s"):
        assert (run.steps[part] == 0.0).all(), part
    assert (run.steps["scale_up_bytes"] == 0.0).all()
    assert (run.steps["experts_s"] > 0.0).all()


def test_message_bytes_of_deepseek_v3_are_deepeps() -> None:
    """DeepEP internode_ll.cu: 16 + hidden + hidden / 128 x 4 bytes there, hidden x 2 back."""
    costs = build_step_costs(
        load_model("deepseek-v3"),
        Sharding(1, 16, 16, 1),
        make_precision("fp8", None, "bf16", "fp8"),
        make_cluster("h200-sxm", 2, 8, "infiniband-ndr400"),
        load_profile("assumed"),
        ("deepep-normal", "deepep-low-latency"),
        16,
    )
    assert costs.exchange["copy_bytes"].tolist() == [
        [NORMAL_BYTES, COMBINE_BYTES],
        [LOW_LATENCY_BYTES, COMBINE_BYTES],
    ]
    assert costs.domain_of_rank.tolist() == [0] * 8 + [1] * 8


def test_collectives_by_hand() -> None:
    """16 GPUs in two nodes; NVLink 100 GB/s, network 10 GB/s, 1 us and 5 us."""
    up, out = Link("up", 1e-6, 100e9, 1.0), Link("out", 5e-6, 10e9, 1.0)
    group = Group(16, 2, up, out)
    reduce, gather = all_reduce(group, 2e-6), all_gather(group, 2e-6)
    # Reduce-scatter inside (7/8 of the bytes), all-reduce of an eighth across, all-gather inside.
    assert reduce.up_bytes == pytest.approx(2 * 7 / 8)
    assert reduce.out_bytes == pytest.approx(2 * 1 / 2 / 8)
    assert reduce.base_s == pytest.approx(2e-6 + 1e-6 + 2e-6 + 5e-6)
    assert reduce.byte_s == pytest.approx(1.75 / 100e9 + 0.125 / 10e9)
    # Half the result comes from the other node, an eighth of it through each NIC.
    assert gather.up_bytes == pytest.approx(7 / 8)
    assert gather.out_bytes == pytest.approx(1 / 2 / 8)
    alone = dataclasses.replace(group, gpus=1, domains=1)
    for one in (all_reduce(alone, 2e-6), all_gather(alone, 2e-6)):
        assert (one.base_s, one.byte_s, one.up_bytes, one.out_bytes) == (0, 0, 0, 0)
    assert all_reduce(Group(8, 1, up, out), 2e-6).out_bytes == 0.0
