"""Ask the questions of docs/questions: run their commands, write answers.csv and the page.

    python docs/questions/make.py                    all of them
    python docs/questions/make.py nodes-for-r1       one or some; the others' figures stay
    python docs/questions/make.py --drawn            only the page again, from answers.csv

questions.yaml has, for every question, one command, the figures that are taken out of what it
prints with `--json`, an answer that quotes them, and what has to hold of them for the answer's
words to be true: where that no longer holds, the page stays as it was. index.md has the table
between `<!-- table -->` and `<!-- end -->`, the sections between `<!-- sections -->` and that.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import operator
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim import cli
from moesim.errors import InputError
from moesim.files import read_text, replace_atomically
from moesim.plain_yaml import read_yaml
from moesim.spec import Spec

HERE = Path(__file__).resolve().parent
COMPARED = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
JOINED = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class Question(Spec):
    """A question, the command that answers it, and what its answer rests on."""

    name: str
    question: str
    asked: tuple[str, ...]  # owner/repository#number
    command: str
    figures: dict[str, str]  # what `value` takes
    holds: tuple[str, ...]
    answer: str
    sure: str  # one of SURE, then why
    beside: str = ""  # what others measured
    left_out: str = ""  # what the engine does not model
    more: str = ""

    def arguments(self) -> list[str]:
        """The command as `moesim.cli.main` takes it."""
        return [*shlex.split(self.command.replace("\\\n", " "))[1:], "--json"]


SURE = ("sure", "fairly sure", "unsure")


def load_questions(path: Path = HERE / "questions.yaml") -> list[Question]:
    """The questions in their order. Raises InputError."""
    listed = read_yaml(read_text(path, max_bytes=1e6), str(path))
    return [Question.parse(each) for each in listed]


def value(data: Any, text: str) -> float:
    """The number that `text` says, left to right: numbers and paths, joined by + - * /.

    A path is keys and list indices joined by dots; `name=value` picks a list's first object with
    that value, `a=b&c=d` one with both. Raises InputError.
    """
    first, *rest = text.split()
    found = operand(data, first)
    for sign, each in zip(rest[::2], rest[1::2], strict=True):
        found = JOINED[sign](found, operand(data, each))
    return found


def operand(data: Any, text: str) -> float:
    """A number, or that at a path in `data`."""
    try:
        return float(text)
    except ValueError:
        pass
    found = data
    for part in text.split("."):
        try:
            if isinstance(found, list):
                found = found[int(part)] if part.isdigit() else _pick(found, part)
            else:
                found = found[part]
        except (KeyError, IndexError, TypeError, StopIteration):
            raise InputError("figure", "must be in what the command prints", text) from None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError("figure", "must be a number", text)
    return float(found)


def _pick(rows: Sequence[Mapping[str, Any]], wanted: str) -> Any:
    pairs = [one.split("=", 1) for one in wanted.split("&")]
    return next(row for row in rows if all(_told(row.get(key)) == value for key, value in pairs))


def _told(value: Any) -> str:
    return str(value).replace(" ", "_")


def ask(question: Question) -> dict[str, float]:
    """Run the command and read its figures. Raises InputError."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.main(question.arguments())
    if status != 0:
        raise InputError("command", "must succeed", question.command)
    data = json.loads(printed.getvalue())
    return {name: value(data, text) for name, text in question.figures.items()}


def check(question: Question, figures: Mapping[str, float]) -> None:
    """InputError unless all holds that the answer's words rest on."""
    for claim in question.holds:
        left, sign, right = claim.split()
        values = [figures[each] if each in figures else float(each) for each in (left, right)]
        if not COMPARED[sign](*values):
            told = f"{values[0]:g} {sign} {values[1]:g}"
            raise InputError(question.name, f"must have {claim}: rewrite its answer", told)


def filled(text: str, figures: Mapping[str, float]) -> str:
    """A text with its figures, as numbers with thousands separators where they are large."""
    return " ".join(text.split()).format_map(figures)


def read_answers(path: Path) -> dict[str, dict[str, float]]:
    """answers.csv: per question its figures."""
    found: dict[str, dict[str, float]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                found.setdefault(row["question"], {})[row["figure"]] = float(row["value"])
    return found


def write_answers(path: Path, answers: Mapping[str, Mapping[str, float]]) -> None:
    made = io.StringIO()
    table = csv.writer(made, lineterminator="\n")
    table.writerow(["question", "figure", "value"])
    for name, figures in answers.items():
        table.writerows([name, figure, f"{value:.5g}"] for figure, value in figures.items())
    write(path, made.getvalue())


def table(questions: Sequence[Question], answers: Mapping[str, Mapping[str, float]]) -> str:
    """The table: number, question, answer, how sure."""
    lines = ["| | question | answer | how sure |", "|--:|---|---|---|"]
    for number, each in enumerate(questions, start=1):
        told = filled(each.answer, answers[each.name])
        sure = each.sure.split(":", 1)[0]
        link = f"#{anchor(_heading(number, each))}"
        lines.append(f"| {number} | [{each.question}]({link}) | {told} | {sure} |")
    return "\n".join(lines)


def section(
    number: int, question: Question, answers: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """One question: where it was asked, its command, answer, and what that rests on."""
    figures = answers[question.name]
    asked = ", ".join(f"[{_short(one)}]({_link(one)})" for one in question.asked)
    parts = [f"## {_heading(number, question)}"]
    parts.append(f"Asked in {asked}.")
    parts.append(f'```console untested="up to a minute"\n$ {question.command.strip()}\n```')
    parts.append(filled(question.answer, figures))
    sure, why = question.sure.split(":", 1)
    parts.append(f"**{sure.capitalize()}**: {filled(why, figures)}")
    if question.beside:
        parts.append(f"**Beside what others measured**: {filled(question.beside, figures)}")
    if question.left_out:
        parts.append(f"**Not modelled**: {filled(question.left_out, figures)}")
    if question.more:
        parts.append(filled(question.more, figures))
    return parts


def _heading(number: int, question: Question) -> str:
    return f"{number}. {question.question}"


def anchor(heading: str) -> str:
    """What GitHub calls a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _short(asked: str) -> str:
    return asked.split("/", 1)[1].replace("#", " #")


def _link(asked: str) -> str:
    repository, number = asked.split("#")
    return f"https://github.com/{repository}/issues/{number}"


def page(
    text: str, questions: Sequence[Question], answers: Mapping[str, Mapping[str, float]]
) -> str:
    """The page's text with table and sections between its marks. Raises InputError."""
    told = [part for n, each in enumerate(questions, 1) for part in section(n, each, answers)]
    for name, made in (("table", table(questions, answers)), ("sections", "\n\n".join(told))):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        found = pattern.search(text)
        if not found:
            raise InputError("page", f"must hold <!-- {name} --> and, behind it, <!-- end -->")
        between = f"{found[1]}\n{made}\n\n{found[2]}"
        text = text[: found.start()] + between + text[found.end() :]
    return text


def write(path: Path, content: str) -> None:
    """Put a file in place whole."""
    with replace_atomically(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def make(names: Sequence[str], folder: Path, drawn: bool) -> None:
    """Ask the named questions (all, if none), and write answers.csv and index.md in `folder`."""
    questions = load_questions(folder / "questions.yaml")
    known = [each.name for each in questions]
    for name in names:
        if name not in known:
            raise InputError("question", "must be one of", name, ", ".join(known))
    answers = read_answers(folder / "answers.csv")
    for question in questions:
        if not drawn and (not names or question.name in names):
            start = time.perf_counter()
            found = ask(question)
            print(f"{question.name:<24} {time.perf_counter() - start:5.0f} s", flush=True)
            check(question, found)
            answers[question.name] = found
            kept = {name: answers[name] for name in known if name in answers}
            write_answers(folder / "answers.csv", kept)
        if question.name not in answers:
            raise InputError("question", "must have been asked before", question.name)
    answers = read_answers(folder / "answers.csv")  # the page quotes figures as they are kept
    for question in questions:
        check(question, answers[question.name])
    index = folder / "index.md"
    write(index, page(index.read_text(encoding="utf-8"), questions, answers))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 where the input is wrong or an answer no longer true."""
    parser = argparse.ArgumentParser(description="Ask the questions of docs/questions.")
    parser.add_argument("questions", nargs="*", help="names in questions.yaml; none: all")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the three files")
    parser.add_argument("--drawn", action="store_true", help="only the page, from answers.csv")
    asked = parser.parse_args(arguments)
    try:
        make(asked.questions, asked.out, asked.drawn)
    except InputError as error:
        print(f"moesim: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
