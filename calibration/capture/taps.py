"""Where a model's routers say which experts they chose, and the hooks that write it down.

In transformers 5 a router hands its choice to a module whose class is named `*Experts`, as
arguments of few names; a hook before that module sees ids and weights of every token as they will
be used, whatever the router did (groups, biases, scaling). Where the experts are not given ids
(Llama 4, JetMoE), or masks that drop tokens beyond a capacity (Switch, NLLB), the choice is the
top-k of the logits that the router returns.

Legend: T tokens (batch times sequence, padding included), L MoE layers, K top-k, E experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.errors import InputError
from moesim.routing.checks import id_dtype

# Argument names of `forward(hidden_states, ids, weights)` (transformers 5.23: 66 model files have
# the first of each; gpt_oss and openai_privacy_filter the second).
ID_NAMES = ("top_k_index", "router_indices")
WEIGHT_NAMES = ("top_k_weights", "routing_weights")


@dataclass(frozen=True)
class LogitRouter:
    """How to read a choice from a router's outputs: position of its logits, function of weights."""

    output: int
    weights: str  # softmax: over all experts; softmax-k: over the chosen; sigmoid: each alone
    top_k: int | None = None  # None: the router's own attribute


# Class of the router -> how it is read (transformers 5.23, models/*/modeling_*.py)
LOGIT_ROUTERS = {
    "Llama4Router": LogitRouter(1, "sigmoid"),
    "JetMoeTopKGating": LogitRouter(4, "softmax-k"),
    "SwitchTransformersTop1Router": LogitRouter(2, "softmax", 1),
    "NllbMoeTop2Router": LogitRouter(2, "softmax", 2),
}


@dataclass(frozen=True)
class Tap:
    """One MoE layer of the model: the module to hook, and how to read it."""

    layer: int
    path: str
    module: nn.Module
    experts: int
    names: tuple[str, str] | None  # arguments with ids and weights; None: a router of logits
    router: LogitRouter | None = None


def find_taps(model: nn.Module) -> list[Tap]:
    """The MoE layers in the order of their indices; of an encoder-decoder those of its decoder.

    InputError for a model without any, with two at one index, or with different numbers of experts.
    """
    taps = [tap for path, module in model.named_modules() if (tap := _tap(path, module))]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        taps = [tap for tap in taps if "decoder" in tap.path.split(".")]
    if not taps:
        raise InputError(
            "model", "must have MoE layers that transformers routes", type(model).__name__
        )
    taps.sort(key=lambda tap: tap.layer)
    if len({tap.layer for tap in taps}) < len(taps):
        raise InputError("model", "has two routers in one layer", [tap.path for tap in taps])
    if len({tap.experts for tap in taps}) > 1:
        counts = sorted({tap.experts for tap in taps})
        raise InputError("model", "must have as many experts in each MoE layer", counts)
    return taps


def _tap(path: str, module: nn.Module) -> Tap | None:
    name = type(module).__name__
    layer = next((int(part) for part in path.split(".") if part.isdigit()), None)
    if layer is None:
        return None
    if name in LOGIT_ROUTERS and "attention" not in path:  # JetMoE's attention has experts too
        experts = int(module.num_experts)
        return Tap(layer, path, module, experts, None, LOGIT_ROUTERS[name])
    if not name.endswith("Experts") or not isinstance(getattr(module, "num_experts", None), int):
        return None
    arguments = inspect.signature(module.forward).parameters
    ids = next((each for each in ID_NAMES if each in arguments), None)
    weights = next((each for each in WEIGHT_NAMES if each in arguments), None)
    if ids is None or weights is None:
        return None
    return Tap(layer, path, module, int(module.num_experts), (ids, weights))


@dataclass
class Record:
    """What the hooks saw since it was made: per MoE layer, blocks of [T, K] in order."""

    taps: list[Tap]
    ids: list[list[Tensor]] = field(init=False)
    weights: list[list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [[] for _ in self.taps]
        self.weights = [[] for _ in self.taps]

    def add(self, position: int, ids_TK: Tensor, weights_TK: Tensor) -> None:
        """Copy a choice, in few bytes; it stays on its device, so that no kernel is waited for."""
        small = torch.uint8 if self.taps[position].experts <= 256 else torch.int32
        self.ids[position].append(ids_TK.detach().to(small, copy=True))
        self.weights[position].append(weights_TK.detach().to(torch.float16, copy=True))

    def arrays(self, batch: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """(ids, weights) of all forward passes, [batch, columns, L, K].

        A pass over a batch of n columns gives T = batch * n rows. InputError where layers differ.
        """
        ids, weights = [], []
        for tap, ids_of_tap, weights_of_tap in zip(self.taps, self.ids, self.weights, strict=True):
            if not ids_of_tap or any(len(rows) % batch for rows in ids_of_tap):
                shapes = [tuple(rows.shape) for rows in ids_of_tap[:3]]
                rule = f"did not route whole batches of {batch}"
                raise InputError(f"model: {tap.path}", rule, shapes)
            ids.append(_columns(ids_of_tap, batch))
            weights.append(_columns(weights_of_tap, batch))
        if len({tuple(layer.shape) for layer in ids}) > 1:
            shapes = [tuple(layer.shape) for layer in ids]
            raise InputError("model", "must route every token in every MoE layer", shapes)
        dtype = id_dtype(self.taps[0].experts)
        ids_BTLK = torch.stack(ids, dim=2).numpy().astype(dtype, copy=False)
        return ids_BTLK, torch.stack(weights, dim=2).numpy()


def _columns(passes: list[Tensor], batch: int) -> Tensor:
    """Rows of several passes as [batch, columns, K], in the CPU's memory."""
    return torch.cat([rows.reshape(batch, -1, rows.shape[-1]) for rows in passes], dim=1).cpu()


@contextmanager
def recording(taps: list[Tap]) -> Iterator[Record]:
    """Hook the taps; the record fills as the model runs, and nothing stays hooked afterwards."""
    record = Record(taps)
    handles = [_hook(record, position, tap) for position, tap in enumerate(taps)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hook(record: Record, position: int, tap: Tap) -> torch.utils.hooks.RemovableHandle:
    if tap.names is not None:
        ids_name, weights_name = tap.names
        signature = inspect.signature(tap.module.forward)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind(*args, **kwargs).arguments
            ids_TK, weights_TK = given[ids_name], given[weights_name]
            record.add(position, ids_TK, _chosen(weights_TK, ids_TK))

        return tap.module.register_forward_pre_hook(before, with_kwargs=True)

    router = tap.router
    assert router is not None

    def after(module: nn.Module, _args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        record.add(position, *_from_logits(outputs[router.output], router, module))

    return tap.module.register_forward_hook(after)


def _chosen(weights: Tensor, ids_TK: Tensor) -> Tensor:
    """Weights of the chosen experts, [T, K], of those or of all experts."""
    return weights if weights.shape == ids_TK.shape else weights.gather(1, ids_TK)


def _from_logits(logits: Tensor, router: LogitRouter, module: nn.Module) -> tuple[Tensor, Tensor]:
    logits_TE = logits.reshape(-1, logits.shape[-1]).float()
    top_k = router.top_k or int(module.top_k)
    top_TK, ids_TK = logits_TE.topk(top_k, dim=-1)
    if router.weights == "sigmoid":
        return ids_TK, top_TK.sigmoid()
    if router.weights == "softmax-k":
        return ids_TK, top_TK.softmax(dim=-1)
    return ids_TK, logits_TE.softmax(dim=-1).gather(1, ids_TK)
