"""What a scenario file is made of: frozen, closed records, and choices among them.

A choice is written either as ``{key: {...}}`` (`one_of`) or as ``{policy: name, ...}``
(`by_policy`); where nothing has to be set, the bare key or name is enough.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from moesim.errors import InputError


class Spec(BaseModel):
    """A frozen record of a scenario; unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=False,
        defer_build=True,  # a validator is made when a record is first read, not at import
    )

    @model_validator(mode="before")
    @classmethod
    def _no_flags_for_numbers(cls, data: object) -> object:
        """Refuse true and false where a number is meant, which Python would read as 1 and 0."""
        if isinstance(data, Mapping):
            for name, value in data.items():
                info = cls.model_fields.get(name) if isinstance(name, str) else None
                if isinstance(value, bool) and info is not None and _is_number(info.annotation):
                    raise broken_rule(name, "must be a number", value)
        return data

    @classmethod
    def default(cls, **values: Any) -> Self:
        """A record of these values, which are right, and defaults: what a field holds unless set.

        Such records are made at import, where building the validators of their classes would take
        longer than all else does; `model_construct` asks for none.
        """
        construct: Any = cls.model_construct  # mypy knows the fields of this class, not of cls
        made: Self = construct(**values)
        return made

    @classmethod
    def parse(cls, data: object, field: str = "") -> Self:
        """Validate plain data; the first problem becomes a one-line InputError under `field`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise input_error(error, field, cls) from None


def kebab(name: str) -> str:
    """``ClosedLoop`` -> ``closed_loop``, the key that chooses it in a scenario file."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def tagged(data: object, choices: Mapping[str, type[Spec]], what: str) -> object:
    """Read ``{key: {...}}`` or a bare ``key`` as the chosen Spec; anything else is an error.

    A ready Spec passes through. Raises ValueError (pydantic turns it into the field's error).
    """
    if isinstance(data, tuple(choices.values())):
        return data
    if isinstance(data, str):
        data = {data: {}}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ValueError(f"must name exactly one {what} of: {', '.join(choices)}")
    ((key, body),) = data.items()
    if key not in choices:
        raise ValueError(_no_such(key, choices, what))
    try:
        return choices[key].model_validate(body if body is not None else {})
    except ValidationError as error:
        raise _moved_below(str(key), error) from None


class OneOf:
    """Annotation of a union of Specs that a scenario writes as ``{key: {...}}`` or a bare ``key``.

    ``arrivals: Annotated[Poisson | AllAtOnce, one_of("arrivals", Poisson, AllAtOnce)]``. Dumping
    writes the key again, so that what was read can be written and read back.
    """

    def __init__(self, what: str, choices: tuple[type[Spec], ...]) -> None:
        self.what = what
        self.choices = {kebab(choice.__name__): choice for choice in choices}

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def dump(chosen: Spec, info: core_schema.SerializationInfo) -> dict[str, object]:
            return {kebab(type(chosen).__name__): chosen.model_dump(mode=info.mode)}

        return core_schema.no_info_before_validator_function(
            lambda data: tagged(data, self.choices, self.what),
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        bodies = {
            key: handler(choice.__pydantic_core_schema__) for key, choice in self.choices.items()
        }
        records = [
            {
                "type": "object",
                "properties": {key: body},
                "required": [key],
                "additionalProperties": False,
            }
            for key, body in bodies.items()
        ]
        bare = [key for key, choice in self.choices.items() if not _required(choice)]
        return {"oneOf": [*records, {"enum": bare}] if bare else records}


def one_of(what: str, *choices: type[Spec]) -> OneOf:
    """The annotation that makes a union of `choices` a choice by key; `what` names it in errors."""
    return OneOf(what, choices)


class ByPolicy:
    """Annotation of a union of Specs told apart by their field `policy`."""

    def __init__(self, what: str, choices: tuple[type[Spec], ...]) -> None:
        self.what = what
        self.choices = {
            str(name): choice
            for choice in choices
            for name in get_args(choice.model_fields["policy"].annotation)
        }

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda data: _by_policy(data, self.choices, self.what), handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        kinds = dict.fromkeys(self.choices.values())
        records = [handler(choice.__pydantic_core_schema__) for choice in kinds]
        for record in records:
            record["required"] = ["policy", *record.get("required", ())]
        bare = [name for name, choice in self.choices.items() if not _required(choice)]
        return {"anyOf": [{"enum": bare}, *records]}


def by_policy(what: str, *choices: type[Spec]) -> ByPolicy:
    """The annotation that makes a union a choice by `policy`; `what` names it in errors."""
    return ByPolicy(what, choices)


def _by_policy(data: object, choices: Mapping[str, type[Spec]], what: str) -> object:
    if isinstance(data, tuple(choices.values())):
        return data
    listed = ", ".join(choices)
    if isinstance(data, str):
        if data not in choices:
            raise ValueError(_no_such(data, choices, what))
        data = {"policy": data}
    if not isinstance(data, Mapping):
        raise ValueError(f"must be a {what} ({listed}), or a mapping with its policy")
    if "policy" not in data:
        raise broken_rule("policy", f"is required; choose from: {listed}")
    name = data["policy"]
    if not isinstance(name, str) or name not in choices:
        raise broken_rule("policy", _no_such(name, choices, what))
    return choices[name].model_validate(data)


def _no_such(name: object, choices: Mapping[str, type[Spec]], what: str) -> str:
    close = difflib.get_close_matches(str(name)[:200], choices, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"has no {what} {str(name)[:40]!r}{meant}; choose from: {', '.join(choices)}"


def broken_rule(field: str, rule: str, value: object = None) -> ValidationError:
    """What a validator of a whole record raises when the fault is in one `field` of it."""
    problem = InitErrorDetails(
        type=PydanticCustomError("rule", "{rule}", {"rule": rule}),
        loc=tuple(field.split(".")),
        input=value,
    )
    return ValidationError.from_exception_data(field, [problem])


def _is_number(annotation: Any) -> bool:
    """Whether the annotation lets a number in, and no flag."""
    members = {annotation, *_members(annotation)}
    return bool({int, float} & members) and bool not in members


def _members(annotation: Any) -> set[Any]:
    found: set[Any] = set()
    for member in getattr(annotation, "__args__", ()):
        if isinstance(member, Hashable):
            found |= {member, *_members(member)}
    return found


def _required(cls: type[BaseModel]) -> bool:
    return any(info.is_required() for info in cls.model_fields.values())


def _moved_below(key: str, error: ValidationError) -> ValidationError:
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=problem["type"]
                if problem["type"] != "rule"
                else PydanticCustomError("rule", "{rule}", problem.get("ctx")),
                loc=(key, *problem["loc"]),
                input=problem["input"],
                ctx=problem.get("ctx", {}),
            )
            for problem in error.errors(include_url=False)
        ],
    )


def _records(annotation: Any) -> set[type[BaseModel]]:
    members = {annotation, *_members(annotation)}
    return {one for one in members if isinstance(one, type) and issubclass(one, BaseModel)}


def _named(cls: type[BaseModel]) -> dict[str, set[type[BaseModel]]]:
    """Fields of a record, with the records that each may hold."""
    return {
        info.alias or name: _records(info.annotation) for name, info in cls.model_fields.items()
    }


def _fields_at(cls: type[BaseModel], path: Sequence[str | int]) -> set[str]:
    """Names of the fields of the records that may stand at `path`."""
    at = {cls}
    for part in path:
        here: dict[str, set[type[BaseModel]]] = {}
        for record in at:
            here |= _named(record)
        at = here.get(str(part), at)  # else a place in a list, or a choice of a union
    return {name for record in at for name in _named(record)}


def _known_fields(cls: type[BaseModel]) -> set[str]:
    """Names of all fields of a record and of all that are in it."""
    names: set[str] = set()
    pending, seen = [cls], set()
    while pending:
        model = pending.pop()
        if model not in seen:
            seen.add(model)
            for name, records in _named(model).items():
                names.add(name)
                pending.extend(records)
    return names


_BOUNDS = ("ge", "gt", "le", "lt")
_RULES = {  # pydantic's kinds of error, in the words of the other refusals
    "model_type": "must be a mapping of fields",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
}


def _rule(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _RULES:
        bounds = {name: f"{bound:.12g}" for name, bound in context.items() if name in _BOUNDS}
        return _RULES[kind].format(**bounds)
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:] or "is not valid"
    return f"must{text.removeprefix('input should')}" if text.startswith("input should") else text


def input_error(error: ValidationError, prefix: str, cls: type[BaseModel]) -> InputError:
    """The first problem of a pydantic error as one InputError, with the likely slip if it shows."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    field = ".".join(part for part in (prefix, path) if part) or cls.__name__.lower()
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        last = str(problem["loc"][-1])
        # A field is meant as one of the same record, if any is close.
        own = sorted(_fields_at(cls, problem["loc"][:-1]))
        close = [name for name in own if name.startswith(last)]  # rate: rate_per_s
        close = close or difflib.get_close_matches(last, own, n=1)
        close = close or difflib.get_close_matches(last, _known_fields(cls) - {last}, n=1)
        return InputError(
            field, "is not a known field", None, f"did you mean {close[0]}?" if close else ""
        )
    if kind == "missing":
        return InputError(field, "is required")
    rule, hint = _rule(kind, str(problem["msg"]), problem.get("ctx", {})), ""
    if isinstance(value, str) and kind.startswith(("int", "float")):
        hint = "write the number without quotes or unit"
    if kind == "string_type" and not isinstance(value, Mapping | list | None):
        hint = "put it in quotes"
    named = isinstance(value, str) and value in rule
    if named or (isinstance(value, Mapping | list) and kind == "value_error"):
        value = None
    return InputError(field, rule, value, hint)
