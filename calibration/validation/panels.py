"""What the panels of a validation's charts share."""

from __future__ import annotations

import altair as alt

METRIC_TITLES = {"ttft": "mean TTFT", "tpot": "mean TPOT"}
Panel = alt.LayerChart | alt.FacetChart


def panel_title(text: str) -> alt.Title:
    """A heading in the middle above a panel."""
    return alt.Title(text, fontSize=13, anchor="middle", offset=6)
