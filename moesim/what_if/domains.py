"""Placements fitted to one domain and served to another. Legend: S sequences, X domains served, Y
what was fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.findings.placement import DomainMatrix
from moesim.placement.batches import Batches
from moesim.placement.catalogue import POLICIES
from moesim.placement.task import PlacementPolicy, PlacementTask, Workload
from moesim.what_if.fitting import EPLB, HASH, fit_policy
from moesim.what_if.gains import Ruler
from moesim.what_if.scoring import play
from moesim.what_if.setting import DOMAIN, POOLED, Kind, Setting, Tell

MOST_DOMAINS = 8
FEWEST_SEQUENCES = 2  # of a domain, in each half
SEARCH = "swap"  # fitted to steps of one domain each
DOING = "gain by domain"


def shared_domains(setting: Setting) -> tuple[int, ...]:
    """Domains with sequences enough in both halves, those with most first, at most 8."""
    domains = len(setting.trace.domains)
    fit, score = (
        np.bincount(setting.trace.domain_S[np.unique(part)], minlength=domains)
        for part in (setting.fit_S, setting.score_S)
    )
    enough = [x for x in range(domains) if min(fit[x], score[x]) >= FEWEST_SEQUENCES]
    return tuple(sorted(enough, key=lambda x: (-fit[x], x))[:MOST_DOMAINS])


def domain_matrix(
    setting: Setting, kinds: tuple[Kind, ...], redundant: int, tell: Tell
) -> DomainMatrix | None:
    """EPLB fitted to each domain and to all pooled, and a swap search fitted to steps of one domain
    each, served to each domain; None where the trace has fewer than two domains."""
    domains = shared_domains(setting)
    if len(domains) < 2:
        return None
    trace, served, fits = setting.trace, [], []
    for n, x in enumerate(domains):
        fit_S, score_S = (
            part[trace.domain_S[part] == x] for part in (setting.fit_S, setting.score_S)
        )
        fits.append(setting.workloads(kinds, fit_S, DOMAIN + 2 * n))
        served.append(setting.workloads(kinds, score_S, DOMAIN + 2 * n + 1, fitted=False))
    rows = _rows(setting, kinds, domains, fits, redundant)
    placements = []
    for n, (name, policy, task) in enumerate(rows):
        tell(DOING, n, len(rows))
        placements.append(fit_policy(name, policy, task).placement)
    slower_YX = np.zeros((len(rows), len(domains)))
    for x, workloads in enumerate(served):
        times = [play(p, workloads, HASH, setting.domain_of_rank_R).seconds for p in placements]
        ruler = Ruler(tuple(kind.share for kind in kinds), times[x])
        slower_YX[:, x] = [-ruler.percent(times[x], other) for other in times]
    names = tuple(trace.domains[x] for x in domains)
    return DomainMatrix(EPLB, names, tuple(name for name, *_ in rows), slower_YX)


def _rows(
    setting: Setting,
    kinds: tuple[Kind, ...],
    domains: Sequence[int],
    fits: Sequence[tuple[Workload, ...]],
    redundant: int,
) -> list[tuple[str, PlacementPolicy, PlacementTask]]:
    """What is fitted: (name, policy, what it sees)."""
    trace, eplb = setting.trace, POLICIES[EPLB]
    rows = [
        (f"EPLB on {trace.domains[x]}", eplb, setting.task(fit, redundant, HASH))
        for x, fit in zip(domains, fits, strict=True)
    ]
    every_S = setting.fit_S[np.isin(trace.domain_S[setting.fit_S], domains)]
    pooled = setting.workloads(kinds, every_S, POOLED)
    rows.append(("EPLB on all, pooled", eplb, setting.task(pooled, redundant, HASH)))
    mixed = tuple(_joined(parts) for parts in zip(*fits, strict=True))
    task = setting.task(mixed, redundant, HASH)
    rows.append((f"{SEARCH} on all, step by step", POLICIES[SEARCH], task))
    return rows


def _joined(workloads: Sequence[Workload]) -> Workload:
    """Steps of several domains as one workload."""
    one = workloads[0]
    batches = Batches(
        one.batches.ids_TLK,
        np.concatenate([w.batches.rows_DN for w in workloads]),
        np.repeat(np.arange(len(workloads), dtype=np.int32), [w.batches.steps for w in workloads]),
        one.batches.experts,
    )
    return Workload(batches, one.law, one.weight, one.name)
