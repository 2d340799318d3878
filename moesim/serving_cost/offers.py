"""A self-hosted offer: what one replica of a scenario serves within its SLO, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.deployment import Deployment, deploy
from moesim.economics.curves import CostCurve, always_on_curve, by_hour_curve
from moesim.economics.day import DayProfile
from moesim.economics.gpu_hours import GpuHour, gpu_hour
from moesim.economics.replicas import Replica, Rules
from moesim.economics.token_split import input_share
from moesim.errors import InputError
from moesim.findings.estimates import Estimate
from moesim.model import MoEModel, load_model, model_names
from moesim.policies.faults import Restart
from moesim.results import Result
from moesim.scenario import Scenario, SLOSpec
from moesim.serving_cost.capacity import Capacity, Simulate
from moesim.serving_cost.hosting import (
    KV_REQUESTS,
    Hosting,
    StepTokens,
    TokenLight,
    experts_read,
    hosting,
    input_token,
    output_token,
)
from moesim.serving_cost.seeded_capacity import mean_of_brackets, seeded_capacities
from moesim.units import HOUR

if TYPE_CHECKING:
    import pandas as pd

SAME_ACTIVE = "same-active"


@dataclass(frozen=True, eq=False)
class SelfHosted:
    """One deployment, measured at the largest rate at which one replica keeps the SLO.

    `capacity`: with the scenario's seed, whose run is what was measured. `requests_per_s`,
    `tokens_per_s`: what a replica serves, over the seeds. Tokens are means of a request.
    `cached_share`: of prompt tokens, found in the prefix cache. `input_bill_share`: of a replica's
    time, what the input takes (moesim.economics.token_split; by GPUs where prefill and decode have
    pools). `kwh_per_million_tokens`: GPUs only.
    """

    scenario: Scenario
    gpus: int
    price: GpuHour
    capacity: Capacity
    requests_per_s: Estimate
    tokens_per_s: Estimate
    prompt_tokens: float
    output_tokens: float
    cached_share: float
    input_bill_share: float
    start_s: float
    hosting: Hosting
    light: dict[str, TokenLight]
    kwh_per_million_tokens: float
    seeds: int = 1
    trials: int = 0

    @property
    def name(self) -> str:
        return self.scenario.name

    @property
    def tokens_per_request(self) -> float:
        return self.prompt_tokens + self.output_tokens

    @property
    def input_tokens_share(self) -> float:
        return self.prompt_tokens / self.tokens_per_request

    @property
    def replica(self) -> Replica:
        return self._carrying(self.tokens_per_s.value)

    @property
    def replicas_at_bounds(self) -> tuple[Replica, Replica] | None:
        """A replica that carries as little, and one that carries as much, as can be."""
        found = self.tokens_per_s
        if found.low is None or found.high is None:
            return None
        return self._carrying(found.low), self._carrying(found.high)

    def _carrying(self, tokens_per_s: float) -> Replica:
        return Replica(self.gpus * self.price.usd, tokens_per_s, self.start_s)

    @property
    def usd_per_million_when_full(self) -> float:
        """Of all tokens, by a replica that always serves what it can within the SLO."""
        return self.replica.usd_per_hour / HOUR / self.replica.tokens_per_s * 1e6

    def curve(
        self,
        profile: DayProfile,
        rules: Rules,
        upto: float,
        by_hour: bool = False,
        replica: Replica | None = None,
    ) -> CostCurve:
        """USD a day against tokens a day, of its own replica or of one that carries otherwise."""
        make = by_hour_curve if by_hour else always_on_curve
        return make(self.name, profile, replica or self.replica, rules, upto)


def self_hosted(
    scenario: Scenario,
    slo: SLOSpec | None = None,
    percentile: float = 99.0,
    seeds: int = 1,
    run: Simulate | None = None,
    progress: Callable[[int], None] | None = None,
) -> SelfHosted:
    """Search the scenario's capacity, under one seed or several, and measure the run there.

    InputError, besides capacity's own, where no rate keeps the SLO.
    """
    plans = [(of, deploy(of)) for _, of in scenario.pools()]
    price = gpu_hour(scenario.economics, plans[0][1].cluster.gpu)
    asked = scenario if slo is None else scenario.model_copy(update={"slo": slo})
    capacities = seeded_capacities(asked, seeds, percentile=percentile, run=run, progress=progress)
    found = capacities[0]
    result = found.result
    assert result is not None
    requests = result.requests
    prompt, output = (float(requests[f"{each}_tokens"].mean()) for each in ("prompt", "output"))
    of, deployment = plans[-1]
    kwh = result.summary["energy"]["kwh"] or 0.0
    return SelfHosted(
        scenario=found.scenario,
        gpus=result.gpus,
        price=price,
        capacity=found,
        requests_per_s=_over_seeds(capacities),
        tokens_per_s=_over_seeds(capacities, _tokens_per_request),
        prompt_tokens=prompt,
        output_tokens=output,
        cached_share=float(requests["cached_tokens"].sum() / requests["prompt_tokens"].sum()),
        input_bill_share=_input_bill_share(result),
        start_s=_start_s(scenario, [each for _, each in plans]),
        hosting=hosting(of, deployment, prompt + output),
        light=_light(result, deployment),
        kwh_per_million_tokens=kwh / (len(requests) * (prompt + output)) * 1e6,
        seeds=seeds,
        trials=sum(len(each.trials) for each in capacities),
    )


def _over_seeds(
    capacities: Sequence[Capacity], size: Callable[[Capacity], float] = lambda _: 1.0
) -> Estimate:
    """Requests a second, each counted as its seed's `size`."""
    return mean_of_brackets(
        [each.requests_per_s * size(each) for each in capacities],
        [each.fails_at_per_s * size(each) for each in capacities],
    )


def _tokens_per_request(found: Capacity) -> float:
    assert found.result is not None
    requests = found.result.requests
    return float(requests["prompt_tokens"].mean()) + float(requests["output_tokens"].mean())


def _input_bill_share(result: Result) -> float:
    pools = {pool.name: pool.gpus for pool in result.raw.pools}
    if pools:
        return pools["prefill"] / sum(pools.values())
    steps = result.steps[~result.steps["dummy"]]
    return input_share(steps["duration_s"], steps["prefill_tokens"], steps["decode_tokens"])


def _start_s(scenario: Scenario, deployments: list[Deployment]) -> float:
    """A replica's cold start: the scenario's, else its restart's law."""
    scaling, faults = scenario.deployment.autoscaling, scenario.faults
    if scaling is not None and scaling.cold_start_s is not None:
        return scaling.cold_start_s
    restart = faults.restart if faults is not None else Restart()
    weights = max(sum(each.memory.weights_bytes.values()) for each in deployments)
    return restart.start_s + weights / restart.load_bytes_per_s


def _light(result: Result, deployment: Deployment) -> dict[str, TokenLight]:
    """Tokens at the speed of light: of prompts (found in the cache or not), of one reader alone,
    in the run's mean batch.

    Weights are read once a step, so a token's share of them is that of a mean step; contexts are
    means over tokens.
    """
    steps = result.steps[~result.steps["dummy"]]
    requests = result.requests
    prompt, output = requests["prompt_tokens"], requests["output_tokens"]
    context = float((output * (prompt + output / 2.0)).sum() / output.sum())
    of = (deployment.model, deployment.precision, deployment.cluster.gpu)
    read = input_token(
        *of, _mean_step(steps[steps["prefill_tokens"] > 0]), float((prompt**2).sum() / prompt.sum())
    )
    return {
        "input": read.times(1.0 - float(requests["cached_tokens"].sum() / prompt.sum())),
        "output alone": output_token(*of, StepTokens(1.0), context),
        "output": output_token(*of, _decode_step(steps, deployment.model), context),
    }


def _mean_step(steps: pd.DataFrame) -> StepTokens:
    tokens = float((steps["prefill_tokens"] + steps["decode_tokens"]).mean())
    return StepTokens(tokens, float(steps["active_experts"].mean()))


def _decode_step(steps: pd.DataFrame, model: MoEModel) -> StepTokens:
    """The mean step of all that decode: requests, and the experts that these alone would read.

    How far those are from even routing's is known from the steps without prompts.
    """
    decoding = steps[steps["decode_tokens"] > 0]
    alone = decoding[decoding["prefill_tokens"] == 0]
    tokens = float(decoding["decode_tokens"].mean()) if len(decoding) else 1.0
    if not len(alone) or not model.is_moe:
        return StepTokens(tokens)
    even = experts_read(model, decoding["decode_tokens"].to_numpy(np.float64))
    share = alone["active_experts"].sum() / experts_read(model, alone["decode_tokens"]).sum()
    return StepTokens(tokens, float(share * even.mean()))


def dense_scenario(scenario: Scenario, choice: str, tokens_per_request: float) -> Scenario:
    """The same demand, SLO, GPU and engine for a dense model, on as few GPUs as hold it.

    `choice` is a model, or `same-active`: the shipped dense model whose size is nearest to the
    active parameters. Tensor parallelism is the least power of two whose memory holds weights and
    32 requests of `tokens_per_request`. InputError for a model with experts or one that never fits.
    """
    name = _nearest_dense(scenario) if choice == SAME_ACTIVE else choice
    model = load_model(name)
    if model.is_moe:
        raise InputError("--dense", "must be a dense model; this one has experts", model.name)
    of, last = scenario.deployment, None
    gpus = scenario.cluster.nodes * scenario.cluster.gpus_per_node
    for tp in (2**power for power in range(int(math.log2(gpus)) + 1)):
        found = Scenario.parse(
            {
                **scenario.model_dump(),
                "name": f"{model.name}, dense, on {tp} GPU{'s' * (tp > 1)}",
                "model": name,
                "precision": {
                    **scenario.precision.model_dump(),
                    "experts": None,
                    "dispatch": None,
                },
                "deployment": {
                    "engine": of.engine,
                    "parallelism": {"attention_tp": tp},
                    "kv_cache": {"utilisation": of.kv_cache.utilisation},
                    "queue": of.queue.model_dump(),
                    "profile": of.profile if of.profile in ("auto", "measured", "assumed")
                    else "auto",
                    "engine_version": of.engine_version,
                },
                "faults": None,
            }
        )  # fmt: skip
        try:
            if deploy(found).memory.kv_capacity_tokens >= KV_REQUESTS * tokens_per_request:
                return found
        except InputError as error:
            last = error
    why = f"; {last}" if last is not None else ""
    raise InputError("--dense", f"must fit the scenario's cluster of {gpus} GPUs{why}", name)


def _nearest_dense(scenario: Scenario) -> str:
    active = load_model(scenario.model).parameters().active
    dense = {name: load_model(name) for name in model_names()}
    sizes = {name: each.parameters().total for name, each in dense.items() if not each.is_moe}
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / active)))
