"""The words of a launch command, as a shell would see them, and without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from moesim.errors import InputError

FIELD = "--from-command"
MOST_CHARACTERS = 20_000
MOST_TAILS = 8

_LINE_END = re.compile(r"\\[ \t]*(?:#[^\n]*)?(?:\r?\n|$)")
_QUOTED_END = re.compile(r"\\\r?\n")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.S)
_OPERATOR = re.compile(r"[;|&()]+")
# Where the output goes, and that the shell does not wait: nothing that the server would notice.
_TAIL = re.compile(r"\s(?:&?[12]?>{1,2}\s*[\w./${}-]+|2>&1|\|&?\s*tee(?:\s+-a)?\s+[\w./${}-]+|&)$")


@dataclass(frozen=True)
class Command:
    """Environment assignments, and the words after them."""

    environment: Mapping[str, str]
    words: tuple[str, ...]


def split_command(text: str) -> Command:
    """Environment and words of one command; lines may go on after a backslash.

    Lines that only set the environment may stand before it. Raises InputError for whatever a shell
    would have to work out: substitutions, several commands, unclosed quotes.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(FIELD, f"must have at most {MOST_CHARACTERS} characters", len(text))
    strange = next((c for c in text if not c.isprintable() and c not in "\n\r\t"), None)
    if strange is not None:
        raise InputError(FIELD, "must be printable text; it has the character", repr(strange))
    environment: dict[str, str] = {}
    found: tuple[str, ...] = ()
    for segment in _segments(_one_line_each(text)):
        words = segment[1:] if segment[0] == "export" else segment
        rest = _assignments(words, environment)
        if not rest:
            continue
        if found or segment[0] == "export":
            hint = "give each with --from-command"
            raise InputError(FIELD, "must be one launch command", " ".join(rest), hint)
        found = tuple(rest)
    if not found:
        raise InputError(FIELD, "must be a launch command; it is empty")
    return Command(environment, found)


def _segments(text: str) -> list[list[str]]:
    """Words of each part of the text between line ends, `;` and `&&`."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&()\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as error:  # a quote that is not closed
        raise InputError(FIELD, f"cannot be taken apart: {str(error).lower()}") from None
    segments: list[list[str]] = [[]]
    for word in words:
        if word and word.strip("\n") in ("", ";", "&&"):
            segments.append([])
        elif _OPERATOR.fullmatch(word.strip("\n")):
            raise InputError(FIELD, "must be one command without shell operators", word)
        else:
            segments[-1].append(word)
    return [segment for segment in segments if segment]


def _assignments(words: list[str], environment: dict[str, str]) -> list[str]:
    """The words after leading NAME=VALUE ones, which go to the environment."""
    for position, word in enumerate(words):
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment is None:
            return words[position:]
        environment[assignment[1]] = assignment[2]
    return []


def _one_line_each(text: str) -> str:
    """The text without comments, continued lines joined; documentation also comments after `\\`."""
    kept: list[str] = []
    quote, at = "", 0
    while at < len(text):
        here = text[at]
        if quote != "'" and (here == "`" or text.startswith("$(", at)):
            what = "`...`" if here == "`" else "$(...)"
            rule = f"must not have {what}, which a shell would run"
            raise InputError(FIELD, rule, None, "write its value in its place")
        if here == "\\" and quote != "'":
            ends = (_QUOTED_END if quote else _LINE_END).match(text, at)
            kept.append(" " if ends and not quote else "" if ends else text[at : at + 2])
            at = ends.end() if ends else at + 2
            continue
        if here == "#" and not quote and (at == 0 or text[at - 1] in " \t\r\n"):
            ends_at = text.find("\n", at)
            at = len(text) if ends_at < 0 else ends_at
            continue
        if here in "'\"" and quote in ("", here):
            quote = "" if quote else here
        kept.append(here)
        at += 1
    joined = "".join(kept).strip()
    for _ in range(MOST_TAILS):
        tail = _TAIL.search(joined)
        if tail is None:
            break
        joined = joined[: tail.start()].rstrip()
    return joined
