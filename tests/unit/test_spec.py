from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field, ValidationError

from moesim.errors import InputError
from moesim.spec import Spec, kebab, tagged


class Poisson(Spec):
    rate_per_s: float = Field(gt=0)


class ClosedLoop(Spec):
    concurrency: int = Field(ge=1)


class AllAtOnce(Spec):
    pass


CHOICES: dict[str, type[Spec]] = {
    "poisson": Poisson,
    "closed_loop": ClosedLoop,
    "all_at_once": AllAtOnce,
}
Arrivals = Annotated[
    Poisson | ClosedLoop | AllAtOnce,
    BeforeValidator(lambda data: tagged(data, CHOICES, "arrival process")),
]


class Demand(Spec):
    arrivals: Arrivals
    requests: int = 100


class Study(Spec):
    name: str
    demand: Demand
    tags: tuple[str, ...] = ()


def study(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "demand": {"arrivals": {"poisson": {"rate_per_s": 4}}}} | changes


def refusal(data: object, field: str = "") -> InputError:
    with pytest.raises(InputError) as caught:
        Study.parse(data, field)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_reads_plain_data() -> None:
    parsed = Study.parse(study(tags=["a", "b"]))
    assert parsed == Study(
        name="x", demand=Demand(arrivals=Poisson(rate_per_s=4.0)), tags=("a", "b")
    )


def test_a_default_is_the_record_that_validation_gives_and_needs_no_validator() -> None:
    class Window(Spec):
        tokens: int = Field(8, ge=1)
        names: tuple[str, ...] = ()

    made = Window.default(tokens=16)
    assert not Window.__pydantic_complete__  # nothing was built yet
    assert made == Window(tokens=16)
    assert made.model_dump_json() == Window(tokens=16).model_dump_json()
    assert made.model_fields_set == {"tokens"}


def test_is_frozen_and_hashable() -> None:
    parsed = Study.parse(study())
    with pytest.raises(ValidationError, match="frozen"):
        parsed.name = "y"  # type: ignore[misc]
    assert hash(parsed) == hash(Study.parse(study()))


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ({"poisson": {"rate_per_s": 2}}, Poisson(rate_per_s=2)),
        ({"closed_loop": {"concurrency": 64}}, ClosedLoop(concurrency=64)),
        ("all_at_once", AllAtOnce()),
        ({"all_at_once": None}, AllAtOnce()),
        (AllAtOnce(), AllAtOnce()),
    ],
)
def test_one_key_chooses(arrivals: object, expected: Spec) -> None:
    assert Demand.parse({"arrivals": arrivals}).arrivals == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (study(nam="y"), "nam is not a known field (did you mean name?)"),
        (study(zzzzzz=1), "zzzzzz is not a known field"),
        ({"name": "x"}, "demand is required"),
        (
            study(demand={"arrivals": {"poisson": {"rate_per_s": 3, "rate": 3}}}),
            "demand.arrivals.poisson.rate is not a known field (did you mean rate_per_s?)",
        ),
        (
            study(demand={"arrivals": "all_at_once", "request": 3}),
            "demand.request is not a known field (did you mean requests?)",
        ),
        (
            study(demand={"arrivals": "all_at_once", "requests": "12 thousand"}),
            "demand.requests must be a whole number; got '12 thousand' "
            "(write the number without quotes or unit)",
        ),
        (
            study(demand={"arrivals": {"poison": {"rate_per_s": 1}}}),
            "demand.arrivals has no arrival process 'poison' (did you mean poisson?); choose from: "
            "poisson, closed_loop, all_at_once",
        ),
    ],
)
def test_refusals_name_field_rule_value_and_slip(data: object, message: str) -> None:
    assert str(refusal(data)) == message


@pytest.mark.parametrize(
    "arrivals",
    [{}, {"poisson": {"rate_per_s": 1}, "all_at_once": None}, 3, None, ["poisson"], {1: {}}],
)
def test_a_choice_is_exactly_one_known_key(arrivals: object) -> None:
    error = refusal(study(demand={"arrivals": arrivals}))
    assert error.field == "demand.arrivals"
    assert "poisson, closed_loop, all_at_once" in str(error)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 0, "fast", None, [], {}])
def test_a_wrong_number_is_refused_under_its_own_path(rate: object) -> None:
    error = refusal(study(demand={"arrivals": {"poisson": {"rate_per_s": rate}}}))
    assert error.field.startswith("demand.arrivals")
    assert "rate_per_s" in str(error)


def test_the_prefix_is_put_before_the_path() -> None:
    assert refusal({"name": "x"}, "scenario").field == "scenario.demand"


@pytest.mark.parametrize("data", [None, 3, "text", [1, 2], [("name", "x")]])
def test_what_is_no_mapping_is_refused_by_the_record_s_name(data: object) -> None:
    assert refusal(data).field == "study"


def test_a_long_value_does_not_flood_the_terminal() -> None:
    assert len(str(refusal(study(demand={"arrivals": "x" * 100_000})))) < 300


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def one_line_or_read(data: object) -> str:
    try:
        Study.parse(data)
    except InputError as error:
        return str(error)
    return ""


@given(junk)
def test_any_data_is_read_or_refused_in_one_line(data: object) -> None:
    for attempt in (data, study(demand=data), study(demand={"arrivals": data})):
        message = one_line_or_read(attempt)
        assert len(message.splitlines()) <= 1


@given(st.from_regex(re.compile(r"[A-Z][a-z]+([A-Z][a-z]+){0,3}", re.ASCII), fullmatch=True))
def test_a_class_name_becomes_its_key(name: str) -> None:
    key = kebab(name)
    assert key == key.lower()
    assert key.replace("_", "") == name.lower()
    assert key.count("_") == sum(letter.isupper() for letter in name) - 1
