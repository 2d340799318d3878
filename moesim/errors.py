"""The one error a user of moesim is meant to see: which field, which rule, which value."""

from __future__ import annotations


def _brief(value: object, limit: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class InputError(ValueError):
    """Input that moesim refuses before anything runs.

    `field` is the dotted path a user wrote (``deployment.parallelism.expert_parallel``) or a file;
    `rule` completes the sentence "field ..." (``must divide num_experts (256)``); `value` is what
    was found; `hint` names the likely slip. ``str()`` is one line whatever the parts hold.
    """

    def __init__(self, field: str, rule: str, value: object = None, hint: str = "") -> None:
        self.field = field
        self.rule = rule
        self.value = value
        self.hint = hint
        got = "" if value is None else f"; got {_brief(value)}"
        tail = f" ({hint})" if hint else ""
        super().__init__(" ".join(f"{field} {rule}{got}{tail}".split()))
