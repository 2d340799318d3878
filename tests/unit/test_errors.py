from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError


def test_names_the_field_the_rule_the_value_and_the_slip() -> None:
    error = InputError(
        "deployment.parallelism.expert_parallel",
        "must divide num_experts (256)",
        24,
        "did you mean 32?",
    )
    assert str(error) == (
        "deployment.parallelism.expert_parallel must divide num_experts (256); got 24"
        " (did you mean 32?)"
    )
    assert (error.field, error.rule) == (
        "deployment.parallelism.expert_parallel",
        "must divide num_experts (256)",
    )
    assert (error.value, error.hint) == (24, "did you mean 32?")


def test_is_a_value_error_so_that_callers_need_not_know_it() -> None:
    with pytest.raises(ValueError, match=r"^seed must not be negative; got -1$"):
        raise InputError("seed", "must not be negative", -1)


def test_without_a_value_nothing_is_got() -> None:
    assert str(InputError("model", "is required")) == "model is required"


@pytest.mark.parametrize("falsy", [0, "", False, [], 0.0])
def test_a_falsy_value_is_still_shown(falsy: object) -> None:
    assert f"got {falsy!r}" in str(InputError("x", "must be positive", falsy))


def test_a_long_value_is_cut() -> None:
    message = str(InputError("x", "must be short", "a" * 10_000))
    assert message.endswith("...")
    assert len(message) < 120


@given(field=st.text(), rule=st.text(), value=st.text(), hint=st.text())
def test_is_always_one_line(field: str, rule: str, value: str, hint: str) -> None:
    assert len(str(InputError(field, rule, value, hint)).splitlines()) <= 1


def test_can_be_built_again_from_its_parts() -> None:
    """As pickle does between processes, and SimPy where a process raised it."""
    error = InputError("seed", "must not be negative", -1, "drop the sign")
    for again in (type(error)(*error.args), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error) == "seed must not be negative; got -1 (drop the sign)"
        assert (again.field, again.value) == ("seed", -1)
