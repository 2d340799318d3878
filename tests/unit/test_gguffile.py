"""Reading GGUF headers: as the gguf package does, and never beyond what the file holds."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.routing.gguffile import open_gguf
from tests.fixtures.recordings import gguf_bytes, gguf_text

TENSORS = {
    "blk.0.ffn_up_exps.weight.counts": np.arange(6, dtype=np.float32).reshape(6, 1),
    "odd": np.arange(7, dtype=np.float32),
}
VALUES: dict[str, int | str | list[str]] = {
    "general.type": "imatrix",
    "imatrix.chunk_count": 3,
    "imatrix.datasets": ["a.txt", "b"],
}


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(TENSORS, VALUES))
    file = open_gguf(path)
    assert dict(file.values) == VALUES
    assert file.tensors["odd"].shape == (7,)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(file.floats(name), array.ravel())


def test_the_gguf_package_agrees(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is a development tool")
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_uint32("imatrix.chunk_count", 45)
    writer.add_bool("flag", True)
    writer.add_float64("double", 0.25)
    writer.add_int64("long", -(2**40))
    for name, array in TENSORS.items():
        writer.add_tensor(name, array)
    writer.add_tensor("half", np.ones((2, 3), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mine, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert set(mine.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        found = mine.tensors[tensor.name]
        assert (found.shape, found.offset) == (tuple(tensor.shape.tolist()), tensor.data_offset)
        if tensor.name in TENSORS:
            np.testing.assert_array_equal(mine.floats(tensor.name), tensor.data.ravel())
    assert mine.values["imatrix.datasets"] == ["calibration.txt"]
    assert mine.values["imatrix.chunk_count"] == 45
    assert (mine.values["flag"], mine.values["double"], mine.values["long"]) == (
        True,
        0.25,
        -(2**40),
    )
    with pytest.raises(InputError, match="must hold 'half' as F32"):
        mine.floats("half")
    # And what this package's own reader makes of the files that the tests write.
    (tmp_path / "b.gguf").write_bytes(gguf_bytes(TENSORS, VALUES))
    again = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert all(
        np.array_equal(again[name].ravel(), array.ravel()) for name, array in TENSORS.items()
    )


def head(tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def described(name: str, shape: tuple[int, ...], offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return gguf_text(name) + sizes + struct.pack("<IQ", 0, offset) + bytes(200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a sound GGUF file"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (head(version=1), "its version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "not 2 or 3 in little-endian order"),
        (head(tensors=2**60), "it claims"),
        (head(pairs=2**60), "it claims"),
        (head(pairs=1), "cut short"),
        (head(pairs=1) + struct.pack("<Q", 2**62), "a name of"),
        (head(pairs=1) + gguf_text("k") + struct.pack("<I", 13), "a value of type 13"),
        (head(pairs=1) + gguf_text("k") + struct.pack("<IIQ", 9, 8, 2**60), "a list of"),
        (head(pairs=1) + gguf_text("k") + struct.pack("<IIQ", 9, 4, 2**60), "cut short"),
        (head(pairs=1) + gguf_text("k") + struct.pack("<IIQ", 9, 9, 2**60), "of type 9"),
        (head(tensors=1) + described("t", (2**40, 2**20)), "beyond the end"),
        (head(tensors=1) + described("t", (4,), 2**50), "beyond the end"),
        (
            head(tensors=2) + described("s", (30,))[:-200] + described("t", (30,)),
            "its tensors overlap",
        ),
        (head(tensors=1) + described("t", (1,) * 9), "impossible way"),
        (head(tensors=2) + described("t", (1,))[:-200] + described("t", (1,)), "impossible way"),
        (
            head(pairs=1) + gguf_text("general.alignment") + struct.pack("<II", 4, 0),
            "its alignment is 0",
        ),
        (
            head(pairs=1) + gguf_text("general.alignment") + struct.pack("<If", 6, 32.0),
            "its alignment is",
        ),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_gguf(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
