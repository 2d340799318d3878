"""Placements in files: round trips, engines' JSON, and files nobody should trust."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from moesim.cli import main
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.placement.engine_files import ENDINGS, write_engine_placement
from moesim.placement.place_file import read_placement, write_placement
from moesim.placement.placement import Placement
from moesim.placement.policies import contiguous, random, round_robin
from moesim.placing import place
from moesim.routing.source import open_routing
from moesim.scenario import load_scenario

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
        (
            {"slot_expert": np.full((2, 4), -5, dtype=np.int32)},
            r"from 0 \(-1: an empty slot\); got -5",
        ),
    ):
        save_file(tensors, path)
        with pytest.raises(InputError, match=words):
            read_placement(path, 2, 2, 3)


def test_missing_oversized_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be an existing file"):
        read_placement(tmp_path / "absent.json", 2, 2, 3)
    with pytest.raises(InputError, match=r"must be a \.json, \.yaml or \.safetensors file"):
        read_placement(tmp_path / "placement.pt", 2, 2, 3)
    with pytest.raises(InputError, match=r"must end in \.json or \.safetensors"):
        write_placement(tmp_path / "placement.pkl", Placement(np.array(GOOD), 2))
    for suffix in (".json", ".safetensors"):
        large = tmp_path / f"large{suffix}"
        with large.open("wb") as file:
            file.truncate(17_000_000)
        with pytest.raises(InputError, match="must be at most 16000000 bytes"):
            read_placement(large, 2, 2, 3)


# Engines' files. A model of 5 layers, the first two dense; 3 MoE layers x 12 experts, 16 slots.

MOE_LAYERS = (2, 3, 4)


def placed(seed: int = 0) -> Placement:
    """Four ranks; no expert twice on one of them."""
    table = contiguous(3, 12, 16, 4)
    order = np.random.default_rng(seed).permutation(4)
    return Placement(table.reshape(3, 4, 4)[:, order].reshape(3, 16), 4)


@pytest.mark.parametrize("engine", sorted(ENDINGS))
def test_engines_files_are_read_back(tmp_path: Path, engine: str) -> None:
    path = tmp_path / f"placement{ENDINGS[engine]}"
    write_engine_placement(path, placed(), engine, MOE_LAYERS, 5)
    assert list(tmp_path.iterdir()) == [path]
    found = read_placement(path, 4, 3, 12, moe_layers=MOE_LAYERS)
    np.testing.assert_array_equal(found.slot_expert_LP, placed().slot_expert_LP)


def test_sglang_gets_a_row_for_every_layer(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_engine_placement(path, placed(), "sglang", MOE_LAYERS, 5)
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert len(rows) == 5
    assert rows[0] == rows[1] == [*range(12), 0, 1, 2, 3]
    assert rows[2:] == placed().slot_expert_LP.tolist()


def test_tensorrt_llm_gets_layers_by_index(tmp_path: Path) -> None:
    """As generate_eplb_config.py of the engine writes it: lists on one line, layers as numbers."""
    path = tmp_path / "p.yaml"
    write_engine_placement(path, placed(), "tensorrt-llm", MOE_LAYERS, 5)
    content = yaml.safe_load(path.read_text())
    assert content["num_slots"] == 16
    assert content["layer_updates_per_iter"] == 0
    assert content["initial_global_assignments"] == dict(
        zip(MOE_LAYERS, placed().slot_expert_LP.tolist(), strict=True)
    )
    assert len(path.read_text().splitlines()) == 6


def test_vllm_ascend_gets_devices(tmp_path: Path) -> None:
    path = tmp_path / "expert_map.json"
    write_engine_placement(path, placed(), "vllm-ascend", MOE_LAYERS, 5)
    content = json.loads(path.read_text())
    assert content["moe_layer_count"] == 3
    assert [layer["layer_id"] for layer in content["layer_list"]] == [0, 1, 2]
    devices = content["layer_list"][1]["device_list"]
    assert content["layer_list"][1]["device_count"] == len(devices) == 4
    found = [device["device_expert"] for device in devices]
    assert found == placed().slot_expert_LP[1].reshape(4, 4).tolist()
    twice = Placement(np.array([[0, 0, 1, 2]]), 2)
    with pytest.raises(InputError, match="twice on one device"):
        write_engine_placement(path, twice, "vllm-ascend", [0], 1)


def test_a_placement_for_an_engine_is_checked(tmp_path: Path) -> None:
    for name, engine, layers, message in (
        ("p.json", "tgi", MOE_LAYERS, "must be one of sglang"),
        ("p.json", "tensorrt-llm", MOE_LAYERS, "must end in .yaml"),
        ("p.json", "sglang", (1, 2), "must be of 2 layers; got 3"),
    ):
        with pytest.raises(InputError, match=message):
            write_engine_placement(tmp_path / name, placed(), engine, layers, 5)
    assert not list(tmp_path.iterdir())


ENGINE_FAULTS = {
    "no devices": ("p.json", {"layer_list": [{"layer_id": 0}]}, "must hold device_list"),
    "no layers": ("p.json", {"layer_list": []}, "must give every device as many experts"),
    "no list": ("p.json", {"layer_list": 7}, "must hold device_list"),
    "uneven": (
        "p.json",
        {"layer_list": [{"device_list": [{"device_expert": [0]}, {"device_expert": [1, 2]}]}]},
        "must give every device as many experts",
    ),
    "devices": (
        "p.json",
        {"layer_list": [{"device_list": [{"device_expert": [0, 1, 2]}]}]},
        "must be made for 4 ranks; got '1'",
    ),
    "no assignments": ("p.yaml", {"num_slots": 4}, "must hold initial_global_assignments"),
    "named layer": ("p.yaml", {"initial_global_assignments": {"a": [1]}}, "by their index"),
    "no slots": ("p.yaml", {"initial_global_assignments": {2: 7}}, "a list of experts for each"),
    "num_slots": (
        "p.yaml",
        {"num_slots": 3, "initial_global_assignments": {2: [0, 1]}},
        "must have num_slots 2; got 3",
    ),
    "lacking": ("p.yaml", {"initial_global_assignments": {2: [0, 1]}}, "it lacks some; got [3, 4]"),
    "tag": ("p.yaml", "!!python/object/apply:os.getpid []", "is not valid YAML"),
}


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_unsound_engine_files_are_refused(tmp_path: Path, fault: str) -> None:
    file, content, words = ENGINE_FAULTS[fault]
    path = tmp_path / file
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(yaml.safe_dump(content) if file == "p.yaml" and text[0] == "{" else text)
    with pytest.raises(InputError) as error:
        read_placement(path, 4, 3, 12, "deployment.placement.file", MOE_LAYERS)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scenario_takes_a_file(tmp_path: Path) -> None:
    """The numbers of the model go to the right checks."""
    path = tmp_path / "p.json"
    scenario = load_scenario(
        "mixtral-8x7b-chat",
        [f"deployment.placement={{policy: file, file: {path}}}"],
    )
    deployment = deploy(scenario)
    ranks = deployment.sharding.expert_parallel
    table = round_robin(32, 8, 8, ranks)
    write_engine_placement(path, Placement(table, ranks), "sglang", range(32), 32)
    trace, ids_TLK, _ = open_routing("balanced", 64, deployment.model, 0)
    costs = step_costs(scenario, deployment)
    found = place(scenario, deployment, costs, trace, ids_TLK)
    np.testing.assert_array_equal(found.slot_expert_LP, table)


def test_the_command_exports_one_placement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    arguments = ["place", "mixtral-8x7b-chat", "--set", "workload.requests=4", "--export"]
    for more, message in (
        ([str(tmp_path / "p.csv"), "--policies", "eplb"], "must end in .safetensors"),
        ([str(path), "--policies", "eplb", "--export-for", "tensorrt-llm"], "must end in .yaml"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    quick = ["--policies", "eplb", "--redundant", "0", "--no-simulate"]
    assert main([*arguments, str(path), *quick]) == 0
    assert "the placement eplb for sglang" in capsys.readouterr().out
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert len(rows) == 32
    assert all(sorted(row) == list(range(8)) for row in rows)
