"""Reading .pt files without torch: the right tensors, and nothing in a file is ever executed."""

from __future__ import annotations

import copy
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.routing.torchfile import read_torch
from tests.fixtures.recordings import write_torch

REAL = Path(__file__).parents[1] / "fixtures" / "torch"
CONTENT = {
    "rank": 0,
    "none": None,
    "flags": [True, False],
    "numbers": [3, 300, 70_000, -5, 2**40, 0.25],
    "nested": ({"text": "é"}, ()),
    "counts": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "map": np.arange(6, dtype=np.int64).reshape(2, 3),
}


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return type(found) is type(wanted) and all(map(same, found, wanted))
    return bool(found == wanted) and type(found) is type(wanted)


def test_a_file_without_torch_reads_as_it_was_written(tmp_path: Path) -> None:
    assert same(read_torch(write_torch(tmp_path / "a.pt", CONTENT)), CONTENT)


def test_a_file_of_torch_itself_is_read() -> None:
    """tests/fixtures/torch/values.pt is torch 2.13's torch.save of the content below."""
    counts = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    found = read_torch(REAL / "values.pt")
    assert same({k: v for k, v in found.items() if k in CONTENT}, CONTENT)
    np.testing.assert_array_equal(found["column"], counts[:, :, 1])
    np.testing.assert_array_equal(found["transposed"], counts[0].T)
    assert found["empty"].shape == (0, 3)
    assert found["scalar"].shape == ()
    assert found["half"].tolist() == [0.5, 1.5]
    assert found["ordered"] == {"a": 1}
    assert not found["counts"].flags.writeable


def test_torch_agrees(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is no dependency of moesim")
    content = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in CONTENT.items()}
    torch.save(content, tmp_path / "a.pt")
    assert same(read_torch(tmp_path / "a.pt"), CONTENT)
    mine = torch.load(write_torch(tmp_path / "b.pt", CONTENT), map_location="cpu")
    assert torch.equal(mine["counts"], content["counts"])


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_torch(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def with_pickle(path: Path, data: bytes, entries: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (entries or {}).items():
            archive.writestr(name, content)
    return path


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class Built:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("a file's class was built")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_reduce_is_not_executed(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    data = pickle.dumps({"logical_count": Malicious(mark)}, protocol)
    path = with_pickle(tmp_path / "evil.pt", data)
    with pytest.raises(InputError):
        read_torch(path)
    assert not mark.exists()
    if protocol == 2:
        refused(path, "names 'posix system', which has no place in a recording")


def test_every_other_way_to_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    builds = pickle.dumps(Built(), 2)
    assert b"Built" in builds
    path = with_pickle(path, builds)
    refused(path, "names 'copy_reg _reconstructor'" if b"copy_reg" in builds else "names ")
    for opcodes, message in (
        (b"\x80\x02cbuiltins\neval\n.", "names 'builtins eval'"),
        (b"\x80\x02(ibuiltins\neval\n.", "uses INST"),
        (b"\x80\x02(cbuiltins\neval\no.", "names 'builtins eval'"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"\x80\x02X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x93.", "uses STACK_GLOBAL"),
        (b"\x80\x02}}b.", "uses BUILD"),
        (b"\x80\x02}}\x81.", "uses NEWOBJ"),
        (b"\x80\x02}}R.", "in place of a _Name"),
        (b"\x80\x02ctorch\nIntStorage\n)R.", "in an unusual way"),
        (b"\x80\x02ccollections\nOrderedDict\n]R.", "in an unusual way"),
        (b"\x80\x02Pa\n.", "uses PERSID"),
        (b"\x80\x02NQ.", "in place of a tuple"),
    ):
        refused(with_pickle(tmp_path / "evil.pt", opcodes), message)


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"", "must be a sound torch.save file"),
        (b"\x80\x02", "must be a sound torch.save file"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "must be a sound torch.save file"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "must be a sound torch.save file"),
        (b"\x80\x02h\x05.", "must be a sound torch.save file"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "must be a sound torch.save file"),
        (b"\x80\x02a.", "must be a sound torch.save file"),
        (b"\x80\x02t.", "lacks a mark"),
        (b"\x80\x02]K\x01s.", "must be a sound torch.save file"),
        (b"\x80\x02}]K\x01s.", "has a list as a key"),
        (b"\x80\x02K\x01K\x02.", "does not end with one value"),
        (b"\x80\x04K\x01.", "has protocol 4"),
    ],
)
def test_broken_pickles_are_refused(tmp_path: Path, opcodes: bytes, message: str) -> None:
    refused(with_pickle(tmp_path / "a.pt", opcodes), message)


def tensor_pickle(tmp_path: Path, **changes: int) -> Path:
    """A sound file of one int32 tensor [2, 3], then with some of its numbers changed."""
    path = write_torch(tmp_path / "a.pt", np.arange(6, dtype=np.int32).reshape(2, 3))
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl")
    for key, value in changes.items():
        old = {"elements": 6, "rows": 2, "step": 1}[key]
        at = [
            position
            for opcode, argument, position in pickletools.genops(data)
            if opcode.name == "BININT1" and argument == old
        ]
        data = data[: at[0] + 1] + bytes([value]) + data[at[0] + 2 :]
    return with_pickle(path, data, {"archive/data/0": np.arange(6, dtype=np.int32).tobytes()})


def test_tensors_that_leave_their_storage_are_refused(tmp_path: Path) -> None:
    assert read_torch(tensor_pickle(tmp_path)).tolist() == [[0, 1, 2], [3, 4, 5]]
    refused(tensor_pickle(tmp_path, elements=200), "has 24 bytes, not its size")
    refused(tensor_pickle(tmp_path, rows=250), "leaves its storage")
    refused(tensor_pickle(tmp_path, step=0, rows=250), "leaves its storage")


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "a.pt", CONTENT)
    sound = path.read_bytes()
    for cut in (0, 3, 10, 100, len(sound) // 2, len(sound) - 5):
        path.write_bytes(sound[:cut])
        refused(path, "must be a sound torch.save file")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    refused(path, "format before torch 1.6")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    refused(path, "packed, which torch.save does not do")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", b"")
    refused(path, "has no data.pkl")
    data = b"\x80\x02K\x01."
    refused(with_pickle(path, data, {"archive/byteorder": b"big"}), "not little-endian")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(4096))
        for number in range(1, 9):  # nine entries that are one place in the file
            again = copy.copy(archive.filelist[-1])
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
    refused(path, "entries overlap")
    refused(tmp_path / "nothing.pt", "must be an existing file")
