"""Step costs from tables of layer times, measured on the machine and engine that are predicted.

The format of casys-kaist/LLMServingSim, profiler/perf: a folder per tensor-parallel degree with
`dense.csv` (layer, tokens, time_us), `per_sequence.csv` (layer, sequences, time_us: output layer
and sampler), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) and, for
MoE models, `moe.csv` (tokens, activated_experts, time_us: router, experts and their sum). All are
GPU microseconds of one call of one layer on one GPU, CUDA graphs and launches left out.
Legend: n tokens, P prompts' points, D decode points.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.expert_times import ExpertTimes, fit_experts
from calibration.mixed_attention import AttentionTimes, read_attention
from moesim.architecture import MoEModel
from moesim.costs.grids import BATCH, KV_TOKENS, NEW_TOKENS, PREFIX_TOKENS, Axis, tabulate
from moesim.costs.step import StepCosts
from moesim.errors import InputError
from moesim.files import read_text
from moesim.sharding import Sharding

Floats = NDArray[np.float64]
MAX_FILE_BYTES = 50e6
MICRO = 1e-6

# Layers by part of a step and how often a transformer layer calls each: its two norms are one row.
ATTENTION = ("qkv_proj", "qk_norm", "rotary_emb", "o_proj")
MLP = ("gate_up_proj", "act_fn", "down_proj")
NORM, NORMS = "layernorm", 2
ONCE = ("embedding", "final_layernorm")
HEAD = ("lm_head", "sampler")


@dataclass(frozen=True)
class Overheads:
    """What a step takes beyond the kernels in the tables, the same for every run.

    `step_s`: host work that the GPU waits for, once a step. `layer_s`: gaps between the kernels of
    a layer. `reduce_s` and `reduce_bytes_per_s`: an all-reduce of a GPU's hidden state, which no
    table holds.
    """

    step_s: float
    layer_s: float
    reduce_s: float
    reduce_bytes_per_s: float


@dataclass(frozen=True)
class LayerTimes:
    """One folder, in seconds. `dense` and `per_sequence`: by layer, (points, seconds)."""

    dense: dict[str, tuple[Floats, Floats]]
    per_sequence: dict[str, tuple[Floats, Floats]]
    attention: AttentionTimes
    experts: Floats | None  # [rows, 3]: tokens, active experts, seconds of a GPU with whole experts


def read_layer_times(folder: Path) -> LayerTimes:
    """The tables of one folder `tp<N>`. Raises InputError naming the file and line.

    Expert times are measured once, with whole experts on the GPU: where a folder has none, those of
    a folder beside it are taken.
    """
    found = sorted(folder.parent.glob("tp*/moe.csv"))
    own = folder / "moe.csv"
    experts = own if own.is_file() else (found[0] if found else None)
    attention = read_table(folder / "attention.csv", _ATTENTION_COLUMNS)
    return LayerTimes(
        _by_layer(folder / "dense.csv", "tokens"),
        _by_layer(folder / "per_sequence.csv", "sequences"),
        read_attention(attention * _ATTENTION_UNITS),
        None if experts is None else read_table(experts, _EXPERT_COLUMNS) * (1.0, 1.0, MICRO),
    )


_ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
_ATTENTION_UNITS = (1.0, 1.0, 1.0, 1.0, MICRO)
_EXPERT_COLUMNS = ("tokens", "activated_experts", "time_us")


def layer_step_costs(
    base: StepCosts, times: LayerTimes, model: MoEModel, sharding: Sharding, extra: Overheads
) -> StepCosts:
    """`base` with measured times in the place of rates, for as many tokens as `base` holds."""
    tokens = np.arange(base.token_s.shape[2], dtype=np.float64)
    attention_s, dense_s = _linear_s(times, model, tokens)
    reduced_s = _reduced_s(model, sharding, tokens, extra)
    rates = {
        **base.rates,
        "full_layers": model.layers,
        "window_layers": 0,
        "linear_layers": 0,
        "attention_kernel_s": 0.0,
        "uneven_token_s": times.attention.uneven_token_s,
        "step_s": extra.step_s + extra.layer_s * model.layers,
        "request_s": 0.0,
        "prefill_step_s": 0.0,
    }
    costs = replace(
        base,
        rates=rates,
        token_s=np.stack([np.stack([attention_s, dense_s, reduced_s])] * 2),
        head_s=_sum(times.per_sequence, HEAD, tokens, "per_sequence.csv"),
        context_log_s=_grid(NEW_TOKENS, PREFIX_TOKENS, times.attention.context_s),
        generation_log_s=_grid(BATCH, KV_TOKENS, times.attention.generation_s),
        mixed_log_s=_grid(BATCH, KV_TOKENS, times.attention.mixed_s),
    )
    if not model.is_moe:
        return costs
    if times.experts is None:
        raise InputError("kernels", "must hold moe.csv for a model with experts", model.name)
    return _with_experts(costs, fit_experts(times.experts, model.top_k), sharding)


def _linear_s(times: LayerTimes, model: MoEModel, tokens: Floats) -> tuple[Floats, Floats]:
    """Seconds [n + 1] of all layers: what belongs to attention, and the rest without experts."""
    dense_layers = model.layers - len(model.moe_layers)
    names = [name for name in ATTENTION if name != "qk_norm" or name in times.dense]
    attention_s = model.layers * _sum(times.dense, names, tokens, "dense.csv")
    dense_s = model.layers * NORMS * _sum(times.dense, [NORM], tokens, "dense.csv")
    dense_s += _sum(times.dense, ONCE, tokens, "dense.csv")
    if dense_layers:
        dense_s += dense_layers * _sum(times.dense, MLP, tokens, "dense.csv")
    return attention_s, dense_s


def _reduced_s(model: MoEModel, sharding: Sharding, tokens: Floats, extra: Overheads) -> Floats:
    """All-reduces of a step by a ring: two a layer; each GPU sends 2 (N - 1) / N of the bytes."""
    ranks = sharding.attention_tp
    if ranks == 1:
        return np.zeros(tokens.size)
    sent_bytes = 2.0 * (ranks - 1) / ranks * tokens * model.hidden * 2.0
    once_s = 2.0 * (ranks - 1) * extra.reduce_s + sent_bytes / extra.reduce_bytes_per_s
    reduced_s = 2.0 * model.layers * once_s
    reduced_s[0] = 0.0
    return reduced_s


def _with_experts(costs: StepCosts, experts: ExpertTimes, sharding: Sharding) -> StepCosts:
    """An expert's time by its own tokens (tiles of one token); a share of an expert takes its share
    of the time."""
    most = (costs.token_s.shape[2] - 1) * sharding.attention_dp
    tokens = np.arange(most + 1, dtype=np.float64)
    rates = {
        **costs.rates,
        "tile_shift": 0,
        "expert_pair_s": 0.0,
        "expert_kernel_s": experts.fixed_s,
        "expert_token_s": experts.token_s,
    }
    return replace(
        costs,
        rates=rates,
        expert_tile_s=experts.expert_s(tokens) / sharding.moe_tp,
        expert_ratio=np.ones((2, most + 1)),
    )


def _grid(first: Axis, second: Axis, seconds: Callable[[Floats, Floats], Floats]) -> Floats:
    """[3, X, Y]: layers with full attention only."""
    full = tabulate(first, second, seconds)
    return np.stack([full, np.full_like(full, np.log(1e-9)), np.full_like(full, np.log(1e-9))])


def _sum(
    tables: dict[str, tuple[Floats, Floats]],
    layers: list[str] | tuple[str, ...],
    at: Floats,
    file: str,
) -> Floats:
    """Seconds of the layers together; linear between points, and beyond the last two as there."""
    total = np.zeros(at.size)
    for layer in layers:
        if layer not in tables:
            raise InputError(file, "must hold the layer", layer)
        points, seconds = tables[layer]
        total += interpolate(points, seconds, at)
    total[at == 0] = 0.0
    return total


def interpolate(points: Floats, values: Floats, at: Floats) -> Floats:
    """Linear between points; beyond the last, by the slope of the upper half of them."""
    found = np.interp(at, points, values)
    middle = (points.size - 1) // 2
    if points.size > 1:
        slope = (values[-1] - values[middle]) / (points[-1] - points[middle])
        found += np.maximum(at - points[-1], 0.0) * max(0.0, slope)
    return found


def _by_layer(path: Path, count: str) -> dict[str, tuple[Floats, Floats]]:
    names, values = _rows(path, ("layer", count, "time_us"), text=("layer",))
    found = {}
    for name in dict.fromkeys(names):
        own = values[np.array(names) == name]
        own = own[np.argsort(own[:, 0], kind="stable")]
        found[name] = (own[:, 0], own[:, 1] * MICRO)
    return found


def read_table(path: Path, columns: tuple[str, ...]) -> Floats:
    """[rows, columns] of a CSV file of numbers."""
    return _rows(path, columns)[1]


def _rows(
    path: Path, columns: tuple[str, ...], text: tuple[str, ...] = ()
) -> tuple[list[str], Floats]:
    """A CSV file's text column, if any, and its numbers, which are finite and not negative."""
    where = path.name
    reader = csv.DictReader(io.StringIO(read_text(path, MAX_FILE_BYTES, where)))
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise InputError(where, "must have the column", missing[0])
    names, values = [], []
    for number, row in enumerate(reader, 2):
        names += [str(row[name]) for name in text]
        try:
            values.append([float(row[name]) for name in columns if name not in text])
        except (TypeError, ValueError):
            raise InputError(f"{where} line {number}", "must hold numbers") from None
    found = np.array(values, dtype=np.float64)
    if not values or not np.isfinite(found).all() or (found < 0).any() or (found[:, -1] <= 0).any():
        raise InputError(where, "must hold finite numbers, with times above 0")
    return names, found
