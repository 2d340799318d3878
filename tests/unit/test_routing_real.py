"""The statistics of real traces, as published with them, come out of import and measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.model import load_model
from moesim.routing import RoutingTrace
from moesim.routing import statistics as stats
from moesim.routing.fit import fit_to_model
from moesim.routing.importers import import_npz


@pytest.fixture(scope="module")
def gpt_oss(shared_data: Path) -> RoutingTrace:
    folder = shared_data / "routing"
    return import_npz(
        [folder / f"gptoss_20b_ids_0{shard}.npz" for shard in range(3)],
        model="gpt-oss-20b",
        phase="decode",
        index=folder / "gptoss_20b_index.json",
        label="dataset",
    )


def test_three_shards_make_one_trace(gpt_oss: RoutingTrace) -> None:
    assert (gpt_oss.layers, gpt_oss.experts, gpt_oss.top_k) == (24, 32, 4)
    assert gpt_oss.tokens == 55_056 + 55_007 + 55_028
    assert gpt_oss.sequences == 162 + 180 + 183
    assert not gpt_oss.prompt_tokens_S.any()
    assert "mmlu_test" in gpt_oss.domains
    graduate = gpt_oss.subset(gpt_oss.select(["gpqa_diamond", "gpqa_main"]))
    assert 1000 < graduate.tokens < gpt_oss.tokens / 4


def test_overlap_falls_with_the_lag_as_published(gpt_oss: RoutingTrace) -> None:
    overlap = stats.overlap_by_lag(gpt_oss, [1, 2, 8, 32, 128])
    published = [0.437, 0.384, 0.350, 0.334, 0.323]
    assert overlap.mean(axis=1) == pytest.approx(published, abs=0.02)
    assert (overlap[0].min(), overlap[0].max()) == pytest.approx((0.19, 0.60), abs=0.02)
    shuffled = stats.shuffled_overlap(gpt_oss, np.random.default_rng(0))
    assert shuffled.mean() == pytest.approx(0.314, abs=0.02)


def test_skew_is_as_published(gpt_oss: RoutingTrace) -> None:
    counts = stats.expert_counts(gpt_oss)
    assert stats.max_over_mean(counts).mean() == pytest.approx(2.62, abs=0.2)
    assert stats.gini(counts).mean() == pytest.approx(0.397, abs=0.02)
    assert stats.independent_overlap(counts, 4).mean() == pytest.approx(0.193, abs=0.015)


def test_batches_touch_as_many_experts_as_published(gpt_oss: RoutingTrace) -> None:
    rng = np.random.default_rng(0)
    for tokens, decode, contiguous in ((8, 17.9, 13.0), (32, 26.6, 19.6), (128, 30.1, 24.6)):
        for kind, published in (("decode", decode), ("contiguous", contiguous)):
            rows = stats.draw_batches(gpt_oss, tokens, 200, rng, kind)  # type: ignore[arg-type]
            assert stats.distinct_experts(gpt_oss, rows).mean() == pytest.approx(
                published, rel=0.04
            )


def test_ranks_are_as_uneven_as_published(gpt_oss: RoutingTrace) -> None:
    rng = np.random.default_rng(0)
    random = {8: 1.80, 32: 1.56, 128: 1.48, 512: 1.45, 2048: 1.44}
    contiguous = {8: 2.20, 32: 2.01, 128: 1.90, 512: 1.74, 2048: 1.56}
    for kind, published in (("random", random), ("contiguous", contiguous)):
        for tokens, expected in published.items():
            rows = stats.draw_batches(gpt_oss, tokens, 150, rng, kind)  # type: ignore[arg-type]
            found = stats.rank_imbalance(gpt_oss, rows, 8).mean()
            assert found == pytest.approx(expected, rel=0.06), (kind, tokens)


def test_the_trace_fits_its_model(gpt_oss: RoutingTrace, tmp_path: Path) -> None:
    layer_map, notes = fit_to_model(gpt_oss, load_model("gpt-oss-20b"))
    assert layer_map.tolist() == list(range(24))
    assert notes == ()
    gpt_oss.save(tmp_path / "gpt-oss.safetensors")
    again = RoutingTrace.open(tmp_path / "gpt-oss.safetensors")
    assert again.ids_TLK.tobytes() == gpt_oss.ids_TLK.tobytes()


def test_deepseek_v2_lite_domains(shared_data: Path) -> None:
    domains = ("intent", "law", "summary")
    folder = shared_data / "routing"
    trace = import_npz(
        [folder / f"esft_deepseek_v2_lite_{name}.npz" for name in domains],
        model="deepseek-v2-lite",
        phase="prefill",
        domain=domains,
    )
    assert (trace.layers, trace.experts, trace.top_k) == (26, 64, 6)
    assert trace.weights_TLK is not None
    assert trace.layers_L.tolist() == list(range(1, 27))
    assert (trace.prompt_tokens_S == trace.sequence_tokens_S).all()
    published = {
        "intent": (3.81, 0.409, 0.262),
        "law": (3.52, 0.304, 0.290),
        "summary": (4.28, 0.353, 0.291),
    }
    for name, (busiest, gini, overlap) in published.items():
        part = trace.subset(trace.select([name]))
        counts = stats.expert_counts(part)
        assert stats.max_over_mean(counts).mean() == pytest.approx(busiest, abs=0.01)
        assert stats.gini(counts).mean() == pytest.approx(gini, abs=0.001)
        assert stats.overlap_by_lag(part, [1]).mean() == pytest.approx(overlap, abs=0.001)
