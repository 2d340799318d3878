"""The page of costs in a real browser, off the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesim.economics.api_prices import ApiPrice, prices_of_model
from tests.browser.test_report_page import (
    CHROMIUM,
    CUT,
    HOSTILE,
    OVERLAPS,
    SHAPES,
    opened,
)
from tests.fixtures.offers import fake_study

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Chromium at /usr/bin/chromium"),
]


@pytest.mark.parametrize(
    ("apis", "name", "profile"),
    [
        (prices_of_model("deepseek-v3"), "DeepSeek-V3 on one H200 node", "consumer"),
        ((), "without an API", "flat"),
        ((ApiPrice(HOSTILE, "", 1.0, None, 2.0),), HOSTILE, "office-week"),
        (
            prices_of_model("deepseek-v3"),
            "a name that tells everything " * 5,
            "reasoning",
        ),
    ],
    ids=["many APIs", "no API", "hostile", "long name"],
)
def test_charts_are_drawn_and_legible(
    chromium: Any, tmp_path: Path, apis: Any, name: str, profile: str
) -> None:
    path = tmp_path / "cost.html"
    fake_study(apis, name, profile).report(path)
    tab, troubles = opened(chromium, path)
    assert troubles == []
    shapes = tab.evaluate(SHAPES)
    assert set(shapes) == {"cost-by-volume", "replicas-by-hour"}
    assert all(shapes.values()), shapes
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(CUT) == []
    wide = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "nothing makes the page scroll sideways"
    tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    tab.context.close()
