"""Draw a small timeline of the detailed mode: `python tests/tools/draw_timeline.py IN OUT.png`.

Rows as in Perfetto, one colour for each kind of work; a picture for the documentation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import altair as alt
import pandas as pd

KINDS = {
    "attention": "#4c78a8",
    "dense and shared": "#9ecae9",
    "dispatch": "#f58518",
    "combine": "#e45756",
    "experts": "#54a24b",
    "link": "#b79a20",
    "host": "#bab0ac",
}
STARTS = {
    "projections": "attention",
    "attention": "attention",
    "all-reduce": "link",
    "experts": "experts",
    "dispatch": "dispatch",
    "combine": "combine",
    "scale-up": "link",
    "network": "link",
    "schedule": "host",
    "launch": "host",
}


def slices(path: Path) -> pd.DataFrame:
    """Rows of a trace's slices; what waits is left blank."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    found = []
    for event in events:
        if event["ph"] != "X" or event["name"].startswith("wait"):
            continue
        process = names["process_name", event["pid"], 0]
        row = names["thread_name", event["pid"], event["tid"]]
        row = row if "links" in process else f"{process} {row}"
        kind = STARTS.get(event["name"].split()[0].strip(","), "dense and shared")
        end = event["ts"] + event["dur"]
        found.append((row.removeprefix("replica 0 "), kind, event["ts"], end))
    table = pd.DataFrame(found, columns=["row", "kind", "start", "end"])
    table[["start", "end"]] -= table["start"].min()
    return table


def main(source: str, target: str) -> None:
    chart = (
        alt.Chart(slices(Path(source)))
        .mark_bar(height=14)
        .encode(
            x=alt.X("start:Q", title="microseconds of the step"),
            x2="end:Q",
            y=alt.Y("row:N", title=None, sort=None, axis=alt.Axis(labelLimit=260)),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values())),
            ),
        )
        .properties(width=900, height=alt.Step(18))
    )
    chart.save(target, scale_factor=1.5)


if __name__ == "__main__":
    main(*sys.argv[1:3])
