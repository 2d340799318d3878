"""What a placement study says: yes and no only where intervals allow, warnings of load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from moesim.placement.advice import Advice
from moesim.placement.score import Estimate
from moesim.placement_findings import Candidate, Gain
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
