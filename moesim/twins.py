"""The same demand on dense models as large as a Mixture of Experts: what its experts change.

The twin (moesim.dense_twin) runs on the scenario's kind of GPU, with the least power of two of
tensor parallelism that holds it and 32 requests; as many replicas of that as make the scenario's
GPUs, so that a GPU has the same load where these divide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moesim.dense_twin import TWIN_KINDS, TwinKind
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.findings.attribution import Twin
from moesim.findings.estimates import HEADLINES
from moesim.model import load_model, twin_name
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.serving_cost.offers import dense_scenario
from moesim.sim.state import STEP_PARTS
from moesim.simulation import simulate
from moesim.uncertainty.over_seeds import figures_of, over_seeds, with_seed
from moesim.uncertainty.steady_state import Backlog
from moesim.workload.demand import DemandStreams, draw_demand

Simulate = Callable[[Scenario], Result]

# What makes the steps of a MoE unlike one another, and a dense model's: parts of a step.
REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reading and computing the experts that its batch chose", ("experts_s", "expert_miss_s")),
    ("waiting for the busiest expert rank", ("expert_imbalance_s",)),
    ("sending tokens to their experts and back", ("dispatch_s", "combine_s")),
    ("waiting for the slowest attention rank", ("attention_imbalance_s",)),
    ("attention and dense layers", ("attention_s", "dense_s", "draft_s")),
    ("all-reduces and hops between stages", ("all_reduce_s", "pipeline_s")),
    ("the engine's own time", ("overhead_s",)),
)


def twin_scenario(scenario: Scenario, kind: TwinKind) -> Scenario:
    """The scenario with its model's dense twin.

    Raises InputError for a dense model, or a twin that does not fit the scenario's cluster.
    """
    demand = draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    tokens = float(demand.prompt_tokens.mean() + demand.output_tokens.mean())
    found = dense_scenario(scenario, twin_name(scenario.model, kind), tokens)
    tp = found.deployment.parallelism.attention_tp
    replicas = max(1, gpus_of(scenario) // tp)
    update = {
        "name": f"{found.model}, {replicas} x {tp} GPU{'s' * (replicas * tp > 1)}",
        "deployment": found.deployment.model_copy(update={"replicas": replicas}),
    }
    return found.model_copy(update=update)


def gpus_of(scenario: Scenario) -> int:
    """GPUs that a scenario pays for, all pools and replicas."""
    return sum(deploy(of).sharding.gpus * of.deployment.replicas for _, of in scenario.pools())


def study_twins(
    scenario: Scenario,
    kinds: Sequence[TwinKind] = TWIN_KINDS,
    *,
    seeds: Sequence[int] = (0,),
    run: Simulate | None = None,
) -> tuple[Twin, ...]:
    """Both models under the same demand, once for each seed; () for a dense model.

    A twin that does not fit the cluster is left out. `run` takes the place of a simulation.
    """
    if not load_model(scenario.model).is_moe:
        return ()
    chosen = []
    for kind in kinds:
        try:
            chosen.append((kind, twin_scenario(scenario, kind)))
        except InputError:
            continue
    simulated = run or (lambda of: simulate(of, provenance=False))
    own = [simulated(with_seed(scenario, seed)) for seed in seeds] if chosen else []
    return tuple(
        compare_twin(own, [simulated(with_seed(of, seed)) for seed in seeds], kind)
        for kind, of in chosen
    )


def compare_twin(own: Sequence[Result], twins: Sequence[Result], kind: TwinKind) -> Twin:
    """What finished runs, paired by seed, say of the twin."""
    first = twins[0]
    model = load_model(first.scenario.model)
    values = figures_of([of.summary for of in twins], HEADLINES)
    return Twin(
        kind=kind,
        model=model.name,
        parameters=model.parameters().total,
        gpus=first.gpus,
        figures={path: over_seeds(each) for path, each in values.items()},
        sentence=_sentence(own, twins, kind),
        requests=len(own[0].requests),
        seeds=len(own),
    )


def _sentence(own: Sequence[Result], twins: Sequence[Result], kind: TwinKind) -> str:
    from moesim.report.words import money

    name = load_model(own[0].scenario.model).name
    mine, theirs = (_figures(runs) for runs in (own, twins))
    said = [_varies(name, kind, metric, mine, theirs) for metric in ("ITL", "TTFT")]
    said = [each for each in said if each]
    if not said:
        return f"Neither {name} nor a dense model of the same {kind} size has latencies to compare."
    because = step_causes(own)
    if because and said[0].startswith("ITL"):
        said[0] = f"{said[0][:-1]}; of the variance of its own steps {because}."
    gpus = (own[0].gpus, twins[0].gpus)
    of = twins[0].scenario.deployment
    on = f"{gpus[1]} GPU{'s' * (gpus[1] > 1)}"
    if of.replicas > 1:
        on += f" ({of.replicas} replicas of {of.parallelism.attention_tp})"
    fair = "as many" if gpus[0] == gpus[1] else f"{name} has {gpus[0]}"
    said.append(f"The dense model runs on {on}, {fair}.")
    if any(Backlog.of(of.requests).grows for of in twins):
        said.append("It does not keep up with this demand: a longer run would be slower still.")
    costs = [each.get("cost.usd_per_million_output_tokens") for each in (mine, theirs)]
    if costs[0] is not None and costs[1] is not None:
        said.append(
            f"A million output tokens cost {money(costs[0])} against {money(costs[1])} at this "
            "load."
        )
    return " ".join(said)


def _figures(runs: Sequence[Result]) -> dict[str, float]:
    found = figures_of([of.summary for of in runs], HEADLINES)
    return {path: float(np.mean(values)) for path, values in found.items()}


def _varies(
    name: str, kind: str, metric: str, mine: dict[str, float], theirs: dict[str, float]
) -> str:
    """How much more one latency varies; "" where there is none."""
    from moesim.report.words import duration, significant

    paths = [f"{metric.lower()}_s.{statistic}" for statistic in ("mean", "std")]
    if not all(path in of for of in (mine, theirs) for path in paths):
        return ""
    (mean, std), (other_mean, other_std) = ([of[path] for path in paths] for of in (mine, theirs))
    if min(mean, other_mean, std, other_std) <= 0.0:
        return ""
    cv, other = std / mean, other_std / other_mean
    than = f"as on a dense model of the same {kind} size" if metric == "ITL" else "as there"
    of = f" of {name}" if metric == "ITL" else ""
    return (
        f"{metric}{of} varies {significant(cv / other)} times as much {than} (CV "
        f"{significant(cv)} against {significant(other)}; mean {duration(mean)} against "
        f"{duration(other_mean)}, standard deviation {duration(std)} against "
        f"{duration(other_std)})."
    )


def step_causes(runs: Sequence[Result], most: int = 2) -> str:
    """The parts of a step with the most of the variance of its duration, as gaps between tokens see
    it: steps weighed by the tokens that they decode. A part's share is its covariance with the
    duration over the variance; shares of all parts sum to 1.
    """
    from moesim.report.words import percent

    shares = np.mean([part_shares(of) for of in runs], axis=0)
    if not np.isfinite(shares).all():
        return ""
    at = {part: i for i, part in enumerate(STEP_PARTS)}
    grouped = [(sum(shares[at[part]] for part in parts), words) for words, parts in REASONS]
    largest = sorted(grouped, reverse=True)[:most]
    said = [f"{percent(share)} is {words}" for share, words in largest if share > 0.05]
    return " and ".join(said)


def part_shares(result: Result) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[parts] of the variance of steps' durations, in the order of STEP_PARTS; NaN without."""
    steps = result.raw.steps
    steps = steps[steps["decode_tokens"] > 0]
    parts = np.array([steps[part] for part in STEP_PARTS])
    if not steps.size:
        return np.full(len(STEP_PARTS), np.nan)
    weights = steps["decode_tokens"] / steps["decode_tokens"].sum()
    off = parts - (parts @ weights)[:, None]
    whole = off.sum(axis=0)
    variance = float(weights @ (whole * whole))
    if variance <= 0.0:
        return np.full(len(STEP_PARTS), np.nan)
    return np.asarray((off * whole) @ weights / variance)
