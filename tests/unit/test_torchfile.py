"""Reading .pt files without torch: the right tensors, and nothing in a file is ever executed."""

from __future__ import annotations

import copy
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.routing import torchfile
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


def test_values_that_hold_themselves_or_unfold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused(with_pickle(path, b"\x80\x02]q\x00h\x00a."), "holds itself")
    refused(with_pickle(path, b"\x80\x02}q\x00K\x01h\x00s."), "holds itself")
    refused(
        with_pickle(path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), "nested over 64"
    )
    # Thirty lists of which each holds the one before it twice.
    doubling = b"]q\x00" + b"".join(
        b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(30)
    )
    unfolded = b"\x80\x02(" + doubling + b"t."
    refused(with_pickle(path, unfolded), "too many")
    assert read_torch(with_pickle(path, b"\x80\x02(]q\x00h\x00h\x00t.")) == ([], [], [])


def test_deep_values_reached_by_a_short_way_first_are_refused(tmp_path: Path) -> None:
    """The inner list is done, 40 deep, before another 40 are found above it."""
    inner = b"]" * 40 + b"a" * 39 + b"q\x00"
    outer = b"]" * 40 + b"h\x00a" + b"a" * 39
    refused(
        with_pickle(tmp_path / "a.pt", b"\x80\x02(" + outer.replace(b"h\x00", inner) + b"h\x00t."),
        "nested",
    )


def test_a_pickle_of_too_many_instructions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchfile, "MAX_OPCODES", 1000)
    refused(with_pickle(tmp_path / "a.pt", b"\x80\x02(" + b"N" * 1000 + b"t."), "instructions")


def test_endless_tensors_of_one_storage_are_refused(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.int64)
    sound = write_torch(tmp_path / "a.pt", [array])
    assert len(read_torch(sound)) == 1
    with zipfile.ZipFile(sound) as archive:
        data = archive.read("archive/data.pkl")
    first = next(at for op, _, at in pickletools.genops(data) if op.name == "GLOBAL")
    tensor = data[first : data.rindex(b"R") + 1]
    many = b"\x80\x02(" + tensor * 40 + b"t."
    refused(with_pickle(sound, many, {"archive/data/0": array.tobytes()}), "again and again")


@pytest.mark.parametrize("wide", [False, True])
def test_a_directory_of_millions_of_entries_is_not_read(tmp_path: Path, wide: bool) -> None:
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02K\x01.")
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    if wide:
        record = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 2**40, 2**40, 2**46, 0)
        locator = b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1)
        tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        path.write_bytes(content[:end] + record + locator + tail)
    else:
        path.write_bytes(content[: end + 12] + struct.pack("<L", 10**9) + content[end + 16 :])
    refused(path, "its directory has")
