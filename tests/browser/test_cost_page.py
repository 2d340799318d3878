"""The page of costs in a real browser, off the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesim.economics.api_prices import ApiPrice, prices_of_model
from tests.browser.pages import HOSTILE, IN_A_BROWSER, legible_charts, opened
from tests.fixtures.offers import fake_study

pytestmark = IN_A_BROWSER


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
    charts = legible_charts(tab, troubles)
    assert charts == {"cost-by-volume", "replicas-by-hour"}
    tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    tab.context.close()
