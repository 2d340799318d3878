"""The page of speeds: `python -m tests.benchmarks.page FIGURES.json` draws docs/explanation/speed.

FIGURES.json is what the suite wrote. It is kept beside the page, so that tables and chart can be
made again; a table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.files import replace_atomically
from moesim.report.theme import DEPLOYMENT_COLOURS

HERE = Path(__file__).resolve().parents[2] / "docs" / "explanation"
NAMES = {
    "four-dense": "dense, 4 x TP4",
    "four-mixtral": "Mixtral 8x22B, 4 x EP4",
    "four-qwen": "Qwen3-235B, 4 x EP8",
    "four-deepseek": "DeepSeek-V3, 4 x EP8",
    "four-dense-a100": "dense on Vidur's GPUs",
    "vidur": "Vidur, dense",
    "vidur-native": "Vidur, dense, compiled predictor",
}
MEGA, GIGA = 1e6, 1e9


def machine_line(found: dict[str, Any]) -> str:
    """What the figures come from."""
    of, memory = found["machine"], found["memory"]
    return (
        f"Machine: {of['processor']}, {of['cores']} cores, {of['memory_bytes'] / 2**30:.0f} GiB, "
        f"{of['system']}, Python {of['python']}, NumPy {of['numpy']}, Numba {of['numba']}; load "
        f"{of['load_average'][0]} when the suite began. One core reads "
        f"{memory['read_bytes_per_s'] / GIGA:.1f} GB/s of memory and copies "
        f"{memory['copy_bytes_per_s'] / GIGA:.1f} GB/s."
    )


def _rate(of: dict[str, float]) -> str:
    return f"{of['median']:,.0f} ({of['min']:,.0f} to {of['max']:,.0f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not part of the run that this page shows."
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def cases_table(found: dict[str, Any], four: bool) -> str:
    """Speeds of the cases on Vidur's workload, or of the others."""
    rows = []
    for of in found.get("cases", ()):
        if of.get("streaming") or "loop_requests_per_s" not in of:
            continue
        if of["name"].startswith("four-") is not four:
            continue
        command = of.get("command_requests_per_s")
        ids = of.get("ids_per_s", {}).get("median", 0.0)
        share = f"{ids / GIGA:.2f} ({of['share_of_read']:.0%})" if ids else ""
        row = [
            NAMES.get(of["name"], of["name"]) if four else of["name"],
            f"{of['requests']:,}",
            _rate(of["loop_requests_per_s"]),
            f"{of['process_requests_per_s']['median']:,.0f}",
            f"{command['median']:,.0f}" if command else "",
            f"{of['loop_tokens_per_s']['median'] / MEGA:.2f}",
            share,
            f"{of['times_real_time']['median']:.1f}",
            f"{of['peak_bytes']['median'] / MEGA:,.0f}",
        ]
        rows.append(row if four else row[:4] + row[5:])
    head = ["case", "requests", "requests/s, loop", "process", "`moesim run`", "M tokens/s"]
    head += ["G ids/s (of memory)", "times real time", "MB"]
    return _table(head if four else head[:4] + head[5:], rows)


def growth_table(found: dict[str, Any]) -> str:
    """Exponents of time and memory over requests."""
    rows = [
        [
            NAMES.get(of["name"], of["name"]),
            ", ".join(f"{size:,}" for size in of["requests"]),
            f"{of['loop_s_exponent']:.2f}",
            f"{of['wall_s_exponent']:.2f}",
            f"{of['peak_bytes_exponent']:.2f}",
            f"{of['loop_s'][-1]:,.0f}",
            f"{of['peak_bytes'][-1] / MEGA:,.0f}",
        ]
        for of in found.get("growth", ())
    ]
    return _table(
        ["case", "requests", "b, loop", "b, process", "b, memory", "s, most", "MB, most"], rows
    )


def counting_table(found: dict[str, Any]) -> str:
    """Ids counted a second, and chunks of prompts."""
    rows = []
    for of in found.get("counting", {}).get("shapes", ()):
        chunks = [each["us"]["median"] for each in of["chunks"] if each["tokens"] >= 512]
        rows.append(
            [
                " x ".join(str(n) for n in of["shape"]),
                *(
                    f"{of[f'{kind}_engine']['median'] / GIGA:.2f} "
                    f"({of[f'{kind}_times_plain']:.1f} x, {of[f'{kind}_share_of_read']:.0%})"
                    for kind in ("random", "contiguous")
                ),
                f"{min(chunks):.0f} to {max(chunks):.0f}",
            ]
        )
    head = ["layers x experts x top-k", "rows anywhere, G ids/s", "contiguous rows, G ids/s"]
    return _table([*head, "chunk of 512 to 18,432 tokens, us"], rows)


def startup_table(found: dict[str, Any]) -> str:
    """Seconds of a run of 1,000 requests from nothing."""
    rows = [
        [NAMES.get(of["name"], of["name"])]
        + [
            f"{of[key]['median']:.2f}" if key in of else ""
            for key in ("library_warm_s", "command_warm_s", "library_cold_s", "command_cold_s")
        ]
        for of in found.get("startup", ())
    ]
    head = ["case", "simulate(), warm", "`moesim run`, warm", "simulate(), cold"]
    return _table([*head, "`moesim run`, cold"], rows)


def peers_table(found: dict[str, Any]) -> str:
    """moesim beside Vidur."""
    rows = [
        [
            NAMES[name],
            _rate(of["loop_requests_per_s"]),
            f"{of['times_vidur_loop']['median']:.1f}",
            _rate(of["process_requests_per_s"]),
            f"{of['times_vidur_process']['median']:.1f}",
            f"{of['tpot_s'] * 1e3:.1f}",
            f"{of['steps_per_request']:.1f}",
            f"{of['peak_bytes']['median'] / MEGA:,.0f}",
        ]
        for name, of in found.get("vidur", {}).get("simulators", {}).items()
    ]
    head = ["simulated", "requests/s, loop", "x Vidur", "process", "x Vidur", "TPOT, ms"]
    return _table([*head, "steps a request", "MB"], rows)


def message(found: dict[str, Any]) -> str:
    """What the chart shows."""
    of = found.get("vidur", {}).get("simulators", {})
    times = [
        each["times_vidur_loop"]["median"] for name, each in of.items() if name.startswith("four-")
    ]
    if not times:
        return "Requests per wall second by model, tokens by ranks, and growth with requests"
    return (
        f"moesim simulates {min(times):.2g} to {max(times):.3g} times as many requests a second "
        "as Vidur, with every expert of every token counted"
    )


def chart_line(found: dict[str, Any]) -> str:
    """The chart in the page."""
    return f"![{message(found)}](speed.png)"


def chart(found: dict[str, Any]) -> bytes:
    """Speeds beside Vidur, speeds over ranks, and growth with requests."""
    import altair as alt

    from moesim.report.export import png
    from moesim.report.figure import Figure

    panels = [part for part in (_beside(found), _over_ranks(found), _grown(found)) if part]
    apart = alt.hconcat(*panels, spacing=36).resolve_scale(color="independent", shape="independent")
    return png(Figure("speed", message(found), "", apart), scale=1.4)


def _log(title: str, values: pd.Series) -> dict[str, Any]:
    """A logarithmic axis with a mark at 1, 2 and 5 of every power of ten around the values."""
    import altair as alt

    low, high = 0.8 * float(values.min()), 1.25 * float(values.max())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [each for p in powers for each in (10.0**p, 2 * 10.0**p, 5 * 10.0**p)]
    axis = alt.Axis(values=[each for each in marks if low <= each <= high], format="~s")
    return {"title": title, "axis": axis, "scale": alt.Scale(type="log", domain=[low, high])}


def _beside(found: dict[str, Any]) -> Any:
    """Bars of requests a second; of Vidur and moesim in turns where both were run."""
    import altair as alt

    of = found.get("vidur", {}).get("simulators") or {
        each["name"]: each
        for each in found.get("cases", ())
        if each["name"] in NAMES and each["requests"] == 10_000 and not each.get("streaming")
    }
    rows = [
        {"simulated": NAMES[name], "requests/s": each["loop_requests_per_s"]["median"]}
        for name, each in of.items()
    ]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return None
    drawn = alt.Chart(frame).encode(
        x=alt.X(
            "requests/s:Q", **_log("requests per wall second, event loop", frame["requests/s"])
        ),
        y=alt.Y("simulated:N", title=None, sort=list(frame["simulated"])),
    )
    peer = "indexof(datum.simulated, 'Vidur') == 0"
    colour = alt.condition(peer, alt.value("#E69F00"), alt.value("#0072B2"))
    words = drawn.mark_text(align="left", dx=8).encode(text=alt.Text("requests/s:Q", format=",.0f"))
    dots = drawn.mark_point(filled=True, size=90, opacity=1.0).encode(color=colour)
    return (dots + words).properties(width=260, height=230)


def _over_ranks(found: dict[str, Any]) -> Any:
    """Tokens a second by ranks, of work that decodes and of work on prompts."""
    import altair as alt

    rows = []
    for of in found.get("cases", ()):
        named = re.fullmatch(r"(decode|prefill)-(\d+)-ranks-(\d+)-experts", of["name"])
        if named and "loop_tokens_per_s" in of:
            work, ranks, experts = named.groups()
            rate = of["loop_tokens_per_s"]["median"]
            rows.append({"work": work, "ranks": int(ranks), "experts": experts, "tokens/s": rate})
    if not rows:
        return None
    axis = alt.Axis(values=[8, 64, 320], format="~g")
    frame = pd.DataFrame(rows)
    return (
        alt.Chart(frame)
        .mark_point(filled=True, size=80, opacity=0.9)
        .encode(
            x=alt.X("ranks:Q", title="ranks of a replica", axis=axis).scale(
                type="log", domain=[6, 420]
            ),
            y=alt.Y("tokens/s:Q", **_log("simulated tokens per wall second", frame["tokens/s"])),
            color=alt.Color(
                "experts:N",
                sort=["32", "64", "128", "256", "512"],
                scale=alt.Scale(range=[*DEPLOYMENT_COLOURS]),
            ),
            shape="work:N",
        )
        .properties(width=230, height=230)
    )


def _grown(found: dict[str, Any]) -> Any:
    """Seconds over requests."""
    import altair as alt

    rows = [
        {"case": NAMES.get(of["name"], of["name"]), "requests": size, "seconds": seconds}
        for of in found.get("growth", ())
        for size, seconds in zip(of["requests"], of["loop_s"], strict=True)
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X("requests:Q", **_log("requests", frame["requests"])),
            y=alt.Y("seconds:Q", **_log("seconds in the event loop", frame["seconds"])),
            color=alt.Color("case:N", title=None, scale=alt.Scale(range=[*DEPLOYMENT_COLOURS])),
        )
        .properties(width=230, height=230)
    )


TABLES = {
    "chart": chart_line,
    "machine": machine_line,
    "four": lambda found: cases_table(found, four=True),
    "matrix": lambda found: cases_table(found, four=False),
    "growth": growth_table,
    "counting": counting_table,
    "startup": startup_table,
    "peers": peers_table,
}


def put(page: str, name: str, made: str) -> str:
    """The page with a table between its marks. Raises ValueError without them."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(page):
        raise ValueError(f"the page must hold <!-- {name} --> and, behind it, <!-- end -->")
    return pattern.sub(lambda marks: f"{marks[1]}\n{made}\n\n{marks[2]}", page, count=1)


def main(arguments: list[str]) -> None:
    """Tables, chart and figures into the folder of the page."""
    found = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    page = HERE / "speed.md"
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        text = put(text, name, make(found))
    kept = json.dumps(found, indent=1) + "\n"
    for path, content in (
        (page, text.encode()),
        (HERE / "speed.png", chart(found)),
        (HERE / "speed.json", kept.encode()),
    ):
        with replace_atomically(path) as temporary:
            temporary.write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1:])
