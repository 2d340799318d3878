"""Pages in a real browser, off the network: what all tests of them ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'

IN_A_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Chromium at /usr/bin/chromium"),
]

# Pairs of tick labels of one axis, or of one legend, whose boxes overlap.
OVERLAPS = """() => {
  const clashes = [];
  for (const group of document.querySelectorAll(
      "svg.marks .role-axis-label, svg.marks .role-legend-label")) {
    const boxes = [...group.querySelectorAll("text")]
      .filter((text) => text.textContent && getComputedStyle(text).opacity !== "0"
        && text.getAttribute("opacity") !== "0")
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i += 1)
      for (let j = i + 1; j < boxes.length; j += 1) {
        const [a, b] = [boxes[i][1], boxes[j][1]];
        const apart = a.right <= b.left + 1 || b.right <= a.left + 1
          || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
        if (!apart) clashes.push(`${boxes[i][0]} | ${boxes[j][0]}`);
      }
  }
  return clashes;
}"""

# Texts that reach beyond the picture they belong to.
CUT = """() => {
  const cut = [];
  for (const svg of document.querySelectorAll("svg.marks")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1))
        cut.push(text.textContent);
    }
  }
  return cut;
}"""

# Per chart: shapes drawn by marks (not by axes, legends or backgrounds) that have an extent.
SHAPES = """() => Object.fromEntries([...document.querySelectorAll(".chart")].map((chart) => [
  chart.dataset.chart,
  [...chart.querySelectorAll(
      ".role-mark path, .role-mark line")].filter((shape) => {
    const box = shape.getBoundingClientRect();
    return box.width + box.height > 1;
  }).length,
]))"""

INK = """() => ({
  label: getComputedStyle(document.querySelector("svg.marks .role-axis-label text")).fill,
  body: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
})"""


def opened(chromium: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The drawn page, and everything that went wrong: errors, requests, alerts."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
    context.set_offline(True)
    context.add_init_script("window.alert = (text) => console.log(`alert ${text}`)")
    tab = context.new_page()
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    tab.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else troubles.append(f"request: {request.url}")
        ),
    )
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-charts]", timeout=30_000)
    if (state := tab.get_attribute("html", "data-charts")) != "drawn":
        troubles.append(f"charts: {state}")
    return tab, troubles


def legible_charts(tab: Any, troubles: list[str]) -> set[str]:
    """The charts of a page without troubles: each is drawn, with all labels whole and apart, and
    nothing makes the page scroll sideways."""
    assert troubles == []
    shapes: dict[str, int] = tab.evaluate(SHAPES)
    assert all(shapes.values()), shapes
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(CUT) == []
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    return set(shapes)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two rgb() colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
