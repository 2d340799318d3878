"""Residuals of calibration: factors by which a deployment's true times may differ from predicted.

A factor is log-normal with median 1. Its spread is the standard deviation of the logarithm that
gives the mean absolute error measured on held-out data (presets/residuals.csv): |e| of a normal
error is 0.798 standard deviations on average. Where an error is known with and without a
configuration's level, the spread is that of the level alone (errors add up in squares): the rest is
what the operators' factors stand for.

`step` multiplies every step, `prompt` what only steps with prompts take besides: the TTFT level
less, in squares, the TPOT level.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import StepCosts
from moesim.presets import read_preset

NORMAL = math.sqrt(math.pi / 2.0)  # standard deviations in a normal's mean absolute error
LARGEST = 3.0  # standard deviations: beyond, nobody has measured
PROMPT, DECODE = 0, 1  # rows of tables, as in moesim.sim.cost_tables
ATTENTION_LINEAR, DENSE, ALL_REDUCED = range(3)
OPERATORS = ("attention", "gemm", "experts", "exchange", "all-reduce", "host")
LEVELS = ("step", "prompt")

# Rates of StepCosts by whose factor they take; times of offloading and of others' bytes take none.
DECODE_ATTENTION = (
    "decode_pair_s",
    "kv_token_s",
    "window_decode_pair_s",
    "window_kv_token_s",
    "state_request_s",
    "attention_kernel_s",
    "uneven_token_s",
)
PROMPT_ATTENTION = ("prefill_pair_s", "window_prefill_pair_s")
EXPERTS = (
    "expert_weight_s",
    "expert_pair_s",
    "expert_flop_s",
    "expert_kernel_s",
    "expert_token_s",
)
EXCHANGES = ("gather_base_s", "gather_token_s")
HOPS = ("pipeline_base_s", "pipeline_token_s")
HOST = ("step_s", "request_s", "split_s")
PROMPT_HOST = ("prefill_step_s", "prompt_floor_s")


@dataclass(frozen=True)
class Residuals:
    """Factors on predicted times: true / predicted."""

    attention: float = 1.0
    gemm: float = 1.0
    experts: float = 1.0
    exchange: float = 1.0
    all_reduce: float = 1.0
    host: float = 1.0
    step: float = 1.0
    prompt: float = 1.0


@dataclass(frozen=True)
class Spread:
    """Of one factor: the standard deviation of its logarithm, and where that was measured."""

    kind: str
    sigma: float
    source: str


def spreads(engine: str, measured: bool) -> tuple[Spread, ...]:
    """Spreads of all factors, for step times from measured kernels or from assumed rates."""
    found = {kind: _spread(kind, engine, measured) for kind in (*OPERATORS, *LEVELS)}
    step, prompt = found["step"].sigma, found["prompt"].sigma
    found["prompt"] = replace(found["prompt"], sigma=math.sqrt(max(0.0, prompt**2 - step**2)))
    return tuple(found.values())


def draw_residuals(engine: str, measured: bool, gpu: str, seed: int, number: int) -> Residuals:
    """The factors of draw `number` of a seed.

    Deployments of one engine share its levels, and where the GPU is the same too, its operators'
    factors: what is unknown of both is then the same in both.
    """
    factors = {}
    for spread in spreads(engine, measured):
        owners = (engine,) if spread.kind in LEVELS else (engine, gpu)
        key = "/".join((spread.kind, *owners, str(measured)))
        z = float(_rng(key, seed, number).standard_normal())
        factor = math.exp(spread.sigma * max(-LARGEST, min(LARGEST, z)))
        factors[spread.kind.replace("-", "_")] = factor
    return Residuals(**factors)


def with_residuals(costs: StepCosts, of: Residuals) -> StepCosts:
    """`costs` with every time multiplied by the factors that it takes."""
    prompt = of.step * of.prompt
    rates = dict(costs.rates)
    measured_experts = costs.expert_tile_s.size > 0
    for names, factor in (
        (DECODE_ATTENTION, of.attention * of.step),
        (PROMPT_ATTENTION, of.attention * prompt),
        ((), 1.0) if measured_experts else (EXPERTS, of.experts * of.step),
        (EXCHANGES, of.exchange * of.step),
        (HOPS, of.all_reduce * of.step),
        (HOST, of.host * of.step),
        (PROMPT_HOST, of.host * prompt),
    ):
        rates |= {name: float(rates[name]) * factor for name in names if name in rates}
    of_kind = np.array([prompt, of.step])  # rows PROMPT and DECODE
    token_s = costs.token_s * of_kind[:, None, None]
    token_s[:, [ATTENTION_LINEAR, DENSE]] *= of.gemm
    token_s[:, ALL_REDUCED] *= of.all_reduce
    return replace(
        costs,
        rates=rates,
        token_s=token_s,
        head_s=costs.head_s * (of.gemm * of.step),
        shared_s=costs.shared_s * (of_kind * of.gemm)[:, None],
        ffn_s=costs.ffn_s * (of_kind * of.gemm)[:, None, None] if costs.ffn_s.size else costs.ffn_s,
        context_log_s=costs.context_log_s + math.log(of.attention * prompt),
        generation_log_s=costs.generation_log_s + math.log(of.attention * of.step),
        mixed_log_s=costs.mixed_log_s + math.log(of.attention * of.step),
        expert_ratio=costs.expert_ratio * (of_kind * of.experts)[:, None],
        exchange=_scaled_laws(costs.exchange, of_kind * of.exchange),
        gather_s=costs.gather_s * (of.exchange * of.step),
    )


def _scaled_laws(laws: NDArray[Any], factor: NDArray[np.float64]) -> NDArray[Any]:
    """Laws of exchanges, rows PROMPT and DECODE, that take `factor` times as long."""
    scaled = laws.copy()
    for name in laws.dtype.names or ():
        if name.endswith("_s"):
            scaled[name] *= factor[:, None]
    return scaled


def _spread(kind: str, engine: str, measured: bool) -> Spread:
    basis = "measured" if measured else "assumed"
    for row in _rows():
        if (row["kind"], row["basis"]) == (kind, basis) and row["engine"] in ("", engine):
            error, known = float(row["error_percent"]), float(row["known_percent"] or 0.0)
            sigma = NORMAL * math.sqrt(error**2 - known**2) / 100.0
            return Spread(kind, sigma, f"{row['source']} ({row['date']})")
    raise AssertionError(f"presets/residuals.csv has no {kind} of {basis} {engine}")


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    def lines() -> Iterator[str]:
        return (x for x in read_preset("residuals.csv").splitlines() if x[:1] != "#")

    return tuple(csv.DictReader(lines()))


def _rng(key: str, seed: int, number: int) -> np.random.Generator:
    """Of its own for every key, whatever others are drawn."""
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, number, digest])
