"""The page of a review in a real browser: one page opened once serves most of the assertions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from moesim.findings.case import Case
from moesim.report import write_report
from tests.browser.pages import CUT, HOSTILE, IN_A_BROWSER, INK, OVERLAPS, SHAPES, contrast, opened
from tests.fixtures.fake_case import fake_case
from tests.fixtures.fake_result import FakeResult, fake_result

pytestmark = IN_A_BROWSER

WIDER = """() => [...document.querySelectorAll("svg.marks")].filter((svg) =>
  svg.width.baseVal.value > svg.closest(".chart").clientWidth + 2)
  .map((svg) => svg.closest(".chart").dataset.chart)"""
REDRAWN = """(was) => {
  const svg = document.querySelector('[data-chart="latency-cdf"] svg.marks');
  return svg && svg.width.baseVal.value !== was;
}"""
FIRST_WIDTH = (
    """document.querySelector('[data-chart="latency-cdf"] svg.marks').width.baseVal.value"""
)
FAINT = """() => document.querySelectorAll(
  '[data-chart="latency-cdf"] .role-mark path[opacity="0.06"]').length"""


@pytest.fixture(scope="module")
def run() -> FakeResult:
    return fake_result(HOSTILE, requests=150)


@pytest.fixture(scope="module")
def alone(chromium: Any, run: FakeResult, tmp_path_factory: Any) -> Iterator[tuple[Any, list[str]]]:
    """A review of one deployment with every finding, and a hostile name."""
    path = tmp_path_factory.mktemp("review") / "review.html"
    write_report([run], path, [fake_case(run, name=HOSTILE)], command=f"moesim review {HOSTILE}")
    tab, troubles = opened(chromium, path)
    yield tab, troubles
    tab.context.close()


@pytest.fixture(scope="module")
def six(chromium: Any, run: FakeResult, tmp_path_factory: Any) -> Iterator[tuple[Any, list[str]]]:
    """Six deployments compared, the last of which was studied."""
    runs = [
        fake_result(f"variant {n}", requests=60, ranks=8 * 2 ** (n % 3), seed=n) for n in range(5)
    ] + [run]
    path = tmp_path_factory.mktemp("six") / "six.html"
    write_report(runs, path, [*[Case()] * 5, fake_case(run)], [False] * 5)
    tab, troubles = opened(chromium, path)
    yield tab, troubles
    tab.context.close()


def test_every_chart_is_drawn_without_errors_or_requests(alone: Any, six: Any) -> None:
    for tab, troubles in (alone, six):
        assert troubles == []
        shapes = tab.evaluate(SHAPES)
        assert len(shapes) >= 14
        assert all(shapes.values()), shapes
        assert tab.evaluate(OVERLAPS) == []
        assert tab.evaluate(CUT) == []
        assert tab.evaluate("document.images.length") == 0


def test_hovering_shows_a_tooltip_and_details_open_by_keyboard(alone: Any) -> None:
    tab, troubles = alone
    tab.hover('[data-chart="memory"] svg.marks .role-mark path')
    tab.wait_for_selector("#vg-tooltip-element.visible", timeout=5000)
    assert "GB per GPU" in tab.inner_text("#vg-tooltip-element")
    summary = tab.locator("details.numbers > summary").first
    summary.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("details.numbers[open] table").count() >= 1
    assert troubles == []


def test_a_deployment_is_switched_off_in_all_charts_by_keyboard(six: Any) -> None:
    tab, troubles = six
    button = tab.locator(".key button").nth(1)
    assert tab.evaluate(FAINT) == 0
    button.focus()
    tab.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert tab.evaluate(FAINT) == 3, "one line in each of three panels"
    tab.keyboard.press("Space")
    assert tab.evaluate(FAINT) == 0
    assert troubles == []


def test_light_and_dark_by_toggle_charts_included(alone: Any) -> None:
    tab, _ = alone
    pictures, papers = [], []
    for _ in range(2):
        ink = tab.evaluate(INK)
        assert ink["label"] == ink["body"]
        assert contrast(ink["body"], ink["paper"]) > 7
        for colour in soft_texts(tab):
            assert contrast(colour, ink["paper"]) >= 4.5, colour
        papers.append(ink["paper"])
        pictures.append(tab.screenshot())
        tab.click("#theme")
    assert papers[0] != papers[1]
    assert pictures[0] != pictures[1]
    assert tab.evaluate(INK)["paper"] == papers[0], "and back again"


def soft_texts(tab: Any) -> list[str]:
    """Colours of the texts that stand back."""
    found = tab.evaluate(
        """() => [...document.querySelectorAll(
          ".about, figcaption, caption, .missing, .tile small, p a, nav a, section summary")]
          .filter((one) => !one.closest(".vega-embed"))
          .map((one) => getComputedStyle(one).color)"""
    )
    return sorted(set(found))


def test_charts_fit_400_and_1400_pixels(alone: Any) -> None:
    tab, troubles = alone
    for width in (400, 1400, 1200):
        was = tab.evaluate(FIRST_WIDTH)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_function(REDRAWN, arg=was, timeout=30_000)
        tab.wait_for_timeout(1500)
        assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert tab.evaluate(WIDER) == [], width
    assert troubles == []


def test_the_summary_prints_on_one_side_and_the_rest_follows(alone: Any, six: Any) -> None:
    for tab, _ in (alone, six):
        tab.emulate_media(media="print")
        whole = tab.pdf(prefer_css_page_size=True)
        tab.add_style_tag(content="body > :not(.front) { display: none !important }")
        front = tab.pdf(prefer_css_page_size=True)
        assert pages(front) == 1, "page one is one A4 side"
        assert pages(whole) >= 4
        assert media_boxes(whole) == {"595 842"}
        tab.emulate_media(media="screen")


def plain(pdf: bytes) -> str:
    """A PDF with its compressed parts opened, for counting objects."""
    parts = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(parts).decode("latin-1")


def pages(pdf: bytes) -> int:
    return len(re.findall(r"/Type\s*/Page\b(?!s)", plain(pdf)))


def media_boxes(pdf: bytes) -> set[str]:
    """Width and height of pages in points, rounded."""
    found = re.findall(r"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", plain(pdf))
    return {f"{float(width):.0f} {float(height):.0f}" for width, height in found}
