"""Gains and their intervals: by hand, and by how often an interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moesim.what_if.gains import RESAMPLES, STUDENT, Ruler, Times, gain_over_seeds


def test_gains_by_hand() -> None:
    """Decode takes 2 s a step now and 1 s then, prefill 10 and 12; shares 3 : 1."""
    now, then = [np.array([1.0, 3.0]), np.array([10.0])], [np.array([1.0, 1.0]), np.array([12.0])]
    ruler = Ruler((0.75, 0.25), now)
    assert ruler.percent(now, now) == 0.0
    # Relative time then: 0.75 / 2 + 0.25 x 1.2.
    assert ruler.percent(now, then) == pytest.approx(100 * (1 - 0.675))
    assert ruler.percent(then, now) == pytest.approx(100 * (1 - 1 / 0.675))
    assert ruler.of_kind(1, Times(now), Times(then)).percent == pytest.approx(-20.0)
    assert ruler.gain(Times(now), Times(then)).low is None  # nothing was resampled


def test_the_same_placement_gains_nothing_for_sure() -> None:
    seconds_D = np.arange(1.0, 13.0)
    times = Times([seconds_D], [np.random.default_rng(0).uniform(1, 2, (RESAMPLES, 3))])
    gain = Ruler((1.0,), times.steps_D).gain(times, times)
    assert (gain.percent, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_student_has_eleven_degrees_of_freedom() -> None:
    assert pytest.approx(stats.t.ppf(0.975, RESAMPLES - 1), abs=5e-4) == STUDENT


def test_an_interval_speaks_for_sequences_not_for_draws_of_steps() -> None:
    """Each resample's gain differs by 1 % of its own: more steps of each do not hide that."""
    rng = np.random.default_rng(1)
    of_sequences_G1 = rng.normal(0.0, 0.01, (RESAMPLES, 1))
    halves = []
    for steps in (1, 40):
        now = np.ones((RESAMPLES, steps))
        then = 0.9 + of_sequences_G1 + rng.normal(0.0, 0.001, (RESAMPLES, steps))
        ruler = Ruler((1.0,), [np.ones(400)])
        first = Times([np.ones(400)], [now])
        gain = ruler.gain(first, Times([np.full(400, 0.9)], [then]))
        assert gain.low is not None
        halves.append(gain.percent - gain.low)
    assert halves == pytest.approx([STUDENT * 100 * of_sequences_G1.std(ddof=1)] * 2, rel=0.15)


def test_the_draw_of_few_steps_is_taken_out_again() -> None:
    """Noise of 10 % on a step, 4 steps of a resample but 480 in all: the error is that of 480."""
    rng = np.random.default_rng(2)
    ruler, one = Ruler((1.0,), [np.ones(480)]), np.ones((RESAMPLES, 4))
    errors = []
    for _ in range(200):
        two = one * 0.9 + rng.normal(0.0, 0.1, one.shape)
        gain = ruler.gain(Times([np.ones(480)], [one]), Times([np.full(480, 0.9)], [two]))
        assert gain.low is not None
        errors.append((gain.percent - gain.low) / STUDENT)
    naive = 100 * 0.1 / 2.0  # of four steps
    assert 100 * 0.1 / 480**0.5 * 0.8 < np.median(errors) < 0.6 * naive


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Sequences have a gain each (mean 8 %, sd 3 %); a study sees 40 of them, resampled as in
    Setting.resampled. Of 300 studies about 95 % hold the mean."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        gain_S = rng.normal(0.08, 0.03, 40)
        again_GS = rng.choice(gain_S, (RESAMPLES, 40))
        then_GM = 1.0 - again_GS.mean(axis=1, keepdims=True) + rng.normal(0, 0.004, (RESAMPLES, 4))
        then_D = 1.0 - gain_S.mean() + rng.normal(0, 0.004, 48)
        ruler = Ruler((1.0,), [np.ones(48)])
        first = Times([np.ones(48)], [np.ones((RESAMPLES, 4))])
        gain = ruler.gain(first, Times([then_D], [then_GM]))
        assert gain.low is not None
        assert gain.high is not None
        held += gain.low < 8.0 < gain.high
    assert 0.91 < held / 300 < 0.985


def test_gains_over_seeds() -> None:
    gain = gain_over_seeds([1.0, 2.0, 4.0], [0.9, 1.9, 3.6])
    percent = np.array([10.0, 5.0, 10.0])
    low, high = stats.t.interval(0.95, 2, percent.mean(), stats.sem(percent))
    assert gain.percent == pytest.approx(percent.mean())
    assert (gain.low, gain.high) == pytest.approx((low, high))
    assert gain_over_seeds([2.0], [1.0]).low is None
