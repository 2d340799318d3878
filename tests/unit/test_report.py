"""Reports: what is thinned stays true, what is written is safe, nothing drawn is empty."""

from __future__ import annotations

import html.parser
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.report import (
    charts,
    document,
    export,
    figure,
    page,
    series,
    theme,
    words,
    write_report,
)
from moesim.report.cost_charts import memory_parts
from moesim.report.source import chart_labels, labels
from tests.fixtures.fake_result import FakeResult, FakeScenario, fake_result

KEYS = (
    "latency-cdf",
    "latency-percentiles",
    "itl",
    "step-parts",
    "queue-kv",
    "expert-load",
    "imbalance",
    "memory",
)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> <!-- & '


@pytest.fixture(scope="module")
def run() -> FakeResult:
    return fake_result(requests=300)


@pytest.fixture(scope="module")
def dense() -> FakeResult:
    return fake_result("llama, one token each", layers=0, ranks=1, outputs=(1, 1), requests=40)


@pytest.fixture(scope="module")
def pair(run: FakeResult) -> list[FakeResult]:
    return [run, fake_result("two nodes", requests=300, ranks=16, speed=1.4)]


@pytest.fixture(scope="module")
def run_page(run: FakeResult) -> str:
    return page.page([run])


@pytest.fixture(scope="module")
def pair_page(pair: list[FakeResult]) -> str:
    return page.page(pair)


def drawn(results: list[FakeResult]) -> dict[str, figure.Figure]:
    return {f.key: f for f in charts.figures(results)}


# --- thinning


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 3), st.integers(0, 9)), max_size=12),
    st.integers(1, 7),
)
def test_time_averages_keep_the_integral(steps: list[tuple[float, float, int]], bins: int) -> None:
    """Whatever the bins, value x time is the same as that of the steps."""
    start, now = [], 0.0
    for idle, duration, _ in steps:
        now += idle
        start.append(now)
        now += duration
    durations, values = [s[1] for s in steps], [s[2] for s in steps]
    edges = series.time_edges(now, bins)
    average = series.over_time(start, durations, values, edges)
    whole = sum(d * v for d, v in zip(durations, values, strict=True))
    assert np.sum(average * np.diff(edges)) == pytest.approx(whole, abs=1e-9)


def test_time_averages_by_hand() -> None:
    """4 held during [1, 3], idle to 4, then 2 to 5: in bins of 2.5 s."""
    average = series.over_time([1.0, 4.0], [2.0, 1.0], [4.0, 2.0], np.array([0.0, 2.5, 5.0]))
    assert average.tolist() == pytest.approx([4 * 1.5 / 2.5, (4 * 0.5 + 2 * 1) / 2.5])


def test_cdf_runs_from_the_least_to_the_largest() -> None:
    points = series.cdf([3.0, np.nan, 1.0, 2.0])
    assert len(points) == series.CDF_POINTS
    assert points["value"].iloc[[0, -1]].tolist() == [1.0, 3.0]
    assert points["share"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert series.cdf([]).empty


@pytest.mark.parametrize(
    ("values", "last"), [(1, None), (2, 50), (19, 92.5), (20, 95), (1000, 99.9)]
)
def test_no_percentile_rests_on_less_than_one_value(values: int, last: float | None) -> None:
    points = series.tail(np.arange(values))
    assert (points["percentile"].max() if len(points) else None) == last


def test_tail_position_counts_nines() -> None:
    points = series.tail(np.arange(10_000)).set_index("percentile")["nines"]
    assert points[90] == pytest.approx(1)
    assert points[99.9] == pytest.approx(3)


def test_exceedance_ends_at_the_largest_gap() -> None:
    points = series.exceedance(np.arange(1, 10_001) / 100)
    assert len(points) <= series.CDF_POINTS
    assert points.iloc[0].tolist() == [0.01, 1.0]
    assert points.iloc[-1].tolist() == [100.0, 1e-4]
    half = points.loc[(points["share"] - 0.5).abs().idxmin()]
    assert half["value"] == pytest.approx(100 * (1 - half["share"]) + 0.01)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 150.0, [1, 2, 5, 10, 20, 50, 100]),
        (0.009, 150.0, [0.01, 0.1, 1, 10, 100]),
        (11.0, 22.0, [12, 15, 20]),
    ],
)
def test_log_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert series.log_ticks(low, high) == ticks


def test_a_large_heatmap_shows_the_fullest_rank_of_each_column() -> None:
    tokens = np.ones((3, 128))
    tokens[1, 77] = 65.0
    cells, rows, columns = series.heat_cells(tokens, np.zeros((3, 128)))
    assert (rows, columns) == (1, 2)
    assert len(cells) == 3 * 64
    hottest = cells.loc[cells["load"].idxmax()]
    assert (hottest["layer"], hottest["rank"]) == (1, 76)
    assert hottest["load"] == pytest.approx(65 / ((127 + 65) / 128))


def test_balanced_load_is_one_everywhere() -> None:
    load = series.relative_load(np.full((4, 8), 7.0))
    assert (load == 1).all()
    empty = series.relative_load(np.zeros((1, 8)))
    assert np.isnan(empty).all()


def test_parts_of_a_step_add_up(run: FakeResult) -> None:
    frame = series.part_times(run.steps, list(charts_parts()))
    assert frame.loc[frame["kind"] == "all steps", "share"].sum() == pytest.approx(1)
    split = frame.loc[frame["kind"] != "all steps", "share"].sum()
    assert split == pytest.approx(1)
    mean = frame.loc[frame["kind"] == "all steps", "mean_s"].sum()
    assert mean == pytest.approx(run.steps["duration_s"].mean())


def charts_parts() -> dict[str, tuple[str, str]]:
    from moesim.report.theme import STEP_PARTS

    return STEP_PARTS


def test_memory_parts_fill_the_gpu(run: FakeResult) -> None:
    parts = dict(memory_parts(run.memory))
    assert sum(parts.values()) == pytest.approx(run.memory["gpu_bytes"])
    assert next(iter(parts)) == "routed experts"
    assert list(parts)[-4:] == ["other parts", "KV cache", "reserve", "not used"]
    assert parts["other parts"] == run.memory["weights_router_bytes"]


# --- words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.04217, "0.042"), (0.996, "1.0"), (9.96, "10"), (123.4, "120"), (4567, "4,600")],
)
def test_significant_digits(value: float, shown: str) -> None:
    assert words.significant(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "n/a"),
        (0, "0 s"),
        (3e-5, "30 µs"),
        (0.42, "420 ms"),
        (2.13, "2.1 s"),
        (600, "10 min"),
        (90_000, "25 h"),
    ],
)
def test_durations_in_words(seconds: float | None, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_times_that_are_compared_share_a_unit() -> None:
    assert words.durations(0.42, 2.1) == ("0.420 s", "2.10 s")


@pytest.mark.parametrize(
    ("usd", "shown"), [(None, "n/a"), (0.63, "$0.63"), (0.0042, "$0.0042"), (1250.4, "$1,250")]
)
def test_money(usd: float | None, shown: str) -> None:
    assert words.money(usd) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (1.01, "about the same"),
        (0.77, "23 % lower"),
        (1.5, "50 % higher"),
        (4.0, "higher by a factor of 4.0"),
        (0.01, "lower by a factor of 100"),
    ],
)
def test_ratios_in_words(ratio: float, shown: str) -> None:
    assert words.ratio_words(ratio) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (0.003, "0.3 %"), (0.42, "42 %"), (0.9996, "99.9 %"), (1, "100 %")],
)
def test_nearly_all_is_not_all(share: float, shown: str) -> None:
    assert words.percent(share) == shown


def test_spread_names_both_ends() -> None:
    known = [("a", 0.3), ("b", None), ("c", 2.1)]
    assert words.spread("The wait", known, words.duration) == (
        "The wait ranges from 300 ms (a) to 2.1 s (c)"
    )
    assert words.spread("The wait", [("a", 1.0), ("b", 1.001)], words.duration) == (
        "The wait is 1.0 s for all"
    )
    assert words.spread("The wait", [("a", None)], words.duration) == "The wait"


def test_headline_says_what_the_summary_holds(run: FakeResult) -> None:
    text = " ".join(words.headline(run))
    half, most = words.durations(run.summary["ttft_s"]["p50"], run.summary["ttft_s"]["p99"])
    assert (
        f"Half of the requests see their first token within {half} and 99 % within {most}" in text
    )
    cost = words.money(run.summary["cost"]["usd_per_million_output_tokens"])
    assert f"One million output tokens cost {cost} at $2.35 per GPU-hour" in text
    assert "All 300 requests completed" in text
    assert "objective (TTFT at most 2.0 s, TPOT at most 50 ms)" in text


def test_headline_admits_failures_and_an_unsettled_run() -> None:
    overloaded = fake_result(requests=300, max_running=16, failed=2)
    text = " ".join(words.headline(overloaded))
    assert "298 of 300 requests completed" in text
    assert "2 requests failed and have no latency" in text
    assert "never settled" in text


def named(*names: str) -> list[FakeResult]:
    return [FakeResult(name, {}, *[None] * 8) for name in names]  # type: ignore[arg-type]


def test_variants_keep_what_tells_them_apart() -> None:
    """What all names share goes from charts; titles, prose and tables keep every word."""
    base = "DeepSeek-V3 on four H200 nodes, placement by "
    names = [f"{base}EPLB with 32 redundant experts", f"{base}greedy with 32 redundant experts"]
    assert labels(named(*names)) == names
    assert chart_labels(named(*names)) == ["EPLB", "greedy"]
    assert chart_labels(named("one node", "two nodes")) == ["one node", "two nodes"]
    same = ["the same words " * 5] * 2  # each keeps a word, and then its number
    assert chart_labels(named(*same)) == ["words", "words (2)"]
    extended = [base + "x", base + "x and y"]
    assert chart_labels(named(*extended)) == ["x", "x and y"]


def test_a_small_difference_is_no_finding() -> None:
    known = [("a", 52.50), ("b", 52.59)]
    told = words.spread("The cost", known, words.money)
    assert told == "The cost is about the same for all, $52.50 to $52.59"
    told = words.spread("The cost", [("a", 52.5), ("b", 54.0)], words.money)
    assert told == "The cost ranges from $52.50 (a) to $54.00 (b)"
    assert words.spread("The cost", [("a", 52.5)] * 2, words.money) == "The cost is $52.50 for all"


def test_prose_never_promises_less_than_the_table() -> None:
    assert words.durations(0.1234, 0.375) == ("123 ms", "375 ms")


def test_legends_name_no_kind_of_exchange() -> None:
    """The engine may gather and scatter: dispatch and combine are not always all-to-all."""
    assert not any("(" in name for name, _ in theme.STEP_PARTS.values())


def test_every_chart_has_the_deployments_in_one_order(pair: list[FakeResult]) -> None:
    swapped = pair[::-1]
    for runs in (pair, swapped):
        names = chart_labels(runs)
        for key, found in drawn(runs).items():
            if found.chart is not None:
                svg = export.svg(found)
                places = [svg.find(f">{name}</text>") for name in names]
                assert -1 < places[0] < places[1], key


def test_the_tail_s_axis_reaches_what_its_title_speaks_of() -> None:
    svg = export.svg(drawn([fake_result(requests=30)])["latency-percentiles"])
    assert ">p99</text>" in svg


def test_labels_are_short_and_distinct() -> None:
    long = "x" * 200
    runs = [FakeResult(n, {}, *[None] * 8) for n in (long, long, "  a\nb ", "", "")]  # type: ignore[arg-type]
    found = chart_labels(runs)  # type: ignore[arg-type]
    assert len(set(found)) == 5
    assert max(map(len, found)) < 60
    assert found[2:] == ["a b", "run 4", "run 5"]


# --- figures


def marks(svg: str) -> int:
    """Drawn shapes: paths and rectangles inside mark groups that are neither axis nor legend."""
    groups = re.findall(
        r'<g class="mark-(?:line|area|rect|symbol)[^"]*role-mark[^>]*>(.*?)</g>', svg
    )
    return sum(len(re.findall(r'<path [^>]*d="M[^"]{4,}', group)) for group in groups)


@pytest.mark.parametrize("key", KEYS)
def test_every_chart_draws_something(run: FakeResult, key: str) -> None:
    assert marks(export.svg(drawn([run])[key])) >= 1


@pytest.mark.parametrize("key", ["cost", *KEYS])
def test_every_comparison_draws_every_deployment(pair: list[FakeResult], key: str) -> None:
    svg = export.svg(drawn(pair)[key])
    assert marks(svg) >= 2
    for name in chart_labels(pair):
        assert name in svg


def test_a_dense_model_gets_a_sentence_instead_of_expert_charts(dense: FakeResult) -> None:
    found = drawn([dense])
    assert found["expert-load"].chart is None
    assert found["imbalance"].chart is None
    assert "dense" in found["expert-load"].title
    assert found["itl"].chart is None
    assert "no gaps" in found["itl"].title
    text = page.page([dense])
    assert text.count("The model is dense") == 1


def test_a_single_expert_rank_has_nothing_to_compare() -> None:
    alone = fake_result(requests=30, ranks=1)
    assert "single rank" in drawn([alone])["expert-load"].title


def test_nothing_completed_is_still_a_report() -> None:
    empty = fake_result(requests=20, failed=20)
    parsed(page.page([empty]))
    found = drawn([empty])
    assert found["latency-cdf"].chart is None
    assert "No request completed" in found["latency-cdf"].title


def test_series_in_charts_stay_small(run: FakeResult) -> None:
    long = fake_result(requests=3000, rate_per_s=30.0)
    for key, found in drawn([long]).items():
        size = len(json.dumps(found.spec()))
        assert size < 200_000, key
    assert len(run.itl_s) > 30_000


def test_one_to_six_results(run: FakeResult) -> None:
    for count in (0, 7):
        with pytest.raises(InputError, match="must be 1 to 6"):
            charts.figures([run] * count)
    assert len(labels([run] * 6)) == len(set(labels([run] * 6)))


def test_charts_by_name_show_themselves(run: FakeResult) -> None:
    by_name = charts.all_charts([run])
    assert tuple(by_name) == KEYS
    shown: Any = by_name["memory"]._repr_mimebundle_()
    assert "routed experts" in str(shown)
    assert by_name["memory"].to_dict()["title"]["text"][0].startswith("Weights take")


# --- the page


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and which of them were left open."""

    void = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def test_the_page_is_well_formed_and_loads_nothing(pair_page: str) -> None:
    text = pair_page
    tags = parsed(text)
    for tag, attributes in tags.seen:
        assert "src" not in attributes, tag
        assert tag != "link"
        assert not (attributes.get("href") or "#").startswith(("http", "//"))
    anchors = {a["href"] for tag, a in tags.seen if tag == "a"}
    ids = {f"#{a['id']}" for _, a in tags.seen if "id" in a}
    assert anchors <= ids
    assert len(anchors) >= 9
    assert "url(" not in text.split("</style>")[0]
    assert text.count("https://github.com/vega/vega-lite") <= 2, "the library is embedded once"


def test_a_page_stays_below_4_megabytes(run_page: str) -> None:
    wide = [fake_result(f"run {n}", requests=100, layers=96, ranks=64) for n in range(2)]
    assert len(run_page.encode()) < 1.6e6
    assert len(page.page(wide).encode()) < 4e6


def test_the_same_result_gives_the_same_bytes(run: FakeResult, run_page: str) -> None:
    assert page.page([run]) == run_page


def test_hostile_names_stay_text(run: FakeResult, pair_page: str) -> None:
    hostile = FakeResult(**{**vars(run), "name": HOSTILE, "notes": (HOSTILE,)})
    hostile.scenario = FakeScenario({"name": HOSTILE}, question=HOSTILE)
    text = page.page([run, hostile])
    tags, reference = parsed(text), parsed(pair_page)
    for tag in ("script", "img"):
        assert [t for t, _ in tags.seen].count(tag) == [t for t, _ in reference.seen].count(tag)
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert "alert(1)" in text, "the name is shown, not dropped"


def test_json_in_a_script_cannot_end_it() -> None:
    text = document.script_json({"name": HOSTILE})
    assert "<" not in text
    assert "&" not in text
    assert json.loads(text) == {"name": HOSTILE}
    with pytest.raises(ValueError, match="JSON"):
        document.script_json([float("nan")])


def test_the_page_carries_label_scenario_version_and_seed(run: FakeResult, run_page: str) -> None:
    text = run_page
    assert text.index("not calibrated") < text.index("In short")
    assert "rate_per_s: 9.0" in text
    assert '<p class="question">How long does a token take?</p>' in text
    assert f"moesim {run.summary['version']}, seed 7" in text
    for assumption in words.NOT_MODELLED:
        assert assumption.split("'")[0] in text


def test_a_note_of_one_run_names_it(pair: list[FakeResult]) -> None:
    noted = FakeResult(**{**vars(pair[1]), "notes": (*pair[1].notes, "layers were mapped")})
    text = page.page([pair[0], noted])
    assert "<li>two nodes: layers were mapped</li>" in text
    assert text.count("<li>step times: datasheet") == 1


def test_comparison_shows_ratios_to_the_first(pair: list[FakeResult], pair_page: str) -> None:
    per_hour = [run.summary["cost"]["usd_per_hour"] for run in pair]
    assert per_hour == [pytest.approx(18.8), pytest.approx(37.6)]
    assert "<td>$37.60 (×2.00)</td>" in pair_page
    assert "two nodes, against deepseek-v3 on one H200 node" in pair_page


def test_write_report_replaces_the_file_whole(run: FakeResult, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write_report([run], target) == target
    before = target.read_bytes()
    with pytest.raises(InputError):
        write_report([run] * 7, target)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


# --- pictures


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """(width, height, the distinct scan lines) of an 8-bit PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    position, data = 8, b""
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += 12 + length
    raw = zlib.decompress(data)
    line = len(raw) // height
    return width, height, {raw[n * line : (n + 1) * line] for n in range(height)}


def test_pictures_of_every_chart(dense: FakeResult, tmp_path: Path) -> None:
    written = export.export_charts([dense], tmp_path, formats=("png", "svg"), scale=1)
    names = {path.name for path in written}
    assert names == {
        f"{key}.{kind}"
        for key in ("latency-cdf", "latency-percentiles", "step-parts", "queue-kv", "memory")
        for kind in ("png", "svg")
    }
    for path in written:
        if path.suffix == ".png":
            width, height, lines = pixels(path.read_bytes())
            assert width > 500
            assert height > 80
            assert len(lines) > 30, "a blank picture has one line, repeated"


def test_data_in_a_chart_is_short_text_without_nan(dense: FakeResult) -> None:
    frame = pd.DataFrame(
        {"a": [1.23456789, np.nan, np.inf], "b": [1, 2, 3], "c": ["x,y", 'q"', "12"]}
    )
    held = figure.data(frame).to_dict()
    assert held["values"] == 'a,b,c\n1.2346,1,"x,y"\n,2,"q"""\n,3,12\n'
    assert held["format"]["parse"] == {"a": "number", "b": "number", "c": "string"}
    for found in drawn([dense]).values():
        if found.chart is not None:
            json.dumps(found.spec(), allow_nan=False)
