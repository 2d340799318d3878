"""Laws of exchange libraries, NCCL's algorithms, and the choices of deployment.exchange."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.costs import nccl
from moesim.costs.exchanges import BY_LAW, EXCHANGES, exchange_notes, exchange_rows, traffic_code
from moesim.costs.libraries import EXCHANGE, PHASES, ExchangeLaw, exchange_s, laws, load_law
from moesim.costs.profile import load_profile
from moesim.costs.traffic import Load
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.hardware import Link, make_cluster
from moesim.model import load_model
from moesim.precision import make_precision
from moesim.scenario import Scenario
from moesim.sim import cost_tables

UP, OUT = Link("up", 1.9e-6, 200e9, 0.8), Link("out", 4e-6, 50e9, 0.9)


def seconds(law: ExchangeLaw, load: Load, size: float = 7392.0, domains: int = 4) -> float:
    numbers = np.array(law.numbers((UP, OUT), size, domains, 256), EXCHANGE)
    return float(exchange_s(numbers, load.up, load.out, load.pair, load.sent))


def test_a_law_by_hand() -> None:
    law = ExchangeLaw(
        "any", "dispatch", "messages", base_us=10, network_us=20, expert_us=0.5, pair_us=2,
        message_us=0.1, up_share=0.5, out_share=0.5,
    )  # fmt: skip
    # 192 of 256 experts are on the three other nodes; 100 copies at 22.5 GB/s outlast 200 at 80.
    load = Load(up=200, out=100, pair=30, sent=90)
    expected = (10 + 20 + 0.5 * 192 + 2 * 30 + 0.1 * 90) * 1e-6 + 100 * 7392 / 22.5e9
    assert seconds(law, load) == pytest.approx(expected, rel=1e-12)
    near = Load(up=200, out=0)
    assert seconds(law, near, domains=1) == pytest.approx(10e-6 + 200 * 7392 / 80e9, rel=1e-12)
    assert seconds(dataclasses.replace(law, floor_us=1e4), load) == 1e-2


def test_the_communication_kernels_sms_bind_where_the_link_does_not() -> None:
    law = ExchangeLaw("any", "dispatch", "copies", sm_gb_per_s=5.0, sms=24)
    assert law.up_bytes_per_s(UP) == 120e9
    assert dataclasses.replace(law, sms=64).up_bytes_per_s(UP) == 160e9


@pytest.mark.parametrize("key", sorted(laws()))
def test_infinite_bandwidth_leaves_base_times_and_twice_the_copies_twice_the_rest(
    key: tuple[str, str],
) -> None:
    law = dataclasses.replace(laws()[key], floor_us=0.0, pair_us=0.0, message_us=0.0)
    base = seconds(law, Load(0, 0))
    assert base == pytest.approx(law.base_s(4, 256), rel=1e-12)
    once, twice = (seconds(law, Load(n * 300, n * 100)) - base for n in (1, 2))
    assert twice == pytest.approx(2 * once, rel=1e-9)


def test_only_the_hottest_receiver_counts() -> None:
    """Balanced, then one rank receives twice the rest's mean: the bandwidth term doubles."""
    law = load_law("deepep-low-latency", "dispatch")
    base = law.base_s(4, 256)
    even, hot = (seconds(law, Load(0, n), 7408.0) - base for n in (768, 1536))
    assert hot == pytest.approx(2 * even, rel=1e-12)


# A few published rows: DeepEP@dd758caf docs/legacy.md (H800, 128 tokens, low latency), TensorRT-LLM
# technical blog 18 (GB200, 2,048 tokens of perfectly even routing); copies as in traffic.Load.
LEGACY = (
    ("dispatch", 7408.0, 2, Load(448, 540), 118e-6),
    ("combine", 14336.0, 2, Load(448, 540), 195e-6),
    ("dispatch", 7408.0, 4, Load(224, 800), 155e-6),
    ("combine", 14336.0, 4, Load(224, 800), 273e-6),
)


@pytest.mark.parametrize(("phase", "size", "domains", "load", "published_s"), LEGACY)
def test_low_latency_on_h800(
    phase: str, size: float, domains: int, load: Load, published_s: float
) -> None:
    law = load_law("deepep-low-latency", phase)
    assert seconds(law, load, size, domains) == pytest.approx(published_s, rel=0.06)


@pytest.mark.parametrize(
    ("phase", "ep", "tokens", "published_s"),
    [
        ("dispatch", 8, 1, 18.9e-6),
        ("dispatch", 8, 2048, 311.8e-6),
        ("dispatch", 32, 2048, 373.7e-6),
        ("combine", 8, 1, 31.0e-6),
        ("combine", 16, 512, 98.2e-6),
        ("combine", 32, 2048, 369.5e-6),
    ],
)
def test_one_sided_on_nvl72(phase: str, ep: int, tokens: int, published_s: float) -> None:
    rack = make_cluster("gb200-nvl72", 1, 72, None)
    law = load_law("nvlink-one-sided", phase)
    links = rack.scale_up, rack.scale_out
    numbers = np.array(law.numbers(links, 14336.0, 1, 256), EXCHANGE)
    copies = tokens * 8 * (ep - 1) / ep
    assert float(exchange_s(numbers, copies, 0, 0, 0)) == pytest.approx(published_s, rel=0.09)


def test_ring_tree_and_switch_by_hand() -> None:
    near, far = Link("near", 1.9e-6, 100e9, 1.0), Link("far", 4e-6, 10e9, 1.0)
    ring = nccl.Ring(16, 2, near, far)
    assert ring.bus_bytes_per_s == 80e9  # eight NICs of 10 GB/s against a port of 100
    times = nccl.all_reduce_times(ring, [0.0, 1e12])
    # LL's hops: 30 of the ring, of which 4 cross; 14 of the tree inside and 2 between nodes.
    assert times["ring"][0] == pytest.approx((3.6 + 26 * 0.47 + 4 * 2.7) * 1e-6)
    assert times["tree"][0] == pytest.approx((4.4 + 14 * 0.52 + 2 * 5.0) * 1e-6)
    assert times["ring"][1] == pytest.approx(1e12 * 30 / 16 / 80e9, rel=1e-4)
    assert times["tree"][1] == pytest.approx(2e12 / (0.92 * 80e9), rel=1e-4)
    # Few bytes take the tree, many the ring: somewhere between they cross.
    assert times["tree"][0] < times["ring"][0]
    assert times["ring"][1] < times["tree"][1]
    sizes = np.geomspace(1e3, 1e11, 200)
    best = nccl.all_reduce_times(ring, sizes)
    assert (np.diff((best["ring"] < best["tree"]).astype(int)) != 0).sum() == 1
    assert (nccl.all_reduce_s(ring, sizes) == np.minimum(best["ring"], best["tree"])).all()
    # A longer latency of the network is as many times longer in every hop over it.
    slow = nccl.Ring(16, 2, near, dataclasses.replace(far, latency_s=8e-6))
    longer = nccl.all_reduce_times(slow, [0.0])["tree"][0] - times["tree"][0]
    assert longer == pytest.approx(2 * 5.0e-6)
    gathered = nccl.all_gather_s(ring, [0.0, 1e12])
    assert gathered[0] == pytest.approx((3.6 + 14 * 0.47 + 1 * 2.7) * 1e-6)
    assert gathered[1] == pytest.approx(1e12 * 15 / 16 / 80e9, rel=1e-4)


def test_a_switch_that_adds_takes_large_messages() -> None:
    node = make_cluster("h100-sxm", 1, 8, None)
    ring = nccl.Ring(8, 1, node.scale_up, node.scale_out, node.adds_in_switch)
    times = nccl.all_reduce_times(ring, [1e3, 5e8])
    assert times["in-switch"][0] > times["ring"][0]
    assert times["in-switch"][1] < times["ring"][1] * 0.8
    for gpu, gpus in (("a100-80g", 8), ("h100-nvl", 8), ("h100-sxm", 2)):
        assert not make_cluster(gpu, 1, gpus, None).adds_in_switch
    # 512 MB over 8 H100 take NCCL 2.29 2.11 ms (shipped table).
    assert nccl.all_reduce_s(ring, [2.0**29])[0] == pytest.approx(2.11e-3, rel=0.06)


def test_names_and_codes_are_those_of_the_simulation() -> None:
    codes = {name: traffic_code(name) for name in EXCHANGES}
    assert codes["none"] == cost_tables.NO_EXCHANGE
    assert codes["all-reduce"] == cost_tables.ALL_REDUCE
    assert codes["allgather-reducescatter"] == cost_tables.ALL_GATHER
    for name in ("deepep-normal", "deepep-v2", "nvlink-one-sided"):
        assert codes[name] == cost_tables.NORMAL
    for name in ("deepep-low-latency", "deepep-low-latency-rdma", "pplx", "pplx-ibrc"):
        assert codes[name] == cost_tables.LOW_LATENCY
    assert codes["deepep-low-latency-layered"] == cost_tables.LAYERED


def test_every_law_says_where_it_comes_from() -> None:
    for name in BY_LAW:
        for phase in PHASES:
            law = load_law(name, phase)
            assert law.source
            assert law.date
            assert law.trust in "ABC"
            assert (law.rows > 0) == (law.trust != "C")
            assert law.mape_percent <= 12.0


def test_a_profile_may_set_deepeps_fixed_times() -> None:
    model, precision = load_model("deepseek-v3"), make_precision("fp8", None, "bf16", "fp8")
    network = load_profile("assumed").network.model_copy(update={"normal_base_s": 1e-3})
    exchange = ("deepep-normal", "deepep-low-latency")
    rows = exchange_rows(exchange, model, precision, network, (UP, OUT), 2)
    assert rows[0, 0]["base_s"] == pytest.approx(1e-3 + OUT.latency_s)
    assert rows[1, 0]["base_s"] == load_law(exchange[1], "dispatch").base_s(2, 256)


def scenario(exchange: str, gpu: str, nodes: int, per_node: int, dp: int, **more: int) -> Scenario:
    parallel = {"attention_dp": dp, "expert_parallel": dp} | more
    return Scenario.parse(
        {
            "name": "exchange",
            "model": "deepseek-v3",
            "cluster": {"gpu": gpu, "nodes": nodes, "gpus_per_node": per_node},
            "deployment": {"parallelism": parallel, "exchange": exchange, "engine": "trtllm"},
            "routing": {"trace": "uniform"},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 2,
                "prompt": {"fixed": 8},
                "output": {"fixed": 2},
            },
        }
    )


def test_one_sided_needs_one_scale_up_domain_of_nvlink() -> None:
    with pytest.raises(InputError, match="in one scale-up domain"):
        deploy(scenario("nvlink-one-sided", "h200-sxm", 2, 8, 16))
    with pytest.raises(InputError, match="needs NVLink between"):
        deploy(scenario("nvlink-one-sided", "mi300x", 1, 8, 8))
    notes = deploy(scenario("nvlink-one-sided", "gb200-nvl72", 1, 72, 32)).notes
    assert any("nvlink-one-sided: measured (gb200-nvl72 trtllm" in note for note in notes)


@pytest.mark.parametrize("exchange", ["pplx", "deepep-v2", "deepep-low-latency-layered"])
def test_libraries_need_one_expert_group_of_all_ranks(exchange: str) -> None:
    with pytest.raises(InputError, match="needs expert_parallel = attention_tp x attention_dp"):
        deploy(scenario(exchange, "h200-sxm", 2, 8, 16, expert_parallel=8))


def test_notes_say_what_is_expected_beyond_the_fit() -> None:
    notes = deploy(scenario("deepep-v2", "h200-sxm", 8, 8, 64)).notes
    assert any("64 GPUs lie outside: expect" in note for note in notes)
    (note,) = exchange_notes(("pplx", "pplx"), 32, 4, "roce-400", {})
    assert "mean error 5 %; fitted on infiniband-ndr400, of roce-400 only" in note
    assert exchange_notes(("all-reduce", "all-reduce"), 8, 1, "roce-400", {}) == []


def test_measured_tables_go_before_the_law() -> None:
    """Uniform routing's hottest copies through law and ratio give back TensorRT-LLM's table."""
    run = scenario("nvlink-one-sided", "gb200-nvl72", 1, 72, 16)
    built = deploy(run)
    costs = step_costs(run, built)
    assert costs.exchange_ratio.shape[:2] == (2, 2)
    from moesim.costs.measured.exchange import engine_exchange_s
    from moesim.costs.traffic import uniform_load

    assert built.kernels is not None
    load = uniform_load("copies", 256.0, 16, 1, 256, 8)
    for at, phase in enumerate(PHASES):
        law_s = float(exchange_s(costs.exchange[0, at], *load))
        dtype = "fp8" if phase == "dispatch" and built.precision.dispatch == "fp8" else "bfloat16"
        table = engine_exchange_s(
            built.kernels, "one_sided", phase, [256.0], 7168, 8, 256, 16, dtype
        )
        assert table is not None
        scaled = law_s * costs.exchange_ratio[0, at, 16 * 256]
        assert scaled == pytest.approx(float(table.seconds[0]), rel=1e-6)
