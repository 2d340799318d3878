"""The statistics of real traces, as published with them, come out of import and measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration import routing_table
from moesim.model import load_model
from moesim.routing import RoutingTrace
from moesim.routing import statistics as stats
from moesim.routing.fit import fit_to_model
from moesim.routing.imbalance import measure_batches
from moesim.routing.importers import import_npz
from moesim.routing.load import measure_load
from moesim.routing.locality import measure_locality
from moesim.routing.predict import measure_prediction
from moesim.routing.shift import shifts, workloads
from moesim.routing.study import study


@pytest.fixture(scope="module")
def gpt_oss(shared_data: Path) -> RoutingTrace:
    return routing_table.gpt_oss(shared_data / "routing")


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


def test_the_next_layer_is_guessed_as_published(gpt_oss: RoutingTrace) -> None:
    """0.618 on all 702 sequences; some are kept back, and which ones are fitted matters."""
    found = measure_prediction(gpt_oss)
    assert np.nanmean(found.recall_L) == pytest.approx(0.618, abs=0.015)


def test_domains_differ_and_layers_have_the_published_shape(gpt_oss: RoutingTrace) -> None:
    """Locality is least in the first layer and peaks between layers 8 and 13; no expert idles."""
    found = study(gpt_oss, "gpt-oss")
    overlap_L = found.locality.overlap_GL[0]
    assert overlap_L.argmin() == 0
    assert 8 <= overlap_L.argmax() <= 13
    assert found.requests.ratio_SL.mean() > 1.5 * found.requests.mixed_SL.mean()
    assert found.collapse.warnings == ()
    noise = np.mean([shift.noise_L.mean() for shift in found.domain_shifts])
    furthest = max(shift.distance_L.mean() for shift in found.domain_shifts)
    assert 0.05 < noise < 0.12
    assert furthest > 3 * noise


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
        # max/mean, Gini, top-1 share, overlap lag 1, independent, any shared, recall, frequency
        "intent": (3.81, 0.409, 0.060, 0.262, 0.153, 0.72, 0.704, 0.267),
        "law": (3.52, 0.304, 0.055, 0.290, 0.131, 0.77, 0.592, 0.221),
        "summary": (4.28, 0.353, 0.067, 0.291, 0.148, 0.78, 0.560, 0.257),
    }
    for name, figures in published.items():
        part = trace.subset(trace.select([name]))
        load = measure_load(stats.expert_counts(part), part.top_k)
        locality = measure_locality(part, np.random.default_rng(0), [1])
        recall = measure_prediction(part)
        found = (
            load.max_over_mean_L.mean(),
            load.gini_L.mean(),
            load.busiest_share_L.mean(),
            locality.overlap_GL.mean(),
            locality.independent_L.mean(),
            locality.any_shared_GL.mean(),
            np.nanmean(recall.recall_L),
            np.nanmean(recall.baseline_L),
        )
        tolerance = (0.01, 0.001, 0.001, 0.001, 0.001, 0.01, 0.006, 0.006)
        for value, expected, allowed in zip(found, figures, tolerance, strict=True):
            assert value == pytest.approx(expected, abs=allowed), name
        assert locality.shuffled_L.mean() == pytest.approx(locality.independent_L.mean(), abs=0.01)
    kinds = workloads(trace, np.random.default_rng(0))
    for shift in shifts(kinds):
        assert 0.28 < shift.distance_L.mean() < 0.45, "published .29 to .44"
        assert 0.02 < shift.noise_L.mean() < 0.06, "published split-half noise"
    law = trace.subset(trace.select(["law"]))
    found_law = measure_batches(law, np.random.default_rng(0), (8, 32, 128, 512, 2048), 8)
    eight = found_law.ranks.index(8)
    random = found_law.imbalance_random_BRL[:, eight].mean(axis=1)
    chunks = found_law.imbalance_prefill_BRL[:, eight].mean(axis=1)
    assert random == pytest.approx([1.70, 1.48, 1.41, 1.39, 1.39], rel=0.02)
    assert chunks == pytest.approx([1.86, 1.61, 1.46, 1.40, 1.39], rel=0.03)
