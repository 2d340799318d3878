"""Which placement is recommended: by hand, from gains that are given."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from moesim.findings.placement import Candidate, Gain, StepKind
from moesim.what_if.gains import RESAMPLES, Ruler, Times
from moesim.what_if.recommending import headline, reasons, recommended, shown


@dataclass
class Tried:
    """What the rule looks at. `seconds` a step takes, `spread` of it over resampled sequences."""

    seconds: float
    redundant_experts: int = 0
    choice: str = "hash"
    policy: str = "eplb"
    spread: float = 0.001
    name: str = "tried"

    def times(self) -> Times:
        rng = np.random.default_rng(int(1e6 * self.seconds))
        resampled = rng.normal(self.seconds, self.spread, (RESAMPLES, 1))
        return Times([np.full(4, self.seconds)], [resampled])

    @property
    def next_window(self) -> Gain:
        now = Times([np.ones(4)], [np.ones((RESAMPLES, 1))])
        return RULER.gain(now, self.times())


RULER = Ruler((1.0,), [np.ones(4)])


def choose(*tried: Tried, redundant_now: int = 0) -> int | None:
    candidates = cast(Any, tried)
    return recommended(candidates, [each.times() for each in tried], RULER, redundant_now)


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ([], None),
        ([Tried(0.997)], None),  # 0.3 % is not worth it
        ([Tried(0.97, spread=0.1)], None),  # 3 %, but it may as well be a loss
        ([Tried(1.05), Tried(0.95)], 1),
        ([Tried(0.95), Tried(0.93)], 1),
        ([Tried(0.95), Tried(0.948, redundant_experts=8)], 0),  # slots for 0.2 %
        ([Tried(0.95), Tried(0.92, redundant_experts=8)], 1),
        ([Tried(0.92, redundant_experts=8), Tried(0.95)], 0),
        ([Tried(0.95), Tried(0.948, policy="swap")], 0),  # a search for 0.2 %
        ([Tried(0.95), Tried(0.93, policy="swap")], 1),
        ([Tried(0.95), Tried(0.93, policy="swap", spread=0.1)], 0),
        ([Tried(0.9, redundant_experts=8), Tried(0.898, redundant_experts=8, choice="lp")], 0),
        ([Tried(0.9, redundant_experts=8), Tried(0.8, redundant_experts=8, choice="lp")], 1),
        # Each step up is held against the last one taken, not against the present placement.
        ([Tried(0.95), Tried(0.93, policy="swap"), Tried(0.929, redundant_experts=8)], 1),
    ],
)
def test_more_has_to_be_worth_it(tried: list[Tried], best: int | None) -> None:
    assert choose(*tried) == best


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ([Tried(1.001)], 0),  # 0.1 % slower, for sure no more than 0.5 %
        ([Tried(1.02)], None),
        ([Tried(1.001, spread=0.1)], None),  # or much more
        ([Tried(1.001, redundant_experts=8)], None),  # as many as now
        ([Tried(0.97, redundant_experts=8), Tried(1.001)], 0),
    ],
)
def test_fewer_slots_need_not_gain(tried: list[Tried], best: int | None) -> None:
    assert choose(*tried, redundant_now=8) == best


def test_the_present_placement_is_none_of_the_others() -> None:
    present = cast(Candidate, Tried(1.0, name="eplb, 8 redundant experts", redundant_experts=8))
    assert reasons(None, present, [present], ()) == ()
    fewer = cast(Candidate, Tried(1.001, name="eplb"))
    assert "with fewer redundant experts (0, now 8)" in headline(fewer, present, 7.0)
    said = reasons(None, present, [present, fewer], ())
    assert said == (f"The best of the others, eplb, gains {shown(fewer.next_window)}.",)


def test_the_headline_says_why_nothing_is_taken() -> None:
    present = cast(Candidate, Tried(1.0, name="contiguous"))
    assert headline(None, present, 0.4) == (
        "Keep what you have (contiguous): even perfect balance would gain only 0.4 % over it."
    )
    assert (
        "perfect balance, which whole experts rarely reach, would gain 7.0 % over it"
        in headline(None, present, 7.0)
    )
    taken = cast(Candidate, Tried(0.9, name="eplb"))
    assert headline(taken, present, 20.0).startswith(
        "Take eplb: routed experts take 10.0 % less time than under contiguous (95 % interval "
    )


def test_the_optimum_is_told_only_where_something_searched() -> None:
    kind = StepKind("decode 8 a rank", False, 32, 1.0, 7.0)
    score = SimpleNamespace(against_eplb=Gain(0.0, 0.0, 0.0), balanced_s=0.9, layer_s=1.0)

    def tried(policy: str) -> Any:
        each = Tried(0.9, policy=policy)
        each.scores = (score,)  # type: ignore[attr-defined]
        return each

    present = cast(Candidate, Tried(1.0, name="now"))
    without = reasons(None, present, [tried("eplb"), tried("contiguous")], [kind])
    assert not any("optimum" in said for said in without)
    searched = reasons(None, present, [tried("eplb"), tried("swap")], [kind])
    assert "perfect balance would gain 10.0 % over EPLB" in " ".join(searched)
