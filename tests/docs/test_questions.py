"""Twenty questions: commands parse, scenarios fit, and the page quotes what the runs gave."""

from __future__ import annotations

import importlib.util
import re
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.pools import check
from moesim.scenario import find_scenario, load_scenario, scenarios_folder

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "questions"

_spec = importlib.util.spec_from_file_location("questions_make", FOLDER / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
sys.modules["questions_make"] = make
_spec.loader.exec_module(make)

QUESTIONS = make.load_questions()
ANSWERS = make.read_answers(FOLDER / "answers.csv")
SHIPPED = sorted(path.stem for path in (scenarios_folder() / "questions").glob("*.yaml"))
# Deployments that are not asked the same, as their answers say.
UNLIKE = {"drafts", "rack-or-nodes"}


def parameters(question: Any) -> dict[str, Any]:
    """What the command line makes of a question's command; nothing runs."""
    name, *rest = question.arguments()
    group = typer.main.get_command(app)
    command = group.get_command(None, name)
    assert command is not None, name
    return dict(command.make_context(name, rest).params)


def scenarios(question: Any) -> list[Any]:
    given = parameters(question)
    names = given.get("scenarios") or [given["scenario"]]
    return [load_scenario(name, given["changes"] or ()) for name in names]


def each_question() -> Any:
    return pytest.mark.parametrize("question", QUESTIONS, ids=lambda each: each.name)


def texts(question: Any) -> dict[str, str]:
    fields = ("answer", "sure", "beside", "left_out", "more")
    return {field: getattr(question, field) for field in fields}


def quoted(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_there_are_twenty() -> None:
    assert len({each.name for each in QUESTIONS}) == 20


@each_question()
def test_its_command_parses_and_its_scenarios_pass_their_checks(question: Any) -> None:
    chosen = scenarios(question)
    for scenario in chosen:
        check(scenario)
    if question.name not in UNLIKE:
        assert len({scenario.workload.model_dump_json() for scenario in chosen}) == 1
    else:
        assert "assum" in question.sure or "rests on" in question.sure


@each_question()
def test_it_says_who_asked_how_sure_it_is_and_quotes_figures(question: Any) -> None:
    assert question.question.endswith("?")
    assert question.asked
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", one) for one in question.asked)
    assert question.sure.split(":")[0] in make.SURE
    assert quoted(question.answer)
    # A plain YAML text ends where a " #" makes a comment of the rest.
    assert [each for each in texts(question).values() if each and each[-1] != "."] == []
    used = set().union(*(quoted(text) for text in texts(question).values()))
    told = {word for claim in question.holds for word in claim.split()}
    assert used <= set(question.figures)
    assert set(question.figures) <= used | told  # nothing is kept that nobody reads


@each_question()
def test_its_figures_are_there_and_bear_its_words(question: Any) -> None:
    figures = ANSWERS[question.name]
    assert list(figures) == list(question.figures)
    assert question.holds
    make.check(question, figures)


def test_the_page_is_what_the_figures_make() -> None:
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert make.page(page, QUESTIONS, ANSWERS) == page
    for question in QUESTIONS:
        answer = make.filled(question.answer, ANSWERS[question.name])
        assert page.count(answer) == 2  # in the table and in its section
        assert re.search(r"\d", answer)


def test_a_figure_that_moved_shows() -> None:
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    moved = {name: dict(figures) for name, figures in ANSWERS.items()}
    moved["ep-or-tp"]["ep_ttft"] *= 1.1
    assert make.page(page, QUESTIONS, moved) != page


def test_words_that_no_longer_hold_are_refused(tmp_path: Path) -> None:
    for name in ("questions.yaml", "index.md"):
        (tmp_path / name).write_text((FOLDER / name).read_text(encoding="utf-8"), encoding="utf-8")
    moved = {name: dict(figures) for name, figures in ANSWERS.items()}
    moved["ep-or-tp"]["low"] = -1.0
    make.write_answers(tmp_path / "answers.csv", moved)
    before = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert make.main(["--drawn", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "index.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", SHIPPED)
def test_every_scenario_is_asked_and_says_its_question(name: str) -> None:
    commands = " ".join(f"{question.command} " for question in QUESTIONS)
    assert f"questions/{name} " in commands
    path = find_scenario(f"questions/{name}")
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert load_scenario(f"questions/{name}").question.endswith("?")


def test_scenarios_of_questions_are_named_with_their_folder() -> None:
    for name in ("ep-or-tp-tp8", "questions/../demo", "questions/nothing"):
        with pytest.raises(InputError, match="shipped scenario"):
            find_scenario(name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nodes-for-r1-h100", ["cluster.nodes=1", "deployment.parallelism.pipeline=1"]),
        ("nodes-for-r1-a100", ["cluster.nodes=2", "deployment.parallelism.pipeline=2"]),
    ],
)
def test_fewer_gpus_than_told_are_refused(name: str, changes: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        check(load_scenario(f"questions/{name}", changes))
    found = re.search(r"weights ([\d.]+) GB", str(refused.value))
    assert found is not None
    told = next(question.more for question in QUESTIONS if question.name == "nodes-for-r1")
    assert found[1] in told


def test_a_figure_is_worked_out_from_left_to_right() -> None:
    data = [{"a": {"b": 2.0}}, {"name": "x, y", "kind": "z", "c": 3}]
    assert make.value(data, "1000 * 0.a.b") == 2000
    assert make.value(data, "100 * 0.a.b / name=x,_y.c - 100") == pytest.approx(100 * 2 / 3 - 100)
    assert make.value(data, "0 - name=x,_y&kind=z.c") == -3
    for path in ("0.a", "2.a", "name=w.c", "0.a.c", "1.name"):
        with pytest.raises(InputError, match="figure"):
            make.value(data, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-nodes-or-one", "ep-or-tp"])
def test_asked_again_it_answers_the_same(name: str) -> None:
    question = next(each for each in QUESTIONS if each.name == name)
    assert make.ask(question) == pytest.approx(ANSWERS[name], rel=1e-4)
