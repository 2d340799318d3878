"""The page that shows how well exchange laws give published timings back, and its chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.collectives_fit import Result
from calibration.collectives_rows import EXPERTS, LeftOut
from moesim.costs.libraries import EXCHANGE, ExchangeLaw, exchange_s
from moesim.costs.measured.exchange import exchange_s as measured_exchange_s
from moesim.costs.measured.kernels import load_kernels
from moesim.costs.traffic import uniform_load
from moesim.files import replace_atomically
from moesim.hardware import make_cluster

CHART = "collectives.png"
DEEPEP = ("deepep-normal", "deepep-low-latency", "deepep-low-latency-rdma", "deepep-v2")

# Larger sizes of the older DeepEP, (dispatch, combine) in us at 128 tokens per GPU, as quoted by
# pplx-kernels@2bd6e30f README.md: not fitted.
BEYOND_US = {64: (186.0, 353.0), 128: (192.0, 369.0), 256: (194.0, 360.0)}

INTRODUCTION = """# How long exchanges between experts take

This page is written by `python -m calibration.collectives_fit comm.csv` from published timings;
nothing on it is typed by hand. The fitted numbers are in `moesim/presets/collectives.csv`.

## The model

Dispatch and combine take their time from *who sends how many tokens to whom*, which moesim counts
from the routing trace at every step and layer. The hottest sender or receiver of each kind of link
binds:

```
t = max(floor, base + network + expert x experts on other nodes
        + pair x messages of the hottest pair + message x messages posted by the busiest GPU
        + bytes x max(copies on the hottest scale-up port / its rate,
                      copies on the hottest NIC / its rate))
```

| library | what is sent | what else it costs |
|---|---|---|
| `deepep-normal`, `deepep-v2` | one copy for each token and node over the network, landing on the \
GPU in the sender's place, which passes it on once for each rank | SMs copy: a port carries no \
more than they move |
| `deepep-low-latency` | one message for each token and expert; within a node over NVLink | |
| `deepep-low-latency-rdma` | the same in older versions: the NIC carries what stays in the node, \
too | |
| `deepep-low-latency-layered` | dispatch once for each node and passed on by NVLink, combine as \
before (DeepEP #500) | not fitted: no timings were published as numbers |
| `pplx` (IBGDA) | one message for each token and expert | a count for each expert on another \
node; messages between two GPUs go one after the other |
| `pplx-ibrc` | the same, posted by a thread of the host | time for each message |
| `nvlink-one-sided` | one copy for each token and rank of one NVLink domain | launch and \
synchronisation hide behind the copies: the floor |
| `torch-all-to-all` | room for every token at every expert (fitted for comparison only) | |
| `allgather-reducescatter` | every token to every rank and back, whatever its experts | \
NCCL's ring |

A token's distinct nodes follow from its row of the trace, so group-limited routing has the effect
that it really has: with 8 groups of which a token takes 4, at most 4 nodes are touched where groups
lie one per node (64 GPUs in nodes of 8); on 4 nodes, two groups each, all 4 may be.

The parameters of a family of laws are fitted together by bounded least squares on the logarithms,
a row counting with a spread of 5 %. Parameters that few rows determine stay near priors that come
from elsewhere: shares of what links reach are taken to be 1 (`fabrics.csv`, whose fractions of
InfiniBand and NVLink themselves rest on some of these rows), and times of one token on one node are
those of the shipped DeepEP kernel tables of H100. *Held out* is the error of rows whose EP size no
fit saw.
"""

LIMITS = """## What this does not tell

- **More than 32 GPUs.** Laws hold beyond the fitted sizes by their form only; a result says so. The
  older DeepEP's quoted times at 64 to 256 GPUs (above, not fitted) bound what that costs on a quiet
  InfiniBand. Other fabrics rest on their `reached_fraction`: published RoCE timings lie anywhere
  between half of InfiniBand and equal to it.
- **pplx has as many free numbers as it has kinds of rows**: two sizes of batch at two sizes of
  group. Its held-out errors show it. Leaving out 8 GPUs removes every row within a node.
- **Waiting.** These are times of synchronised benchmarks. In an engine ranks arrive unevenly;
  moesim has that wait as its own part of a step.
- **Where a measured table of the GPU, engine and number of ranks exists it goes first** (one node
  of 8 GPUs; NVL72 up to 32 GPUs for one-sided): the law then only carries what uneven routing adds.
  Steps with prompts take the engine's own table, whose kernels the host launches; decode replays a
  CUDA graph and takes the library's kernels (SGLang's tables).
- NCCL's all-reduce, all-gather and reduce-scatter are NCCL's own tuning model
  (`moesim/costs/nccl.py`); within a node the shipped NCCL tables go first.
"""


def write_page(
    folder: Path,
    results: Sequence[Result],
    laws: Sequence[ExchangeLaw],
    left_out: Sequence[LeftOut],
) -> None:
    """Write collectives.md and its chart into `folder`."""
    title = _headline(results)
    parts = [
        INTRODUCTION,
        _used(results, left_out),
        f"![{title}]({CHART})\n",
        "## Errors by library\n",
        _by_law(laws),
        _by_size(results),
        _beyond({(law.library, law.phase): law for law in laws}),
        _against_tables({(law.library, law.phase): law for law in laws}),
        LIMITS,
        "## Parameters\n",
        _parameters(results),
        "## Every row\n",
        _rows(results),
    ]
    with replace_atomically(folder / "collectives.md") as path:
        path.write_text("\n".join(parts), encoding="utf-8")
    with replace_atomically(folder / CHART) as path:
        path.write_bytes(_chart(results, title))


def _percent(errors: Iterable[float]) -> float:
    return 100.0 * float(np.abs(np.array(list(errors))).mean())


def _exchanges(results: Sequence[Result]) -> list[tuple[float, float]]:
    """(error, held-out error) of dispatch and combine rows; torch's all-to-all is neither."""
    return [
        (float(error), float(held))
        for result in results
        for row, error, held in zip(result.rows, result.error, result.held_out, strict=True)
        if row.law != "torch-all-to-all"
    ]


def _headline(results: Sequence[Result]) -> str:
    errors = _exchanges(results)
    return (
        f"{len(errors)} published dispatch and combine times at 8 to 32 GPUs are given back "
        f"within {_percent(e for e, _ in errors):.1f} % on average"
    )


def _used(results: Sequence[Result], left_out: Sequence[LeftOut]) -> str:
    used = sum(len(result.rows) for result in results)
    deepep = [
        (row, error, held)
        for result in results
        for row, error, held in zip(result.rows, result.error, result.held_out, strict=True)
        if row.law in DEEPEP
    ]
    lines = [
        "## How well it fits\n",
        f"{_headline(results)} (target: 12 %). DeepEP's {len(deepep)} rows alone: "
        f"{_percent(e for _, e, _ in deepep):.1f} % fitted, "
        f"{_percent(h for _, _, h in deepep):.1f} % where their EP size was left out.\n",
        f"All {used} exchanges of the table are used, the `quoted` DeepEP rows too: they are no "
        "duplicates but an older version, whose messages within a node took the NIC. Rows that "
        "state a logical bandwidth are turned into times by the definition of DeepEP's tests "
        "(local copies count). Left out:\n",
        *[f"- {each.rows} rows ({each.what}): {each.why}." for each in left_out],
        "",
    ]
    return "\n".join(lines)


def _by_law(laws: Iterable[ExchangeLaw]) -> str:
    lines = [
        "| library | phase | GPUs of the group | fitted on | rows | MAPE % | held out % |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {law.library} | {law.phase} | {law.ep_low} to {law.ep_high} | {law.fitted_on} | "
        f"{law.rows} | {law.mape_percent:.1f} | {law.held_out_percent:.1f} |"
        for law in laws
        if law.rows
    ]
    return "\n".join(lines) + "\n"


def _by_size(results: Sequence[Result]) -> str:
    lines = [
        "Each EP size left out and predicted from the others, MAPE % (rows):\n",
        "| library | 8 | 16 | 32 |",
        "|---|---|---|---|",
    ]
    for result in results:
        for name in sorted({row.law for row in result.rows}):
            cells = []
            for ep in (8, 16, 32):
                held = [
                    float(error)
                    for row, error in zip(result.rows, result.held_out, strict=True)
                    if row.law == name and row.ep == ep
                ]
                cells.append(f"{_percent(held):.1f} ({len(held)})" if held else "")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _beyond(laws: Mapping[tuple[str, str], ExchangeLaw]) -> str:
    lines = [
        "Beyond what was fitted: the older low-latency DeepEP, 128 tokens per GPU, microseconds.\n",
        "| GPUs | dispatch quoted | law | error % | combine quoted | law | error % |",
        "|---|---|---|---|---|---|---|",
    ]
    cluster = make_cluster("h100-sxm", 32, 8, None)
    for ep, quoted in BEYOND_US.items():
        cells = []
        for phase, measured, size in zip(
            ("dispatch", "combine"), quoted, (7408.0, 14336.0), strict=True
        ):
            law = laws["deepep-low-latency-rdma", phase]
            links = cluster.scale_up, cluster.scale_out
            numbers = np.array(law.numbers(links, size, ep, EXPERTS), EXCHANGE)
            load = uniform_load("messages", 128.0, ep, ep, EXPERTS, 8)
            said = 1e6 * float(exchange_s(numbers, *load))
            cells.append(f"{measured:.0f} | {said:.0f} | {100 * (said / measured - 1):+.1f}")
        lines.append(f"| {ep} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _against_tables(laws: Mapping[tuple[str, str], ExchangeLaw]) -> str:
    """The laws beside shipped kernel tables of whole nodes, which no fit saw but for one token."""
    lines = [
        "Against the shipped kernel tables (SGLang's DeepEP on one node of 8 GPUs; the fit knows "
        "only their times of one token and what V1's SMs copy): law / table.\n",
        "| GPU | library | phase | 64 tokens | 256 | 1,024 | 4,096 |",
        "|---|---|---|---|---|---|---|",
    ]
    tokens = np.array([64.0, 256.0, 1024.0, 4096.0])
    for gpu in ("h100-sxm", "h200-sxm", "b200"):
        kernels = load_kernels(gpu, "sglang")
        cluster = make_cluster(gpu, 1, 8, None)
        for library in ("deepep-normal", "deepep-low-latency"):
            method = library.removeprefix("deepep-").replace("-", "_")
            for phase, size in (("dispatch", 7392.0), ("combine", 14336.0)):
                law = laws[library, phase]
                timed = measured_exchange_s(kernels, method, phase, tokens, 7168, 8, EXPERTS)
                if timed is None:
                    continue
                load = uniform_load(law.traffic, tokens, 8, 1, EXPERTS, 8)
                links = cluster.scale_up, cluster.scale_out
                numbers = np.array(law.numbers(links, size, 1, EXPERTS), EXCHANGE)
                ratio = exchange_s(numbers, *load) / timed.seconds
                cells = " | ".join(f"{each:.2f}" for each in ratio)
                lines.append(f"| {gpu} | {library} | {phase} | {cells} |")
    return "\n".join(lines) + "\n"


def _parameters(results: Sequence[Result]) -> str:
    lines = ["| family | parameters |", "|---|---|"]
    for result in results:
        family = ", ".join(sorted({library for library, _ in result.laws}))
        said = ", ".join(f"{name} {value:.3g}" for name, value in result.values.items())
        lines.append(f"| {family} | {said} |")
    return "\n".join(lines) + "\n"


def _rows(results: Sequence[Result]) -> str:
    lines = [
        "| timing | phase | GPU | GPUs | tokens | measured us | error % | held out % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row, error, held in zip(result.rows, result.error, result.held_out, strict=True):
            lines.append(
                f"| {row.about} | {row.phase} | {row.gpu} | {row.ep} | {row.tokens} | "
                f"{row.seconds * 1e6:.1f} | {100 * error:+.1f} | {100 * held:+.1f} |"
            )
    return "\n".join(lines) + "\n"


def _chart(results: Sequence[Result], title: str) -> bytes:
    import altair as alt
    import pandas as pd

    from moesim.report.export import png
    from moesim.report.figure import Figure, data

    frame = pd.DataFrame(
        {
            "library": row.law,
            "phase": row.phase,
            "measured_us": row.seconds * 1e6,
            "predicted_us": row.seconds * 1e6 * (1.0 + error),
            "error": 100.0 * error,
        }
        for result in results
        for row, error in zip(result.rows, result.error, strict=True)
        if row.law != "torch-all-to-all"
    )
    colour = alt.Color(
        "library:N",
        title=None,
        scale=alt.Scale(
            range=["#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#999999", "#CC79A7", "#8A6BBE"]
        ),
    )
    shape = alt.Shape("phase:N", title=None)
    log = alt.Scale(type="log")
    few = alt.Axis(tickCount=4, grid=False)
    x = alt.X("measured_us:Q", title="measured, microseconds", scale=log, axis=few)
    points = alt.Chart(data(frame)).mark_point(size=45, filled=True, opacity=0.75)
    ends = pd.DataFrame({"measured_us": [15.0, 8000.0], "predicted_us": [15.0, 8000.0]})
    even = alt.Chart(data(ends)).mark_line(strokeDash=[4, 3], opacity=0.5, color="#777777")
    y = alt.Y("predicted_us:Q", title="law, microseconds", scale=log, axis=few)
    left = (even.encode(x=x, y=y) + points.encode(x=x, y=y, color=colour, shape=shape)).properties(
        width=330, height=300
    )
    off = alt.Y("error:Q", title="error, %", scale=alt.Scale(domain=[-25, 25]))
    right = points.encode(x=x, y=off, color=colour, shape=shape).properties(width=330, height=300)
    return png(Figure("collectives", title, "", left | right), scale=1.4)
