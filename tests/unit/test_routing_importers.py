"""Reading .npz recordings: the right rows, and nothing believed that was not checked."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.routing import npz
from moesim.routing.importers import import_npz, merge


def arrays(seed: int = 0, **changes: Any) -> dict[str, Any]:
    ids = np.random.default_rng(seed).random((9, 2, 8)).argsort(axis=-1)[..., :3]
    sound = {
        "ids": ids.astype(np.uint8),
        "seq_lens": np.array([4, 5], np.int32),
        "num_experts": np.int32(8),
    }
    return {k: v for k, v in {**sound, **changes}.items() if v is not None}


def write(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, **arrays(**changes))
    return path


def test_a_file_becomes_a_trace(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).random((9, 2, 3)).astype(np.float16)
    path = write(tmp_path / "law.npz", weights=weights, layers=np.array([3, 7], np.int16))
    trace = import_npz(
        path, model="toy", phase="prefill", domain="law", provenance={"licence": "MIT"}
    )
    np.testing.assert_array_equal(trace.ids_TLK, arrays()["ids"])
    np.testing.assert_array_equal(trace.weights_TLK, weights)
    assert trace.sequence_start_S1.tolist() == [0, 4, 9]
    assert trace.prompt_tokens_S.tolist() == [4, 5]
    assert trace.layers_L.tolist() == [3, 7]
    assert (trace.domains, trace.experts, trace.model) == (("law",), 8, "toy")
    assert trace.provenance == {"model": "toy", "licence": "MIT"}
    decoded = import_npz(path, model="toy", phase="decode")
    assert decoded.prompt_tokens_S.tolist() == [0, 0]
    assert decoded.domains == ("law",)


def test_wide_and_fortran_ordered_ids_are_read_right(tmp_path: Path) -> None:
    ids = np.asfortranarray(arrays()["ids"].astype(">i8"))
    trace = import_npz(write(tmp_path / "t.npz", ids=ids), model="toy", phase="decode")
    np.testing.assert_array_equal(trace.ids_TLK, arrays()["ids"])
    assert trace.ids_TLK.dtype == np.uint8


def test_domains_come_from_the_index(tmp_path: Path) -> None:
    path = write(tmp_path / "t.npz", seq_index=np.array([2, 0], np.int32))
    rows = [
        {"category": c, "dataset": d} for c, d in (("law", "x"), ("maths", "y"), ("safety", "x"))
    ]
    index = tmp_path / "index.json"
    index.write_text(json.dumps(rows))
    trace = import_npz(path, model="toy", phase="decode", index=index)
    assert [trace.domains[d] for d in trace.domain_S] == ["safety", "law"]
    trace = import_npz(path, model="toy", phase="decode", index=index, label="dataset")
    assert [trace.domains[d] for d in trace.domain_S] == ["x", "x"]
    for label, text, message in (
        ("topic", json.dumps(rows), "must be an object with a text 'topic'"),
        ("category", "{}", "must be a list"),
        ("category", "[[", "must be JSON"),
        ("category", "[1]", "must be an object"),
        ("category", json.dumps(rows[:2]), "must be below the index's 2 rows"),
    ):
        index.write_text(text)
        with pytest.raises(InputError, match=message):
            import_npz(path, model="toy", phase="decode", index=index, label=label)


def test_several_files_become_one_trace(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.npz", seed=i) for i, name in enumerate("abc")]
    trace = import_npz(paths, model="toy", phase="decode", domain=["law", "code", "law"])
    assert trace.sequence_start_S1.tolist() == [0, 4, 9, 13, 18, 22, 27]
    assert [trace.domains[d] for d in trace.domain_S] == ["law"] * 2 + ["code"] * 2 + ["law"] * 2
    np.testing.assert_array_equal(trace.ids_TLK[18:], arrays(seed=2)["ids"])
    with pytest.raises(InputError, match="must be one, or one for each of 3"):
        import_npz(paths, model="toy", phase="decode", domain=["law"])
    with pytest.raises(InputError, match="needs at least one file"):
        import_npz([], model="toy", phase="decode")


def test_merging_keeps_what_all_have(tmp_path: Path) -> None:
    weights = np.ones((9, 2, 3), np.float16)
    with_weights = import_npz(
        write(tmp_path / "a.npz", weights=weights),
        model="one",
        phase="prefill",
        provenance={"licence": "MIT", "date": "2026"},
    )
    without = import_npz(
        write(tmp_path / "b.npz"), model="two", phase="decode", provenance={"licence": "MIT"}
    )
    both = merge([with_weights, without])
    assert both.weights_TLK is None
    assert both.model == "one + two"
    assert both.provenance == {"model": "one; two", "licence": "MIT", "date": "2026"}
    assert both.prompt_tokens_S.tolist() == [4, 5, 0, 0]
    again = merge([with_weights, with_weights])
    assert again.weights_TLK is not None
    assert merge([without]) is without
    other = import_npz(
        write(tmp_path / "c.npz", num_experts=np.int32(9)), model="toy", phase="decode"
    )
    with pytest.raises(InputError, match="needs traces of 2 layers, 3 of 8 experts"):
        merge([without, other])
    with pytest.raises(InputError, match="needs at least one trace"):
        merge([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": None}, "ids is required"),
        ({"seq_lens": None}, "seq_lens is required"),
        ({"num_experts": None}, "num_experts is required"),
        ({"num_experts": np.int64(10**9)}, "num_experts must be 1 to 65536"),
        ({"num_experts": np.int64(0)}, "num_experts must be 1 to 65536"),
        ({"num_experts": np.array([8])}, "num_experts must be whole numbers in 0 dimensions"),
        ({"num_experts": np.int32(5)}, "ids must be 0 to 4"),
        ({"ids": np.full((9, 2, 3), -1)}, "ids must be 0 to 7"),
        ({"ids": np.full((9, 2, 3), 300)}, "ids must be 0 to 7"),
        ({"ids": np.full((9, 2, 3), 1, np.uint8)}, "must be distinct and below 8"),
        ({"ids": np.zeros((9, 2, 3))}, "ids must be whole numbers in 3 dimensions"),
        ({"ids": np.zeros((9, 6), np.uint8)}, "ids must be whole numbers in 3 dimensions"),
        ({"ids": np.zeros((0, 2, 3), np.uint8)}, "ids must not be empty"),
        ({"seq_lens": np.array([4, 4])}, "must run from 0 to the 9 tokens"),
        ({"seq_lens": np.array([9, 0])}, "seq_lens must be 1 to"),
        ({"seq_lens": np.array([2**62, 2**62])}, "seq_lens must be 1 to"),
        ({"seq_lens": np.array([], np.int32)}, "seq_lens must be 1 to"),
        ({"layers": np.array([1])}, "layers must number the 2 layers"),
        ({"layers": np.array([1.0, 2.0])}, "layers must be whole numbers"),
        ({"weights": np.zeros((9, 2, 2), np.float16)}, "weights must have the shape of ids"),
        ({"weights": np.full((9, 2, 3), np.nan)}, "must be finite"),
        ({"weights": np.zeros((9, 2, 3), int)}, "weights must be floating point"),
    ],
)
def test_unsound_contents_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "t.npz", **changes)
    with pytest.raises(InputError) as error:
        import_npz(path, model="toy", phase="decode")
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_an_unknown_phase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be prefill or decode"):
        import_npz(write(tmp_path / "t.npz"), model="toy", phase="both")  # type: ignore[arg-type]


def npy(shape: str, descr: str = "'|u1'", data: bytes = b"", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("(1000000000000, 2, 3)"), "claims 6000000000000 bytes"),
        (npy("(-9, 2, -3)", data=bytes(54)), "impossible shape"),
        (npy("(9, 2, 3)", data=bytes(53)), "claims 54 bytes"),
        (npy("(9, 2, 3)", "'|O'", bytes(432)), "not plain numbers"),
        (npy("(9, 2, 3)", "[('a', '|u1')]", bytes(54)), "not plain numbers"),
        (npy("(9, 2, 3)", "'<U1'", bytes(216)), "not plain numbers"),
        (npy("(9, 2, 3)", data=bytes(54), version=9), "version (9, 0)"),
        (npy("__import__('os').getpid()", data=bytes(54)), "must be a sound .npz file"),
        (npy("(" * 5000, data=bytes(54)), "must be a sound .npz file"),
        (pickle.dumps([1, 2]), "must be a sound .npz file"),
        (b"", "must be a sound .npz file"),
    ],
)
def test_hostile_arrays_are_refused_before_they_are_allocated(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = write(tmp_path / "t.npz", ids=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ids.npy", content)
    with pytest.raises(InputError) as error:
        import_npz(path, model="toy", phase="decode")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            import_npz(path, model="toy", phase="decode")

    path = tmp_path / "t.npz"
    for content in (b"", b"PK\x03\x04" + bytes(100), pickle.dumps({"ids": 1})):
        path.write_bytes(content)
        refused("must be a sound .npz file")
    sound = write(path).read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    refused("must be a sound .npz file")
    path.write_bytes(sound.replace(b"num_experts.npy", b"ids.npy\0\0\0\0\0\0\0\0", 1))
    refused("must be a sound .npz file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(write(path), "a") as archive:
            archive.writestr("ids.npy", b"again")
    refused("a name occurs twice")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("ids.npy", npy("(9, 2, 3)", data=bytes(54)))
    refused("packed in an unusual way")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(npz.MAX_ENTRIES + 1):
            archive.writestr(f"{number}.npy", b"")
    refused("entries, over")
    with pytest.raises(InputError, match="must be an existing file"):
        import_npz(tmp_path / "nothing.npz", model="toy", phase="decode")


def test_a_bomb_is_refused_from_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", npy("(2000000, 2, 3)", data=bytes(12 * 10**6)))
    monkeypatch.setattr(npz, "SMALL_BYTES", 10**6)
    with pytest.raises(InputError, match="it unpacks"):
        import_npz(path, model="toy", phase="decode")
    monkeypatch.setattr(npz, "MAX_UNPACKED_BYTES", 11 * 10**6)
    with pytest.raises(InputError, match="unpacks to 12000"):
        import_npz(path, model="toy", phase="decode")


def test_a_lying_directory_is_found_out(tmp_path: Path) -> None:
    """The directory says 54 bytes of data, the stream holds more: only 54 are ever unpacked."""
    path = tmp_path / "t.npz"
    content = npy("(9, 2, 3)", data=bytes(54))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", content + bytes(10**6))
    spoiled = buffer.getvalue().replace(
        struct.pack("<I", len(content) + 10**6), struct.pack("<I", len(content))
    )
    path.write_bytes(spoiled)
    with pytest.raises(InputError, match="must be a sound"):
        import_npz(path, model="toy", phase="decode")
