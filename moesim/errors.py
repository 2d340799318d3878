"""The one error a user of moesim is meant to see: which field, which rule, which value."""

from __future__ import annotations


def one_line(text: str) -> str:
    """The text without line breaks, and without anything that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words
    )


def _brief(value: object, limit: int = 80) -> str:
    try:
        text = one_line(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "an enormous number"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _cut(text: str, limit: int) -> str:
    """Both ends of a text that is too long: a path says most at its end, a rule at its start."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


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
        # Its parts, not its text: SimPy and pickle build an error again from these.
        super().__init__(field, rule, value, hint)

    def __str__(self) -> str:
        field, rule, hint = _cut(self.field, 200), _cut(self.rule, 400), _cut(self.hint, 300)
        got = "" if self.value is None else f"; got {_brief(self.value)}"
        tail = f" ({hint})" if hint else ""
        return one_line(f"{field} {rule}{got}{tail}")
