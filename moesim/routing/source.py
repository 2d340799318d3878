"""The routing trace that a scenario asks for: a file, a shipped one, or a generated kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.architecture import MoEModel
from moesim.routing.coverage import phase_notes
from moesim.routing.fit import fit_to_model, ids_for_model
from moesim.routing.profiles import default_trace
from moesim.routing.shipped import open_trace
from moesim.routing.trace import RoutingTrace
from moesim.streams import stream

EVEN_TOKENS = 16_384
# Uniform routing is cut into so many sequences at least, of so many tokens at most.
UNIFORM_SEQUENCES, UNIFORM_ROWS = 256, 64
GENERATED = ("synthetic", "uniform", "balanced")


def open_routing(
    trace: str, tokens: int | None, model: MoEModel, seed: int
) -> tuple[RoutingTrace, NDArray[Any], tuple[str, ...]]:
    """(trace, ids for the model's own MoE layers [T, L, K], notes). Raises InputError.

    `trace` is a file, the name of a shipped recording, or: `synthetic`, from the generator fitted
    to the model's published statistics; `uniform`, experts drawn independently and uniformly;
    `balanced`, experts dealt in turn, so that every contiguous run of tokens loads all alike.
    """
    if trace == "synthetic":
        made = default_trace(model, seed, tokens)
        return made, made.ids_TLK, (_statistics_note(made.provenance.get("profile", ""), model),)
    if trace in GENERATED:
        made = _even_trace(model, tokens or EVEN_TOKENS, seed, uniform=trace == "uniform")
        return made, made.ids_TLK, (f"routing: {trace}, not that of a real router",)
    opened = open_trace(trace, "routing.trace")
    layer_map, notes = fit_to_model(opened, model)
    notes = (*notes, *phase_notes(opened))
    if "synthetic" in opened.model or "profile" in opened.provenance:
        notes = (*notes, "routing: a synthetic trace, not recorded from a real router")
    return opened, ids_for_model(opened, layer_map), notes


def _statistics_note(profile: str, model: MoEModel) -> str:
    """Whose statistics a synthetic trace has."""
    if profile == model.name:
        return f"routing: synthetic, with the statistics of {profile}"
    whose = "of no model in particular" if profile == "generic" else f"of {profile}"
    return f"routing: synthetic; statistics {whose} stand in for those of {model.name}"


def _even_trace(model: MoEModel, tokens: int, seed: int, uniform: bool) -> RoutingTrace:
    layers, experts, top_k = len(model.moe_layers), model.experts, model.top_k
    dtype = np.uint8 if experts <= 256 else np.uint16
    if uniform:
        rng = stream(seed, "routing")
        ids = np.empty((tokens, layers, top_k), dtype)
        for first in range(0, tokens, 4096):
            rows = min(4096, tokens - first)
            keys = rng.random((rows, layers, experts), dtype=np.float32)
            ids[first : first + rows] = np.argpartition(keys, top_k - 1, axis=2)[:, :, :top_k]
        # Requests that compute in step would all meet the same token of one sequence.
        length = max(1, min(UNIFORM_ROWS, tokens // UNIFORM_SEQUENCES))
        start_S1 = np.append(np.arange(0, tokens, length), tokens)
    else:
        start_S1 = np.array([0, tokens])
        turn = np.arange(tokens)[:, None, None] * top_k + np.arange(top_k)
        ids = np.broadcast_to(turn % experts, (tokens, layers, top_k)).astype(dtype)
    return RoutingTrace(
        ids_TLK=ids,
        weights_TLK=None,
        sequence_start_S1=start_S1.astype(np.int64),
        prompt_tokens_S=np.zeros(start_S1.size - 1, np.int32),
        domain_S=np.zeros(start_S1.size - 1, np.uint16),
        domains=("all",),
        layers_L=np.array(model.moe_layers, np.int32),
        experts=experts,
        model=model.name,
        provenance={"source": "uniform" if uniform else "balanced"},
    )
