"""Advice from fitting data alone against replays of other requests, and EPLB's known figures.

`pytest -s` prints the figures. Time is that of routed experts by a law of a V3-class expert's
shape: ridge 220 tokens an expert, fixed time 1.5 expert reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from calibration import routing_table
from moesim.placement.advice import head_room, replicate_or_not
from moesim.placement.batches import Batches, decode_batches, halves, prefill_batches
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import one_corner
from moesim.placement.placement import Placement
from moesim.placement.replay import replay
from moesim.placement.score import gain
from moesim.placement.task import Workload
from moesim.routing import RoutingTrace
from moesim.routing.importers import import_npz
from moesim.routing.profiles import load_profile
from moesim.routing.synthesis import synthesise

LAW = one_corner(6.34e-6, 6.34e-6 / 220, 1.5 * 6.34e-6)
DECODE = {"decode 8": 8, "decode 32": 32, "decode 128": 128}
PREFILL = {"prefill 512": 512, "prefill 4096": 4096}


class Cell(NamedTuple):
    trace: str
    ranks: int
    phase: str
    predicted: float  # percent gained by replicas
    found: float
    confidence: float


def batches(trace: RoutingTrace, sequences: np.ndarray, phase: str, ranks: int) -> Batches:
    rng = np.random.default_rng(1)
    ids_TLK = np.ascontiguousarray(trace.ids_TLK[:, :: max(1, trace.layers // 12)])
    if phase in DECODE:
        return decode_batches(trace, ids_TLK, sequences, DECODE[phase] * ranks, 48, rng)
    return prefill_batches(trace, ids_TLK, sequences, PREFILL[phase], 32, rng)


def cells(name: str, trace: RoutingTrace, sizes: tuple[int, ...]) -> Iterator[Cell]:
    """One extra slot a rank, filled by EPLB and chosen from by hash, against none."""
    fit_S, score_S = halves(trace)
    for ranks in sizes:
        for phase in [*DECODE, *PREFILL]:
            fit = Workload(batches(trace, fit_S, phase, ranks), LAW)
            other = batches(trace, score_S, phase, ranks)
            advice = replicate_or_not(fit, ranks, ranks)
            without, copied = (
                Placement(eplb(fit.batches.load_LE(), trace.experts + n, 1, 1, ranks), ranks)
                for n in (0, ranks)
            )
            found = gain(replay(without, other, LAW), replay(copied, other, LAW)).mean
            predicted = advice.gain_percent.mean
            yield Cell(name, ranks, phase, predicted, found, advice.confidence)


def judge(found: list[Cell]) -> None:
    predicted, measured = np.array([(c.predicted, c.found) for c in found]).T
    right = (predicted > 0) == (measured > 0)
    regret = np.where(right, 0.0, np.abs(measured))
    correlation = np.corrcoef(predicted, measured)[0, 1]
    print(
        f"\n{len(found)} cells: sign right {100 * right.mean():.0f} % (always no: "
        f"{100 * (measured <= 0).mean():.0f} %), regret at most {regret.max():.2f} points, mean "
        f"error {np.abs(predicted - measured).mean():.2f}, correlation {correlation:.3f}"
    )
    for cell, ok in zip(found, right, strict=True):
        if not ok:
            print("  wrong:", cell)
    assert right.mean() >= 0.9
    assert regret.max() <= 3.0
    assert correlation > 0.95
    assert right[[c.confidence >= 0.95 for c in found]].all()


def deepseek_v3() -> RoutingTrace:
    settings = load_profile("deepseek-v3").settings
    return synthesise(settings, 4, 256, 8, 240, (0, 100), np.random.default_rng(0))


def v2_lite(folder: Path) -> RoutingTrace:
    domains = ("intent", "law", "summary")
    files = [folder / f"esft_deepseek_v2_lite_{name}.npz" for name in domains]
    return import_npz(files, model="deepseek-v2-lite", phase="prefill", domain=domains)


def test_replicate_or_not_on_synthetic_routing() -> None:
    """EP 64, where four experts share a rank and a hot one does need its copies, included."""
    found = list(cells("synthetic", deepseek_v3(), (8, 32, 64)))
    judge(found)
    assert {True, False} == {c.found > 0 for c in found}
    assert max(c.found for c in found if c.predicted > 5) > 10


@pytest.mark.slow
def test_replicate_or_not_on_real_traces(shared_data: Path) -> None:
    found = list(cells("V2-Lite", v2_lite(shared_data / "routing"), (4, 8, 16, 32)))
    found += cells("gpt-oss", routing_table.gpt_oss(shared_data / "routing"), (4, 8, 16))
    found += cells("synthetic", deepseek_v3(), (4, 8, 16, 32))
    judge(found)


@pytest.mark.slow
def test_known_figures_of_eplb(shared_data: Path) -> None:
    """A study on the same traces, halves by alternate sequences (2026-11): what EPLB's extra slots
    cost in decode, in percent of expert time; and that nothing is left without them."""
    folder = shared_data / "routing"
    published = {
        ("V2-Lite", "decode 32"): {4: -5.7, 8: -10.2, 16: -16.9, 32: -17.8},
        ("V2-Lite", "decode 8"): {4: -5.8, 8: -10.4, 16: -17.9},
        ("gpt-oss", "decode 32"): {4: -10.4, 8: -17.5, 16: -23.9},
    }
    traces = {"V2-Lite": v2_lite(folder), "gpt-oss": routing_table.gpt_oss(folder)}
    found = {
        (c.trace, c.phase, c.ranks): c.found
        for name, trace in traces.items()
        for c in cells(name, trace, (4, 8, 16, 32) if name == "V2-Lite" else (4, 8, 16))
    }
    for (name, phase), costs in published.items():
        for ranks, percent in costs.items():
            tolerance = 2.0 if ranks == 32 else 1.0
            assert found[name, phase, ranks] == pytest.approx(percent, abs=tolerance)
    trace = traces["V2-Lite"]
    for ranks in (4, 8, 16, 32):
        fit = Workload(batches(trace, halves(trace)[0], "decode 32", ranks), LAW)
        assert head_room(fit, ranks).at_optimum
