"""Measured points on disk: kept at once, resumed, refused where they are another machine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calibration.kernels.points import Measurement, Point, PointStore, refused
from moesim.errors import InputError

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "gpu": "h100-sxm"}
GEMM = Point("gemm", (("dtype", "bfloat16"), ("n", 64), ("k", 32)), 8)
EXPERTS = Point("moe", (("dtype", "bfloat16"), ("hidden", 64)), 8, (3, 0, 5), "trace: decode")
FOUND = Measurement(1.5e-5, 0.01, 9, "torch_mm", "graph")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h100.points.jsonl"


def test_a_point_is_on_disk_as_soon_as_it_is_added(path: Path) -> None:
    store = PointStore(path, MACHINE)
    for point in (GEMM, EXPERTS):
        store.add(point, FOUND)
        assert PointStore(path, MACHINE).known == store.known
    assert store.known == {GEMM: FOUND, EXPERTS: FOUND}


def test_only_points_without_a_sound_time_are_left_to_do(path: Path) -> None:
    store = PointStore(path, MACHINE)
    other = replace(GEMM, x=16)
    store.add(GEMM, FOUND)
    store.add(EXPERTS, refused("out of memory"))
    assert PointStore(path, MACHINE).todo([GEMM, EXPERTS, other]) == [EXPERTS, other]


def test_a_line_cut_off_in_the_middle_is_measured_again_and_spoils_nothing(path: Path) -> None:
    store = PointStore(path, MACHINE)
    store.add(GEMM, FOUND)
    store.add(EXPERTS, FOUND)
    path.write_text(path.read_text()[:-20])
    again = PointStore(path, MACHINE)
    assert again.todo([GEMM, EXPERTS]) == [EXPERTS]
    again.add(EXPERTS, FOUND)
    assert PointStore(path, MACHINE).todo([GEMM, EXPERTS]) == []


@pytest.mark.parametrize("key", ["device", "torch", "gpu"])
def test_points_of_another_machine_are_not_mixed_in(path: Path, key: str) -> None:
    PointStore(path, MACHINE).add(GEMM, FOUND)
    with pytest.raises(InputError, match=f"another {key}.*--restart"):
        PointStore(path, MACHINE | {key: "another"})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "x", "machine": {}}', "\x00\xff"])
def test_another_file_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError, match="must be a file of measured points"):
        PointStore(path, MACHINE)


@pytest.mark.parametrize("seconds", ["NaN", "-1.0", "0.0", "Infinity"])
def test_an_impossible_time_is_measured_again(path: Path, seconds: str) -> None:
    PointStore(path, MACHINE).add(GEMM, FOUND)
    path.write_text(path.read_text().replace("1.5e-05", seconds))
    assert PointStore(path, MACHINE).known == {}
