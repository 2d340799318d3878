"""Placements in files: round trips, engines' JSON, and files nobody should trust."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moesim.errors import InputError
from moesim.placement.place_file import read_placement, write_placement
from moesim.placement.placement import Placement
from moesim.placement.policies import random

GOOD = [[0, 1, 2, 0], [2, 1, 0, 1]]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    table = random(5, 12, 16, 4, np.random.default_rng(0))
    path = tmp_path / f"placement{suffix}"
    write_placement(path, Placement(table, 4))
    assert list(tmp_path.iterdir()) == [path]
    placement = read_placement(path, ranks=4, layers=5, experts=12)
    assert (placement.slot_expert_LP == table).all()
    assert placement.ranks == 4
    with pytest.raises(InputError, match="must be made for 8 ranks; got '4'"):
        read_placement(path, 8)


def test_the_json_of_an_engine_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sglang.json"
    path.write_text(json.dumps({"physical_to_logical_map": GOOD}))
    assert read_placement(path, 2, 2, 3).slot_expert_LP.tolist() == GOOD
    assert read_placement(path, 4).slots_per_rank == 1


JSON_FAULTS = {
    "text": ("not json", "must be JSON"),
    "empty": ("", "must be JSON"),
    "list": (json.dumps(GOOD), 'must hold "physical_to_logical_map"'),
    "no rows": ('{"physical_to_logical_map": []}', "one list of expert numbers a layer"),
    "flat": ('{"physical_to_logical_map": [0, 1]}', "one list of expert numbers a layer"),
    "counts": ('{"logical_count": [[[1]]]}', "logical_count is a load"),
    "ragged": ('{"physical_to_logical_map": [[0, 1], [0]]}', "2 slots in layer 1, as in layer 0"),
    "float": ('{"physical_to_logical_map": [[0, 1.0]]}', "expert numbers in layer 0; got 1.0"),
    "nan": ('{"physical_to_logical_map": [[NaN, 1]]}', "expert numbers in layer 0; got nan"),
    "bool": ('{"physical_to_logical_map": [[true, 1]]}', "expert numbers in layer 0; got True"),
    "word": ('{"physical_to_logical_map": [["__import__", 1]]}', "expert numbers in layer 0"),
    "negative": ('{"physical_to_logical_map": [[0, -1]]}', "expert numbers in layer 0; got -1"),
    "huge": ('{"physical_to_logical_map": [[0, 1e999]]}', "expert numbers in layer 0; got inf"),
    "huge integer": (f'{{"physical_to_logical_map": [[{"9" * 5000}]]}}', "must be JSON"),
    "deep": ("[" * 100_000, "must be JSON"),
    "few layers": ('{"physical_to_logical_map": [[0, 1, 2, 0]]}', "2 MoE layers; got 1"),
    "missing expert": (
        '{"physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 1, 0]]}',
        "expert 2 is missing in layer 1",
    ),
    "odd slots": ('{"physical_to_logical_map": [[0, 1, 2], [0, 1, 2]]}', "3 slots do not divide"),
    "no slots": ('{"physical_to_logical_map": [[], []]}', "must have 1 to 4096 layers"),
    "other experts": (
        '{"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 3]]}',
        "must name experts below 3; got 3",
    ),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_malformed_json_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    text, words = JSON_FAULTS[fault]
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_placement(path, 2, 2, 3, "deployment.placement.file")
    assert str(error.value).startswith("deployment.placement.file ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_malformed_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    header = b'{"slot_expert":{"dtype":"I32","shape":[2,4],"data_offsets":[0,32]}}'
    faults = {
        b"": "must be a safetensors file",
        b"garbage": "must be a safetensors file",
        struct.pack("<Q", 2**60) + b"{}": "must be a safetensors file",
        struct.pack("<Q", len(header)) + header + b"\0" * 8: "must be a safetensors file",
    }
    for content, words in faults.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_placement(path, 2, 2, 3)
    for tensors, words in (
        ({"other": np.zeros((2, 4), dtype=np.int32)}, "must hold one tensor, 'slot_expert'"),
        ({"slot_expert": np.zeros(4, dtype=np.int32)}, r"must hold a \[layers, slots\] table"),
        ({"slot_expert": np.zeros((2, 4))}, "must hold integers"),
        ({"slot_expert": np.zeros((2, 70_000), dtype=np.int32)}, "must hold a .* table"),
        ({"slot_expert": np.full((2, 4), -5, dtype=np.int32)}, "from 0; got -5"),
    ):
        save_file(tensors, path)
        with pytest.raises(InputError, match=words):
            read_placement(path, 2, 2, 3)


def test_missing_oversized_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be an existing file"):
        read_placement(tmp_path / "absent.json", 2, 2, 3)
    with pytest.raises(InputError, match=r"must be a \.json or \.safetensors file"):
        read_placement(tmp_path / "placement.pt", 2, 2, 3)
    with pytest.raises(InputError, match=r"must end in \.json or \.safetensors"):
        write_placement(tmp_path / "placement.pkl", Placement(np.array(GOOD), 2))
    for suffix in (".json", ".safetensors"):
        large = tmp_path / f"large{suffix}"
        with large.open("wb") as file:
            file.truncate(17_000_000)
        with pytest.raises(InputError, match="must be at most 16000000 bytes"):
            read_placement(large, 2, 2, 3)
