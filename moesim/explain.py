"""Where the time of a run's typical steps goes, operator by operator, and what it rests on.

A typical step has the run's median batch and context. It is priced by the compiled code of the
simulation itself, and split into operators: their times add up to its duration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.exchanges import M_TO_N, PLAIN
from moesim.costs.libraries import load_law
from moesim.costs.measured.expert_work import ExpertShape, count_work, light_s
from moesim.costs.measured.light import TABLE_FORMATS, gemm_work
from moesim.costs.measured.operators import KINDS, MeasuredOperators
from moesim.costs.measured.provenance import (
    ALL_REDUCE,
    ATTENTION,
    EXPERTS,
    StepSize,
    operator_times,
)
from moesim.costs.measured.steps import bracket
from moesim.costs.measured.timing import FITTED, INTERPOLATED, ORIGINS, ROOFLINE
from moesim.costs.profile import Profile
from moesim.costs.roofline import linear_s
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment, deploy, step_costs
from moesim.deployment_spec import OverlapSpec, SpeculationSpec
from moesim.engine import graph_tokens
from moesim.operators import Linear, ffn_operators, linear_operators
from moesim.pools import plan_pools
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.sim.cost_tables import ATTENTION_LINEAR, DECODE, DENSE, PROMPT, Work, slot_tokens
from moesim.typical_step import Batch, price, typical_batches
from moesim.wiring import Wired, wire

LEAST_S = 1e-12  # what is left of a part below this is rounding


@dataclass(frozen=True)
class Row:
    """One operator of a step: `layer_s` once, `total_s` in all `layers`.

    `origin` is a word of ORIGINS or `profile` (a constant of it); `source` names the tables, rates
    or constants behind it; `light_fraction` is the share of the speed of light, None where there is
    none to compare with.
    """

    name: str
    layers: int
    total_s: float
    origin: str
    source: str
    light_fraction: float | None = None

    @property
    def layer_s(self) -> float:
        return self.total_s / max(1, self.layers)


@dataclass(frozen=True)
class ExplainedStep:
    """A step: what it computes, its rows, and its duration as the simulator computes it."""

    kind: str
    batch: str
    rows: tuple[Row, ...]
    total_s: float

    def plain(self) -> dict[str, Any]:
        """As numbers and words, for JSON."""
        rows = [
            {**asdict(row), "layer_s": row.layer_s, "share": row.total_s / self.total_s}
            for row in self.rows
        ]
        return {"step": self.kind, "batch": self.batch, "total_s": self.total_s, "rows": rows}


def explain(result: Result, profile: Profile | None = None) -> tuple[ExplainedStep, ...]:
    """The typical decode step and the typical step with prompts of a run, where it had any.

    Of a run in pools, those of each pool. Steps are explained as they are before exchanges are
    hidden, without drafts, in one micro-batch, and with every active expert in GPU memory.
    `profile`: the one that the run was given in the place of its scenario's.
    """
    if not result.raw.pools:
        deployment = deploy(_plain(result.scenario), profile)
        return _explain(result.scenario, deployment, result.raw.steps, result.raw.requests)
    explained: list[ExplainedStep] = []
    first = 0
    for plan, pool in zip(plan_pools(result.scenario, profile), result.raw.pools, strict=True):
        replica = result.raw.steps["replica"]
        steps = result.raw.steps[(replica >= first) & (replica < first + pool.replicas)]
        first += pool.replicas
        of_pool = _explain(plan.scenario, plan.deployment, steps, result.raw.requests)
        explained += [replace(step, batch=f"{plan.name} pool: {step.batch}") for step in of_pool]
    return tuple(explained)


def _explain(
    scenario: Scenario, deployment: Deployment, steps: NDArray[Any], requests: NDArray[Any]
) -> tuple[ExplainedStep, ...]:
    scenario = _plain(scenario)
    costs = step_costs(scenario, deployment)
    wired = wire(scenario, deployment, costs, ())
    most_tokens = costs.head_s.size - 1
    ranks = deployment.sharding.attention_dp
    batches = typical_batches(steps, requests, ranks, most_tokens)
    return tuple(explain_step(scenario, deployment, costs, wired, batch) for batch in batches)


def _plain(scenario: Scenario) -> Scenario:
    """The scenario without overlap and speculation, batches in one piece."""
    plain: dict[str, object] = {"overlap": OverlapSpec(), "speculation": SpeculationSpec()}
    if apart := scenario.deployment.attention_ffn:
        plain["attention_ffn"] = apart.model_copy(update={"micro_batches": 1})
    return scenario.model_copy(update={"deployment": scenario.deployment.model_copy(update=plain)})


def explain_step(
    scenario: Scenario, deployment: Deployment, costs: StepCosts, wired: Wired, batch: Batch
) -> ExplainedStep:
    """Price one batch as the simulation does, and split its time."""
    step, work = price(scenario, deployment, wired, batch)
    size = batch.size
    if not size.chunks:
        padded = int(graph_tokens(costs.head_s.size - 1)[size.tokens])
        group = padded * deployment.sharding.attention_dp
        size = replace(size, tokens=padded, group_tokens=group)
    made = _Rows(deployment, costs, size, step, work, scenario.exchanges())
    said = []
    if size.chunks:
        new = sum(n for chunks in batch.chunks for n, _ in chunks)
        prompts = sum(map(len, batch.chunks))
        said.append(f"{new:,} tokens of {prompts:,} prompt{'s' if prompts > 1 else ''}")
    if sum(batch.decoding):
        decoding = sum(batch.decoding)
        requests = "1 request decodes" if decoding == 1 else f"{decoding:,} requests decode, each"
        said.append(f"{requests} after {batch.kv_tokens - 1:,} tokens")
    rows = tuple(row for row in made.rows() if row.total_s > LEAST_S)
    kind = "prefill" if size.chunks else "decode"
    return ExplainedStep(kind, ", ".join(said), rows, float(step["duration_s"]))


class _Rows:
    """Splits one priced step; every method yields rows of a part."""

    def __init__(
        self,
        deployment: Deployment,
        costs: StepCosts,
        size: StepSize,
        step: Any,
        work: Work,
        exchange: tuple[str, str],
    ) -> None:
        self.exchange = exchange
        self.of, self.costs, self.size, self.step, self.work = deployment, costs, size, step, work
        self.kind = PROMPT if size.chunks else DECODE
        self.ratio = deployment.profile.overhead.prefill_ratio if size.chunks else 1.0
        operators = deployment.operators
        self.times = operator_times(operators, size) if operators else []
        self.apart = ffn_operators(deployment.model, deployment.sharding, deployment.precision)

    def _slowest(self, index: int) -> int:
        """Tokens of the rank that takes longest in a part of token_s: often, not always, most."""
        tokens_D = self.work.tokens if self.size.chunks else np.array([self.size.tokens])
        seconds_D = self.costs.token_s[self.kind, index, tokens_D]
        return int(tokens_D[int(np.argmax(seconds_D))])

    def _logits(self) -> int:
        """Rows of the output layer on the rank that takes longest over them."""
        logits_D = self.work.logits
        return int(logits_D[int(np.argmax(self.costs.head_s[logits_D]))])

    def rows(self) -> Iterator[Row]:
        """All of the step, engine last."""
        yield from self._linears()
        yield from self._attention()
        yield from self._experts()
        yield from self._links()
        yield from self._engine()

    def _linears(self) -> Iterator[Row]:
        summed = {"attention": 0.0, "dense": 0.0}
        for operator, row in self._linear_rows():
            if operator.part != "head" and operator not in self.apart:
                summed["attention" if operator.part == "attention" else "dense"] += row.total_s
            yield row
        for part, index in (("attention", ATTENTION_LINEAR), ("dense", DENSE)):
            whole = self.costs.token_s[self.kind, index, self._slowest(index)]
            rest = float(whole) - summed[part]
            name = "linear attention" if part == "attention" else "norms and other passes"
            yield self._rated(name, self.of.model.layers, rest)

    def _linear_rows(self) -> Iterator[tuple[Linear, Row]]:
        of = self.of
        for operator in linear_operators(of.model, of.sharding, of.precision):
            index = ATTENTION_LINEAR if operator.part == "attention" else DENSE
            n = self._logits() if operator.part == "head" else self._slowest(index)
            if operator in self.apart:
                n = -(-int(self.work.tokens.sum()) // of.sharding.expert_gpus)
            if of.operators is None:
                yield operator, self._rated_linear(operator, n)
            elif operator in of.operators.linears(decode=not self.size.chunks):
                yield operator, self._measured_linear(of.operators, operator, n)

    def _rated_linear(self, operator: Linear, n: int) -> Row:
        gpu, rows = self.of.cluster.gpu, np.array([float(n)])
        once_s = float(linear_s(operator, rows, gpu, self.of.profile.compute)[0])
        dtype = TABLE_FORMATS[operator.format.name][0]
        light = gemm_work(dtype, n, operator.out_features, operator.in_features).light_s(gpu)
        row = self._rated(operator.name, operator.layers, operator.layers * once_s)
        return replace(row, light_fraction=float(light) / once_s)

    def _measured_linear(self, operators: MeasuredOperators, operator: Linear, n: int) -> Row:
        """The table's time, which is linear between its points."""
        table = self.costs.ffn_s[0] if operator in self.apart else self.costs.head_s
        low, high, share = bracket(n, table.shape[-1] - 1)
        timing = operators.linear(operator, np.array([low, high]), decode=not self.size.chunks)
        weights = np.array([1.0 - share, share])
        once_s = float(timing.seconds @ weights)
        once_s *= 1.0 if operator.part == "head" else self.ratio
        return Row(
            operator.name,
            operator.layers,
            operator.layers * once_s,
            timing.worst_origin,
            timing.source,
            float(timing.light_s @ weights) / once_s,
        )

    def _attention(self) -> Iterator[Row]:
        rates = self.costs.rates
        timed = {time.name: time for time in self.times if time.group == ATTENTION}
        for kind, name in enumerate(KINDS):
            layers = int(rates[("full_layers", "window_layers", "linear_layers")[kind]])
            seconds = float(self.work.attention_s[:, kind].mean()) * layers
            if name not in timed:
                yield self._rated(name, layers, seconds)
                continue
            timing = timed[name].timing
            busiest = float(self.work.attention_s[:, kind].max())
            light = float(timing.light_s[0]) / max(busiest, LEAST_S)
            yield Row(name, layers, seconds, timing.worst_origin, timing.source, light)
        launches = float(rates.get("attention_kernel_s", 0.0)) * self.of.model.layers
        yield self._rated("attention, launching", self.of.model.layers, launches)
        waiting = float(self.step["attention_imbalance_s"])
        row = self._rated("waiting for the slowest attention rank", 1, waiting)
        yield replace(row, source="the slowest rank's attention less the mean rank's, above")

    def _experts(self) -> Iterator[Row]:
        layers = len(self.of.model.moe_layers)
        seconds = float(self.step["experts_s"])
        if not layers:
            return
        light = self._expert_light_s()
        fraction = light / seconds if light else None
        timed = [time.timing for time in self.times if time.group == EXPERTS]
        if timed:
            row = Row(EXPERTS, layers, seconds, timed[0].worst_origin, timed[0].source, fraction)
        else:
            row = replace(self._rated(EXPERTS, layers, seconds), light_fraction=fraction)
        yield row
        waiting = float(self.step["expert_imbalance_s"])
        yield replace(
            row,
            name="waiting for the busiest expert rank",
            total_s=waiting,
            source="the busiest rank's experts less the mean rank's, above",
            light_fraction=None,
        )

    def _expert_light_s(self) -> float:
        """Mean over ranks, summed over layers; 0 where routing is averaged."""
        of, counts_LP = self.of, slot_tokens(self.work)
        if not counts_LP.any():
            return 0.0
        layers, ep = len(of.model.moe_layers), of.sharding.expert_parallel
        counts_LRP = counts_LP.reshape(layers, ep, -1)
        model, dtype = of.model, TABLE_FORMATS[of.precision.experts.name][0]
        operators = of.operators
        if operators is not None:
            dtype = operators.table_format(of.precision.experts, "moe")
        shape = ExpertShape(model.hidden, model.expert_width, model.top_k, model.experts)
        counts = count_work(counts_LRP, 0.0, 1)
        seconds_LR = light_s(shape, dtype, of.sharding.moe_tp, counts, of.cluster.gpu)
        return float(seconds_LR.mean(axis=1).sum())

    def _links(self) -> Iterator[Row]:
        layers = len(self.of.model.moe_layers)
        for name in ("dispatch", "combine"):
            yield self._exchanged(name, layers, float(self.step[f"{name}_s"]))
        reduced = float(self.step["all_reduce_s"])
        timed = [time for time in self.times if time.group == ALL_REDUCE]
        if timed:
            timing = timed[0].timing
            once_s = reduced / timed[0].layers
            fraction = float(timing.light_s[0]) / once_s
            yield Row(
                "all-reduce",
                timed[0].layers,
                reduced,
                timing.worst_origin,
                timing.source,
                fraction,
            )
        else:
            yield self._linked("all-reduce", self.of.model.layers, reduced)
        yield self._linked(
            "hops between stages", self.of.sharding.pipeline - 1, float(self.step["pipeline_s"])
        )

    def _engine(self) -> Iterator[Row]:
        """The engine's overhead, by constant of the profile."""
        overhead, operators = self.of.profile.overhead, self.of.operators
        layers = self.of.model.layers
        left = float(self.step["overhead_s"])
        named = [("engine, each step", 1, overhead.step_s)]
        named.append(("engine, each request", self.size.requests,
                      overhead.request_s * self.size.requests))  # fmt: skip
        if operators is not None:
            named.append(("kernels without a table, each layer", layers, overhead.layer_s * layers))
            if reduce := operators.norm_reduce():
                reduces, seconds = operators.norm_reduces, operators.norm_reduce_s()
                left -= seconds
                yield Row(
                    "all-reduce of norms", reduces, seconds, reduce.worst_origin, reduce.source
                )
        if self.size.chunks:
            named.append(("engine, each step with prompts", 1, overhead.prefill_step_s))
        for name, count, seconds in named:
            left -= seconds
            yield Row(name, count, seconds, "profile", self._constants())
        yield Row("launching kernels one by one", 1, left, "profile", self._constants())

    def _constants(self) -> str:
        """Where the profile's times of the engine come from."""
        label = self.of.profile.label
        measured = self.of.profile.kernels == "measured"
        return f"constants fitted on measured runs ({label})" if measured else label

    def _exchanged(self, name: str, layers: int, seconds: float) -> Row:
        """By the law of a library, or by a measured table that scales it."""
        exchange = self.exchange[self.kind]
        if exchange in PLAIN:
            return self._linked(name, layers, seconds)
        if exchange in M_TO_N:
            return self._linked(name, self.of.model.layers, seconds)
        law = load_law(exchange, name)
        if (self.costs.exchange_ratio[self.kind] != 1.0).any():
            return Row(name, layers, seconds, ORIGINS[INTERPOLATED], f"{exchange}: kernel tables")
        return Row(name, layers, seconds, ORIGINS[FITTED], f"{exchange}: law of {law.date}")

    def _rated(self, name: str, layers: int, seconds: float) -> Row:
        """What no table times, whatever the profile says of other operators."""
        profile = self.of.profile
        assumed = "datasheet rates x assumed fractions"
        source = assumed if profile.kernels == "measured" else profile.label
        return Row(name, layers, seconds, ORIGINS[ROOFLINE], source)

    def _linked(self, name: str, layers: int, seconds: float) -> Row:
        """What goes over the links that a stage of the deployment spans."""
        cluster, gpus = self.of.cluster, self.of.sharding.gpus
        links = [cluster.scale_up.name]
        if gpus > cluster.scale_up_domain:
            links.append(cluster.scale_out.name)
        source = f"datasheet rates of {' and '.join(links)} x reached fractions"
        return Row(name, layers, seconds, ORIGINS[ROOFLINE], source)
