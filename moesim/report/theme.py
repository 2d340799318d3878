"""Colours, sizes and the names of parts: everything that all charts share.

Colours are those of Okabe & Ito, "Color Universal Design" (2008), told apart by colour-blind
readers. Ink is `currentColor`: an SVG in a page takes the page's text colour, light or dark, and
a picture file is black.
"""

from __future__ import annotations

from typing import Any

DEPLOYMENT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DEPLOYMENT_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 2, 1, 2])

STEP_PARTS: dict[str, tuple[str, str]] = {  # column: what it is called, colour
    "attention_s": ("attention", "#0072B2"),
    "attention_imbalance_s": ("waiting for the slowest attention rank", "#56B4E9"),
    "dense_s": ("dense layers, head", "#8A6BBE"),
    "experts_s": ("experts", "#D55E00"),
    "expert_imbalance_s": ("waiting for the most loaded expert rank", "#E69F00"),
    "expert_miss_s": ("waiting for experts outside GPU memory", "#882255"),
    "dispatch_s": ("dispatch", "#009E73"),
    "combine_s": ("combine", "#7BCDB0"),
    "all_reduce_s": ("all-reduce", "#CC79A7"),
    "pipeline_s": ("pipeline", "#F0E442"),
    "draft_s": ("draft model", "#332288"),
    "overhead_s": ("engine overhead", "#999999"),
}

MEMORY_COLOURS = (
    "#D55E00", "#0072B2", "#E69F00", "#8A6BBE", "#56B4E9", "#CC79A7", "#7BCDB0", "#F0E442",
)  # fmt: skip
ROOM_COLOURS = {
    "other parts": "#777777",
    "KV cache": "#009E73",
    "reserve": "#BBBBBB",
    "not used": "#E8E8E8",
}

HEAT_COLOURS = ("#0072B2", "#F2F0EA", "#D55E00")  # below, at and above the layer's mean

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
INK = "currentColor"

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "lineBreak": "\n",
    "font": FONT,
    "padding": {"left": 5, "right": 12, "top": 5, "bottom": 5},
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": INK,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "gridOpacity": 0.14,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelFlush": False,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 420,
        "orient": "top",
        "symbolStrokeWidth": 2.5,
        "columnPadding": 18,
    },
    "header": {"labelColor": INK, "titleColor": INK},
    "title": {"color": INK, "subtitleColor": INK, "fontSize": 13, "anchor": "start", "offset": 8},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": INK},
    "concat": {"spacing": 28},
}
