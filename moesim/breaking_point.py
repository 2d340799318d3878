"""What gives first as the load grows: KV memory, the prefill queue, the batch, an expert, a link.

The load of one replica is raised until a run misses the objective or no longer settles
(moesim.serving_cost.capacity: the same requests at every rate), and the first run that does is
compared with today's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.deployment import Deployment, deploy
from moesim.errors import InputError
from moesim.figures.traffic import limits
from moesim.findings.strain import LoadPoint, Strain
from moesim.results import Result
from moesim.scenario import Scenario, SLOSpec
from moesim.serving_cost.capacity import (
    LEAST_REQUESTS,
    TOO_FEW,
    Simulate,
    at_rate,
    capacity,
    judge,
    one_replica,
    rate_of,
    runner,
)
from moesim.strain_causes import binds_at, loaded_steps
from moesim.uncertainty.within_run import value_at

# Requests of every run; as many times more where these do not fill a replica, up to the most.
REQUESTS = 600
MORE = 4
MOST_REQUESTS = 10_000
TOLERANCE = 0.1
# Where no objective is given, the only one: the backlog must not grow.
ANY_LATENCY_S = 1e9
SAYS = {
    "kv memory": "prompts wait for KV memory",
    "prefill queue": "prompts wait for a place in the token budget of steps",
    "batch limit": "requests wait because as many run as the engine allows",
    "prefill chunks": "steps that compute prompts hold up those that decode",
    "batch size": "steps grow with the requests that they decode for",
    "expert": "steps grow by waiting for the busiest expert rank",
    "attention rank": "steps grow by waiting for the slowest attention rank",
    "link": "steps grow by exchanges between GPUs",
    "host": "steps grow by the engine's own time",
    "overload": "requests come faster than they are served",
}


def breaking_point(
    scenario: Scenario,
    slo: SLOSpec | None = None,
    *,
    percentile: float = 99.0,
    requests: int = REQUESTS,
    run: Simulate | None = None,
    progress: Callable[[int], None] | None = None,
) -> Strain:
    """The load at which a scenario's deployment breaks its objective, and why.

    Today's load is the scenario's rate of arrivals, its replicas with equal shares of it. Without
    limits in the scenario and `slo`, only a backlog that grows breaks the deployment. About eight
    runs of `requests` requests. Raises InputError as `moesim.serving_cost.capacity.capacity` does:
    without a rate of arrivals, for example. Where so few requests do not fill a replica, MORE times
    as many are tried, up to MOST_REQUESTS.
    """
    one, objective = _prepared(scenario, slo, percentile)
    today = rate_of(scenario) / scenario.deployment.replicas
    while True:
        one = _of_requests(one, requests)
        recorder = _Recorder(run or runner(one))
        recorder(at_rate(one, today))
        try:
            capacity(
                at_rate(one, today),
                percentile=percentile,
                tolerance=TOLERANCE,
                run=recorder,
                progress=progress,
            )
            break
        except InputError as error:
            if error.rule != TOO_FEW or MORE * requests > MOST_REQUESTS:
                raise
            requests *= MORE
    points = tuple(
        _point(result, rate, today, percentile) for rate, result in sorted(recorder.runs.items())
    )
    kept = max((point.factor for point in points if not point.missed), default=0.0)
    first = next(point for point in points if point.missed and point.factor > kept)
    result = recorder.runs[first.rate_per_s]
    lighter = recorder.runs[min(min(recorder.runs), today)]
    deployment = deploy(one.pools()[-1][1])
    strain = Strain(
        binds=binds_at(result, lighter, deployment),
        factor=first.factor,
        kept_factor=kept,
        objective=objective,
        points=points,
        sentence="",
        failure=failure_words(scenario),
        notes=_notes(one, scenario),
        requests=one.workload.requests or 0,
    )
    return replace(strain, sentence=_sentence(strain, result, deployment))


@dataclass
class _Recorder:
    """Runs each rate once and keeps what came of it."""

    run: Simulate
    runs: dict[float, Result] = field(default_factory=dict)

    def __call__(self, scenario: Scenario) -> Result:
        rate = rate_of(scenario)
        if rate not in self.runs:
            self.runs[rate] = self.run(scenario)
        return self.runs[rate]


def _prepared(scenario: Scenario, slo: SLOSpec | None, percentile: float) -> tuple[Scenario, str]:
    """One replica with an objective, and the objective in words."""
    from moesim.report.words import duration

    one = one_replica(scenario, slo)
    words = []
    for name, of_class in limits(one).items():
        for column, limit in of_class.items():
            if limit is not None:
                of = f" of {name}" if name else ""
                metric = column.removesuffix("_s").upper()
                words.append(f"{metric}{of} at most {duration(limit)} for {percentile:g} %")
    if words:
        return one, "; ".join(words)
    slo = SLOSpec(e2e_s=ANY_LATENCY_S)
    return one.model_copy(update={"slo": slo}), "the backlog must not grow"


def _of_requests(one: Scenario, requests: int) -> Scenario:
    workload = one.workload.model_copy(update={"requests": max(LEAST_REQUESTS, requests)})
    return one.model_copy(update={"workload": workload})


def _point(result: Result, rate: float, today: float, percentile: float) -> LoadPoint:
    steps, summary = loaded_steps(result), result.summary
    decoding = steps[steps["decode_tokens"] > 0]["decode_tokens"]
    return LoadPoint(
        factor=rate / today,
        rate_per_s=rate,
        ttft_p99_s=value_at(summary, "ttft_s.p99"),
        tpot_p99_s=value_at(summary, "tpot_s.p99"),
        kv_used=float(np.percentile(steps["kv_used_fraction"], 99)) if steps.size else 0.0,
        waiting=float((steps["waiting"] > 0).mean()) if steps.size else 0.0,
        preemptions=int(result.raw.requests["preemptions"].sum()),
        decode_batch=float(decoding.mean()) if decoding.size else 0.0,
        missed=judge(result, percentile),
    )


def _of_what(binds: str, result: Result, deployment: Deployment) -> str:
    """Which expert rank or link it is."""
    from moesim.report.words import significant

    if binds == "expert" and result.raw.rank_tokens_LR.size:
        tokens_LR = result.raw.rank_tokens_LR
        mean_L1 = np.maximum(tokens_LR.mean(axis=1, keepdims=True), 1e-300)
        layer, rank = np.unravel_index(int((tokens_LR / mean_L1).argmax()), tokens_LR.shape)
        times = significant(float((tokens_LR / mean_L1).max()))
        of = deployment.model.moe_layers[layer]
        return f" (most in layer {of}: rank {rank} has {times} times the mean rank's tokens)"
    if binds == "link":
        far = result.raw.steps["scale_out_bytes"].sum() > 0.0
        return f" ({(deployment.cluster.scale_out if far else deployment.cluster.scale_up).name})"
    return ""


def _sentence(strain: Strain, result: Result, deployment: Deployment) -> str:
    from moesim.report.words import duration, significant

    first = next(point for point in strain.points if point.factor == strain.factor)
    how = SAYS[strain.binds] + _of_what(strain.binds, result, deployment)
    latency = ""
    for name, value in (("TTFT", first.ttft_p99_s), ("TPOT", first.tpot_p99_s)):
        if value is not None and any(name in each for each in first.missed):
            latency += f"; {name} p99 is {duration(value)}"
    missed = f"{first.missed[0]}{latency}"
    if strain.kept_factor == 0.0:
        return (
            f"No load keeps the objective: at {significant(first.factor)} times today's, where "
            f"requests are served alone, {missed}."
        )
    at = significant(first.factor, 3)
    kept = f"at {significant(strain.kept_factor, 3)} times it is kept"
    if strain.factor < 1.0:
        today = next(point for point in strain.points if point.factor == 1.0)
        return (
            f"Today's load already breaks the objective ({'; '.join(today.missed)}). It breaks "
            f"from {at} times today's: {how} ({missed}); {kept}."
        )
    return (
        f"At {at} times today's load ({significant(first.rate_per_s)} arrivals a second and "
        f"replica) {how}: {missed}; {kept}."
    )


def failure_words(scenario: Scenario) -> str:
    """What losing one GPU takes away, from the deployment's shape."""
    said = []
    elastic = scenario.faults is not None and scenario.faults.recovery == "elastic"
    for name, of in scenario.pools():
        gpus, replicas = deploy(of).sharding.gpus, of.deployment.replicas
        where = f" of the {name} pool" if name else ""
        if elastic and gpus > 1:
            said.append(
                f"One lost GPU{where}: its replica of {gpus} goes on without its rank "
                "(faults.recovery is elastic), more slowly and with less KV memory"
            )
        elif replicas == 1:
            all_of = f"stops all {gpus} GPUs{where}" if gpus > 1 else f"stops all{where}"
            said.append(
                f"One lost GPU {all_of}: there is one replica, and nothing is served until it "
                "has restarted"
            )
        else:
            together = f", {gpus} GPUs that work in step," if gpus > 1 else ""
            said.append(
                f"One lost GPU{where} stops its replica{together} and takes "
                f"{1.0 / replicas:.0%} of the capacity until that has restarted"
            )
    return "; ".join(said) + "."


def _notes(one: Scenario, scenario: Scenario) -> tuple[str, ...]:
    replicas = scenario.deployment.replicas
    shared = f", its share of {replicas} taken as equal" if replicas > 1 else ""
    said = [
        f"one replica{shared}; {one.workload.requests} requests a run, the same at every load; "
        f"loads are told apart to {TOLERANCE:.0%}",
        "the front end takes a fixed time for a request, so that it never gives first",
    ]
    if scenario.faults is not None:
        said.append("faults of the scenario are left out")
    return tuple(said)
