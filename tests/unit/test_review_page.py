"""The page of a review: page one, questions, evidence; what is absent says how to get it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from moesim.findings.case import Case
from moesim.findings.estimates import Estimate
from moesim.report import front_words, notebook, numbers, page, paired_charts, sure_words, words
from moesim.report.questions import QUESTIONS
from moesim.report.source import counted
from moesim.scenario import load_scenario
from tests.fixtures.fake_case import CAUSES, VOLUME, fake_case, fake_uncertainty
from tests.fixtures.fake_result import FakeResult, fake_result
from tests.unit.test_report import HOSTILE, Tags, parsed

SHOWN = re.compile(r"\d|not |because|so |no ", re.IGNORECASE)


@pytest.fixture(scope="module")
def run() -> FakeResult:
    return fake_result(requests=200)


@pytest.fixture(scope="module")
def case(run: FakeResult) -> Case:
    return fake_case(run)


@pytest.fixture(scope="module")
def whole(run: FakeResult, case: Case) -> str:
    return page.page([run], [case], command="moesim review demo --quick")


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    plain = unescape(re.sub(r"<[^>]+>", " ", bare)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(plain.split())


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def test_the_order_is_summary_questions_evidence_provenance(whole: str) -> None:
    names = re.findall(r'<section id="([a-z-]+)">', whole)
    assert names[:2] == ["summary", "questions"]
    assert names[-3:] == ["assumptions", "scenario", "versions"]
    wanted = ["latency", "sure", "causes", "slow-steps", "placement", "memory", "network", "costs"]
    assert [name for name in names if name in wanted] == wanted
    parsed(whole)


def test_page_one_answers_five_things(whole: str) -> None:
    front = section(whole, "summary")
    headings = re.findall(r"<dt>(.*?)</dt>", front)
    assert headings == [
        "What it costs", "How fast it is", "How sure that is", "What binds", "What to change",
    ]  # fmt: skip
    for told in re.findall(r"<dd>(.*?)</dd>", front, re.DOTALL):
        for sentence in re.findall(r"<p>(.*?)</p>", told, re.DOTALL):
            assert SHOWN.search(text_of(sentence)), sentence


def test_intervals_stand_beside_the_figures_that_have_them(run: FakeResult, whole: str) -> None:
    value = run.summary["ttft_s"]["p99"]
    known = f"95 %: {words.duration(0.9 * value, 3)} to {words.duration(1.15 * value, 3)}"
    assert known in text_of(section(whole, "summary"))
    assert known not in text_of(section(page.page([run]), "summary"))


def test_every_question_is_answered_with_a_number_or_says_how(run: FakeResult, case: Case) -> None:
    for question in QUESTIONS:
        sentences, missing = question.answer(run, case)
        assert sentences, question.name
        assert all(SHOWN.search(each) for each in sentences), sentences
        if question.name not in ("router",):
            assert missing == "", question.name
        assert question.answer(run, Case())[1].startswith("To know more: `moesim "), question.name


def test_what_was_not_studied_says_how_or_why(run: FakeResult) -> None:
    html = page.page([run])
    for name in ("sure", "causes", "slow-steps", "placement", "costs"):
        assert "Not studied: <code>moesim" in section(html, name)
    reason = Case(absent={"placement": "model: must have experts to place"})
    told = section(page.page([run], [reason]), "placement")
    assert "Not studied: model: must have experts to place." in text_of(told)


def test_costs_speak_of_the_volume_asked_for(run: FakeResult, case: Case) -> None:
    told = " ".join(front_words.costs(run, case))
    assert "At 1 billion tokens a day" in told
    assert case.costs is not None
    at = case.costs.at_volume()
    assert at is not None
    assert at["tokens_per_day"] == VOLUME
    own = at["self_hosted"]["a large model"]
    assert words.money(own["always on"]["usd_per_day"]) in told


def test_a_run_that_does_not_settle_is_said_to(run: FakeResult) -> None:
    unsettled = Case(uncertainty=fake_uncertainty(run, settled=False))
    assert "has no long-run value" not in " ".join(sure_words.sureness(run, Case()))
    told = " ".join(sure_words.sureness(run, unsettled))
    assert "no long-run value" in told


def test_the_largest_cause_names_its_lever(run: FakeResult, case: Case) -> None:
    told = " ".join(front_words.changes(run, case))
    assert CAUSES[1].phrase in told
    assert front_words.LEVERS["prefill"] in told


def test_a_figure_without_an_interval_shows_none() -> None:
    assert sure_words.with_interval(Estimate(0.5), words.duration) == "500 ms"
    assert sure_words.with_interval(Estimate(0.5, 0.4, 0.6), words.duration) == (
        "500 ms (95 %: 400 ms to 600 ms)"
    )


def test_notes_that_void_figures_stay_on_top(run: FakeResult) -> None:
    notes = tuple(f"note {n}" for n in range(6))
    noted = FakeResult(
        **{**vars(run), "notes": (*notes, "overload: 9 under way", "x, not calibrated")}
    )
    html = page.page([noted])
    top = html[html.index("<aside") : html.index("</aside>")]
    assert top.index("not calibrated") < top.index("overload")
    assert top.count("<li>") == 4
    assert section(html, "notes").count("<li>") == 4


# --- comparisons


@pytest.mark.parametrize("count", [2, 6])
def test_comparisons_of_two_to_six(run: FakeResult, case: Case, count: int) -> None:
    runs = [run, *(fake_result(f"variant {n}", requests=60, seed=n) for n in range(1, count))]
    html = page.page(runs, [case, *[Case()] * (count - 2), case], [False] * (count - 1))
    tags: Tags = parsed(html)
    front = section(html, "summary")
    assert front.count("<tr>") == count + 1
    assert front.count("data-deployment=") == count
    keys = [a["data-chart"] for _, a in tags.seen if "data-chart" in a]
    assert len(keys) == len(set(keys)), "no two charts share a place"
    assert f"attribution-shares-{count}" in keys


def test_paired_differences_are_those_of_the_same_request(run: FakeResult) -> None:
    slower = FakeResult(**{**vars(run), "name": "slower", "requests": run.requests.copy()})
    slower.requests["ttft_s"] += 0.25
    found = paired_charts.paired([run, slower], [True])
    assert found is not None
    header, rows = next(iter(numbers.datasets(found.spec())))
    gaps = np.array([float(row[header.index("value")]) for row in rows])
    np.testing.assert_allclose(gaps, 250.0, rtol=1e-4)  # ms
    assert len(counted(run)) > 0
    assert paired_charts.paired([run, slower], [False]) is None


# --- to reproduce it


def test_versions_command_and_hashes_are_there(whole: str) -> None:
    told = text_of(section(whole, "versions"))
    for word in ("moesim review demo --quick", "Python", "numpy", "numba", "SHA-256", "Seed"):
        assert word in told


def test_hashes_are_those_of_trace_and_profile(run: FakeResult, tmp_path: Path) -> None:
    from hashlib import sha256

    from moesim.report.reproduce import profile_hash, trace_hash

    trace, profile = tmp_path / "t.safetensors", tmp_path / "p.yaml"
    trace.write_bytes(b"routes")
    profile.write_text("label: mine\n", encoding="utf-8")
    made = load_scenario(
        "mixtral-8x7b-chat",
        [f"routing.trace={trace}", f"deployment.profile={profile}"],
    )
    assert sha256(b"routes").hexdigest()[:32] in trace_hash(made)
    assert sha256(b"label: mine\n").hexdigest()[:32] in profile_hash(made)
    assert "no file" in trace_hash(load_scenario("mixtral-8x7b-chat"))


# --- numbers behind charts, and notebooks


def test_tables_behind_charts_keep_both_ends() -> None:
    rows = [[str(n)] for n in range(1000)]
    shown = numbers._thinned(rows)
    assert len(shown) == numbers.MOST_ROWS
    assert (shown[0], shown[-1]) == (rows[0], rows[-1])


def test_every_chart_has_its_numbers(whole: str) -> None:
    places = whole.count('class="chart"')
    assert places >= 12
    assert whole.count("The numbers of this chart") == places


def test_notebooks_show_a_sentence_a_table_and_a_chart(run: FakeResult) -> None:
    html = notebook.run_html(run)
    assert "<script" not in html
    assert html.count("<table") == 1
    assert html.count("<svg") == 1
    assert "not calibrated" in html
    both = notebook.comparison_html([run, fake_result("other", requests=60, seed=2)])
    assert both.count("<svg") == 1
    ids = set(re.findall(r'id="(m\w+)-clip', html)) & set(re.findall(r'id="(m\w+)-clip', both))
    assert not ids, "charts of one notebook do not share clips"


def test_hostile_names_stay_text_in_reviews_and_notebooks(run: FakeResult) -> None:
    hostile = FakeResult(**{**vars(run), "name": HOSTILE, "notes": (HOSTILE,)})
    case = replace(fake_case(run, name=HOSTILE), absent={"placement": HOSTILE})
    for html in (page.page([hostile], [case], command=HOSTILE), notebook.run_html(hostile)):
        tags = Tags()
        tags.feed(html)
        assert "img" not in [tag for tag, _ in tags.seen]
        assert [tag for tag, _ in tags.seen].count("script") in (0, 2)
        assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
