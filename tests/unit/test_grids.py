"""Tables on logarithmic axes: exact at their points, powers between and beyond them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.compiled import hot
from moesim.costs.grids import (
    BATCH,
    KV_TOKENS,
    LEAST_S,
    NEW_TOKENS,
    PREFIX_TOKENS,
    Axis,
    Floats,
    look_up,
    position,
    tabulate,
)

X, Y = Axis(8.0, 3.0, 1_000.0), Axis(64.0, 2.0, 5_000.0)


@hot
def at(log_s: Floats, x_scale: float, x_points: float, y_scale: float, y_points: float, x: float,
       y: float) -> float:  # fmt: skip
    return look_up(log_s, position(x_scale, x_points, x), position(y_scale, y_points, y))


def seconds_at(log_s: Floats, x: float, y: float) -> float:
    of = X.scale, X.octave_points, Y.scale, Y.octave_points
    return at(log_s, *of, float(x), float(y))


@pytest.mark.parametrize("axis", [NEW_TOKENS, PREFIX_TOKENS, BATCH, KV_TOKENS, X])
def test_an_axis_starts_at_nothing_rises_and_reaches_its_end(axis: Axis) -> None:
    values = axis.values
    assert values[0] == 0.0
    assert (np.diff(values) > 0).all()
    assert values[-1] >= axis.most
    octaves = np.log2(1.0 + values / axis.scale)
    assert np.diff(octaves) == pytest.approx(1.0 / axis.octave_points)


def test_points_of_a_table_come_back() -> None:
    rng = np.random.default_rng(1)
    table = rng.uniform(1e-6, 1e-2, (X.values.size, Y.values.size))
    log_s = tabulate(X, Y, lambda x, y: table)
    for i, x in enumerate(X.values):
        for j, y in enumerate(Y.values[::3]):
            assert seconds_at(log_s, x, y) == pytest.approx(table[i, 3 * j], rel=1e-9)


@given(
    x=st.floats(0.0, 50_000.0),
    y=st.floats(0.0, 200_000.0),
    a=st.floats(-1.0, 2.0),
    b=st.floats(-1.0, 2.0),
)
def test_powers_are_exact_between_points_and_beyond_the_table(
    x: float, y: float, a: float, b: float
) -> None:
    """The axes end at 1,000 and 5,000: the last slope goes on."""

    def power(x: Floats | float, y: Floats | float) -> Floats:
        return np.asarray(1e-5 * (1.0 + x / X.scale) ** a * (1.0 + y / Y.scale) ** b)

    expected = float(power(x, y))
    if float(power(X.values[-1], Y.values[-1])) > LEAST_S < float(power(X.values[-1], 0.0)):
        assert seconds_at(tabulate(X, Y, power), x, y) == pytest.approx(expected, rel=1e-6)


def test_no_time_at_all_stays_finite() -> None:
    log_s = tabulate(X, Y, lambda x, y: np.zeros(x.shape))
    assert seconds_at(log_s, 100.0, 100.0) == pytest.approx(LEAST_S)
