"""Measured exchanges beside their laws: a table of the GPU, engine and group goes before the fit.

A table knows tokens per rank under uniform routing; a step has a byte matrix. So the law keeps the
shape of the time, and the ratio of table to law at uniform routing scales it, as for experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moesim.costs.exchanges import PLAIN, exchange_rows
from moesim.costs.libraries import PHASES, exchange_s, load_law
from moesim.costs.measured.exchange import engine_exchange_s
from moesim.costs.measured.exchange import exchange_s as library_exchange_s
from moesim.costs.measured.kernels import MeasuredKernels, is_measured, load_kernels
from moesim.costs.measured.light import Floats
from moesim.costs.measured.operators import MeasuredOperators
from moesim.costs.measured.steps import points_of
from moesim.costs.measured.timing import Timing
from moesim.costs.profile import Profile
from moesim.costs.step import StepCosts
from moesim.costs.traffic import uniform_load
from moesim.hardware import Link
from moesim.precision import Activation

METHODS = {
    "deepep-normal": "normal",
    "deepep-low-latency": "low_latency",
    "nvlink-one-sided": "one_sided",
}
NODE_GPUS = 8  # of the nodes on which DeepEP's tables were measured
PROMPT, DECODE = range(2)  # kinds of steps, as in moesim.sim.cost_tables


def measured_phase(
    operators: MeasuredOperators, exchange: str, phase: str, kind: int, tokens: Floats
) -> tuple[Timing, Activation] | None:
    """(times of `tokens` per rank, number format of the dispatch) of a stage, if measured.

    Steps with prompts launch kernels one by one, as the engine's own tables do. Decode replays a
    CUDA graph: there the library's kernels alone count (SGLang's tables), where they exist.
    """
    if exchange not in METHODS:
        return None
    kernels, model, ranks = operators.kernels, operators.model, operators.sharding.stage_gpus
    method, layer = METHODS[exchange], (model.hidden, model.top_k, model.experts)
    dtype = operators.precision.dispatch
    if method == "one_sided":
        rack = _of_engine(kernels, "trtllm")
        return _engines(rack, method, phase, tokens, layer, ranks, dtype) if rack else None
    library = _of_engine(kernels, "sglang") if kind == DECODE else kernels
    if library is not None and library.engine == "sglang":
        if ranks == NODE_GPUS == kernels.gpu.most_per_node:
            timed = library_exchange_s(library, method, phase, tokens, *layer)
            if timed is not None:
                return timed, "fp8"
        if kernels.engine == "sglang":
            return None
    return _engines(kernels, method, phase, tokens, layer, ranks, dtype)


def _engines(
    kernels: MeasuredKernels,
    method: str,
    phase: str,
    tokens: Floats,
    layer: tuple[int, int, int],
    ranks: int,
    dtype: Activation,
) -> tuple[Timing, Activation] | None:
    name = "fp8" if dtype == "fp8" and phase == "dispatch" else "bfloat16"
    timed = engine_exchange_s(kernels, method, phase, tokens, *layer, ranks, name)
    return None if timed is None else (timed, dtype)


def _of_engine(kernels: MeasuredKernels, engine: str) -> MeasuredKernels | None:
    if kernels.engine == engine:
        return kernels
    return load_kernels(kernels.gpu.name, engine) if is_measured(kernels.gpu.name, engine) else None


def measured_notes(operators: MeasuredOperators, exchange: Sequence[str]) -> dict[str, str]:
    """Exchanges that a table times in all their phases and kinds of steps -> the tables."""
    tables: dict[str, str] = {}
    one = np.ones(1)
    for name in dict.fromkeys(exchange):
        kinds = [kind for kind, used in enumerate(exchange) if used == name]
        found = [
            measured_phase(operators, name, phase, kind, one) for kind in kinds for phase in PHASES
        ]
        if all(found):
            sources = dict.fromkeys(each[0].source.rsplit(" ", 1)[0] for each in found if each)
            tables[name] = ", ".join(sources)
    return tables


def with_measured_exchange(
    costs: StepCosts,
    operators: MeasuredOperators,
    profile: Profile,
    exchange: Sequence[str],
    links: tuple[Link, Link],
) -> StepCosts:
    """`costs` with the ratio of measured exchanges to their laws, where there are any."""
    model, sharding = operators.model, operators.sharding
    ranks, domains = sharding.stage_gpus, int(costs.domain_of_rank.max(initial=0)) + 1
    tokens = costs.expert_ratio.shape[1] - 1
    if not model.is_moe or tokens < 1 or ranks == 1:
        return costs
    points = points_of(tokens)
    each = np.maximum(points, 1.0) / ranks
    ratio = np.ones((2, 2, tokens + 1))
    found = False
    for kind, name in enumerate(exchange):
        for at, phase in enumerate(PHASES):
            measured = measured_phase(operators, name, phase, kind, np.maximum(each, 1.0))
            if measured is None or name in PLAIN:
                continue
            timed, dtype = measured
            precision = dataclasses.replace(operators.precision, dispatch=dtype)
            law = exchange_rows(exchange, model, precision, profile.network, links, domains)
            traffic = load_law(name, phase).traffic
            load = uniform_load(traffic, each, ranks, domains, model.experts, model.top_k)
            shares = timed.seconds / exchange_s(law[kind, at], *load)
            ratio[kind, at] = np.interp(np.arange(tokens + 1), points, shares)
            found = True
    return dataclasses.replace(costs, exchange_ratio=ratio) if found else costs
