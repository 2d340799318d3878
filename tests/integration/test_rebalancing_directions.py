"""Rebalancing, redundancy and foreign domains against the directions that were published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import routing_table
from moesim import simulate
from moesim.placement.eplb import eplb
from moesim.placement.load import load_from_trace
from moesim.placement.placement import Placement
from moesim.results import Result
from moesim.routing.trace import RoutingTrace

pytestmark = pytest.mark.slow

MOE_PARTS = ["experts_s", "expert_imbalance_s"]


def wide(deployment: dict[str, Any], gpu: str = "h200-sxm", **others: Any) -> Result:
    """DeepSeek-V3 as EP16, in a closed loop of short prompts: decode, as good as all the time."""
    data: dict[str, Any] = {
        "name": "published",
        "model": "deepseek-v3",
        "cluster": {"gpu": gpu, "nodes": 2},
        "deployment": {
            "engine": "vllm",
            "parallelism": {"attention_dp": 16, "expert_parallel": 16},
            "exchange": "deepep",
            **deployment,
        },
        "routing": {"trace": "synthetic", "tokens": 16_384},
        "workload": {
            "arrivals": {"closed_loop": {"concurrency": 512}},
            "requests": 512,
            "prompt": {"fixed": 64},
            "output": {"fixed": 1000},
        },
        "measure": {"warmup": "none"},
    }
    return simulate(data | others, provenance=False)


def test_stopping_every_few_steps_is_ruinous() -> None:
    """24 synchronous rearrangements made an evaluation 3.2 times slower although balancedness rose
    from 0.94 to 0.99 (vLLM issue 50647): about one every 15 decode steps."""
    still = wide({})
    often = wide(
        {"rebalancing": {"mode": "sync", "interval_steps": 15, "window_steps": 15}},
        workload=still.scenario.workload.model_dump() | {"output": {"fixed": 200}},
    )
    figures = often.summary["rebalancing"]
    assert figures["balancedness_predicted"] > figures["balancedness_before"]
    slower = often.summary["tpot_s"]["mean"] / still.summary["tpot_s"]["mean"]
    print(f"{slower:.2f} times slower")
    assert 2.0 < slower < 5.0
    assert figures["break_even_steps"] is None or figures["break_even_steps"] > 15


def rack(rebalancing: dict[str, Any] | None) -> Result:
    """R1 in NVFP4 on 32 GB200: vLLM issue 43219, with fewer requests at once."""
    return wide(
        {
            "parallelism": {"attention_dp": 32, "expert_parallel": 32},
            "placement": {"policy": "contiguous", "redundant_experts": 32},
            "exchange": "auto",
            "rebalancing": rebalancing,
        },
        cluster={"gpu": "gb200-nvl72", "gpus_per_node": 4, "nodes": 8},
        precision={"experts": "nvfp4"},
        workload={
            "arrivals": {"closed_loop": {"concurrency": 1024}},
            "requests": 1024,
            "prompt": {"fixed": 64},
            "output": {"fixed": 900},
        },
    )


def test_behind_the_steps_the_tail_stays_as_it_was() -> None:
    """ITL p99 76.9 ms with asynchronous rearrangements every 3,000 steps, 74.9 without any."""
    still, moving = rack(None), rack({})
    assert moving.summary["rebalancing"]["count"] == 1
    tails = [run.summary["itl_s"]["p99"] for run in (still, moving)]
    assert tails[1] / tails[0] == pytest.approx(1.0, abs=0.03)
    gaps = moving.summary["rebalancing"]["itl_s"]
    assert gaps["during"]["p99"] / gaps["between"]["p99"] < 1.05
    assert moving.summary["rebalancing"]["stall_s"] == 0.0


def test_a_synchronous_rearrangement_takes_about_a_second() -> None:
    """0.65 to 1.70 s, 0.91 in the mean."""
    figures = rack({"mode": "sync"}).summary["rebalancing"]
    assert 0.65 < figures["stall_s_mean"] < 1.70
    # Nearly all of it the host's: the bytes alone take a few hundredths.
    assert 0.005 < figures["stall_s_mean"] - (0.1 + 58 * 0.014) < 0.1


def test_redundancy_hurts_decode_that_reads_weights() -> None:
    """EPLB fills every extra slot, and each is one more expert to read: 3 to 28 % slower layers in
    decode of 8 to 32 tokens a rank (a study on real traces, 2026-11)."""
    small = {"arrivals": {"closed_loop": {"concurrency": 128}}, "requests": 128}
    lengths = {"prompt": {"fixed": 64}, "output": {"fixed": 200}}
    layer_s = []
    for redundant in (0, 64):
        placement = {"policy": "eplb", "redundant_experts": redundant}
        result = wide({"placement": placement}, workload=small | lengths)
        decode = result.steps[result.steps["prefill_tokens"] == 0]
        layer_s.append(decode[MOE_PARTS].sum(axis=1).mean())
    assert 1.0 < layer_s[1] / layer_s[0] < 1.3


def test_one_small_node_gains_little() -> None:
    """SGLang issue 6017: no gain on one node."""
    runs = [
        simulate(
            {
                "name": "one node",
                "model": "mixtral-8x7b",
                "cluster": {"gpu": "h100-sxm"},
                "deployment": {
                    "engine": "sglang",
                    "parallelism": {"attention_dp": 8, "expert_parallel": 8},
                    "placement": {"policy": policy},
                },
                "workload": {
                    "arrivals": {"poisson": {"rate_per_s": 8}},
                    "requests": 400,
                    "prompt": {"fixed": 512},
                    "output": {"fixed": 200},
                },
            },
            provenance=False,
        )
        for policy in ("contiguous", "eplb")
    ]
    speed = [run.summary["e2e_s"]["mean"] for run in runs]
    assert speed[1] / speed[0] == pytest.approx(1.0, abs=0.05)


def fitted(trace: RoutingTrace, domain: str, ranks: int) -> Placement:
    """EPLB by the first half of a domain's sequences."""
    of = np.flatnonzero(trace.domain_S == trace.domains.index(domain))
    seen = trace.subset(of[: of.size // 2])
    load_LE = load_from_trace(seen.ids_TLK, trace.experts)
    return Placement(eplb(load_LE, trace.experts, 1, 1, ranks), ranks)


@pytest.mark.parametrize(
    ("model", "own", "foreign"),
    [
        ("gpt-oss-20b", "gpqa_extended", "mmlu_test"),
        ("deepseek-v2-lite", "law", "summary"),
        ("deepseek-v2-lite", "summary", "law"),
    ],
)
def test_a_placement_for_another_domain_is_slower_than_one_for_the_own(
    model: str, own: str, foreign: str, shared_data: Path, tmp_path: Path
) -> None:
    """6 to 27 % of layer time (a study on real traces, 2026-11)."""
    read = {"gpt-oss-20b": "gpt_oss", "deepseek-v2-lite": "deepseek_v2_lite"}[model]
    trace: RoutingTrace = getattr(routing_table, read)(shared_data / "routing")
    file = tmp_path / "trace.safetensors"
    trace.save(file)
    ranks = 8

    def layer_s(placement: Placement) -> float:
        result = simulate(
            {
                "name": "domains",
                "model": model,
                "cluster": {"gpu": "h100-sxm"},
                "deployment": {
                    "engine": "sglang",
                    "profile": "assumed",
                    "parallelism": {"attention_dp": ranks, "expert_parallel": ranks},
                    "batching": {"policy": "prefill-first", "token_budget": 512},
                },
                "routing": {"trace": str(file)},
                "workload": {
                    "arrivals": "all_at_once",
                    "requests": 256,
                    "prompt": {"fixed": 2000},
                    "output": {"fixed": 2},
                    "domains": {own: 1.0},
                },
            },
            placement=placement,
            provenance=False,
        )
        return float(result.steps[MOE_PARTS].sum(axis=1).mean())

    own_s, foreign_s = (layer_s(fitted(trace, domain, ranks)) for domain in (own, foreign))
    assert 1.03 < foreign_s / own_s < 1.4
