"""Parallelism that launch scripts chose: by model, date, length and concurrency."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from calibration.runs.labels import label_runs, repair
from calibration.runs.rows import Parallelism
from calibration.runs.scripted import scripted_parallelism
from tests.calibration.test_labels import RUN

TP8 = Parallelism(8, 1, 8, 1)
EP8 = Parallelism(8, 1, 1, 8)
DP8 = Parallelism(1, 8, 1, 8)
TRT = replace(
    RUN,
    engine="trtllm",
    gpu="b200_sxm",
    precision="fp4",
    parallel=TP8,
    isl=1024,
    osl=1024,
    measured=date(2025, 11, 2),
)
MINIMAX = replace(
    RUN,
    engine="vllm",
    model="MiniMaxAI/MiniMax-M2.5",
    gpu="h200_sxm",
    precision="fp8",
    parallel=TP8,
)


@pytest.mark.parametrize(
    ("concurrency", "osl", "found"),
    [(8, 1024, None), (9, 1024, EP8), (16, 8192, None), (17, 8192, EP8), (256, 1024, DP8)],
)
def test_experts_and_attention_spread_as_the_load_grows(
    concurrency: int, osl: int, found: Parallelism | None
) -> None:
    assert scripted_parallelism(replace(TRT, concurrency=concurrency, osl=osl)) == found


def test_scripts_chose_until_the_configurations_did() -> None:
    busy = replace(TRT, concurrency=64)
    assert scripted_parallelism(busy) == EP8
    assert scripted_parallelism(replace(busy, measured=date(2025, 11, 3))) is None
    assert scripted_parallelism(replace(busy, measured=None)) is None
    assert scripted_parallelism(replace(busy, source="nvidia")) is None


def test_a_condition_that_always_holds_spreads_minimax_experts() -> None:
    since = date(2026, 3, 13)
    assert scripted_parallelism(replace(MINIMAX, measured=since)) == EP8
    assert scripted_parallelism(replace(MINIMAX, measured=date(2026, 3, 12))) is None
    b200 = replace(MINIMAX, gpu="b200_sxm", measured=date(2026, 4, 2))
    assert scripted_parallelism(b200) == EP8
    assert scripted_parallelism(replace(b200, measured=date(2026, 4, 3))) is None


def test_a_label_that_tells_its_parallelism_is_believed() -> None:
    told = replace(MINIMAX, measured=date(2026, 3, 28), parallel=Parallelism(8, 1, 2, 4))
    assert repair(told) == (told.parallel, "")
    alone = replace(MINIMAX, measured=date(2026, 3, 28), parallel=Parallelism(1, 1, 1, 1))
    assert scripted_parallelism(alone) is None


def test_the_repair_is_named() -> None:
    (labelled,) = label_runs([replace(TRT, concurrency=64)])
    assert (labelled.repair, labelled.run.parallel) == ("scripted", EP8)
