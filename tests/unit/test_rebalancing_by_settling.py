"""Rebalancing that changes few slots, as a scenario names it."""

from __future__ import annotations

import numpy as np

from moesim.deployment import deploy
from moesim.placement.load import rank_load
from moesim.placement.placement import Placement
from moesim.rebalancing import replacer
from moesim.scenario import Scenario


def test_settling_moves_few_experts_for_nearly_the_same_balance() -> None:
    loads_LE = np.random.default_rng(0).lognormal(0.0, 0.7, (48, 128))
    drifted_LE = loads_LE * np.random.default_rng(1).lognormal(0.0, 0.1, loads_LE.shape)
    moved, balance = {}, {}
    for policy in ("eplb", "settle"):
        scenario = Scenario.parse(
            {
                "name": "drifts",
                "model": "qwen3-30b-a3b",
                "cluster": {"gpu": "h100-sxm", "nodes": 1},
                "deployment": {
                    "parallelism": {"attention_dp": 8, "expert_parallel": 8},
                    "placement": {"policy": "contiguous", "redundant_experts": 8},
                    "rebalancing": {"policy": policy},
                },
                "workload": {"arrivals": {"poisson": {"rate_per_s": 1}}, "requests": 1,
                             "prompt": {"fixed": 8}, "output": {"fixed": 8}},
            }
        )  # fmt: skip
        place = replacer(scenario, deploy(scenario))
        start = Placement(np.tile(np.arange(136, dtype=np.int32) % 128, (48, 1)), 8)
        before = Placement(place(loads_LE, start), 8)
        after = Placement(place(drifted_LE, before), 8)
        moved[policy] = (before.slot_expert_LP != after.slot_expert_LP).mean()
        load_LR = rank_load(after, drifted_LE)
        balance[policy] = (load_LR.max(axis=1) / load_LR.mean(axis=1)).max()
    assert moved["settle"] < 0.25 * moved["eplb"]
    assert balance["settle"] <= 1.021 * balance["eplb"]
