"""The slowest steps of a run, and what bound each: prompts, contexts, experts, links, the host.

A step is compared with typical ones, the middle tenth of its group by duration. Each part of its
time belongs to one cause, so that the causes' shares of the time beyond typical steps sum to 1:

    waiting for the busiest expert rank, for experts outside GPU memory  -> expert, expert miss
    dispatch, combine, all-reduces, hops between stages                  -> link
    the engine's own time                                                -> host
    waiting for the slowest attention rank    -> prefill chunk where that rank computes prompts,
                                                 else kv-heavy rank
    the mean rank's work    -> prefill chunk where the step has more prompt tokens than typical ones
                               by more than it has more decodes; in steps without prompts attention
                               beyond what more decodes explain -> kv-heavy rank; else batch

Which rank, layer, expert and link it was follows from making the run once more with a look at those
steps (moesim.looking).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.figures.pools import pool_of_replica
from moesim.findings.attribution import BOUNDS, SlowStep, SlowSteps, Where
from moesim.looking import Looker, Seen
from moesim.model import load_model
from moesim.results import Result
from moesim.sim.state import STEP_PARTS
from moesim.simulation import simulate

SHARE = 0.01
FEWEST_STEPS = 20  # fewer have no typical ones
FEWEST_PLAIN = 100  # of steps without prompts, to be looked at by themselves
MOST_SEEN = 200  # slow steps of a group that are looked at: the slowest
TYPICAL_SEEN = 50
ROUNDING = 1e-9

Steps = NDArray[Any]
Again = Callable[[Looker], Result]


def slow_steps(
    result: Result, *, look: bool = True, again: Again | None = None
) -> tuple[SlowSteps, ...]:
    """The slowest SHARE of all steps, and that of the steps without prompts where a run has both.

    `look` makes the run once more to find ranks, layers and experts: not in pools, whose steps are
    told apart by pool. `again` makes it where `simulate` was given more than the scenario (a
    placement, a demand, ...) and must hand the looker on. () where there are too few steps. Raises
    InputError where the second run is not the first.
    """
    groups = dict(_groups(result))
    looker = Looker(_looked_at(groups))
    if look and not result.raw.pools and looker.wanted:
        again = again or (lambda of: simulate(result.scenario, provenance=False, looker=of))
        if again(looker).raw.steps.tobytes() != result.raw.steps.tobytes():
            rule = "must be made again with all that the run was given, as again=FUNCTION"
            raise InputError("slow_steps", rule)
    layers = load_model(result.scenario.model).moe_layers
    return tuple(_study(name, steps, looker, layers) for name, steps in groups.items())


def _groups(result: Result) -> Iterator[tuple[str, Steps]]:
    """Steps with work that are compared with each other."""
    steps = result.raw.steps[result.raw.steps["dummy"] == 0]
    if result.raw.pools:
        pool = pool_of_replica(result.raw.pools)[steps["replica"]]
        named = {f"steps of the {each.name} pool": pool == each.name for each in result.raw.pools}
    else:
        named = {"all steps": np.ones(steps.size, np.bool_)}
        plain = steps["prefill_tokens"] == 0
        if FEWEST_PLAIN <= plain.sum() < steps.size:
            named["steps without prompts"] = plain
    for name, chosen in named.items():
        if chosen.sum() >= FEWEST_STEPS:
            yield name, steps[chosen]


def slowest(steps: Steps) -> Steps:
    """The slowest SHARE of steps, at least one, slowest first."""
    order = np.argsort(-steps["duration_s"], kind="stable")
    return np.asarray(steps[order[: max(1, math.ceil(SHARE * steps.size))]])


def typical(steps: Steps) -> Steps:
    """The middle tenth of steps by duration."""
    order = np.argsort(steps["duration_s"], kind="stable")
    first, stop = math.floor(0.45 * steps.size), math.ceil(0.55 * steps.size)
    return np.asarray(steps[order[first:stop]])


def _some_typical(steps: Steps) -> Steps:
    chosen = typical(steps)
    at = np.linspace(0, chosen.size - 1, min(TYPICAL_SEEN, chosen.size)).astype(int)
    return np.asarray(chosen[at])


def _looked_at(groups: dict[str, Steps]) -> Steps:
    chosen = []
    for steps in groups.values():
        chosen += [slowest(steps)[:MOST_SEEN], _some_typical(steps)]
    return np.concatenate(chosen) if chosen else np.zeros(0)


@dataclass(frozen=True)
class Typical:
    """Means over typical steps: parts of their time, and tokens."""

    parts: dict[str, float]
    prefill_tokens: float
    decode_tokens: float

    @classmethod
    def of(cls, steps: Steps) -> Typical:
        parts = {part: float(steps[part].mean()) for part in STEP_PARTS}
        tokens = (float(steps[f"{kind}_tokens"].mean()) for kind in ("prefill", "decode"))
        return cls(parts, *tokens)


def causes_of(step: Any, usual: Typical, seen: Seen | None) -> dict[str, float]:
    """Seconds beyond typical steps by cause (BOUNDS); they sum to what its parts exceed these by.

    Where nobody looked, the slowest attention rank of a step with prompts is taken to compute some.
    """
    more = {part: float(step[part]) - usual.parts[part] for part in STEP_PARTS}
    found = dict.fromkeys(BOUNDS, 0.0)
    found["expert"] = more["expert_imbalance_s"]
    found["expert miss"] = more["expert_miss_s"]
    found["link"] = sum(more[f"{part}_s"] for part in ("dispatch", "combine", "all_reduce"))
    found["link"] += more["pipeline_s"]
    found["host"] = more["overhead_s"]
    work = more["attention_s"] + more["dense_s"] + more["experts_s"] + more["draft_s"]
    prompts = step["prefill_tokens"] > 0
    on_chunk = prompts
    if seen is not None:
        on_chunk = seen.prompt_tokens_D[int(seen.attention_s_D.argmax())] > 0
    found["prefill chunk" if on_chunk else "kv-heavy rank"] += more["attention_imbalance_s"]
    decodes = float(step["decode_tokens"]) - usual.decode_tokens
    if prompts and step["prefill_tokens"] - usual.prefill_tokens >= decodes:
        found["prefill chunk"] += work
    elif prompts:
        found["batch"] += work
    else:
        explained = usual.parts["attention_s"] * max(0.0, decodes / max(1.0, usual.decode_tokens))
        longer = max(0.0, more["attention_s"] - explained)
        found["kv-heavy rank"] += longer
        found["batch"] += work - longer
    return found


def _study(name: str, steps: Steps, looker: Looker, layers: tuple[int, ...]) -> SlowSteps:
    from moesim.report import slow_step_words as words

    slow, usual_steps = slowest(steps), typical(steps)
    usual = Typical.of(usual_steps)
    seen = [looker.of(step) for step in slow]
    by_step = [causes_of(step, usual, each) for step, each in zip(slow, seen, strict=True)]
    seconds = np.array([list(each.values()) for each in by_step])  # [steps, causes]
    excess_s = float(seconds.sum())
    looked = [each for each in seen if each is not None]
    waiting_LR, layers_L = _waiting(looked, [looker.of(step) for step in usual_steps], layers)
    causes: list[SlowStep] = []
    places: dict[str, Where] = {}
    for i in np.argsort(-seconds.sum(axis=0), kind="stable"):
        bound = seconds.argmax(axis=1) == i
        share = float(seconds[:, i].sum()) / excess_s if excess_s > 0.0 else 0.0
        if abs(share) < ROUNDING and not bound.any():
            continue
        weights = np.maximum(seconds[:, i], 0.0)
        where = _where(BOUNDS[i], slow, seen, weights, waiting_LR, layers_L)
        places[BOUNDS[i]] = where
        told = words.cause_sentence(name, BOUNDS[i], share, where)
        text = words.where_words(BOUNDS[i], where)
        causes.append(SlowStep(BOUNDS[i], text, int(bound.sum()), share, told))
    made = SlowSteps(
        group=name,
        of=int(steps.size),
        steps=int(slow.size),
        threshold_s=float(slow["duration_s"][-1]),
        mean_s=float(slow["duration_s"].mean()),
        typical_s=float(usual_steps["duration_s"].mean()),
        causes=tuple(causes) if excess_s > 0.0 else (),
        waiting_LR=waiting_LR,
        layers_L=layers_L,
        sentence="",
        notes=words.notes(int(slow.size), len(looked)),
    )
    return words.with_sentence(made, places)


def _waiting(
    slow: list[Seen], usual: list[Seen | None], layers: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """[L, R] seconds over the mean rank, slow steps less typical ones; the layers' numbers."""
    of_slow = [each.expert_s_LR for each in slow if each.expert_s_LR.size]
    of_usual = [each.expert_s_LR for each in usual if each is not None and each.expert_s_LR.size]
    if not of_slow or not of_usual:
        return np.zeros((0, 0)), np.zeros(0, np.int32)
    over = [
        np.mean([one_LR - one_LR.mean(axis=1, keepdims=True) for one_LR in each], axis=0)
        for each in (of_slow, of_usual)
    ]
    return np.asarray(over[0] - over[1]), np.asarray(layers, np.int32)


def _where(
    bound_by: str,
    slow: Steps,
    seen: list[Seen | None],
    weights: NDArray[np.float64],
    waiting_LR: NDArray[np.float64],
    layers_L: NDArray[np.int32],
) -> Where:
    """Which rank, layers, experts or link had most of a cause, weighed by its seconds."""
    looked = [
        (each, weight)
        for each, weight in zip(seen, weights.tolist(), strict=True)
        if each is not None and weight > 0.0
    ]
    if bound_by == "batch":
        return Where(tokens=float(slow["decode_tokens"].mean()))
    if not looked:
        return Where()
    if bound_by in ("prefill chunk", "kv-heavy rank"):
        return _attention_rank(bound_by, looked)
    if bound_by == "link":
        rank, often = _most_often([(each.link_rank, weight) for each, weight in looked])
        far = sum(weight for each, weight in looked if each.far) > 0.5 * sum(weights)
        return Where(
            rank=rank,
            often=often,
            ranks=looked[0][0].expert_s_LR.shape[1],
            link="scale-out" if far else "scale-up",
        )
    if bound_by == "expert" and waiting_LR.size:
        return _hot_experts([each for each, _ in looked], layers_L)
    return Where()


def _attention_rank(bound_by: str, looked: list[tuple[Seen, float]]) -> Where:
    rank, often = _most_often(
        [(int(each.attention_s_D.argmax()), weight) for each, weight in looked]
    )
    ranks = looked[0][0].attention_s_D.size
    if bound_by == "prefill chunk":
        tokens = float(np.median([each.longest_chunk_D.max() for each, _ in looked]))
        return Where(rank=rank, often=often, ranks=ranks, tokens=tokens)
    longest = [each.longest_context_D[int(each.attention_s_D.argmax())] for each, _ in looked]
    return Where(rank=rank, often=often, ranks=ranks, tokens=float(np.median(longest)))


def _most_often(weighed: list[tuple[int, float]]) -> tuple[int, float]:
    """(the number with most of the weight, its share)."""
    total: dict[int, float] = {}
    for number, weight in weighed:
        total[number] = total.get(number, 0.0) + weight
    first = max(total, key=lambda number: (total[number], -number))
    return first, total[first] / max(sum(total.values()), 1e-300)


def _hot_experts(looked: list[Seen], layers_L: NDArray[np.int32]) -> Where:
    """The layers that wait longest for a rank, that rank, and its expert with most tokens."""
    looked = [each for each in looked if each.expert_s_LR.size]
    if not looked:
        return Where()
    over_SLR = np.array([each.expert_s_LR - each.expert_s_LR.mean(1, keepdims=True)
                         for each in looked])  # fmt: skip
    waiting_L = over_SLR.max(axis=2).sum(axis=0)
    order = np.argsort(-waiting_L, kind="stable")
    layer = int(order[0])
    of_rank = [(int(one_R.argmax()), float(one_R.max())) for one_R in over_SLR[:, layer]]
    rank, often = _most_often(of_rank)
    per_rank = looked[0].tokens_LP.shape[1] // over_SLR.shape[2]
    slots = slice(rank * per_rank, (rank + 1) * per_rank)
    tokens: dict[int, int] = {}
    for each in looked:
        held = zip(each.expert_LP[layer, slots], each.tokens_LP[layer, slots], strict=True)
        for expert, n in held:
            tokens[int(expert)] = tokens.get(int(expert), 0) + int(n)
    expert = max(tokens, key=lambda e: tokens[e])
    total = sum(int(each.tokens_LP[layer].sum()) for each in looked)
    return Where(
        rank=rank,
        often=often,
        ranks=over_SLR.shape[2],
        layers=tuple(int(layers_L[at]) for at in order[:2]),
        layer_share=float(waiting_L[order[0]] / max(waiting_L.sum(), 1e-300)),
        expert=expert,
        expert_share=tokens[expert] / max(1, total),
    )
