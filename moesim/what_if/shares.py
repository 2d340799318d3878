"""Shares of routed-expert time by kind of step, where no run has said them."""

from __future__ import annotations

from moesim.placement.placement import Placement
from moesim.placement.policies import contiguous
from moesim.what_if.scoring import play
from moesim.what_if.setting import Kind, Setting
from moesim.workload.demand import DemandStreams, draw_demand


def shares_by_demand(setting: Setting, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Kinds of step with shares of expert time: the demand's tokens, in steps of these sizes, each
    priced by replay at experts in order of their numbers."""
    if len(kinds) == 1:
        return kinds
    demand = draw_demand(setting.scenario.workload, DemandStreams.from_seed(setting.scenario.seed))
    slots = setting.experts + (-setting.experts) % setting.ranks
    table_LP = contiguous(setting.ids_TLK.shape[1], setting.experts, slots, setting.ranks)
    some = setting.workloads(kinds, setting.fit_S, 0)
    played = play(Placement(table_LP, setting.ranks), some, "hash", setting.domain_of_rank_R)
    times = []
    for kind, seconds_D in zip(kinds, played.seconds, strict=True):
        tokens = demand.prompt_tokens if kind.prompts else demand.output_tokens
        times.append(float(tokens.sum()) / kind.tokens * float(seconds_D.mean()))
    return tuple(
        Kind(kind.name, kind.prompts, kind.tokens, time_s / sum(times), kind.law)
        for kind, time_s in zip(kinds, times, strict=True)
    )
