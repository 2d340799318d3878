"""Which trace layer stands for which model layer, and which traces no model can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.model import MoEModel, load_model
from moesim.routing import RoutingTrace, fit
from moesim.routing.source import open_routing


def trace_like(layers: int, experts: int, top_k: int, tokens: int = 6) -> RoutingTrace:
    ids = np.broadcast_to(np.arange(top_k), (tokens, layers, top_k)) + np.arange(layers)[:, None]
    return RoutingTrace(
        (ids % experts).astype(np.uint8),
        np.array([0, tokens]),
        np.array([0]),
        np.array([0]),
        ("all",),
        np.arange(layers),
        experts,
        f"a model of {layers} layers",
    )


@pytest.fixture
def model() -> MoEModel:
    return load_model("gpt-oss-20b")  # 24 layers, 4 of 32 experts


def test_as_many_layers_map_one_to_one(model: MoEModel) -> None:
    trace = trace_like(24, 32, 4)
    layer_map, notes = fit.fit_to_model(trace, model)
    assert layer_map.tolist() == list(range(24))
    assert notes == ()
    assert fit.ids_for_model(trace, layer_map) is trace.ids_TLK


@pytest.mark.parametrize("layers", [1, 2, 8, 23, 25, 60])
def test_other_layers_map_by_relative_depth(model: MoEModel, layers: int) -> None:
    trace = trace_like(layers, 32, 4)
    layer_map, (note,) = fit.fit_to_model(trace, model)
    assert len(layer_map) == 24
    assert (layer_map[0], layer_map[-1]) == (0, layers - 1)
    assert (np.diff(layer_map) >= 0).all()
    exact = np.arange(24) / 23 * (layers - 1)
    assert np.abs(layer_map - exact).max() <= 0.5
    assert f"routing of {layers} layers" in note
    assert "mapped onto 24 of gpt-oss-20b" in note
    ids = fit.ids_for_model(trace, layer_map)
    np.testing.assert_array_equal(ids, trace.ids_TLK[:, layer_map])
    assert ids.flags.c_contiguous
    assert not ids.flags.writeable


def test_every_second_layer_by_hand() -> None:
    model = replace(load_model("gpt-oss-20b"), moe_layers=(0, 1, 2))
    assert fit.fit_to_model(trace_like(5, 32, 4), model)[0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(("experts", "top_k"), [(64, 6), (32, 2), (64, 4)])
def test_other_experts_or_top_k_are_refused(model: MoEModel, experts: int, top_k: int) -> None:
    with pytest.raises(InputError) as error:
        fit.fit_to_model(trace_like(24, experts, top_k), model)
    assert error.value.field == "routing.trace"
    assert "must choose 4 of 32 experts as gpt-oss-20b does" in str(error.value)
    assert "use trace: synthetic" in str(error.value)
    assert ("deepseek-v2-lite" in str(error.value)) == ((experts, top_k) == (64, 6))


def test_a_dense_model_takes_no_trace() -> None:
    with pytest.raises(InputError, match="a dense model"):
        fit.fit_to_model(trace_like(4, 32, 4), load_model("qwen3-32b"))


@pytest.mark.parametrize("layer_map", [[], [3], [-1]])
def test_a_map_that_leaves_the_trace_is_refused(layer_map: list[int]) -> None:
    with pytest.raises(InputError, match="must name layers below 3"):
        fit.ids_for_model(trace_like(3, 8, 2), np.array(layer_map, np.int64))


def test_a_mapped_copy_of_absurd_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MAX_MAPPED_BYTES", 100)
    with pytest.raises(InputError, match="mapped must take <= 100"):
        fit.ids_for_model(trace_like(3, 8, 2), np.zeros(50, np.int64))


def test_a_file_is_opened_for_the_model(model: MoEModel, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    trace_like(24, 32, 4).save(path)
    trace, ids, notes = open_routing(str(path), None, model, 0)
    assert ids is trace.ids_TLK
    assert notes == ("routing: the trace has no prompts; decoded tokens stand in for them",)
    trace_like(12, 32, 4).save(path)
    trace, ids, notes = open_routing(str(path), None, model, 0)
    assert (trace.layers, ids.shape) == (12, (6, 24, 4))
    assert len(notes) == 2  # the map of layers, and the missing prompts
    with pytest.raises(InputError, match=r"routing\.trace must be an existing file"):
        open_routing(str(tmp_path / "nothing"), None, model, 0)


def test_balanced_routing_loads_all_experts_alike(model: MoEModel) -> None:
    _, ids, notes = open_routing("balanced", 800, model, 0)
    assert "balanced" in notes[0]
    for first in (0, 8, 320):
        for layer in range(24):
            assert sorted(ids[first : first + 8, layer].ravel()) == list(range(32))


def test_uniform_routing_prefers_no_expert(model: MoEModel) -> None:
    trace, ids, _ = open_routing("uniform", 20_000, model, 0)
    share = np.bincount(ids[:, 0].ravel(), minlength=32) / trace.tokens
    assert share == pytest.approx(np.full(32, 4 / 32), abs=0.02)
    assert trace.layers_L.tolist() == list(model.moe_layers)
