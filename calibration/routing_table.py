"""Synthetic against real routing: `python -m calibration.routing_table FOLDER`.

FOLDER holds the real traces as .npz (docs/explanation/synthetic-routing.md names them). Half of
each domain's sequences are fitted, the other half is what synthetic traces of the same sequence
lengths and domains are held against. Prints the tables of that page.

Legend: L MoE layers, G lags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration.routing_published import published_rows
from moesim.errors import InputError
from moesim.routing import dynamics, statistics
from moesim.routing.estimate import fit_settings
from moesim.routing.importers import import_npz
from moesim.routing.predict import measure_prediction
from moesim.routing.settings import SynthesisSettings
from moesim.routing.synthesis import synthesise
from moesim.routing.trace import RoutingTrace

LAGS = (1, 2, 4, 8, 32)
SEEDS = 4
RANKS = 8
STEPS = 256
# Statistic, target as text, allowed difference (absolute, or a share of the real value).
TARGETS: dict[str, tuple[str, float, bool]] = {
    **{f"overlap at lag {lag}": ("within .03", 0.03, False) for lag in LAGS},
    "max/mean load of a layer": ("within 10 %", 0.10, True),
    "Gini of a layer": ("within 10 %", 0.10, True),
    "max/mean within a request": ("within 10 %", 0.10, True),
    **{
        f"sd of EP8 imbalance over batches, B={b}": ("within 20 %", 0.20, True) for b in (8, 32, 64)
    },
    **{f"sd of EP8 imbalance over mixes, B={b}": ("within 20 %", 0.20, True) for b in (8, 32, 64)},
    **{f"its autocorrelation, B={b}": ("within .08", 0.08, False) for b in (8, 32, 64)},
    **{f"EP8 imbalance of {n} prompt tokens": ("within 7 %", 0.07, True) for n in (32, 128, 512)},
    "next-layer recall@K": ("within .08", 0.08, False),
    "starts together, B=32: p99/mean": ("1.5 to 1.8, as real", 0.10, False),
    "starts together, B=64: p99/mean": ("1.5 to 1.8, as real", 0.10, False),
}
BY_LAYER = ("max/mean load of a layer", "Gini of a layer")


def gpt_oss(folder: Path) -> RoutingTrace:
    """gpt-oss-20b's decode trace, domains by data set."""
    return import_npz(
        [folder / f"gptoss_20b_ids_0{shard}.npz" for shard in range(3)],
        model="gpt-oss-20b",
        phase="decode",
        index=folder / "gptoss_20b_index.json",
        label="dataset",
    )


def deepseek_v2_lite(folder: Path) -> RoutingTrace:
    """DeepSeek-V2-Lite's prefill of three ESFT tasks."""
    domains = ("intent", "law", "summary")
    return import_npz(
        [folder / f"esft_deepseek_v2_lite_{name}.npz" for name in domains],
        model="deepseek-v2-lite",
        phase="prefill",
        domain=domains,
    )


def halves(trace: RoutingTrace, seed: int = 0) -> tuple[RoutingTrace, RoutingTrace]:
    """Two halves of each domain's sequences, drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(trace.domain_S == d)) for d in range(len(trace.domains))
    ]
    first, second = (np.sort(np.concatenate([d[i::2] for d in drawn])) for i in (0, 1))
    return trace.subset(first), trace.subset(second)


def measure(trace: RoutingTrace, seed: int = 0, mixes: int = 100) -> dict[str, np.ndarray]:
    """Every statistic of TARGETS; those of BY_LAYER [L], the others numbers."""
    rng = np.random.default_rng(seed)
    counts_LE = statistics.expert_counts(trace)
    found = dict(zip(TARGETS, statistics.overlap_by_lag(trace, LAGS).mean(axis=1), strict=False))
    found["max/mean load of a layer"] = statistics.max_over_mean(counts_LE)
    found["Gini of a layer"] = statistics.gini(counts_LE)
    found["max/mean within a request"] = statistics.sequence_max_over_mean(trace).mean()
    for size in (8, 32, 64):
        rows_DB = statistics.draw_batches(trace, size, 400, rng, "decode")
        spread = statistics.rank_imbalance(trace, rows_DB, RANKS).mean(axis=1).std()
        found[f"sd of EP8 imbalance over batches, B={size}"] = spread
        steps_MN = dynamics.decode_steps(trace, size, STEPS, mixes, RANKS, rng)
        found[f"sd of EP8 imbalance over mixes, B={size}"] = steps_MN.mean(axis=1).std()
        found[f"its autocorrelation, B={size}"] = dynamics.autocorrelation(steps_MN)
    for tokens in (32, 128, 512):
        rows_DB = statistics.draw_batches(trace, tokens, 400, rng, "contiguous")
        imbalance = statistics.rank_imbalance(trace, rows_DB, RANKS).mean()
        found[f"EP8 imbalance of {tokens} prompt tokens"] = imbalance
    found["next-layer recall@K"] = np.nanmean(measure_prediction(trace).recall_L)
    for size in (32, 64):
        steps_MN = dynamics.decode_steps(trace, size, STEPS, mixes // 2, RANKS, rng, together=True)
        ratio_M = np.quantile(steps_MN, 0.99, axis=1) / steps_MN.mean(axis=1)
        found[f"starts together, B={size}: p99/mean"] = ratio_M.mean()
    return {name: np.asarray(found[name]) for name in TARGETS}


def like(settings: SynthesisSettings, real: RoutingTrace, seed: int) -> RoutingTrace:
    """A synthetic trace of the same sequences: lengths, phases and domains."""
    prompt_S = real.prompt_tokens_S.astype(np.int64)
    return synthesise(
        settings,
        real.layers,
        real.experts,
        real.top_k,
        real.sequences,
        (prompt_S, real.sequence_tokens_S - prompt_S),
        np.random.default_rng(seed),
        topic_S=np.unique(real.domain_S, return_inverse=True)[1],
    )


def compare(trace: RoutingTrace) -> list[str]:
    """Rows of the page's table: the half that was fitted, the other half, synthetic, target."""
    fitted, held_out = halves(trace)
    settings = fit_settings(fitted)
    real, noise = measure(held_out), measure(fitted)
    made = [measure(like(settings, held_out, seed), seed) for seed in range(SEEDS)]
    rows = [
        "| statistic | real | other real half | synthetic | target | met |",
        "|---|" + "---|" * 5,
    ]
    for name, (target, allowed, relative) in TARGETS.items():
        values = np.array([one[name] for one in made])
        synthetic = values.mean(axis=0)
        scale = real[name] if relative else 1.0
        off = float(np.mean(np.abs(synthetic - real[name]) / scale))
        met = "yes" if off <= allowed else "no"
        spread = values.reshape(SEEDS, -1).mean(axis=1)
        rows.append(
            f"| {name} | {real[name].mean():.3f} | {noise[name].mean():.3f} | "
            f"{spread.mean():.3f} ({spread.min():.3f} to {spread.max():.3f}) | {target} | {met} |"
        )
        if name in BY_LAYER:
            worst = np.max(np.abs(synthetic / real[name] - 1))
            halves_worst = np.max(np.abs(noise[name] / real[name] - 1))
            rows.append(
                f"| its worst layer, off by | | {halves_worst:.1%} | {worst:.1%} | within 10 % | "
                f"{'yes' if worst <= allowed else 'no'} |"
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the tables; 2 for a folder without the traces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--published", action="store_true", help="only the published figures")
    parser.add_argument("--model", choices=("gpt-oss-20b", "deepseek-v2-lite"), action="append")
    chosen = parser.parse_args(argv)
    readers: dict[str, Callable[[Path], RoutingTrace]] = {
        "gpt-oss-20b": gpt_oss,
        "deepseek-v2-lite": deepseek_v2_lite,
    }
    try:
        print("\n### Published figures\n")
        print("\n".join(published_rows()), flush=True)
        for name in () if chosen.published else chosen.model or readers:
            print(f"\n### {name}\n")
            print("\n".join(compare(readers[name](chosen.folder))), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
