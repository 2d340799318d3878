"""The page of a review: page one, questions, evidence; what is absent says how to get it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moesim.findings.case import Case
from moesim.findings.estimates import Estimate
from moesim.report import (
    cost_answers,
    facts,
    front_words,
    notebook,
    numbers,
    page,
    paired_charts,
    router_answers,
    sure_words,
    words,
)
from moesim.report.questions import QUESTIONS
from moesim.report.source import counted
from moesim.scenario import load_scenario
from tests.fixtures.fake_case import CAUSES, VOLUME, fake_case, fake_uncertainty
from tests.fixtures.fake_result import FakeObjective, FakeResult, fake_result
from tests.unit.test_report import HOSTILE, Tags, parsed

SHOWN = re.compile(r"\d|not |because|so |no ", re.IGNORECASE)


def asking(rate_per_s: float) -> Any:
    """A scenario of such a rate."""
    arrivals = SimpleNamespace(rate_per_s=rate_per_s)
    return SimpleNamespace(workload=SimpleNamespace(arrivals=arrivals), slo=FakeObjective())


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


def test_figures_of_page_one_are_the_means_and_said_to_be(run: FakeResult, case: Case) -> None:
    """The replications' means stand everywhere; the run's own only where it says so."""
    assert case.uncertainty is not None
    moved = {
        path: Estimate(0.5 * of.value, 0.4 * of.value, 0.6 * of.value)
        for path, of in case.uncertainty.estimates.items()
    }
    other = replace(case, uncertainty=replace(case.uncertainty, estimates=moved))
    html = page.page([run], [other])
    front = text_of(section(html, "summary"))
    own = run.summary["cost"]["usd_per_million_output_tokens"]
    assert words.money(0.5 * own) in front
    assert words.money(own) not in front
    assert "means over 3 seeds; tables and distributions below are of seed 7" in text_of(html)
    table = text_of(section(html, "numbers"))
    assert "Latency of the run with seed 7" in table
    assert f"output tokens {words.money(0.5 * own)} {words.money(own)}" in table
    tail, half = (run.summary["itl_s"][each] for each in ("p99", "p50"))
    assert words.significant(tail / half) in text_of(section(html, "questions"))


OVER = ("91 % keep TTFT", "overload: 90 under way")


@pytest.mark.parametrize(
    ("kept", "missed", "said"),
    [
        (0.25, OVER, "4.0 times what one replica keeps within the SLO: latencies below grow"),
        (0.25, OVER[:1], "4.0 times what one replica keeps within the SLO: latencies below miss"),
        (0.0, OVER, "so does every load that was tried"),
    ],
)
def test_overload_comes_first_and_takes_the_intervals(
    run: FakeResult, case: Case, whole: str, kept: float, missed: tuple[str, ...], said: str
) -> None:
    assert case.strain is not None
    today = replace(case.strain.points[0], missed=missed)
    strain = replace(case.strain, points=(today,), kept_factor=kept, factor=1.0)
    beyond = replace(case, strain=strain, costs=None)
    html = page.page([run], [beyond])
    box = text_of(html[html.index("<aside") : html.index("</aside>")])
    assert box.startswith("How far to trust this overload: ")
    front = section(html, "summary")
    assert re.findall(r"<dt>(.*?)</dt>", front)[0] == "Overload"
    assert said in box
    assert said in text_of(front)
    piles_up = len(missed) == 2
    assert ("95 %:" in text_of(front).split("What binds")[0]) is not piles_up
    assert ("without intervals" in text_of(front)) is piles_up
    assert "overload" not in text_of(whole).lower().split("questions")[0][:900]


def test_demand_above_the_capacity_searched_is_overload(run: FakeResult, case: Case) -> None:
    """The study's replica of 8 GPUs carries 10 requests a second."""
    rate = asking(39.0)
    asked = FakeResult(**{**vars(run), "scenario": rate})
    assert facts.times_too_much(asked, case) == pytest.approx(3.9)
    assert facts.times_too_much(FakeResult(**{**vars(run), "scenario": asking(9.9)}), case) is None
    assert "3.9 times what one replica keeps" in str(facts.overload_words(asked, case))


def test_one_fleet_and_how_the_rate_relates_to_the_volume(run: FakeResult, case: Case) -> None:
    asked = FakeResult(**{**vars(run), "scenario": asking(8.0)})
    assert case.costs is not None
    at = case.costs.at_volume()
    assert at is not None
    most = at["self_hosted"]["a large model"]["always on"]["most_replicas"]
    told = " ".join(front_words.costs(asked, case))
    times = words.significant(8.0 / (at["requests_per_day"] / 86400))
    assert (
        f"8.00 requests a second, at which latencies here are simulated, are {times} times" in told
    )
    assert f"{most} replicas cost" in told
    assert f"run {most} replicas" in " ".join(front_words.changes(asked, case))
    assert f"and {most} with the spare" in " ".join(cost_answers.nodes(asked, case)[0])


def test_studies_of_other_runs_say_how_long_these_were(run: FakeResult, case: Case) -> None:
    assert case.strain is not None
    twins = tuple(replace(twin, requests=150) for twin in case.twins)
    short = replace(case, strain=replace(case.strain, requests=150), twins=twins)
    html = text_of(section(page.page([run], [short]), "questions"))
    assert html.count("In runs of 150 requests: a") == 3
    assert "In runs of 100 requests, 2 seeds: with prompts" in html
    same = replace(case, strain=replace(case.strain, requests=len(run.requests)))
    assert router_answers.fails_first(run, same)[0][0] == case.strain.sentence


def test_causes_of_one_short_run_have_no_interval_but_a_warning(
    run: FakeResult, case: Case
) -> None:
    assert case.explanation is not None
    assert "% (95 %: " in " ".join(front_words.changes(run, case)).replace("50 %", "")
    split = tuple(
        replace(each, sentence="55 % (50 to 60 %) is it.", plain="55 % is it.")
        for each in case.explanation.attributed
    )
    one = replace(case.explanation, attributed=split, seeds=(7,), short=True, requests=60)
    weak = replace(case, explanation=one)
    told = " ".join([*front_words.bounds(run, weak), *front_words.changes(run, weak)])
    assert "55 % is it (one short run of 60 measured requests)." in told
    assert "50 to 60" not in told
    assert "95 %:" not in told
    assert "(one short run):" in told


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
    assert top.index("overload") < top.index("not calibrated")
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
