"""What-if placements: scores by hand, and no look at what they are scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.placement import Placement
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.what_if import DRAWS, _decode_rows, candidates, score_placement


def contiguous_placement() -> Placement:
    return Placement(np.array([[0, 1, 2, 3]], np.int32), ranks=2)


def test_a_score_by_hand() -> None:
    """4 experts on 2 ranks, one layer: loads 3+1 and 1+1, so the busiest has 4/3 of the mean."""
    load_LE = np.array([[3.0, 1.0, 1.0, 1.0]])
    # Two batches of three tokens: experts 0, 1, 2 (ranks 2 and 1), then 0, 0, 1 (3 and 0).
    batches_DBLK = np.array([[[[0]], [[1]], [[2]]], [[[0]], [[0]], [[1]]]], np.uint8)
    score = score_placement(contiguous_placement(), load_LE, batches_DBLK)
    assert score.load_mean == score.load_worst == pytest.approx(4 / 3)
    assert score.worst_layer == 0
    assert score.batch_tokens == 3
    assert score.batch_mean == pytest.approx((2 / 1.5 + 3 / 1.5) / 2)
    assert score.active_busiest == 2.0
    assert score.active_mean == pytest.approx((1.5 + 1.0) / 2)


def test_copies_share_the_load() -> None:
    """Expert 0 on both ranks: its load of 4 is halved, and nobody is busier than the mean."""
    placement = Placement(np.array([[0, 1, 2, 0, 3, 4]], np.int32), ranks=2)
    load_LE = np.array([[4.0, 1.0, 1.0, 1.0, 1.0]])
    batches_DBLK = np.zeros((1, 1, 1, 1), np.uint8)
    assert score_placement(placement, load_LE, batches_DBLK).load_mean == pytest.approx(1.0)


def test_the_worst_layer_is_named() -> None:
    placement = Placement(np.array([[0, 1], [0, 1]], np.int32), ranks=2)
    load_LE = np.array([[1.0, 1.0], [3.0, 1.0]])
    score = score_placement(placement, load_LE, np.zeros((1, 1, 2, 1), np.uint8))
    assert (score.load_worst, score.worst_layer) == (1.5, 1)
    assert score.load_mean == pytest.approx(1.25)


def trace_of(experts_S: list[int], path: Path, tokens: int = 40, prompt: int = 10) -> None:
    """Every token of sequence s chooses experts_S[s] and the one after it."""
    ids_TLK = np.empty((tokens * len(experts_S), 32, 2), np.uint8)
    for s, expert in enumerate(experts_S):
        ids_TLK[s * tokens : (s + 1) * tokens] = [expert, (expert + 1) % 8]
    RoutingTrace(
        ids_TLK=ids_TLK,
        sequence_start_S1=np.arange(len(experts_S) + 1) * tokens,
        prompt_tokens_S=np.full(len(experts_S), prompt, np.int32),
        domain_S=np.zeros(len(experts_S), np.uint16),
        domains=("all",),
        layers_L=np.arange(32, dtype=np.int32),
        experts=8,
        model="hand-made",
    ).save(path)


def scenario(trace: str, **changes: Any) -> Scenario:
    data: dict[str, Any] = {
        "name": "what if",
        "model": "mixtral-8x7b",
        "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4},
        "deployment": {"parallelism": {"attention_dp": 4, "expert_parallel": 4}},
        "routing": {"trace": trace},
        "workload": {
            "arrivals": "all_at_once",
            "requests": 5,
            "prompt": {"fixed": 20},
            "output": {"fixed": 5},
        },
    }
    return Scenario.parse({**data, **changes})


def test_a_placement_sees_the_first_half_only(tmp_path: Path) -> None:
    trace_of([0, 2, 4, 6], tmp_path / "a.safetensors")
    trace_of([0, 2, 1, 1], tmp_path / "b.safetensors")
    (one,), (two,) = (
        candidates(scenario(str(tmp_path / f"{name}.safetensors")), ["eplb"], [4]) for name in "ab"
    )
    assert np.array_equal(one.placement.slot_expert_LP, two.placement.slot_expert_LP)
    assert one.score.load_mean != two.score.load_mean


def test_a_fit_fraction_of_the_scenario_does_not_widen_the_view(tmp_path: Path) -> None:
    trace_of([0, 2, 1, 1], tmp_path / "a.safetensors")
    asked = scenario(str(tmp_path / "a.safetensors"))
    greedy = scenario(
        str(tmp_path / "a.safetensors"),
        deployment={
            "parallelism": {"attention_dp": 4, "expert_parallel": 4},
            "placement": {"policy": "eplb", "fit_fraction": 1.0, "redundant_experts": 4},
        },
    )
    (one,), (two,) = candidates(asked, ["eplb"], [4]), candidates(greedy, ["eplb"])
    assert np.array_equal(one.placement.slot_expert_LP, two.placement.slot_expert_LP)


def test_batches_are_output_tokens_of_held_out_sequences(tmp_path: Path) -> None:
    trace_of([0, 1, 2, 3], tmp_path / "a.safetensors")
    trace = RoutingTrace.open(tmp_path / "a.safetensors")
    rows_DB = _decode_rows(trace, 2, 6, np.random.default_rng(0))
    assert rows_DB.shape == (DRAWS, 6)
    sequence, token = np.divmod(rows_DB, 40)
    assert set(sequence.ravel().tolist()) == {2, 3}
    assert token.min() >= 10  # the first ten are the prompt
    # Six tokens of two sequences: three of each.
    assert ((sequence == 2).sum(axis=1) == 3).all()


def test_candidates_run_with_their_placement(tmp_path: Path) -> None:
    trace_of([0, 2, 4, 6], tmp_path / "a.safetensors")
    found = candidates(scenario(str(tmp_path / "a.safetensors")), ["contiguous", "random"])
    assert [candidate.policy for candidate in found] == ["contiguous", "random"]
    # Contiguous pairs of experts go to one rank: every token lands there whole.
    assert found[0].score.active_busiest == 2.0
    result = found[0].simulate()
    assert result.name == "contiguous"
    assert result.summary["requests"]["completed"] == 5


@pytest.mark.parametrize(
    ("policies", "redundant", "batch", "message"),
    [
        (["best"], None, None, "policies must be among"),
        ([], None, None, "policies must be among"),
        (["eplb"], [3], None, "expert_parallel must divide"),
        (["eplb"], [-4], None, "redundant_experts must be at least 0"),
        (["eplb"], None, 10**9, "batch must be 1 to 65536 tokens"),
    ],
)
def test_what_cannot_be_is_refused(
    policies: list[str], redundant: list[int] | None, batch: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        candidates(scenario("balanced"), policies, redundant, batch)
