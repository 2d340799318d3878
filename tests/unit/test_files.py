from __future__ import annotations

import os
from pathlib import Path

import pytest

from moesim.errors import InputError
from moesim.files import existing_file, read_text, replace_atomically


def test_replaces_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with replace_atomically(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_makes_the_folder(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "a" / "b" / "result.json") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a" / "b" / "result.json").read_text() == "x"


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def write_half() -> None:
        with replace_atomically(target) as temporary:
            temporary.write_text("hal")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_file_is_on_the_same_file_system(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "result.json") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path


def test_reads_text(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("name: größer", encoding="utf-8")
    assert read_text(path) == "name: größer"
    assert read_text(path, max_bytes=path.stat().st_size) == "name: größer"


def test_refuses_one_byte_too_many_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("12345")
    with pytest.raises(InputError, match=r"must be at most 4 bytes; got 5$"):
        read_text(path, max_bytes=4)


def test_refuses_a_sparse_giant_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "giant"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="must be at most 64000000 bytes"):
        read_text(path)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "nul\0byte", "x" * 5000])
def test_refuses_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        existing_file(tmp_path / name, 1e6, "workload.trace")
    assert caught.value.field == "workload.trace"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="must be an existing file"):
        read_text(pipe)


def test_refuses_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text") as caught:
        read_text(path, field="scenario")
    assert caught.value.field == "scenario"


def test_the_file_is_the_field_where_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "missing.yaml")
    assert caught.value.field == str(tmp_path / "missing.yaml")
