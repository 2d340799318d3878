"""Fit the workload presets to public request traces and say how well they fit.

    python -m calibration.workload_fit FOLDER [PRESET...]          prints the YAML
    python -m calibration.workload_fit FOLDER --write TARGET       writes TARGET/<preset>.yaml

FOLDER holds the traces under their published names (`SOURCES` says where each comes from). A preset
whose trace is absent is named on standard error and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from moesim.files import replace_atomically
from moesim.workload import (
    Lognormal,
    Quantiles,
    RequestTrace,
    SharedPrefix,
    WorkloadPreset,
    read_trace,
)
from moesim.workload.prefixes import Prefixes, renumber, whole_blocks
from moesim.workload.trace import NS_PER_S

Tokens = NDArray[np.int32]

# A log-normal has three numbers where a table has sixty: it wins if it is this close.
GOOD_ENOUGH_KS = 0.02
# A table starts here, dense in the tail that decides p99 latency and memory, and gets further
# points where it is farthest from the trace, where many requests share one length.
FIRST_PROBABILITIES = (
    0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.93, 0.95, 0.965, 0.98,
    0.99, 0.995, 0.999, 1.0,
)  # fmt: skip
MOST_POINTS = 40
CLOSE_KS = 0.01


@dataclass(frozen=True)
class Source:
    """Where a preset's trace comes from, and what is said about it."""

    file: str
    origin: str
    description: str


SOURCES: Mapping[str, Source] = {
    "chat": Source(
        "AzureLLMInferenceTrace_conv.csv",
        "Azure/AzurePublicDataset data/AzureLLMInferenceTrace_conv.csv @ b469a113, CC-BY "
        "(Splitwise, ISCA 2024)",
        "Conversation with a hosted assistant, one hour of November 2023.",
    ),
    "code": Source(
        "AzureLLMInferenceTrace_code.csv",
        "Azure/AzurePublicDataset data/AzureLLMInferenceTrace_code.csv @ b469a113, CC-BY "
        "(Splitwise, ISCA 2024)",
        "Code completion in an editor: long context, a few tokens out, in sharp bursts.",
    ),
    "summarisation": Source(
        "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "microsoft/vidur data/processed_traces/"
        "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv @ 7d475133, MIT",
        "Papers in, abstracts out; together at most 4,096 tokens, the window of Llama 2.",
    ),
    "reasoning": Source(
        "deepseek-r1_generated_hour0_seed7.csv",
        "generated with alibaba/ServeGen from data/reason/deepseek-r1 @ f891d118, Apache-2.0 "
        "(hour 0, seed 7)",
        "A reasoning model in production: short questions, long thoughts, a heavy tail of both.",
    ),
    "rag": Source(
        "synthetic_trace.jsonl",
        "kvcache-ai/Mooncake FAST25-release/traces/synthetic_trace.jsonl @ 3b5a5941, Apache-2.0",
        "Questions about long documents that come back: long prompts with shared beginnings.",
    ),
}


def quantile_table(tokens: Tokens) -> Quantiles:
    """Empirical quantiles, refined to `MOST_POINTS` points or a KS distance of `CLOSE_KS`."""
    ascending = np.sort(tokens)
    points = set(FIRST_PROBABILITIES)
    while True:
        rows = np.rint(np.array(sorted(points)) * len(tokens)).astype(int)
        table = Quantiles(
            probabilities=tuple(sorted(points)),
            tokens=tuple(int(length) for length in ascending[np.clip(rows, 0, len(tokens) - 1)]),
        )
        at, gap = cdf_gap(spread_of(table), ascending)
        worst = at[np.argsort(-np.abs(gap))][: int(np.count_nonzero(np.abs(gap) > CLOSE_KS))]
        # the first and the last request of the step that a length makes in the trace
        first = np.searchsorted(ascending, worst, side="left") / len(tokens)
        last = (np.searchsorted(ascending, worst, side="right") - 1) / len(tokens)
        new = (
            {round(float(p), 5) for p in ends if p > 0} - points
            for ends in zip(first, last, strict=True)
        )
        added = next((ends for ends in new if ends), None)
        if added is None or len(points) + len(added) > MOST_POINTS:
            return table
        points |= added


def lognormal(tokens: Tokens) -> Lognormal:
    """Log-normal by the median and the 10 % to 90 % range of the logarithm, cut at the extremes."""
    low, median, high = np.quantile(tokens, [0.1, 0.5, 0.9])
    sigma = float(np.log(high / low)) / (2 * 1.2815515655446004)  # normal quantile of 0.9
    return Lognormal(
        median=round(float(median), 1),
        sigma=round(sigma, 4),
        low=int(tokens.min()),
        high=int(tokens.max()),
    )


def spread_of(length: Lognormal | Quantiles, count: int = 400_000) -> Tokens:
    """A very large, evenly spaced sample of a distribution, ascending."""
    return length.tokens_at((np.arange(count) + 0.5) / count)


def ks_distance(first: Tokens, second: Tokens) -> float:
    """The largest distance of two empirical cumulative distributions, ties counted exactly."""
    return float(np.abs(cdf_gap(np.sort(first), np.sort(second))[1]).max())


def cdf_gap(first: Tokens, second: Tokens) -> tuple[Tokens, NDArray[np.float64]]:
    """At each length of two ascending samples: how much more of the first lies at or below it."""
    at = np.union1d(first, second)
    first_share = np.searchsorted(first, at, side="right") / len(first)
    second_share = np.searchsorted(second, at, side="right") / len(second)
    return at, first_share - second_share


def best_fit(tokens: Tokens) -> Lognormal | Quantiles:
    """A log-normal where it is good enough, else the table."""
    smooth = lognormal(tokens)
    if ks_distance(spread_of(smooth), tokens) <= GOOD_ENOUGH_KS:
        return smooth
    return quantile_table(tokens)


def fit_error(tokens: Tokens, fitted: Lognormal | Quantiles) -> dict[str, float]:
    """The fields of `FitError`: in sample, and held out with every other row fitted."""
    make = lognormal if isinstance(fitted, Lognormal) else quantile_table
    held_out = tokens[1::2]
    from_half = spread_of(make(tokens[0::2]))
    error = {
        "ks": ks_distance(spread_of(fitted), tokens),
        "mean": float(spread_of(fitted).mean() / tokens.mean()) - 1,
        "held_out_ks": ks_distance(from_half, held_out),
    }
    for percent in (50, 90, 99):
        truth = np.percentile(held_out, percent)
        error[f"held_out_p{percent}"] = float(np.percentile(from_half, percent) / truth) - 1
    return {name: round(value, 4) + 0.0 for name, value in error.items()}


def arrival_cv(trace: RequestTrace) -> tuple[float, str]:
    """Coefficient of variation of the gaps between arrivals, and what it rests on."""
    if trace.arrival_ns_T is None:
        return 1.0, "assumed (Poisson): the trace has no arrival times"
    gaps_s = np.diff(trace.arrival_ns_T) / NS_PER_S
    seconds = trace.arrival_ns_T[-1] / NS_PER_S
    basis = f"standard deviation over mean of {len(gaps_s)} gaps in {seconds:.0f} s"
    return round(float(gaps_s.std() / gaps_s.mean()), 2), basis


def cached_share(prefixes: Prefixes, prompt_tokens: Tokens) -> float:
    """Share of prompt tokens that a cache that never forgets would have had already.

    A prompt's hits are its leading blocks seen before; blocks of earlier prompts count as seen.
    """
    prefixes = whole_blocks(prefixes, prompt_tokens)
    ids_M = renumber(prefixes.ids_M)
    counts = np.diff(prefixes.start_N1)
    owner_M = np.repeat(np.arange(len(counts)), counts)
    first_owner_U = np.full(int(ids_M.max(initial=-1)) + 1, len(counts))
    np.minimum.at(first_owner_U, ids_M, owner_M)
    missed_M = np.concatenate([[0], np.cumsum(first_owner_U[ids_M] == owner_M)])
    misses_so_far_M = missed_M[1:] - missed_M[prefixes.start_N1[:-1]][owner_M]
    hits = int(np.count_nonzero(misses_so_far_M == 0))
    return hits * prefixes.block_tokens / float(prompt_tokens.sum())


def fit_shared_prefix(
    trace: RequestTrace, prompt: Lognormal | Quantiles
) -> tuple[SharedPrefix, str] | None:
    """Shared texts that make as much of the prompts cacheable as the trace's blocks do.

    A prompt of the trace that hits at all hits nearly whole, so texts are as long as the 99th
    percentile of prompts and every request has one; only how many texts there are is fitted.
    """
    if trace.prefixes.block_tokens == 0:
        return None
    truth = cached_share(trace.prefixes, trace.prompt_tokens_T)
    tokens = int(np.percentile(trace.prompt_tokens_T, 99)) // 512 * 512
    quantiles = np.random.default_rng(0).random((len(trace), 2))
    drawn = prompt.tokens_at(quantiles[:, 0])

    def share(texts: int) -> float:
        shared = SharedPrefix(tokens=tokens, prefixes=texts)
        return cached_share(shared.starts(quantiles[:, 1], drawn), drawn)

    few, many = 1, len(trace)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if share(middle) > truth else (few, middle)
    note = (
        f"an endless cache saves {truth:.3f} of the prompt tokens of the trace and "
        f"{share(few):.3f} of the preset's, at {len(trace)} requests; fewer requests meet fewer "
        f"texts again"
    )
    return SharedPrefix(tokens=tokens, prefixes=few), note


def fit_preset(name: str, folder: Path) -> WorkloadPreset:
    """Fit one preset to its trace in `folder`."""
    source = SOURCES[name]
    trace = read_trace(folder / source.file)
    prompt, output = best_fit(trace.prompt_tokens_T), best_fit(trace.output_tokens_T)
    cv, cv_source = arrival_cv(trace)
    shared = fit_shared_prefix(trace, prompt)
    ranks = [np.argsort(np.argsort(x)) for x in (trace.prompt_tokens_T, trace.output_tokens_T)]
    correlation = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return WorkloadPreset.parse(
        {
            "name": name,
            "description": source.description,
            "source": source.origin,
            "rows": len(trace),
            "prompt": prompt,
            "output": output,
            "arrival_cv": cv,
            "arrival_cv_source": cv_source,
            "shared_prefix": shared[0] if shared else None,
            "shared_prefix_source": shared[1] if shared else "",
            "prompt_fit": fit_error(trace.prompt_tokens_T, prompt),
            "output_fit": fit_error(trace.output_tokens_T, output),
            "not_modelled": (
                f"prompt and output are drawn independently (rank correlation in the trace "
                f"{correlation:+.2f}); the rate has no daily cycle; gaps are independent"
            ),
        },
        name,
    )


def as_yaml(preset: WorkloadPreset) -> str:
    """The preset as the file that ships."""
    head = (
        "# Made by calibration/workload_fit.py; ks is a distance, other fit errors are relative.\n"
    )
    plain = preset.model_dump(mode="json", exclude_none=True)
    body = yaml.safe_dump(plain, sort_keys=False, width=100, default_flow_style=None)
    return head + body


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the presets; exit status 1 when a trace was missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where the traces are")
    parser.add_argument("presets", nargs="*", help=f"which of {', '.join(SOURCES)}")
    parser.add_argument("--write", type=Path, help="folder to write <preset>.yaml into")
    chosen = parser.parse_args(arguments)
    missing = False
    for name in chosen.presets or SOURCES:
        if not (chosen.folder / SOURCES[name].file).is_file():
            print(f"{name}: no {SOURCES[name].file}; from {SOURCES[name].origin}", file=sys.stderr)
            missing = True
            continue
        text = as_yaml(fit_preset(name, chosen.folder))
        if chosen.write is None:
            print(text)
        else:
            with replace_atomically(chosen.write / f"{name}.yaml") as target:
                target.write_text(text, encoding="utf-8")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
