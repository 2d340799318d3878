"""The linter's hypotheses about routing, and its verdicts on tiny tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.lint import REFUSE_RANKS, lint_source, lint_tables, mark_copies
from calibration.silicon.collapse import grouped_counts, judge_scaling, predicted_shares
from calibration.silicon.locate import find_systems
from calibration.silicon.profiles import shippable
from calibration.silicon.tables import Source, read_source
from moesim.errors import InputError

EPS = (1, 2, 4, 8, 16, 32, 64)


def moe_source(tmp_path: Path, gpu: str, share: dict[int, float], device: str) -> Source:
    """A table of one DeepSeek-shaped layer whose times scale with rank 0's share."""
    rows = [
        {
            "kernel_source": "k", "moe_dtype": "fp8_block", "num_tokens": tokens,
            "hidden_size": 7168, "inter_size": 2048, "topk": 8, "num_experts": 256,
            "moe_tp_size": 1, "moe_ep_size": ep, "distribution": "balanced",
            "latency": (0.02 + tokens / 1e3 * share[ep]) * (1.0 + 0.001 * (len(gpu))),
            "device": device,
        }
        for tokens in (512, 2048, 8192, 16384)
        for ep in EPS
    ]  # fmt: skip
    path = tmp_path / f"{gpu}.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return Source(gpu, "sglang", "1.0", "moe", path)


def shares(kind: str) -> dict[int, float]:
    predicted = predicted_shares(4096, 256, 8, EPS)[kind]
    return dict(zip(EPS, predicted.tolist(), strict=True))


def test_group_limited_routing_of_tied_logits_keeps_half_the_experts() -> None:
    counts = grouped_counts(4096, 256, 8)
    assert counts.sum() == 4096 * 8
    assert (counts > 0).sum() == 128
    assert (counts[:4] == 4096).all()
    assert [round(share, 2) for share in shares("groups").values()] == [
        1.0, 1.0, 0.75, 0.62, 0.56, 0.53, 0.5,
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "use"), [("spread", True), ("groups", False), ("lowest", False)])
def test_the_linter_tells_collapsed_tables_from_good_ones(
    tmp_path: Path, kind: str, use: bool
) -> None:
    source = moe_source(tmp_path, "h100-sxm", shares(kind), "NVIDIA H100")
    (row,) = lint_source(source, read_source(source))
    assert row["routing"] == kind
    assert (row["verdict"] == "use") is use
    assert ("collapsed" in row["reason"]) is not use


def test_time_that_does_not_shard_is_no_collapse() -> None:
    eps = np.array(EPS[1:])
    verdict = judge_scaling(0.35 + 0.65 / eps, predicted_shares(4096, 256, 8, EPS[1:]))
    assert verdict.use
    assert verdict.floor == pytest.approx(0.35, abs=0.02)


def test_balanced_rows_slower_than_skewed_ones_are_not_balanced(tmp_path: Path) -> None:
    source = moe_source(tmp_path, "h100-sxm", shares("spread"), "NVIDIA H100")
    rows = pd.read_parquet(source.path)
    rows = rows[rows["moe_ep_size"] > 1]  # another kernel serves one rank: scaling is not testable
    skewed = rows.assign(distribution="power_law_1.2", latency=rows["latency"] / 1.6)
    pd.concat([rows, skewed]).to_parquet(source.path)
    (row,) = lint_source(source, read_source(source))
    assert row["routing"] == "not testable"
    assert row["verdict"] == "refuse"
    assert "times as long as skewed" in row["reason"]


def test_ranks_that_take_as_long_as_one_are_refused_but_the_one_is_not(tmp_path: Path) -> None:
    source = moe_source(tmp_path, "h100-sxm", dict.fromkeys(EPS, 1.0), "NVIDIA H100")
    frame = read_source(source)
    frame["hidden"] = 2880  # no groups of experts that could explain it
    frame["topk"] = 2
    (row,) = lint_source(source, frame)
    assert row["verdict"] == REFUSE_RANKS
    kept = shippable(frame, "moe", pd.DataFrame([row]))
    assert set(kept["ep"]) == {1}


def test_scaling_of_no_known_routing_is_refused() -> None:
    strange = np.array([2.2, 0.1, 1.5, 0.08, 0.9, 0.02])
    assert not judge_scaling(strange, predicted_shares(4096, 256, 8, EPS[1:])).use


def test_cells_equal_to_another_gpus_are_refused(tmp_path: Path) -> None:
    original = moe_source(tmp_path, "h100-sxm", shares("spread"), "NVIDIA H100")
    copy = Source("h200-sxm", "sglang", "1.0", "moe", original.path)
    loaded = [(source, read_source(source)) for source in (original, copy)]
    rows = [row for source, frame in loaded for row in lint_source(source, frame)]
    mark_copies(loaded, rows)
    assert [row["verdict"] for row in rows] == ["use", "refuse"]
    assert rows[1]["copy_of"] == "h100-sxm"
    assert "another GPU" in rows[1]["reason"]  # its device column says H100


def test_linears_slower_than_their_launches_are_refused(tmp_path: Path) -> None:
    rows = [
        {"kernel_source": "k", "gemm_dtype": "fp8", "m": m, "n": 256, "k": 256, "latency": 0.2,
         "device": "NVIDIA H100"}
        for m in (1, 16, 256)
    ]  # fmt: skip
    path = tmp_path / "gemm.parquet"
    pd.DataFrame(rows).to_parquet(path)
    source = Source("h100-sxm", "vllm", "1.0", "gemm", path)
    (row,) = lint_source(source, read_source(source))
    assert row["verdict"] == "refuse"
    assert "launch-bound" in row["reason"]


def test_a_folder_without_tables_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install aiconfigurator-core"):
        find_systems(tmp_path)


@pytest.mark.slow
def test_the_real_tables_hold_the_known_defects() -> None:
    try:
        systems = find_systems()
    except InputError:
        pytest.skip("needs aiconfigurator-core")
    found = lint_tables(systems, ["moe", "deepep_normal", "deepep_low_latency"])
    refused = found[found["verdict"] == "refuse"]
    collapsed = refused[refused["reason"].str.contains("'groups'")]
    deepseek = collapsed[(collapsed["hidden"] == 7168) & (collapsed["experts"] == 256)]
    assert {"h100-sxm", "h200-sxm", "b200"} <= set(deepseek[deepseek["engine"] == "sglang"]["gpu"])
    sound = found[(found["engine"] == "trtllm") & found["kernel"].eq("moe_torch_flow_cutlass")]
    of_deepseek = sound[(sound["hidden"] == 7168) & (sound["dtype"] == "fp8_block")]
    assert (of_deepseek["verdict"] == "use").all()
    copies = refused[refused["table"] == "deepep_normal"]
    assert set(copies["gpu"]) == {"h200-sxm"}
    assert {2, 4, 8} <= set(copies["nodes"])
