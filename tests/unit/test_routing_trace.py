"""RoutingTrace: what is written comes back, and what strangers write is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from moesim.errors import InputError
from moesim.routing import RoutingTrace, tensorfile


def make_trace(
    tokens: int = 12, layers: int = 3, top_k: int = 2, experts: int = 8, seed: int = 0, **more: Any
) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    ids = rng.random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k]
    fields: dict[str, Any] = {
        "ids_TLK": ids.astype(np.uint8 if experts <= 256 else np.uint16),
        "sequence_start_S1": np.array([0, tokens // 3, tokens]),
        "prompt_tokens_S": np.array([1, 2]),
        "domain_S": np.array([1, 0]),
        "domains": ("law", "code"),
        "layers_L": np.arange(1, layers + 1),
        "experts": experts,
        "model": "toy",
        "provenance": {"source": "a test", "licence": "none"},
    }
    return RoutingTrace(**{**fields, **more})


@st.composite
def traces(draw: st.DrawFn) -> RoutingTrace:
    experts = draw(st.sampled_from([1, 2, 7, 256, 257, 1000]))
    top_k = draw(st.integers(1, min(experts, 9)))
    layers = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    tokens = sum(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = rng.random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k]
    names = st.text(max_size=8).filter(str.isprintable)
    domains = draw(st.lists(names, min_size=1, max_size=4))
    weighted = draw(st.booleans())
    return RoutingTrace(
        ids.astype(np.uint8 if experts <= 256 else np.uint16),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array([draw(st.integers(0, length)) for length in lengths]),
        rng.integers(0, len(domains), len(lengths)),
        tuple(domains),
        np.sort(rng.choice(100, layers, replace=False)),
        experts,
        draw(names),
        draw(st.dictionaries(names, names, max_size=3)),
        rng.random(ids.shape).astype(np.float16) if weighted else None,
    )


@settings(deadline=None, max_examples=60)
@given(trace=traces())
def test_what_is_saved_is_what_is_opened(
    trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    trace.save(path)
    again = RoutingTrace.open(path)
    assert again.ids_TLK.dtype == trace.ids_TLK.dtype
    for name in ("ids_TLK", "sequence_start_S1", "prompt_tokens_S", "domain_S", "layers_L"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name))
    for name in ("domains", "experts", "model", "provenance"):
        assert getattr(again, name) == getattr(trace, name)
    if trace.weights_TLK is None:
        assert again.weights_TLK is None
    else:
        np.testing.assert_array_equal(again.weights_TLK, trace.weights_TLK)
    assert not again.ids_TLK.flags.writeable
    assert (again.tokens, again.layers, again.top_k) == trace.ids_TLK.shape
    assert again.sequences == len(trace.prompt_tokens_S)


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    trace = make_trace()
    trace.save(tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("ids"), trace.ids_TLK)
        assert file.metadata()["experts"] == "8"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    make_trace().save(path)
    before = path.read_bytes()

    def full_disk(array: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(tensorfile.np, "ascontiguousarray", full_disk)
    with pytest.raises(OSError, match="no space"):
        make_trace(seed=1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_sequences_are_selected_by_domain() -> None:
    trace = make_trace()
    assert trace.select(["code"]).tolist() == [0]
    assert trace.select(["law", "code"]).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"routing\.domains must be among .*law, code"):
        trace.select(["cod"])


def test_a_subset_holds_the_rows_of_its_sequences() -> None:
    trace = make_trace(weights_TLK=np.arange(72).reshape(12, 3, 2).astype(np.float16))
    part = trace.subset([1, 0, 1])
    rows = [*range(4, 12), *range(4), *range(4, 12)]
    np.testing.assert_array_equal(part.ids_TLK, trace.ids_TLK[rows])
    np.testing.assert_array_equal(part.weights_TLK, np.asarray(trace.weights_TLK)[rows])
    assert part.sequence_start_S1.tolist() == [0, 8, 12, 20]
    assert part.prompt_tokens_S.tolist() == [2, 1, 2]
    assert part.domain_S.tolist() == [0, 1, 0]
    for wrong in ([], [2], [-1]):
        with pytest.raises(InputError, match="sequences"):
            trace.subset(wrong)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ids_TLK", np.zeros((0, 3, 2), np.uint8), "must not be empty"),
        ("ids_TLK", np.zeros((12, 3), np.uint8), "must be [tokens, layers, top_k]"),
        ("ids_TLK", np.zeros((12, 3, 9), np.uint8), "must be at most the number of experts (8)"),
        ("ids_TLK", np.zeros((12, 3, 2), np.int32), "must be uint8"),
        ("ids_TLK", np.full((12, 3, 2), 8, np.uint8), "must be distinct and below 8"),
        ("ids_TLK", np.full((12, 3, 2), 7, np.uint8), "must be distinct and below 8"),
        ("sequence_start_S1", np.array([0, 4, 13]), "must run from 0 to the 12 tokens"),
        ("sequence_start_S1", np.array([0, 4, 11]), "must run from 0 to the 12 tokens"),
        ("sequence_start_S1", np.array([1, 4, 12]), "must run from 0 to the 12 tokens"),
        ("sequence_start_S1", np.array([0, 0, 12]), "must rise"),
        ("sequence_start_S1", np.array([0.0, 4.0, 12.0]), "must be a list of whole numbers"),
        ("prompt_tokens_S", np.array([5, 0]), "must be 0 to the sequence's length"),
        ("prompt_tokens_S", np.array([-1, 0]), "must be 0 to the sequence's length"),
        ("prompt_tokens_S", np.array([1]), "must have one entry for each of 2 sequences"),
        ("domain_S", np.array([0, 2]), "must be below the 2 named domains"),
        ("domain_S", np.array([0, -1]), "must be below the 2 named domains"),
        ("layers_L", np.array([0, 2, 2]), "must be layer indices in rising order"),
        ("layers_L", np.array([0, 1]), "must number the 3 layers"),
        ("domains", ("law", "\x1b[2J"), "must be printable text"),
        ("model", "a\nb", "must be printable text"),
        ("provenance", {"source": "\x07"}, "must be printable text"),
        ("experts", 0, "must be 1 to 65536"),
        ("experts", 10**9, "must be 1 to 65536"),
        ("weights_TLK", np.zeros((12, 3, 1), np.float16), "must have the shape of ids"),
        ("weights_TLK", np.full((12, 3, 2), np.nan, np.float16), "must be finite"),
        ("weights_TLK", np.full((12, 3, 2), -1, np.float16), "must be finite and not negative"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        replace(make_trace(), **{field: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


Header = dict[str, Any]


def raw(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if isinstance(header, dict) else 0)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def parts(path: Path) -> tuple[Header, bytes]:
    """The header and data of a sound trace file, to be spoiled."""
    make_trace().save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def edit(**changes: Any) -> Callable[[Header], Any]:
    def apply(header: Header) -> None:
        for name, value in changes.items():
            tensor, _, key = name.partition("__")
            header[tensor][key] = value

    return apply


def metadata(**changes: Any) -> Callable[[Header], Any]:
    return lambda header: header["__metadata__"].update(changes)


SPOILED: list[tuple[str, Callable[[Header], Any], str]] = [
    ("offsets beyond the end", edit(ids__data_offsets=[100, 10**6]), "beyond the end"),
    ("huge offsets", edit(ids__data_offsets=[2**62, 2**63]), "impossible offsets"),
    ("negative offsets", edit(ids__data_offsets=[-72, 0]), "impossible offsets"),
    ("offsets reversed", edit(ids__data_offsets=[72, 0]), "beyond the end"),
    ("one offset", edit(ids__data_offsets=[0]), "impossible offsets"),
    ("fractional offsets", edit(ids__data_offsets=[0.0, 72.0]), "impossible offsets"),
    ("negative shape", edit(ids__shape=[-12, 3, -2]), "impossible shape"),
    ("boolean shape", edit(ids__shape=[True, 36, 2]), "impossible shape"),
    ("10^12 tokens", edit(ids__shape=[10**12, 3, 2]), "impossible shape"),
    ("10^11 tokens", edit(ids__shape=[10**11, 3, 2]), "its shape 600000000000"),
    ("many dimensions", edit(ids__shape=[72] + [1] * 20), "impossible shape"),
    ("zero tokens", edit(ids__shape=[0, 3, 2]), "its shape 0"),
    ("wrong dtype", edit(ids__dtype="F16"), "its shape 144"),
    ("unknown dtype", edit(ids__dtype="BOOL"), "has dtype 'BOOL'"),
    ("dtype is a list", edit(ids__dtype=[]), "has dtype"),
    ("signed ids", edit(ids__dtype="I32", ids__shape=[6, 3, 1]), "must be of type |u1 or <u2"),
    ("flat ids", edit(ids__shape=[72]), "must have 3 dimensions"),
    ("tensor is a number", lambda h: h.update(ids=3), "must have dtype, shape and data_offsets"),
    ("extra field", edit(ids__strides=[1]), "must have dtype, shape and data_offsets"),
    ("missing tensor", lambda h: h.pop("ids"), "bytes follow the last tensor"),
    ("renamed tensor", lambda h: h.update(idz=h.pop("ids")), "must be among ids"),
    ("metadata is a list", lambda h: h.update(__metadata__=[]), "must map names to strings"),
    ("metadata holds numbers", metadata(experts=8), "must map names to strings"),
    ("no metadata", lambda h: h.pop("__metadata__"), "must be moesim-routing-1"),
    ("another format", metadata(format="pt"), "must be moesim-routing-1; got 'pt'"),
    ("fewer experts", metadata(experts="4"), "must be distinct and below 4"),
    ("no experts", metadata(experts="0"), "experts must be 1 to 65536"),
    ("text experts", metadata(experts="8.0"), "must be a whole number"),
    ("10^5000 experts", metadata(experts="1" + "0" * 5000), "experts must be 1 to 65536"),
    ("domains are broken", metadata(domains="["), "must hold domains and provenance as JSON"),
    ("domains are deep", metadata(domains="[" * 100_000), "as JSON"),
    ("domains are numbers", metadata(domains="[1, 2]"), "must be a list of names"),
    ("too few domains", metadata(domains='["one"]'), "must be below the 1 named domains"),
    ("provenance is a list", metadata(provenance="[]"), "must map names to text"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [row[1:] for row in SPOILED], ids=[r[0] for r in SPOILED]
)
def test_hostile_headers_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Header], Any], message: str
) -> None:
    path = tmp_path / "t.safetensors"
    header, data = parts(path)
    spoil(header)
    with pytest.raises(InputError) as error:
        RoutingTrace.open(raw(path, header, data))
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def overlapping(header: Header, data: bytes) -> tuple[Header, bytes]:
    offsets = header["layers"]["data_offsets"]
    header["prompt_tokens"] = {"dtype": "I32", "shape": [2], "data_offsets": [offsets[0]] * 2}
    header["prompt_tokens"]["data_offsets"][1] += 8
    return header, data


def with_hole(header: Header, data: bytes) -> tuple[Header, bytes]:
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    return header, bytes(8) + data


@pytest.mark.parametrize("spoil", [overlapping, with_hole])
def test_overlaps_and_holes_are_refused(
    tmp_path: Path, spoil: Callable[[Header, bytes], tuple[Header, bytes]]
) -> None:
    path = tmp_path / "t.safetensors"
    header, data = spoil(*parts(path))
    with pytest.raises(InputError, match="overlaps another or leaves a hole"):
        RoutingTrace.open(raw(path, header, data))


def test_unaligned_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    header, data = parts(path)
    text = json.dumps(header).encode()
    with pytest.raises(InputError, match="is not aligned to its 8 bytes"):
        RoutingTrace.open(raw(path, text + b" " * (-len(text) % 8 + 1), data))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "shorter than its header"),
        ("seven bytes", b"\0" * 7, "shorter than its header"),
        ("header of 2^63 bytes", struct.pack("<Q", 2**63) + b"{}", "claims 9223372036854775808"),
        ("header past the end", struct.pack("<Q", 100) + b"{}", "shorter than its header"),
        ("header of zeros", bytes(64), "must be a safetensors file"),
        ("a list", struct.pack("<Q", 2) + b"[]", "must be an object"),
        ("not JSON", struct.pack("<Q", 8) + b"{'ids':}", "must be a safetensors file"),
        ("not UTF-8", struct.pack("<Q", 2) + b"\xff\xfe", "must be a safetensors file"),
        ("nested", struct.pack("<Q", 10**5) + b"[" * 10**5, "must be a safetensors file"),
        ("digits", struct.pack("<Q", 10**4) + b"9" * 10**4, "must be a safetensors file"),
        ("a name twice", struct.pack("<Q", 18) + b'{"a":{}, "a":{}}  ', "a name occurs twice"),
        ("a pickle", pickle.dumps({"ids": [1, 2]}), "must be a safetensors file"),
        ("a zip", b"PK\x03\x04" + bytes(60), "must be a safetensors file"),
        ("nothing in it", struct.pack("<Q", 2) + b"{}", "must be moesim-routing-1"),
    ],
)
def test_files_that_are_no_traces_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        RoutingTrace.open(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    make_trace().save(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            RoutingTrace.open(path)


@settings(deadline=None, max_examples=150)
@given(position=st.integers(0, 10**4), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(
    position: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    make_trace().save(path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    with suppress(InputError):
        trace = RoutingTrace.open(path)
        assert trace.ids_TLK.max() < trace.experts
        assert trace.sequence_start_S1[-1] == trace.tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.full((12, 3, 2), 200, np.uint8)}, "ids[0] must be distinct and below 8"),
        ({"ids": np.full((12, 3, 2), 3, np.uint8)}, "ids[0] must be distinct and below 8"),
        ({"ids": np.full((0, 3, 2), 3, np.uint8)}, "ids must not be empty"),
        ({"sequence_start": np.array([0, 4, 11])}, "must run from 0 to the 12 tokens"),
        ({"sequence_start": np.array([0, 2**62, 12])}, "must rise"),
        ({"sequence_start": np.array([], np.int64)}, "sequence_start must not be empty"),
        ({"weights": np.full((12, 3, 2), np.inf, np.float16)}, "weights[0] must be finite"),
        ({"weights": np.zeros((12, 3, 2), np.float32)}, "weights must be of type <f2"),
        ({"layers": np.array([2, 1, 0], np.int32)}, "must be layer indices in rising order"),
        ({"domain": np.array([0, 9], np.uint16)}, "must be below the 2 named domains"),
        ({"prompt_tokens": np.array([0, 9], np.int32)}, "must be 0 to the sequence's length"),
    ],
)
def test_sound_files_with_unsound_contents_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    trace = make_trace()
    arrays = {
        "ids": trace.ids_TLK,
        "sequence_start": trace.sequence_start_S1,
        "prompt_tokens": trace.prompt_tokens_S,
        "domain": trace.domain_S,
        "layers": trace.layers_L,
        **changes,
    }
    about = {"format": "moesim-routing-1", "experts": "8", "model": "toy"}
    about |= {"domains": '["law", "code"]', "provenance": "{}"}
    save_file({k: np.array(v) for k, v in arrays.items()}, tmp_path / "t.safetensors", about)
    with pytest.raises(InputError) as error:
        RoutingTrace.open(tmp_path / "t.safetensors", "routing.trace")
    assert message in str(error.value)
    assert str(error.value).startswith("routing.trace must be a sound routing trace")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("\0")):
        with pytest.raises(InputError):
            RoutingTrace.open(path)


def test_opening_maps_the_ids_instead_of_reading_them_into_memory(tmp_path: Path) -> None:
    few = make_trace(tokens=2000, layers=40, top_k=4, experts=16)
    trace = replace(
        few,
        ids_TLK=np.tile(few.ids_TLK, (100, 1, 1)),  # drawing that many would take seconds
        sequence_start_S1=100 * few.sequence_start_S1,
    )
    path = tmp_path / "t.safetensors"
    trace.save(path)
    assert path.stat().st_size > 32e6
    code = """
import sys
from moesim.routing import RoutingTrace
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
small, large = sys.argv[1:]
RoutingTrace.open(small)
before = resident()
trace = RoutingTrace.open(large)
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to measure resident memory")
    make_trace().save(tmp_path / "small.safetensors")
    arguments = [sys.executable, "-c", code, str(tmp_path / "small.safetensors"), str(path)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 12e6
