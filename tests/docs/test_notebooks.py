"""Notebooks run without an error, and their text quotes what the run gives."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST_IMAGE = 200_000  # characters of an output, as GitHub shows it with the page

_spec = importlib.util.spec_from_file_location("notebooks_make", FOLDER / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
sys.modules["notebooks_make"] = make
_spec.loader.exec_module(make)

# What the text quotes, as expressions in the notebook's own names.
QUOTED = {
    "single-against-multi-node.ipynb": """
one, group, copies = comparison.results
mean = {(d.name, d.metric): d for of in comparison.differences for d in of if d.statistic == "mean"}
tpot, less = mean[group.name, "tpot_s"], mean[copies.name, "tpot_s"]
at = parts.set_index(["step", "deployment", "part"])["ms"]
ms = lambda who, *what: sum(at["decode", who, each] for each in what)
row = sweep.set_index(["requests per second", "deployment"])
speed, usd = row["TPOT p50, ms"], row["USD per million output tokens"]
quoted = [
    f"{1e3 * tpot.first_s:.0f} ms on one node and {1e3 * tpot.other_s:.0f} ms on two",
    f"holds 0 ({1e3 * tpot.low_s:.0f} to {1e3 * tpot.high_s:+.0f} ms)",
    f"two copies a token takes {1e3 * less.other_s:.0f} ms",
    f"{-1e3 * less.high_s:.0f} to {-1e3 * less.low_s:.0f} ms less",
    f"{ms(group.name, 'routed experts'):.1f} ms instead of {ms(one.name, 'routed experts'):.1f} ms",
    f"combine: {ms(group.name, 'dispatch', 'combine'):.1f} ms instead of "
    f"{ms(one.name, 'dispatch', 'combine'):.1f} ms",
    f"{at['prompts', one.name, 'engine']:.0f} ms of such a step",
    f"both take {speed[1, one.name]:.0f} ms a token, at {usd[1, one.name]:.0f} and "
    f"{usd[1, group.name]:.0f} USD",
    f"{speed[4, one.name]:.0f} ms on one node, {speed[4, group.name]:.0f} ms in the group and "
    f"{speed[4, copies.name]:.0f} ms in two copies",
    f"{usd[4, one.name]:.0f}, {usd[4, group.name]:.0f} and {usd[4, copies.name]:.0f} USD a million",
]
assert tpot.low_s < 0 < tpot.high_s
""",
    "placement-study.ipynb": """
by = {each.name: each for each in study.candidates}
decode, prompts = (
    {name: each.scores[k].gain for name, each in by.items()} for k in (0, 1)
)
copies = "eplb, 8 redundant experts"
step = run.prompt_step
quoted = [
    f"{prompts['eplb'].percent:.1f} % off the routed experts",
    f"8 copies {prompts[copies].percent:.1f} %",
    f"from {decode['eplb'].percent:+.1f} % to {decode[copies].percent:+.1f} %",
    f"{study.present.load_LR.max():.1f} times the mean's tokens",
    f"under EPLB {by['eplb'].load_LR.max():.1f} times",
    f"{prompts['eplb'].percent:.1f} % of prompts' routed experts {step.percent:.1f} % of a whole",
    f"({step.low:.1f} to {step.high:.1f} %)",
    f"{run.decode_step.percent:.1f} % of a decode step",
]
assert prompts["swap"].low < prompts["eplb"].percent < prompts["swap"].high
assert run.itl_p99.low < 0 < run.itl_p99.high
""",
}


def markdown(notebook: Any) -> str:
    told = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return " ".join(told.split())


def test_both_are_there() -> None:
    assert set(NOTEBOOKS) == set(QUOTED)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_small_and_without_errors(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    images = [one.data["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    assert len(images) >= 2
    assert max(len(image) for image in images) < LARGEST_IMAGE
    assert not [one for one in outputs if one.output_type == "error"]
    written = nbformat.writes(make.settled(notebook)) + "\n"
    assert written == (FOLDER / name).read_text(encoding="utf-8")  # as make.py left it
    assert str(Path.home()) not in written


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_of_notebooks_lead_somewhere(name: str) -> None:
    text = markdown(nbformat.read(FOLDER / name, as_version=4))
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert targets
    assert [each for each in targets if not (FOLDER / each).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_its_text_still_holds(name: str, tmp_path: Path) -> None:
    more = f"{QUOTED[name]}\nimport json\nprint('QUOTED', json.dumps(quoted))"
    notebook = make.executed(FOLDER / name, tmp_path, more)
    shown = [one.text for one in notebook.cells[-1].outputs if one.output_type == "stream"]
    found = re.search(r"QUOTED (\[.*\])", "".join(shown))
    assert found is not None
    text = markdown(notebook)
    assert [each for each in json.loads(found[1]) if each not in text] == []
