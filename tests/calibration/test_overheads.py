"""The overhead fit: exact recovery, folds that know nothing of what they leave out, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import overheads
from calibration.overheads import (
    ENGINES,
    PARAMETERS,
    UNFITTED,
    Overhead,
    fit,
    folds,
    left_out,
    read_overheads,
    write_overheads,
)
from calibration.runs.rows import Parallelism, SiliconRun
from moesim.costs.profile import OverheadProfile
from moesim.errors import InputError

RUN = SiliconRun(
    row=0,
    id="run",
    source="inferencex-2026-04-06",
    aggregated=True,
    engine="sglang",
    version="0.19.0",
    image="",
    model="openai/gpt-oss-120b",
    gpu="h200_sxm",
    precision="fp4",
    gemm_format="nvfp4",
    moe_format="nvfp4",
    parallel=Parallelism(1, 1, 1, 1),
    isl=1024,
    osl=1024,
    concurrency=4,
    measured=date(2026, 1, 1),
    workflow_run="",
    ttft_s=1.0,
    tpot_s=1.0,
)
TRUTH = {
    "prefill_ratio": 1.3,
    "layer_s": 2e-5,
    "prefill_step_s": 0.03,
    "arrival_s": 0.02,
    "arrival_token_s": 3e-6,
    "launch_s": 6e-5,
}


GUESSES = {p.name: p.start for p in PARAMETERS}


def _times(run: SiliconRun, overhead: Overhead) -> tuple[float, float]:
    """A benchmark whose logarithms are linear in the constants, differently for every run."""
    rng = np.random.default_rng(run.row)
    steps = [overhead[p.name] / p.step for p in PARAMETERS]
    weights = rng.uniform(0.005, 0.05, (2, len(steps)))
    ttft, tpot = np.exp(weights @ np.array(steps))
    return float(ttft), float(tpot)


def _simulate(asked: Sequence[tuple[SiliconRun, Overhead]]) -> NDArray[np.float64]:
    return np.array([_times(*each) for each in asked])


def _measured(runs: Sequence[SiliconRun]) -> list[SiliconRun]:
    found = []
    for run in runs:
        ttft_s, tpot_s = _times(run, TRUTH)
        found.append(replace(run, ttft_s=ttft_s, tpot_s=tpot_s))
    return found


def _runs() -> list[SiliconRun]:
    kinds = [
        ("openai/gpt-oss-120b", "h200_sxm"),
        ("moonshotai/Kimi-K2.5", "h200_sxm"),
        ("moonshotai/Kimi-K2.5", "b200_sxm"),
    ]
    return [
        replace(RUN, row=at, id=str(at), model=kinds[at % 3][0], gpu=kinds[at % 3][1])
        for at in range(60)
    ]


@pytest.fixture
def no_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overheads, "PRIOR_LOG", 0.0)


@pytest.mark.usefixtures("no_prior")
def test_constants_are_recovered_exactly() -> None:
    found = fit(_measured(_runs()), _simulate, {})
    constants = found["all"]["sglang"]
    assert constants == pytest.approx(TRUTH, rel=2e-3)


@pytest.mark.usefixtures("no_prior")
def test_a_fold_knows_nothing_of_the_model_it_leaves_out() -> None:
    runs = _measured(_runs())
    wrong = [
        replace(run, ttft_s=run.ttft_s * 5.0) if "gpt-oss" in run.model else run for run in runs
    ]
    found = fit(wrong, _simulate, {})
    assert found["model:gpt-oss-120b"]["sglang"] == pytest.approx(TRUTH, rel=5e-3)
    assert found["all"]["sglang"] != pytest.approx(TRUTH, rel=5e-3)


def test_a_number_that_no_run_tells_stays_at_its_guess() -> None:
    """Runs whose times do not depend on the launch time, which the search starts elsewhere."""

    def blind(asked: Sequence[tuple[SiliconRun, Overhead]]) -> NDArray[np.float64]:
        return _simulate([(run, {**overhead, "launch_s": 0.0}) for run, overhead in asked])

    guess = next(p.start for p in PARAMETERS if p.name == "launch_s")
    found = fit(_measured(_runs()), blind, {"sglang": {"launch_s": guess + 30e-6}})
    assert found["all"]["sglang"]["launch_s"] == pytest.approx(guess, rel=1e-3)


def test_constants_stay_within_their_bounds() -> None:
    runs = [replace(run, ttft_s=1e-6, tpot_s=1e-6) for run in _measured(_runs())]
    constants = fit(runs, _simulate, {})["all"]["sglang"]
    for parameter in PARAMETERS:
        assert parameter.low <= constants[parameter.name] <= parameter.high


@pytest.mark.usefixtures("no_prior")
def test_what_an_engine_does_not_wait_for_is_not_fitted() -> None:
    truth = {**TRUTH, "launch_s": 0.0}
    runs = [replace(run, engine="vllm") for run in _runs()]
    times = [_times(run, truth) for run in runs]
    runs = [replace(r, ttft_s=t, tpot_s=p) for r, (t, p) in zip(runs, times, strict=True)]
    start = {"vllm": {"launch_s": 50e-6}}
    assert fit(runs, _simulate, start)["all"]["vllm"] == pytest.approx(truth, rel=2e-3)


def test_a_fold_without_runs_of_an_engine_has_nothing_of_it() -> None:
    runs = _measured(_runs())
    other = replace(RUN, row=99, engine="trtllm", model="openai/gpt-oss-120b")
    found = fit([*runs, *_measured([other])], _simulate, {})
    assert set(found["model:gpt-oss-120b"]) == {"sglang"}
    assert set(found["model:kimi-k2.5"]) == {"sglang", "trtllm"}


def test_no_prediction_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no run could be predicted"):
        fit(_runs(), lambda asked: np.full((len(asked), 2), np.nan), {})


def test_folds_and_what_they_leave_out() -> None:
    assert folds(_runs()) == (
        "all",
        "model:gpt-oss-120b",
        "model:kimi-k2.5",
        "gpu:h200_sxm",
        "gpu:b200_sxm",
    )
    assert left_out("model:gpt-oss-120b", RUN)
    assert not left_out("model:kimi-k2.5", RUN)
    assert left_out("gpu:h200_sxm", RUN)
    assert not left_out("all", RUN)


def test_constants_are_fields_of_the_profile(tmp_path: Path) -> None:
    write_overheads({"all": {"sglang": TRUTH}}, tmp_path / "fitted.json")
    fields = read_overheads(tmp_path / "fitted.json")["all"]["sglang"]
    profile = OverheadProfile(step_s=0.0, request_s=0.0, **fields)
    assert profile.launch_s == 6e-5
    assert profile.prefill_ratio == 1.3
    with pytest.raises(InputError, match="fit_overheads"):
        read_overheads(tmp_path / "absent.json")


def test_without_anything_to_go_by_every_number_is_its_guess() -> None:
    """Runs of constant times, whatever the search starts from; the fixed one stays fixed."""

    def constant(asked: Sequence[tuple[SiliconRun, Overhead]]) -> NDArray[np.float64]:
        return np.array([(run.ttft_s * 1.3, run.tpot_s * 0.8) for run, _ in asked])

    elsewhere = {p.name: p.start + 0.6 * p.step for p in PARAMETERS}
    for engine in ENGINES:
        fixed = UNFITTED.get(engine, {})
        runs = [replace(run, engine=engine) for run in _measured(_runs()[:6])]
        found = fit(runs, constant, {engine: elsewhere})
        for fold in ("all", "model:kimi-k2.5", "gpu:h200_sxm"):
            assert found[fold][engine] == pytest.approx({**GUESSES, **fixed}, rel=1e-3)


@pytest.mark.parametrize("count", [1, 40])
def test_runs_weigh_against_the_guess_as_their_times_move(count: int) -> None:
    """Each time moves by `slope` a step of the launch time, all say 60 us, the guess is 40: the
    ridge leaves (slope / prior)^2 to 1 in favour of the runs, however many there are."""
    launch = next(p for p in PARAMETERS if p.name == "launch_s")
    told = launch.start + launch.step
    for slope in (0.5 * overheads.PRIOR_LOG, overheads.PRIOR_LOG, 3.0 * overheads.PRIOR_LOG):

        def linear(
            asked: Sequence[tuple[SiliconRun, Overhead]], slope: float = slope
        ) -> NDArray[np.float64]:
            steps = np.array([(of["launch_s"] - told) / launch.step for _, of in asked])
            return np.exp(slope * np.stack([steps, steps], axis=1))

        found = fit([replace(RUN, row=at) for at in range(count)], linear, {})["all"]["sglang"]
        weight = (slope / overheads.PRIOR_LOG) ** 2
        expected = launch.start + launch.step * weight / (1.0 + weight)
        assert found.pop("launch_s") == pytest.approx(expected, rel=2e-3)
        assert found == pytest.approx({name: GUESSES[name] for name in found}, rel=1e-3)


def test_a_number_that_is_not_fitted_is_never_moved() -> None:
    """Not in a search, not for a derivative, in no fold: vLLM waits for no launch."""
    seen: list[float] = []

    def watched(asked: Sequence[tuple[SiliconRun, Overhead]]) -> NDArray[np.float64]:
        seen.extend(overhead["launch_s"] for _, overhead in asked)
        return _simulate(asked)

    runs = [replace(run, engine="vllm") for run in _measured(_runs())]
    found = fit(runs, watched, {"vllm": {"launch_s": 50e-6}})
    assert set(seen) == {UNFITTED["vllm"]["launch_s"]} == {0.0}
    assert {of_fold["vllm"]["launch_s"] for of_fold in found.values()} == {0.0}
    # Each of two rounds predicts the centre and one move of each of the five others.
    assert len(seen) == 2 * (1 + 5) * len(runs)


def test_what_is_not_fitted_is_a_number_within_its_bounds() -> None:
    known = {p.name: p for p in PARAMETERS}
    for engine, fixed in UNFITTED.items():
        assert engine in ENGINES
        for name, value in fixed.items():
            assert known[name].low <= value <= known[name].high
