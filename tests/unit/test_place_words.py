"""What a placement study says: yes and no only where intervals allow, warnings of load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from moesim.findings.placement import AgePoint, Candidate, Gain, PlacementFindings, RedundancyPoint
from moesim.placement.advice import Advice
from moesim.placement.score import Estimate
from moesim.report.place_words import ages_differ, redundancy_title
from moesim.what_if.counsel import answer, contradicted
from moesim.what_if.strain import load_notes


def advice(mean: float, half: float) -> Advice:
    return Advice("eplb", Estimate(mean, mean - half, mean + half), 0.9, 12.0)


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (5.0, 2.0, "Yes: it saves 5.0 % of routed-expert time (3.0 to 7.0)"),
        (-5.0, 2.0, "No: it costs 5.0 % of routed-expert time (3.0 to 7.0)."),
        (1.5, 2.0, "Perhaps: +1.5 % of routed-expert time saved (-0.5 to +3.5 %)"),
        (-1.5, 2.0, "Perhaps: -1.5 % of routed-expert time saved (-3.5 to +0.5 %)"),
        (0.2, 2.0, "About nothing: -1.8 to +2.2 % of routed-expert time saved"),
    ],
)
def test_yes_and_no_only_where_the_interval_excludes_the_other(
    mean: float, half: float, said: str
) -> None:
    told = answer(advice(mean, half), "experts in order")
    assert told.startswith(said)
    assert told.startswith("No") or "would save 12.0 % over experts in order" in told


@pytest.mark.parametrize(
    ("mean", "replayed", "said"),
    [
        (5.0, Gain(-2.0, -3.0, -1.0), "the answer is no, -2.0 % (-3.0 to -1.0): trust this"),
        (-5.0, Gain(2.0, 1.0, 3.0), "the answer is yes, +2.0 % (+1.0 to +3.0): trust this"),
        (5.0, Gain(2.0, 1.0, 3.0), ""),
        (5.0, Gain(-2.0, -5.0, 1.0), ""),
        (1.0, Gain(-2.0, -3.0, -1.0), ""),
        (5.0, Gain(-2.0), ""),
        (5.0, None, ""),
    ],
)
def test_replay_is_told_where_it_says_the_contrary(
    mean: float, replayed: Gain | None, said: str
) -> None:
    told = contradicted(advice(mean, 2.0), replayed)
    assert said in told
    assert bool(said) == bool(told)


def test_an_overloaded_run_is_told() -> None:
    def ran(summary: dict[str, Any] | None) -> Candidate:
        return cast(Candidate, SimpleNamespace(name="eplb", summary=summary))

    notes = ["overload: 90 requests", "short run: 40% of it", "routing: synthetic"]
    assert load_notes(ran(None)) == ()
    assert load_notes(ran({"notes": notes[2:], "slo_attainment": None})) == ()
    assert load_notes(ran({"notes": notes, "slo_attainment": 0.62})) == (
        "run of eplb: overload: 90 requests",
        "run of eplb: short run: 40% of it",
        "run of eplb: only 62% of requests are within their limits",
    )


def test_only_slots_that_can_be_configured_are_praised() -> None:
    def title(*points: tuple[float, float]) -> str:
        curve = [
            RedundancyPoint("eplb", extra, extra, Gain(gain), int(1000 - 100 * extra))
            for extra, gain in points
        ]
        return redundancy_title(cast(PlacementFindings, SimpleNamespace(redundancy=curve)))

    nothing = "Copies bring nothing here that would pay for their memory"
    assert title((0.0, 1.0), (0.125, 9.0), (1.0, 1.2)) == nothing
    assert title((0.0, 1.0), (0.5, 9.0), (1.0, 5.0), (2.0, 5.2)) == (
        "eplb gains 5.0 % with one extra slot a rank, 1.0 % at most with none, for 100 tokens of "
        "KV cache"
    )


@pytest.mark.parametrize(("slower", "differ"), [([0.1, -0.3, 0.4], False), ([0.1, 1.5], True)])
def test_ages_within_chance_are_not_drawn(slower: list[float], differ: bool) -> None:
    ages = [AgePoint(1000, 0.1 + 0.1 * n, each) for n, each in enumerate(slower)]
    fresh = AgePoint(100, 0.0, 30.0)
    study = SimpleNamespace(ageing=[fresh, *ages])
    assert ages_differ(cast(PlacementFindings, study)) is differ
