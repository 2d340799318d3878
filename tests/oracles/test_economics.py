"""Demand over a day, replicas and break-even volumes, against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.economics.api_prices import ApiPrice
from moesim.economics.curves import (
    BreakEven,
    CostCurve,
    always_on_curve,
    api_curve,
    break_even,
    by_hour_curve,
    cheaper,
)
from moesim.economics.day import day_presets, day_profile, find_profile, profile_from_times
from moesim.economics.replicas import Replica, Rules, fleet_day, replicas_for
from moesim.economics.token_split import input_share, per_million, prefill_time
from moesim.errors import InputError

FLAT = day_presets()["flat"]
HALF = day_profile("half", [2] * 12 + [0] * 12)
# 1 USD an hour; 24 tokens a second carry 86,400 tokens an hour, 2,073,600 a day.
REPLICA = Replica(usd_per_hour=1.0, tokens_per_s=24.0)
A_DAY = 24.0 * 86_400.0


def test_profiles_integrate_to_the_days_demand() -> None:
    for profile in day_presets().values():
        assert profile.relative_H.mean() == pytest.approx(1.0, rel=1e-12)
        assert profile.per_hour(1e9).sum() == pytest.approx(1e9 * profile.days, rel=1e-12)
        assert profile.source
        assert profile.date
        assert profile.night_over_mean <= 1.0 <= profile.peak_over_mean
    week = day_presets()["office-week"]
    assert week.relative_H.size == 7 * 24
    assert week.peak_over_mean > day_presets()["office-hours"].peak_over_mean


def test_peak_and_night_by_hand() -> None:
    profile = day_profile("hand", [3] * 8 + [1] * 16)  # mean 40 / 24
    assert profile.peak_over_mean == pytest.approx(1.8)
    assert profile.night_over_mean == pytest.approx(0.6)


def test_a_profile_from_times_counts_hours() -> None:
    """Two days: hour 3 has 4 and 2 arrivals, every other hour one."""
    hours = [*range(48), 3, 3, 3, 27]
    times = np.array(sorted(hours)) * 3600.0 + 1800.0
    profile = profile_from_times("two days", np.append(times, 48 * 3600.0 + 1800.0))
    assert profile.relative_H[3] == pytest.approx(3.0 / (26 / 24))
    assert profile.relative_H[4] == pytest.approx(1.0 / (26 / 24))
    assert profile.busiest_over_mean == pytest.approx(4.0 / (52 / 48))


def test_hours_recorded_twice_weigh_no_more() -> None:
    """A day and a half at an even rate is a flat day."""
    profile = profile_from_times("36 hours", (np.arange(36 * 10) + 0.5) * 360.0)
    assert profile.relative_H == pytest.approx(np.ones(24))


def test_a_record_of_an_hour_shows_no_day() -> None:
    with pytest.raises(InputError, match="over 23 hours or more"):
        profile_from_times("an hour", np.linspace(0, 3600, 100))
    with pytest.raises(InputError, match="over 23 hours or more"):
        profile_from_times("nothing", [])


@pytest.mark.parametrize("weights", [[1] * 23, [], [0] * 24, [-1] + [1] * 23, [np.nan] * 24])
def test_bad_profiles_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match=r"^profile must have"):
        day_profile("bad", weights)


def test_profiles_are_found_by_name_numbers_or_refused() -> None:
    assert find_profile("consumer").busiest_over_mean == 2.06
    assert find_profile(",".join(["1"] * 24)).peak_over_mean == 1.0
    for text in ("ofice-hours", "1,2,x", "missing.csv"):
        with pytest.raises(InputError):
            find_profile(text)


def test_replicas_by_hand() -> None:
    assert replicas_for([0.0, 0.1, 1.0, 1.0001, 2.0, 7.5], 1.0).tolist() == [1, 1, 1, 2, 2, 8]
    assert replicas_for([0.0, 0.5], 1.0, least=0).tolist() == [0, 1]
    # 0.1 x 3 is more than 0.3 in floating point; it does not need a fourth replica.
    assert replicas_for(0.1 * 3, 0.1).item() == 3
    with pytest.raises(InputError, match="capacity must be above 0"):
        replicas_for(1.0, 0.0)


def test_always_on_with_one_spare_by_hand() -> None:
    """Half the day at twice the mean: 2.5 replicas' worth a day need 5 + 1 at noon, all day."""
    day = fleet_day(2.5 * A_DAY, HALF, REPLICA)
    assert day.needed_H.tolist() == [5] * 12 + [1] * 12
    assert set(day.replicas_H.tolist()) == {6}
    assert day.usd_per_day == pytest.approx(6 * 24)
    assert day.utilisation == pytest.approx(2.5 / 6)
    assert day.usd_idle_per_day == pytest.approx(6 * 24 * 3.5 / 6)


def test_by_the_hour_with_starts_by_hand() -> None:
    """12 hours of 5 + 1 replicas and 12 of 1 + 1; four start, each paid for half an hour more."""
    replica = Replica(1.0, 24.0, start_s=1800.0)
    day = fleet_day(2.5 * A_DAY, HALF, replica, by_hour=True)
    assert day.starts_per_day == 4
    assert day.usd_per_day == pytest.approx(12 * 6 + 12 * 2 + 2)
    assert day.usd_per_day - day.usd_idle_per_day == pytest.approx(2.5 * 24)  # what is used


def test_headroom_provides_for_more_than_the_profile() -> None:
    day = fleet_day(1.0 * A_DAY, FLAT, REPLICA, Rules(spare=0, headroom=1.5))
    assert day.replicas_H.tolist() == [2] * 24
    assert day.utilisation == pytest.approx(0.5)


def test_a_service_that_nobody_uses_costs_its_replicas() -> None:
    day = fleet_day(0.0, FLAT, REPLICA)
    assert day.usd_per_day == day.usd_idle_per_day == 48.0
    assert fleet_day(0.0, FLAT, REPLICA, Rules(spare=0, least=0)).usd_per_day == 0.0


@given(
    st.floats(0, 1e12),
    st.floats(0, 1e12),
    st.sampled_from(["flat", "office-hours", "office-week", "consumer"]),
    st.integers(0, 3),
    st.booleans(),
)
def test_more_tokens_never_need_fewer_replicas(
    one: float, other: float, name: str, spare: int, by_hour: bool
) -> None:
    profile, rules = day_presets()[name], Rules(spare=spare)
    low, high = sorted((one, other))
    replica = Replica(2.0, 5000.0)
    less, more = (fleet_day(v, profile, replica, rules, by_hour) for v in (low, high))
    assert (less.replicas_H <= more.replicas_H).all()
    assert less.usd_per_day <= more.usd_per_day
    assert 0.0 <= more.utilisation <= 1.0
    always = fleet_day(high, profile, replica, rules)
    assert fleet_day(high, profile, replica, rules, by_hour=True).usd_per_day <= always.usd_per_day


@given(
    st.floats(1.0, 1e11),
    st.sampled_from(["flat", "office-hours", "office-week", "consumer"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.floats(0, 7200),
)
def test_curves_say_what_days_cost(
    volume: float, name: str, spare: int, least: int, start_s: float
) -> None:
    """The steps are those of the day worked out on its own, whatever the volume."""
    profile, rules = day_presets()[name], Rules(spare, least, 1.25)
    replica = Replica(3.0, 30_000.0, start_s)
    for make, by_hour in ((always_on_curve, False), (by_hour_curve, True)):
        curve = make("us", profile, replica, rules, 1e11)
        day = fleet_day(volume, profile, replica, rules, by_hour)
        assert curve.usd_per_day(volume) == pytest.approx(day.usd_per_day, rel=1e-9)


def test_break_even_with_an_api_by_hand() -> None:
    """Two replicas cost 48 USD a day; at 40 USD per million tokens the API reaches that at 1.2
    million, below the 2.0736 million that one of the two carries. The third replica, 72 USD, begins
    there and is paid off at 1.8 million: the API never wins again."""
    curve = always_on_curve("us", FLAT, REPLICA, Rules(spare=1), 100e6)
    line = api_curve(ApiPrice("api", "", 40.0, None, 40.0), 0.5, 0.0)
    assert cheaper(curve, line, 100e6) == ((1.2e6, 100e6),)
    assert cheaper(line, curve, 100e6) == ((0.0, 1.2e6),)
    assert break_even(curve, line, 100e6).for_good == pytest.approx(1.2e6, rel=1e-12)


def test_break_even_with_a_dear_second_step_by_hand() -> None:
    """At 25 USD per million: 48 USD are 1.92 million; above 2.0736 three replicas, 72 USD, which
    are 2.88 million; above 4.1472 four, 96 USD: 3.84 million, so for good from 2.88 million."""
    curve = always_on_curve("us", FLAT, REPLICA, Rules(spare=1), 50e6)
    line = api_curve(ApiPrice("api", "", 25.0, None, 25.0), 0.5, 0.0)
    spans = cheaper(curve, line, 50e6)
    assert np.allclose(spans, [(1.92e6, A_DAY), (2.88e6, 50e6)], rtol=1e-12)
    found = break_even(curve, line, 50e6)
    assert (found.first, found.for_good) == (pytest.approx(1.92e6), pytest.approx(2.88e6))


def test_an_api_below_the_cost_of_a_full_replica_is_never_beaten() -> None:
    full = 24.0 / A_DAY * 1e6  # USD per million tokens of a replica that is always full: 11.57
    curve = always_on_curve("us", FLAT, REPLICA, Rules(spare=0), 1e9)
    line = api_curve(ApiPrice("api", "", 0.99 * full, None, 0.99 * full), 0.5, 0.0)
    assert break_even(curve, line, 1e9) == BreakEven(None, None, None, 1e9)
    dearer = api_curve(ApiPrice("api", "", 1.01 * full, None, 1.01 * full), 0.5, 0.0)
    assert break_even(curve, dearer, 1e9).first == pytest.approx(A_DAY / 1.01)


@given(st.floats(5.0, 200.0), st.floats(1e5, 5e7))
def test_who_is_cheaper_is_what_the_bills_say(price: float, volume: float) -> None:
    curve = by_hour_curve("us", day_presets()["office-hours"], REPLICA, Rules(), 5e7)
    line = api_curve(ApiPrice("api", "", price, None, price), 0.5, 0.0)
    inside = any(low < volume <= high for low, high in cheaper(curve, line, 5e7))
    difference = float(curve.usd_per_day(volume) - line.usd_per_day(volume))
    if abs(difference) > 1e-9:
        assert inside == (difference < 0)


def test_two_step_curves_cross_at_steps() -> None:
    """The first costs 10, above 5 tokens 30; the second 20: the first wins up to 5."""
    first = CostCurve("a", np.array([0.0, 5.0]), np.array([10.0, 30.0]))
    second = CostCurve("b", np.array([0.0]), np.array([20.0]))
    assert cheaper(first, second, 9.0) == ((0.0, 5.0),)
    assert break_even(first, second, 9.0) == BreakEven(0.0, None, 5.0, 9.0)
    assert break_even(second, first, 9.0) == BreakEven(5.0, 5.0, 9.0, 9.0)
    assert cheaper(second, first, 9.0) == ((5.0, 9.0),)
    assert first.usd_per_day([5.0, 5.1]).tolist() == [10.0, 30.0]
    assert first.usd_per_million(5.0) == pytest.approx(2e6)


def test_absurd_volumes_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(InputError, match=r"^--volume must need at most"):
        always_on_curve("us", FLAT, REPLICA, Rules(), 1e16)
    with pytest.raises(InputError, match=r"^--volume must need at most"):
        by_hour_curve("us", FLAT, REPLICA, Rules(), 1e14)
    for volume in (-1.0, float("nan"), 1e19):
        with pytest.raises(InputError, match=r"^--volume must be from 0"):
            fleet_day(volume, FLAT, REPLICA)
    for bad in ({"spare": -1}, {"headroom": 0.0}, {"least": 10**6}):
        with pytest.raises(InputError, match=r"must be from"):
            Rules(**bad)  # type: ignore[arg-type]


def test_a_steps_time_is_shared_by_hand() -> None:
    """Decode-only steps of 10 and 30 requests take 1 and 2 s: 20 take 1.5 s. A step of 4 s with 20
    decodes and a prompt is the prompt's for 2.5 s; one without decodes wholly."""
    duration = [1.0, 2.0, 4.0, 3.0]
    prompts, decodes = [0, 0, 500, 700], [10, 30, 20, 0]
    assert prefill_time(duration, prompts, decodes).tolist() == [0.0, 0.0, 2.5, 3.0]
    assert input_share(duration, prompts, decodes) == pytest.approx(0.55)


def test_without_a_step_of_decodes_alone_tokens_share_the_time() -> None:
    assert prefill_time([4.0, 2.0], [30, 10], [10, 0]).tolist() == [3.0, 2.0]
    assert input_share([], [], []) == 0.0


def test_decodes_never_take_more_than_the_step() -> None:
    taken = prefill_time([1.0, 1.0, 0.5], [0, 0, 10], [10, 10, 40])
    assert taken.tolist() == [0.0, 0.0, 0.0]


def test_input_and_output_share_one_bill() -> None:
    """12 USD for 3 million input and 1 million output tokens, a quarter of the time the input's."""
    found = per_million(12.0, 4e6, input_tokens_share=0.75, input_bill_share=0.25)
    assert (found.total, found.input, found.output) == pytest.approx((3.0, 1.0, 9.0))
    assert found.whole_bill_over_output == pytest.approx(12.0)
    assert found.input is not None
    assert found.output is not None
    assert found.input * 3 + found.output * 1 == pytest.approx(12.0)
    assert per_million(1.0, 1e6, 1.0, 1.0).output is None
