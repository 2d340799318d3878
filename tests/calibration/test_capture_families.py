"""What the hooks write down is what the router chose, for every MoE family that MoEModel reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.hf_config import FAMILIES as READ
from moesim.model import load_model as load_architecture
from moesim.routing import RoutingTrace
from tests.fixtures.moe_families import FAMILIES, LOGIT_FAMILIES, Family

torch = pytest.importorskip("torch", reason="capture needs torch (extra calibration)")
transformers = pytest.importorskip("transformers", reason="capture needs transformers")

from calibration.capture.loading import Loaded, load_model  # noqa: E402
from calibration.capture.prompts import Prompt, Prompts  # noqa: E402
from calibration.capture.run import Decoding, capture  # noqa: E402

ALL = {**FAMILIES, **LOGIT_FAMILIES}
# Multimodal: the language model's settings are in text_config, beside a tiny vision_config.
VISION: dict[str, dict[str, Any]] = {
    "llama4": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    },
    "qwen3_5_moe": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    },
}
# transformers' minimax is MiniMax-Text-01, with linear attention; moesim's is MiniMax-M2, whose
# first config called itself that.
UNREAD = ("minimax",)
DECODING = Decoding(tokens=6, ignore_end=True)


def test_every_moe_family_that_moesim_reads_is_here() -> None:
    dense = {"llama", "mistral", "qwen2", "qwen3", "qwen3_5", "qwen3_5_text"}
    assert set(FAMILIES) == set(READ) - dense


def make_model(name: str, folder: Path) -> Path:
    """A tiny model of random weights, saved; its router prefers some experts and has biases."""
    family = ALL[name]
    torch.manual_seed(0)
    cls = transformers.CONFIG_MAPPING[family.model_type]
    auto = transformers.AutoModelForCausalLM
    if name in VISION:
        config = cls(text_config=family.config, vision_config=VISION[name])
        auto = transformers.AutoModelForImageTextToText
    else:
        config = cls(**family.config)
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(config)
    # A padding token's embedding is zero otherwise, and all experts tie for it.
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    for _, module in routers(model, family):
        torch.nn.init.normal_(module.get_parameter(family.weight), std=0.6)
        if "bias" in dict(module.named_parameters()):
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    for key, value in model.named_buffers():
        if key.endswith("e_score_correction_bias"):
            torch.nn.init.uniform_(value, -0.3, 0.3)
    model.save_pretrained(folder)
    path = folder / "config.json"
    text = json.loads(path.read_text(encoding="utf-8"))
    text["model_type"] = family.model_type if name in LOGIT_FAMILIES else name
    path.write_text(json.dumps(text), encoding="utf-8")
    return folder


def routers(model: Any, family: Family) -> list[tuple[int, Any]]:
    """(layer, module) of each router that an MoE layer has, by its path."""
    found = []
    for path, module in model.named_modules():
        mine = path.endswith(family.router) and "encoder" not in path.split(".")
        if mine and hasattr(module, family.weight.partition(".")[0]):
            found.append((int(next(p for p in path.split(".") if p.isdigit())), module))
    return sorted(found, key=lambda pair: pair[0])


@contextmanager
def seen_by_routers(model: Any, family: Family) -> Iterator[dict[int, list[np.ndarray]]]:
    """Hidden states that each layer's router is given, [T, H] a forward pass."""
    seen: dict[int, list[np.ndarray]] = {}
    handles = []
    for layer, module in routers(model, family):
        blocks = seen.setdefault(layer, [])

        def before(_module: Any, args: tuple[Any, ...], blocks: Any = blocks) -> None:
            hidden = args[0].detach()
            blocks.append(hidden.reshape(-1, hidden.shape[-1]).float().numpy().copy())

        handles.append(module.register_forward_pre_hook(before))
    yield seen
    for handle in handles:
        handle.remove()


def recomputed(loaded: Loaded, family: Family, layer: int, hidden_TH: np.ndarray) -> Any:
    """(ids, weights) that the family's rule gives for these hidden states."""
    # MiniMax-M2 keeps the bias beside its router.
    bias = next(
        (
            value
            for name, value in loaded.model.named_buffers()
            if f"layers.{layer}." in name and name.endswith("e_score_correction_bias")
        ),
        None,
    )
    module = dict(routers(loaded.model, family))[layer]
    weight_EH = module.get_parameter(family.weight).detach().numpy()
    logits_TE = hidden_TH @ weight_EH.T
    values = dict([*module.named_parameters(), *module.named_buffers()])
    if "bias" in values:
        logits_TE = logits_TE + values["bias"].detach().numpy()
    config = loaded.model.config.get_text_config()
    return family.choose(logits_TE, config, None if bias is None else bias.numpy())


def make_prompts() -> Prompts:
    rng = np.random.default_rng(0)
    lengths = (7, 12, 3, 12, 9)
    prompts = tuple(
        Prompt(f"prompt {i}", "ab"[i % 2], tuple(rng.integers(3, 64, length).tolist()))
        for i, length in enumerate(lengths)
    )
    return Prompts(prompts, ("a", "b"), "0" * 64)


def by_expert(ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the order of the ids: routers sort by weight or not at all."""
    order = np.argsort(ids, axis=-1)
    return np.take_along_axis(ids, order, -1), np.take_along_axis(weights, order, -1)


@pytest.mark.parametrize("name", ALL)
def test_captured_routing_is_that_of_the_router(name: str, tmp_path: Path) -> None:
    family, prompts = ALL[name], make_prompts()
    loaded = load_model(str(make_model(name, tmp_path / "model")), "cpu", "float32")
    with seen_by_routers(loaded.model, family) as seen:
        made = capture(loaded, prompts, tmp_path / "one.safetensors", decoding=DECODING, batch=1)
    trace = made.trace
    assert made.complete
    prompt_tokens = [1] * 5 if loaded.encoder_decoder else [7, 12, 3, 12, 9]
    assert trace.prompt_tokens_S.tolist() == prompt_tokens
    # the last of six generated tokens is never computed
    assert trace.sequence_tokens_S.tolist() == [tokens + 5 for tokens in prompt_tokens]
    assert trace.layers_L.tolist() == sorted(seen)
    assert trace.domain_S.tolist() == [0, 1, 0, 1, 0]
    for position, layer in enumerate(trace.layers_L.tolist()):
        ids_TK, weights_TK = recomputed(loaded, family, layer, np.concatenate(seen[layer]))
        wanted_ids, wanted_weights = by_expert(ids_TK, weights_TK)
        assert trace.weights_TLK is not None
        ids, weights = by_expert(trace.ids_TLK[:, position], trace.weights_TLK[:, position])
        np.testing.assert_array_equal(ids, wanted_ids)
        np.testing.assert_allclose(weights, wanted_weights, atol=2e-3)
    # of few tokens in a decoder that starts from one token, few experts
    seen_experts = len(np.unique(trace.ids_TLK))
    assert seen_experts > (2 if loaded.encoder_decoder else 4), "too few experts to show anything"
    batched = capture(loaded, prompts, tmp_path / "three.safetensors", decoding=DECODING, batch=3)
    check_same(batched.trace, trace)
    if name in FAMILIES and name not in UNREAD:
        read = load_architecture(str(tmp_path / "model" / "config.json"))
        assert trace.layers_L.tolist() == list(read.moe_layers)
        assert (trace.experts, trace.top_k) == (read.experts, read.top_k)


def check_same(batched: RoutingTrace, single: RoutingTrace) -> None:
    """Padding and company change nothing: the same rows, in the same order."""
    np.testing.assert_array_equal(batched.sequence_start_S1, single.sequence_start_S1)
    assert batched.weights_TLK is not None
    assert single.weights_TLK is not None
    ids, weights = by_expert(batched.ids_TLK, batched.weights_TLK)
    wanted_ids, wanted_weights = by_expert(single.ids_TLK, single.weights_TLK)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(weights, wanted_weights, atol=2e-3)
