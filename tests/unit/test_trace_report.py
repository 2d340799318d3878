"""`moesim trace info` and `compare`: what they print, what they write, what they refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cli import main
from moesim.errors import InputError
from moesim.report import trace_words
from moesim.report.export import svg
from moesim.report.trace_page import trace_figures, trace_page
from moesim.routing import RoutingTrace
from moesim.routing.study import TraceStudy, of_domains, study
from moesim.routing.summary import by_layer, summary
from tests.fixtures.toy_traces import identical, trace_of, uniform_ids

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def two_domains(experts: int = 16, seed: int = 0, layers: int = 3) -> RoutingTrace:
    """40 requests of 60 tokens; the second domain never takes the first two experts."""
    rng = np.random.default_rng(seed)
    code = uniform_ids(rng, 1200, layers, experts, 2)
    chat = uniform_ids(rng, 1200, layers, experts - 2, 2) + 2
    names, kinds = ("code", HOSTILE), [0] * 20 + [1] * 20
    return trace_of(np.concatenate([code, chat]), experts, [60] * 40, [25] * 40, names, kinds)


@pytest.fixture(scope="module")
def studied() -> TraceStudy:
    return study(two_domains(), "toy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    two_domains().save("a.safetensors")
    two_domains(seed=1).save("b.safetensors")
    identical().save("same.safetensors")
    two_domains(experts=12).save("other.safetensors")
    return tmp_path


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_every_number_is_there_for_every_layer(studied: TraceStudy) -> None:
    told = json.loads(json.dumps(summary(studied), allow_nan=False))
    for name, values in told["statistics"].items():
        assert len(values["by_layer"]) in ((0,) if values["mean"] is None else (3,)), name
        if values["mean"] is not None:
            assert values["least"] <= values["mean"] <= values["most"]
    assert told["statistics"]["next_layer_recall"]["by_layer"][0] is None
    named = {key for key, _ in trace_words.number_rows(64, 8)}
    assert named <= set(by_layer(studied))
    assert told["sample"] == {"tokens": 2400, "sequences": 40}
    assert told["domain_shift"][0]["total_variation"]["mean"] == pytest.approx(2 / 16, abs=0.05)
    assert len(told["batches"]["tokens"]) == len(told["batches"]["distinct_experts"]["uniform"])
    assert told["requests"]["sequences"] == 40


def test_a_sample_is_declared() -> None:
    trace = two_domains()
    found = study(trace, "large", most_ids=trace.ids_TLK.size // 2)
    assert found.is_sampled
    assert 0 < found.sample_tokens <= 1200
    assert found.load.tokens == 2400, "loads count every token"
    assert any("random sample" in note for note in found.notes)


def test_the_same_trace_gives_the_same_numbers(studied: TraceStudy) -> None:
    assert summary(study(two_domains(), "toy")) == summary(studied)


def test_progress_ends_at_the_end() -> None:
    told: list[tuple[int, int]] = []
    study(identical(), "t", progress=lambda done, total: told.append((done, total)))
    assert told == [(n, told[-1][1]) for n in range(1, len(told) + 1)]
    assert told[-1][0] == told[-1][1]


EDGES: dict[str, RoutingTrace] = {
    "one token": trace_of([[[1]]], 4),
    "one layer": trace_of(np.arange(50)[:, None, None] % 4, 4),
    "one expert": trace_of(np.zeros((40, 2, 1)), 1),
    "all experts": trace_of(np.broadcast_to(np.arange(4), (40, 2, 4)), 4),
    "three experts": trace_of(np.arange(90)[:, None, None] % 3, 3, [45, 45]),
    "collapsed": identical(),
}


@pytest.mark.parametrize("kind", EDGES)
def test_odd_traces_are_studied_and_drawn(kind: str) -> None:
    found = study(EDGES[kind], kind)
    json.dumps(summary(found), allow_nan=False)
    text = trace_page([found])
    assert "NaN" not in text.split('<script type="module">')[0]
    assert "nan " not in text.split('<script type="module">')[0]


@pytest.mark.parametrize("several", [False, True])
def test_every_chart_is_drawn_under_its_message(studied: TraceStudy, several: bool) -> None:
    studies = [studied, study(two_domains(seed=1), "toy")] if several else [studied]
    figures = trace_figures(studies)
    for figure in figures:
        assert figure.chart is not None, figure.title
        assert re.search(r"\d", figure.title), "a message has a number"
        assert figure.caption
        assert "<svg" in svg(figure)
    page = trace_page(studies)
    assert all(f'data-chart="{figure.key}"' in page for figure in figures)
    assert ("toy (2)" in page) == several


def test_hostile_names_stay_text(studied: TraceStudy) -> None:
    page = trace_page([studied])
    assert HOSTILE not in page
    assert "<img src=x" not in page
    assert "&lt;/script&gt;" in page


def test_other_models_are_compared_by_their_curves(studied: TraceStudy) -> None:
    page = trace_page([studied, study(two_domains(experts=12), "twelve")])
    assert "Twelve has another number of experts, so" in page
    assert "cannot be compared; their curves can" in page
    assert 'data-chart="trace-distinct"' in page
    with pytest.raises(InputError, match="must be 1 to 6"):
        trace_page([studied] * 7)


def test_a_caption_speaks_of_what_its_chart_has(studied: TraceStudy) -> None:
    assert "band:" in trace_words.locality_caption([studied])
    assert "band:" not in trace_words.locality_caption([studied, studied])


def test_info_prints_what_it_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["trace", "info", "a.safetensors", "--by-layer"], capsys)
    for name in (
        "Gini",
        "Effective experts",
        "Busiest of 8 ranks",
        "uniform routing",
        "guessed right",
    ):
        assert name in text
    assert "total variation of load" in text
    told = json.loads(printed(["trace", "info", "a.safetensors", "--json"], capsys))
    assert told["name"] == "a"
    part = ["trace", "info", "a.safetensors", "--domain", "code", "--json"]
    assert json.loads(printed(part, capsys))["sequences"] == 20
    text = printed(["trace", "info", "same.safetensors"], capsys)
    assert "Note: Dead experts: 12 of 16" in text
    assert "Note: Routing has collapsed" in text
    printed(["trace", "info", "a.safetensors", "--report", "r/a.html"], capsys)
    assert "figure-trace-load" in Path("r/a.html").read_text()


def test_compare_finds_domains_apart_and_seeds_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shift(*arguments: str) -> dict[str, Any]:
        told = json.loads(printed(["trace", "compare", *arguments, "--json"], capsys))
        return dict(told["shift"][0])

    seeds = shift("a.safetensors", "b.safetensors")
    assert seeds["total_variation"]["mean"] < 2 * seeds["noise"]["mean"]
    kinds = shift("a.safetensors", "--domain", "code", "--domain", HOSTILE)
    assert kinds["first"] == "code"
    assert kinds["total_variation"]["mean"] > 2 * kinds["noise"]["mean"]
    text = printed(["trace", "compare", "a.safetensors", "other.safetensors"], capsys)
    assert "other has another number of experts: where the load falls cannot be compared" in text
    assert "2 of 12" in text


def test_loads_of_another_model_are_not_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many experts do not make expert 3 of one model expert 3 of another."""
    replace(two_domains(seed=1), model="another").save("model.safetensors")
    replace(two_domains(seed=1), layers_L=np.array([0, 1, 7], np.int32)).save("layers.safetensors")
    for name, why in (("model", "is of another model (another, not toy)"), ("layers", "other lay")):
        arguments = ["trace", "compare", "a.safetensors", f"{name}.safetensors"]
        text = printed(arguments, capsys)
        assert f"Note: {name} " in text
        assert why in text
        assert "total variation of load" not in text
        told = json.loads(printed([*arguments, "--json"], capsys))
        assert told["shift"] == []
        assert why in told["not_compared"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors"], "traces must be 2 to 6"),
        (["a.safetensors", "--domain", "code"], "traces must be 2 to 6"),
        (["a.safetensors", "b.safetensors", "--domain", "code"], "of a single trace"),
        (["a.safetensors", "--domain", "code", "--domain", "law"], "must be among the trace's"),
        (["a.safetensors", "nothing.safetensors"], "must be an existing file"),
        (["a.safetensors", "b.safetensors", "--report", "."], "must be a file"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["trace", "compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_domain_without_sequences_is_refused() -> None:
    trace = trace_of(np.zeros((10, 1, 1)), 4, domains=("all", "none"))
    with pytest.raises(InputError, match="at least one sequence"):
        of_domains(trace, ["none"])


def test_ranks_that_do_not_divide_are_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["trace", "info", "other.safetensors"], capsys)  # 8 ranks, 12 experts
    assert "8 ranks do not divide 12 experts evenly" in text
    assert "Busiest of 8 ranks" not in text
