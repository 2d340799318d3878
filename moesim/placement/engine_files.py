"""Placements as engines take them at start: SGLang, TensorRT-LLM, vllm-ascend.

- SGLang, `--init-expert-location FILE.json`: `{"physical_to_logical_map": [[...], ...]}`, a list
  for every decoder layer, dense ones included (sglang/srt/eplb/expert_location.py: `num_layers` is
  the model's `num_hidden_layers`); those of dense layers are never looked at.
- TensorRT-LLM, `moe_config.load_balancer: FILE.yaml`: `num_slots`, `layer_updates_per_iter` (0: the
  placement stays), `initial_global_assignments` by index of the decoder layer
  (examples/wide_ep/ep_load_balancer/generate_eplb_config.py).
- vllm-ascend, `expert_map_path: FILE.json`: `moe_layer_count` and `layer_list`, MoE layers counted
  from 0, each with the experts of every device.

None knows an empty slot: `filling.fill_empty` makes a placement of them that all do.

Shapes: L MoE layers, P physical slots, R ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.placement.placement import EMPTY, Placement

ENDINGS = {"sglang": ".json", "tensorrt-llm": ".yaml", "vllm-ascend": ".json"}
REPEATS_ON_RANK = {"sglang": True, "tensorrt-llm": True, "vllm-ascend": False}


def write_engine_placement(
    path: str | os.PathLike[str],
    placement: Placement,
    engine: str,
    moe_layers: Sequence[int],
    layers: int,
) -> None:
    """Write the placement of a model for an engine of ENDINGS, whole or not at all.

    `moe_layers` are the indices of the model's layers with experts among its `layers`. Raises
    InputError for another engine, a file name with another ending, an empty slot (`fill_empty`,
    with REPEATS_ON_RANK of the engine, leaves none), and what the engine cannot do.
    """
    target = Path(path)
    if engine not in ENDINGS:
        raise InputError("engine", f"must be one of {', '.join(ENDINGS)}", engine)
    if target.suffix.lower() != ENDINGS[engine]:
        raise InputError(str(target), f"must end in {ENDINGS[engine]} for {engine}")
    if len(moe_layers) != placement.layers:
        raise InputError("placement", f"must be of {len(moe_layers)} layers", placement.layers)
    placement.validate(placement.experts)
    empty = np.argwhere(placement.slot_expert_LP == EMPTY)
    if len(empty):
        layer, slot = (int(i) for i in empty[0])
        rule = f"must have every slot filled for {engine}: slot {slot} of MoE layer {layer} is not"
        raise InputError("placement", rule, None, "fill_empty fills them with copies")
    contents: dict[str, Callable[[], str]] = {
        "sglang": lambda: json.dumps(_sglang(placement, moe_layers, layers)),
        "tensorrt-llm": lambda: _yaml(_tensorrt_llm(placement, moe_layers)),
        "vllm-ascend": lambda: json.dumps(_vllm_ascend(placement)),
    }
    text = contents[engine]()
    with replace_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sglang(placement: Placement, moe_layers: Sequence[int], layers: int) -> dict[str, Any]:
    trivial = [slot % placement.experts for slot in range(placement.slots)]
    rows = dict(zip(moe_layers, _rows(placement), strict=True))
    return {"physical_to_logical_map": [rows.get(index, trivial) for index in range(layers)]}


def _tensorrt_llm(placement: Placement, moe_layers: Sequence[int]) -> dict[str, Any]:
    return {
        "num_slots": placement.slots,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip(moe_layers, _rows(placement), strict=True)),
    }


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(content, default_flow_style=None, sort_keys=False, width=2**31)


def _vllm_ascend(placement: Placement) -> dict[str, Any]:
    devices_LRp = placement.slot_expert_LP.reshape(placement.layers, placement.ranks, -1)
    ordered = np.sort(devices_LRp, axis=2)
    twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if len(twice):
        layer, device, slot = (int(i) for i in twice[0])
        raise InputError(
            "placement",
            "must not hold an expert twice on one device, which vllm-ascend cannot tell apart",
            f"expert {int(ordered[layer, device, slot])}, device {device}, MoE layer {layer}",
        )
    return {
        "moe_layer_count": placement.layers,
        "layer_list": [
            {
                "layer_id": layer,
                "device_count": placement.ranks,
                "device_list": [
                    {"device_id": device, "device_expert": experts}
                    for device, experts in enumerate(devices)
                ],
            }
            for layer, devices in enumerate(devices_LRp.tolist())
        ],
    }


def _rows(placement: Placement) -> list[list[int]]:
    rows: list[list[int]] = placement.slot_expert_LP.tolist()
    return rows
