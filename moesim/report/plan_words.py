"""A plan's findings as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.findings.estimates import Estimate
from moesim.findings.planning import Option, PlanFindings
from moesim.report.words import duration, money, significant

if TYPE_CHECKING:
    import pandas as pd

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
OPTION_HEADER = ("GPUs", "$ an hour", "TTFT p99", "TPOT p99", "$ per million", "SLO")
MOST_SHOWN = 12
COLUMNS = {
    "ttft_p99_s": "ttft_s.p99",
    "tpot_p50_s": "tpot_s.p50",
    "tpot_p99_s": "tpot_s.p99",
    "e2e_p99_s": "e2e_s.p99",
    "output_tokens_per_s_per_gpu": "throughput.output_tokens_per_s_per_gpu",
    "usd_per_million_total_tokens": "cost.usd_per_million_total_tokens",
    "slo_attainment": "slo_attainment",
}


def options_table(findings: PlanFindings) -> pd.DataFrame:
    """A row for each option that was simulated, the cheapest first; what was varied in columns."""
    import pandas as pd

    rows = [
        {
            "option": option.name,
            "gpus": option.gpus,
            "usd_per_hour": option.usd_per_hour,
            "meets": option.meets,
            **{name: value_of(option, path) for name, path in COLUMNS.items()},
            "missed": "; ".join(option.missed),
            **option.choices,
        }
        for option in findings.options
    ]
    columns = ["option", "gpus", "usd_per_hour", "meets", *COLUMNS, "missed"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def value_of(option: Option, path: str) -> float | None:
    """A figure; None where the run has none."""
    of = option.figures.get(path)
    return None if of is None else of.value


def option_rows(findings: PlanFindings) -> list[tuple[str, list[str]]]:
    """The recommended, the runner-up, and the others that come nearest in cost."""
    first = [each for each in (findings.recommended, findings.runner_up) if each is not None]
    names = {each.name for each in first}
    best = findings.recommended.usd_per_hour if findings.recommended else None
    rest = [option for option in findings.options if option.name not in names]
    rest.sort(key=lambda option: abs((option.usd_per_hour or 0.0) - (best or 0.0)))
    shown = [*first, *sorted(rest[: MOST_SHOWN - len(first)],
                             key=lambda option: option.usd_per_hour or 0.0)]  # fmt: skip
    return [(option.name, _cells(option)) for option in shown]


def _cells(option: Option) -> list[str]:
    return [
        str(option.gpus),
        "-" if option.usd_per_hour is None else money(option.usd_per_hour),
        _text(option.figures.get("ttft_s.p99")),
        _text(option.figures.get("tpot_s.p99")),
        _money(option.figures.get("cost.usd_per_million_total_tokens")),
        "kept" if option.meets else "missed",
    ]


def _text(of: Estimate | None) -> str:
    if of is None:
        return "-"
    half = of.half_width
    return duration(of.value) if half is None else f"{duration(of.value)} ± {duration(half)}"


def _money(of: Estimate | None) -> str:
    return "-" if of is None else significant(of.value, 3)


def pruned_rows(findings: PlanFindings) -> list[tuple[str, list[str]]]:
    """Reasons, the most frequent first."""
    ranked = sorted(findings.pruned.items(), key=lambda pair: -pair[1])
    return [(reason, [str(count)]) for reason, count in ranked if count]


def choice_rows(options: Sequence[Option]) -> list[tuple[str, list[str]]]:
    """What was chosen for each, by what was varied."""
    paths = list(dict.fromkeys(path for option in options for path in option.choices))
    return [(path, [_label(option.choices.get(path)) for option in options]) for path in paths]


def _label(value: Any) -> str:
    return "the engine's own" if value is None else str(value)
