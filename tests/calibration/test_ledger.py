"""Scores, folds and anchors by hand, and the peer's published errors from its own predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from calibration.ledger import (
    anchored,
    band,
    halves,
    leave_one_out,
    log_slope,
    median_factors,
    score,
    slices,
)
from calibration.prediction_store import (
    Outcome,
    PredictionStore,
    predict_all,
    prediction_key,
    source_digest,
)
from calibration.runs.labels import label_runs
from calibration.runs.rows import Parallelism, SiliconRun, read_runs
from calibration.selection import arrays, read_peer, sample, scored
from moesim.errors import InputError
from tests.calibration.test_labels import RUN


def test_score_by_hand() -> None:
    found = score(np.array([1.1, 0.5, np.nan, 3.0]), np.array([1.0, 1.0, 1.0, 2.0]))
    assert (found.rows, found.predicted, found.coverage) == (4, 3, 0.75)
    assert found.mape == pytest.approx((0.1 + 0.5 + 0.5) / 3)
    assert found.median_ape == pytest.approx(0.5)
    assert found.bias == pytest.approx(1.1)
    assert np.isnan(score(np.array([np.nan]), np.array([1.0])).mape)


def test_bands() -> None:
    assert [band(c) for c in (1, 8, 9, 32, 33, 128, 129)] == [
        *("<=8", "<=8", "9-32", "9-32"),
        *("33-128", "33-128", ">128"),
    ]


def test_folds_cut_through_no_group() -> None:
    keys = ["a", "b", "a", "c", "b"]
    folds = list(leave_one_out(keys))
    assert [key for key, _, _ in folds] == ["a", "b", "c"]
    for key, fit_N, scored_N in folds:
        assert [each == key for each in keys] == scored_N.tolist()
        assert (fit_N ^ scored_N).all()
    with pytest.raises(ValueError, match="two groups"):
        next(leave_one_out(["a", "a"]))
    first_N, second_N = halves(keys)
    assert (first_N ^ second_N).all()
    assert first_N[0] == first_N[2]
    assert first_N[1] == first_N[4]


def test_anchors_scale_a_sweep_from_its_low_end() -> None:
    """Factor of sweep s: geometric mean of 2 and 8; sweep t has no anchor, 9 to 15 scores none."""
    keys = ["s", "s", "s", "s", "t"]
    concurrency = np.array([4, 8, 12, 16, 32])
    scaled = anchored(keys, concurrency, np.ones(5), np.array([2.0, 8.0, 1.0, 5.0, 1.0]))
    assert np.isnan(scaled[[0, 1, 2, 4]]).all()
    assert scaled[3] == pytest.approx(4.0)


def test_median_factors_come_from_other_sweeps() -> None:
    cells, sweeps = ["x", "x", "x", "y"], ["s", "s", "t", "u"]
    scaled = median_factors(cells, sweeps, np.ones(4), np.array([2.0, 4.0, 10.0, 7.0]))
    assert scaled[:3].tolist() == [10.0, 10.0, 3.0]
    assert np.isnan(scaled[3])


def test_slope_of_the_bias() -> None:
    concurrency = np.array([1, 10, 100])
    assert log_slope(concurrency, 1.0 / concurrency, np.ones(3)) == pytest.approx(-1.0)
    assert np.isnan(log_slope(np.array([4, 4]), np.ones(2), np.ones(2)))


def test_a_measurement_is_scored_once() -> None:
    copy = replace(RUN, id="copy")
    wide = replace(RUN, id="wide", tpot_s=0.02, parallel=Parallelism(1, 8, 1, 8))
    runs = [RUN, copy, wide]
    assert [run.id for run in scored(label_runs(runs))] == ["a"]
    assert [run.id for run in scored(label_runs(runs), data_parallel=True)] == ["a", "wide"]


@pytest.mark.parametrize("size", [1, 7, 50, 99])
def test_a_sample_gives_every_stratum_its_share(size: int) -> None:
    engines = ["vllm"] * 60 + ["sglang"] * 30 + ["trtllm"] * 10
    many = [replace(RUN, id=str(n), engine=engine) for n, engine in enumerate(engines)]
    few = sample(many, size)
    assert len(few) == len({run.id for run in few}) == size
    assert [int(run.id) for run in few] == sorted(int(run.id) for run in few)
    for engine in set(engines):
        share = size * engines.count(engine) / 100
        assert abs(sum(run.engine == engine for run in few) - share) < 1
    assert few == sample(many, size)
    assert size == 99 or few != sample(many, size, seed=1)
    assert sample(many, 1000) == tuple(many)


@dataclass(frozen=True)
class Half:
    ttft_s: float
    tpot_s: float
    notes: tuple[str, ...] = ("half",)


def predict_half(run: SiliconRun, fold: str) -> Half:
    if run.id == "refused":
        raise InputError("model", "cannot be run")
    return Half(run.ttft_s / 2, run.tpot_s / 2)


def never(run: SiliconRun, fold: str) -> Half:
    raise AssertionError("nothing is to be predicted again")


def key_of(run: SiliconRun, fold: str) -> str:
    return prediction_key(run.id, "profile", "1")


@pytest.mark.parametrize("processes", [1, 2])
def test_validation_is_resumed(tmp_path: Path, processes: int) -> None:
    path = tmp_path / "predictions.jsonl"
    runs = [RUN, replace(RUN, id="b", ttft_s=0.4), replace(RUN, id="refused")]
    tasks = [(run, fold) for fold in ("model:x", "all") for run in runs]  # one key: one prediction
    told: list[tuple[int, int]] = []
    first = predict_all(
        predict_half,
        tasks,
        PredictionStore(path),
        key_of,
        processes,
        lambda done, total: told.append((done, total)),
    )
    assert [each.values for each in first] == [(0.05, 0.005), (0.2, 0.005), None] * 2
    assert [each.why for each in first[:3]] == ["", "", "model cannot be run"]
    assert first[0].notes == ("half",)
    assert first[0].took_s >= 0
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    path.write_text(path.read_text("utf-8") + '{"key": "torn', "utf-8")
    store = PredictionStore(path)
    assert len(store.known) == 3
    store.add("new", RUN, Outcome((1.0, 2.0), "", (), 0.1))
    assert PredictionStore(path).known["new"].values == (1.0, 2.0)
    again = predict_all(never, tasks, PredictionStore(path), key_of, processes)
    assert [each.values for each in again] == [each.values for each in first]


def test_what_is_done_before_an_interruption_is_kept(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "predictions.jsonl")
    runs = [replace(RUN, id=str(number)) for number in range(3)]

    def stops(run: SiliconRun, fold: str) -> Half:
        if run.id == "2":
            raise KeyboardInterrupt
        return predict_half(run, fold)

    with pytest.raises(KeyboardInterrupt):
        predict_all(stops, [(run, "all") for run in runs], store, key_of, 1)
    assert len(PredictionStore(tmp_path / "predictions.jsonl").known) == 2


def test_predictions_end_with_an_edit_of_what_they_follow_from(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "a.py").write_text("x = 1", "utf-8")
    (tmp_path / "cli" / "b.py").write_text("y = 1", "utf-8")
    before = source_digest([tmp_path], ["cli"])
    (tmp_path / "cli" / "b.py").write_text("y = 2", "utf-8")
    assert source_digest([tmp_path], ["cli"]) == before
    (tmp_path / "a.py").write_text("x = 2", "utf-8")
    assert source_digest([tmp_path], ["cli"]) != before


def test_the_peer_scores_as_it_was_published(aic_package: Path, shared_data: Path) -> None:
    """AIConfigurator 0.12 on InferenceX rows: 35.4 / 28.8 % of TTFT on vLLM, 26.1 / 16.9 % of TPOT
    on all; dense rows 47.5 / 45.1 and 20.1 / 12.9 (independent count of 2026-11-21)."""
    labelled = label_runs(read_runs(aic_package / "systems"))
    peer = read_peer(shared_data / "silicon" / "aic_predictions.csv")
    runs = scored(labelled, repaired=False)
    predicted, measured = arrays(runs, peer)
    ttft = slices(runs, predicted[:, 0], measured[:, 0], lambda run: run.engine)
    assert ttft["vllm"].mape == pytest.approx(0.354, abs=0.001)
    assert ttft["vllm"].median_ape == pytest.approx(0.288, abs=0.001)
    assert ttft["sglang"].mape == pytest.approx(0.539, abs=0.005)
    assert ttft["trtllm"].mape == pytest.approx(0.556, abs=0.005)
    tpot = score(predicted[:, 1], measured[:, 1])
    assert (tpot.mape, tpot.median_ape) == (
        pytest.approx(0.261, abs=0.001),
        pytest.approx(0.169, abs=0.001),
    )
    dense = [each.run for each in labelled if not each.run.is_moe and not each.copy_of]
    predicted, measured = arrays(dense, peer)
    assert score(predicted[:, 0], measured[:, 0]).mape == pytest.approx(0.475, abs=0.001)
    assert score(predicted[:, 1], measured[:, 1]).mape == pytest.approx(0.201, abs=0.001)
