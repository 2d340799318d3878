"""Where the time of each operator of a step comes from, at the sizes of that step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.costs.measured.experts import balanced_timing
from moesim.costs.measured.light import Floats
from moesim.costs.measured.operators import KINDS, MeasuredOperators
from moesim.costs.measured.timing import FITTED, ROOFLINE, Timing, total

GEMMS, ATTENTION, EXPERTS, ALL_REDUCE = (
    "matrix multiplications",
    "attention",
    "experts",
    "all-reduce",
)


@dataclass(frozen=True)
class StepSize:
    """What the busiest attention rank computes in a step.

    `tokens`: rows of matrix multiplications, padding included; `chunks`: (new tokens, tokens cached
    before them) of each prompt; `decoding` requests of `kv_tokens` tokens each on average;
    `group_tokens`: rows of all attention ranks together.
    """

    tokens: int
    requests: int
    chunks: tuple[tuple[int, int], ...]
    decoding: int
    kv_tokens: float
    group_tokens: int


@dataclass(frozen=True, eq=False)
class OperatorTime:
    """One operator at one size; `timing` is of one layer, its arrays have one entry."""

    name: str
    group: str
    layers: int
    timing: Timing

    @property
    def origin(self) -> int:
        return int(self.timing.origin.max())


def operator_times(operators: MeasuredOperators, size: StepSize) -> list[OperatorTime]:
    """Every operator of a step of this size, in the order in which a layer runs them.

    Experts are timed for balanced routing; engine overhead is no operator.
    """
    return times_of_sizes(operators, [size])[0]


def times_of_sizes(
    operators: MeasuredOperators, sizes: Sequence[StepSize]
) -> list[list[OperatorTime]]:
    """`operator_times` of each size; sizes of a kind are looked up together, in a fraction of the
    time."""
    times: list[list[OperatorTime]] = [[] for _ in sizes]
    for decode in (False, True):
        alike = [i for i, size in enumerate(sizes) if (not size.chunks) == decode]
        found = _of_kind(operators, [sizes[i] for i in alike], decode) if alike else ()
        for i, each in zip(alike, found, strict=True):
            times[i] = each
    return times


def _of_kind(
    operators: MeasuredOperators, sizes: Sequence[StepSize], decode: bool
) -> list[list[OperatorTime]]:
    """Of sizes that all have prompts, or none."""
    times: list[list[OperatorTime]] = [[] for _ in sizes]

    def keep(name: str, group: str, layers: int, timings: Iterable[Timing]) -> None:
        for of_size, timing in zip(times, timings, strict=True):
            of_size.append(OperatorTime(name, group, layers, timing))

    tokens, requests = (
        np.array([float(getattr(size, name)) for size in sizes]) for name in ("tokens", "requests")
    )
    for linear in operators.linears(decode):
        n = requests if linear.part == "head" else tokens
        keep(linear.name, GEMMS, linear.layers, operators.linear(linear, n, decode).each())
    for kind, name in enumerate(KINDS):
        if layers := operators.layers_of(kind):
            keep(name, ATTENTION, layers, (_attention(operators, kind, size) for size in sizes))
    if operators.reduces:
        # One by one: which kernel is the faster, and named, depends on the size.
        messages = tokens[:, None] * operators.model.hidden * 2.0
        reduced = (operators.reduce(message, eager=not decode) for message in messages)
        keep("all-reduce", ALL_REDUCE, operators.reduces, reduced)
    if operators.model.is_moe:
        timing = _experts(operators, np.array([float(size.group_tokens) for size in sizes]), decode)
        keep("experts", EXPERTS, len(operators.model.moe_layers), timing.each())
    return times


def beyond_grid(
    operators: MeasuredOperators, timed: Iterable[Iterable[OperatorTime]]
) -> tuple[str, ...]:
    """One line for each group of operators of which any lay beyond what was measured; `timed` are
    the operators of each size of step."""
    worst: dict[str, dict[str, OperatorTime]] = {}
    for times in timed:
        for time in times:
            of_group = worst.setdefault(time.group, {})
            known = of_group.get(time.name)
            if time.origin >= FITTED and (known is None or time.origin > known.origin):
                of_group[time.name] = time
    return tuple(_why(operators, group, list(of.values())) for group, of in worst.items() if of)


def tables_used(timed: Iterable[Iterable[OperatorTime]]) -> dict[str, set[str]]:
    """Groups of operators by the engine and version whose tables timed them."""
    used: dict[str, set[str]] = {}
    for times in timed:
        for time in times:
            for version in versions(time.timing.source):
                used.setdefault(version, set()).add(time.group)
    return used


def versions(source: str) -> list[str]:
    """Engines and versions that a Timing's source names, like "vllm 0.24.0"."""
    words = (part.split() for part in source.split(" + "))
    named = (each for each in words if len(each) >= 4 and each[0] != "no")
    return list(dict.fromkeys(f"{each[1]} {each[2]}" for each in named))


def _attention(operators: MeasuredOperators, kind: int, size: StepSize) -> Timing:
    parts = []
    for new, prefix in size.chunks:
        parts.append(operators.context(kind, np.array([float(new)]), np.array([float(prefix)])))
    if size.decoding:
        batch, kv = np.array([float(size.decoding)]), np.array([max(1.0, size.kv_tokens)])
        parts.append(operators.generation(kind, batch, kv))
    return total(*parts)


def _experts(operators: MeasuredOperators, group_tokens: Floats, decode: bool) -> Timing:
    anchor = operators.experts(np.maximum(group_tokens, 1.0), prompts=not decode)
    return balanced_timing(operators.kernels, anchor, operators.sharding.expert_parallel)


def _why(operators: MeasuredOperators, group: str, times: list[OperatorTime]) -> str:
    """Why a group's times are not measured ones, by its least trusted operator."""
    worst = max(times, key=lambda time: time.origin)
    engine = operators.kernels.engine
    named = versions(worst.timing.source)
    names = ", ".join(time.name for time in times[:3]) + (", ..." if len(times) > 3 else "")
    which = group if group in names else f"{group} ({names})"
    if group == ALL_REDUCE and worst.origin == ROOFLINE:
        gpu = operators.kernels.gpu
        across = operators.sharding.attention_tp > max(gpu.scale_up_domain, gpu.most_per_node)
        return f"{group}: beyond {'one node' if across else 'the measured numbers of GPUs'}"
    if worst.origin == ROOFLINE or not named:
        return f"{which}: not measured, an assumed roofline stands in"
    own = operators.kernels.own
    if all(version.split()[0] not in (engine, own.engine if own else engine) for version in named):
        return f"{which}: no sound table of {engine}, {' and '.join(named)} stands in"
    if group == EXPERTS:
        return f"{which}: nearest shapes of {named[0]}, not measured for this one"
    return f"{which}: beyond what {named[0]} was measured for, scaled by the work"
