"""Placements on real routing: fitted on the first half of each domain's sequences, scored on the
rest, in predicted time of routed experts' layers.

The law is that of a large expert (a study on real traces, 2026-11: 220 tokens' work for one
expert's read, soft corner p = 1.7). Gain of A over B in percent: 100 (1 - t_A / t_B). Nothing here
is tuned on the scoring half: policies see the fitting half alone.

Legend: L MoE layers, E experts, P slots, R ranks, X domains.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import routing_table
from moesim.placement.batches import Batches, decode_batches, halves, prefill_batches
from moesim.placement.catalogue import POLICIES
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import one_corner
from moesim.placement.placement import Placement
from moesim.placement.replay import replay
from moesim.placement.replica_counts import packed
from moesim.placement.task import PlacementTask, Workload
from moesim.routing.importers import import_npz
from moesim.routing.settings import SynthesisSettings
from moesim.routing.synthesis import synthesise
from moesim.routing.trace import RoutingTrace

pytestmark = pytest.mark.slow

ACTIVE_S = 6.34e-6
BIG = one_corner(ACTIVE_S, ACTIVE_S / 220, 1.5 * ACTIVE_S)
FIT_STEPS, FIT_TOKENS, SCORE_STEPS = 256, 40_000, 48
PHASES = ("d8", "d32", "d128", "p512", "p4096")  # decode tokens a rank, prefill tokens in all
# gpt-oss's sequences are labelled by 80 examination subjects: these make areas of some size.
AREAS = {
    "mathematics": "abstract_algebra college_mathematics elementary_mathematics math "
    "high_school_mathematics high_school_statistics",
    "law": "professional_law international_law jurisprudence law",
    "history": "high_school_european_history high_school_us_history high_school_world_history "
    "prehistory history",
    "medicine": "anatomy clinical_knowledge college_medicine professional_medicine "
    "medical_genetics virology health",
    "physics": "college_physics conceptual_physics high_school_physics physics astronomy",
}

Layered = tuple[RoutingTrace, NDArray[Any]]


@pytest.fixture(scope="module")
def routing(shared_data: Path) -> Path:
    return shared_data / "routing"


@functools.cache
def trace(name: str, folder: Path | None) -> Layered:
    """A trace and the layers of it that are looked at."""
    if name == "synthetic":
        rng = np.random.default_rng(0)
        settings = SynthesisSettings(strength=3.0, topics=1)
        drawn = synthesise(settings, 7, 256, 8, 240, (0, 100), rng)
        return drawn, drawn.ids_TLK
    assert folder is not None
    if name == "v2-lite":
        found = routing_table.deepseek_v2_lite(folder)
    elif name == "gpt-oss":
        found = routing_table.gpt_oss(folder)
    else:
        found = by_area(folder)
    return found, np.ascontiguousarray(found.ids_TLK[:, ::2])


def by_area(folder: Path) -> RoutingTrace:
    files = [folder / f"gptoss_20b_ids_0{shard}.npz" for shard in range(3)]
    labelled = import_npz(
        files, model="gpt-oss-20b", phase="decode", index=folder / "gptoss_20b_index.json"
    )
    area = {subject: i for i, names in enumerate(AREAS.values()) for subject in names.split()}
    part = labelled.subset(labelled.select([name for name in area if name in labelled.domains]))
    area_S = np.array([area[part.domains[domain]] for domain in part.domain_S], np.uint16)
    return replace(part, domains=tuple(AREAS), domain_S=area_S)


def batches(
    found: Layered, phase: str, ranks: int, half: int, steps: int, by_domain: bool = False
) -> Batches:
    """Steps of the half to fit on (0) or to score on (1)."""
    routed, ids_TLK = found
    kind, size = phase[0], int(phase[1:])
    rng = np.random.default_rng([half, ranks, size, by_domain])
    make = decode_batches if kind == "d" else prefill_batches
    tokens = size * ranks if kind == "d" else size
    return make(routed, ids_TLK, halves(routed)[half], tokens, steps, rng, by_domain)


def seconds(
    slot_expert_LP: NDArray[np.int32], scored: Batches, ranks: int, choice: str = "hash"
) -> float:
    return float(replay(Placement(slot_expert_LP, ranks), scored, BIG, choice).layer_s.mean())


def gain(new_s: float, old_s: float) -> float:
    return 100.0 * (1.0 - new_s / old_s)


def place(fit: Batches, ranks: int, extra: int, policy: str, choice: str) -> NDArray[np.int32]:
    task = PlacementTask(
        (Workload(fit, BIG),), fit.experts, fit.experts + extra, np.zeros(ranks, np.int32),
        choice=choice,
    )  # fmt: skip
    return POLICIES[policy](task)


@functools.cache
def cell(name: str, folder: Path | None, ranks: int, phase: str) -> dict[str, float]:
    """Seconds of EPLB without copies, with one extra slot a rank filled, and of the portfolio."""
    found = trace(name, folder)
    tokens = int(phase[1:]) * (ranks if phase[0] == "d" else 1)
    fit = batches(found, phase, ranks, 0, max(FIT_STEPS, -(-FIT_TOKENS // tokens)))
    load_LE = fit.load_LE()
    scored = batches(found, phase, ranks, 1, SCORE_STEPS)
    slots = fit.experts + ranks
    single_LP, filled_LP = (packed(load_LE, extra, slots, ranks) for extra in (0, ranks))
    portfolio_LP = place(fit, ranks, ranks, "portfolio", "lp")
    return {
        "eplb": seconds(single_LP, scored, ranks),
        "eplb filled": seconds(filled_LP, scored, ranks),
        "eplb filled, lp": seconds(filled_LP, scored, ranks, "lp"),
        "portfolio": seconds(portfolio_LP, scored, ranks, "lp"),
    }


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("v2-lite", (4, 8, 16, 32)), ("gpt-oss", (4, 8, 16)), ("synthetic", (4, 8, 16, 32))],
)
def test_never_worse_than_the_better_eplb(
    name: str, sizes: tuple[int, ...], phase: str, request: pytest.FixtureRequest
) -> None:
    """At most 0.5 % slower than EPLB without copies and with them, chosen by hash or by LP."""
    folder = None if name == "synthetic" else request.getfixturevalue("routing")
    for ranks in sizes:
        found = cell(name, folder, ranks, phase)
        least_s = min(found["eplb"], found["eplb filled"], found["eplb filled, lp"])
        print(f"{name} EP{ranks} {phase}: {gain(found['portfolio'], least_s):.2f}")
        assert gain(found["portfolio"], least_s) > -0.5, (name, ranks, phase)


@pytest.mark.parametrize("name", ["v2-lite", "gpt-oss"])
def test_decode_with_an_extra_slot_a_rank(routing: Path, name: str) -> None:
    """Copies that need not be read are not made: what EPLB loses by filling every slot."""
    for ranks, target in ((8, 9.0), (16, 14.0)):
        found = cell(name, routing, ranks, "d32")
        print(f"{name} EP{ranks}: {gain(found['portfolio'], found['eplb filled']):.2f}")
        assert gain(found["portfolio"], found["eplb filled"]) >= target, (name, ranks)


# Wanted were a study's figures on four domains of V2-Lite in 213 sequences. Of the three here, 173
# sequences, half of them fitted on, even a search on the scored steps themselves reaches 2.0, 3.0
# and 5.6 % without redundancy.
MISSED = pytest.mark.xfail(
    reason="fewer domains and sequences than the targets' study", strict=True
)


@pytest.mark.parametrize(
    ("name", "ranks", "target"),
    [
        pytest.param("v2-lite", 4, 3.0, marks=MISSED),  # 2.8
        pytest.param("v2-lite", 8, 4.5, marks=MISSED),  # 4.1
        pytest.param("v2-lite", 16, 6.5, marks=MISSED),  # 6.0
        ("gpt-oss", 4, 5.5),
        ("gpt-oss", 8, 9.0),
        ("gpt-oss", 16, 10.0),
    ],
)
def test_prefill_with_an_extra_slot_a_rank(
    routing: Path, name: str, ranks: int, target: float
) -> None:
    """Against EPLB with every slot filled and the choice by hash."""
    found = cell(name, routing, ranks, "p4096")
    won = gain(found["portfolio"], found["eplb filled"])
    print(f"{name} EP{ranks}: {won:.2f}")
    assert won >= target


@functools.cache
def swapped(name: str, folder: Path, ranks: int) -> tuple[float, float]:
    """What the swap search gains over EPLB in prefill without redundancy: fitted on what it may
    see, and on the scored steps themselves."""
    found = trace(name, folder)
    fit = batches(found, "p4096", ranks, 0, FIT_STEPS)
    scored = batches(found, "p4096", ranks, 1, 96)
    eplb_s = seconds(eplb(fit.load_LE(), fit.experts, 1, 1, ranks), scored, ranks)
    won, hindsight = (
        gain(seconds(place(steps, ranks, 0, "swap", "hash"), scored, ranks), eplb_s)
        for steps in (fit, scored)
    )
    print(f"{name} EP{ranks}: {won:.2f}, in hindsight {hindsight:.2f}")
    return won, hindsight


@pytest.mark.parametrize(
    ("name", "ranks", "target"),
    [
        pytest.param("v2-lite", 4, 2.0, marks=MISSED),  # 1.4
        pytest.param("v2-lite", 8, 3.0, marks=MISSED),  # 1.6
        ("v2-lite", 16, 3.5),
        ("gpt-oss", 4, 2.0),
        ("gpt-oss", 8, 3.5),
        ("gpt-oss", 16, 1.0),
    ],
)
def test_prefill_without_redundancy(routing: Path, name: str, ranks: int, target: float) -> None:
    assert swapped(name, routing, ranks)[0] >= target


@pytest.mark.parametrize("ranks", [4, 8, 16])
@pytest.mark.parametrize("name", ["v2-lite", "gpt-oss"])
def test_the_search_gets_nearly_half_of_hindsight(routing: Path, name: str, ranks: int) -> None:
    won, hindsight = swapped(name, routing, ranks)
    assert won >= 0.45 * hindsight


@pytest.mark.parametrize(("name", "ranks"), [("v2-lite", 8), ("v2-lite", 16), ("gpt-oss", 8)])
def test_decode_without_redundancy_has_no_head_room(routing: Path, name: str, ranks: int) -> None:
    """EPLB is at the optimum there, and the search does not pretend otherwise."""
    found = trace(name, routing)
    fit, scored = (batches(found, "d32", ranks, half, FIT_STEPS) for half in (0, 1))
    eplb_s = seconds(eplb(fit.load_LE(), fit.experts, 1, 1, ranks), scored, ranks)
    for policy in ("swap", "portfolio"):
        won = gain(seconds(place(fit, ranks, 0, policy, "hash"), scored, ranks), eplb_s)
        assert -0.3 < won < 1.0


@pytest.mark.parametrize("phase", ["d128", "p2048"])
@pytest.mark.parametrize("ranks", [8, 16])
@pytest.mark.parametrize(("name", "target"), [("v2-lite", 0.8), ("gpt-oss by area", 0.6)])
def test_one_placement_for_known_domains(
    routing: Path, name: str, target: float, ranks: int, phase: str
) -> None:
    """Steps of one domain each, fitted on likewise: of what a placement for each domain would gain
    over EPLB on all of them pooled, one placement for all gets most."""
    found = trace(name, routing)
    domains = len(found[0].domains)
    pooled = batches(found, phase, ranks, 0, 128)
    stratified = batches(found, phase, ranks, 0, 64 * domains, by_domain=True)
    scored = batches(found, phase, ranks, 1, 32 * domains, by_domain=True)

    def of(batch: Batches, domain: int) -> Batches:
        return batch.take(np.flatnonzero(batch.domain_D == domain))

    def balanced(batch: Batches) -> NDArray[np.int32]:
        return eplb(batch.load_LE(), batch.experts, 1, 1, ranks)

    pooled_s = seconds(balanced(pooled), scored, ranks)
    own_s = np.mean(
        [seconds(balanced(of(stratified, x)), of(scored, x), ranks) for x in range(domains)]
    )
    one_s = seconds(place(stratified, ranks, 0, "swap", "hash"), scored, ranks)
    own, one = gain(float(own_s), pooled_s), gain(one_s, pooled_s)
    print(f"{name} EP{ranks} {phase}: one {one:.2f}, own {own:.2f}, recovered {one / own:.2f}")
    assert one >= target * own
