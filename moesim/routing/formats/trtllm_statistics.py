"""TensorRT-LLM's expert statistics: the folder that EXPERT_STATISTIC_PATH names.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/fused_moe (class ExpertStatistic):
`meta_info.json` with `num_experts` and `num_experts_per_token`, and for each rank
`rankR.safetensors`, whose tensors "ITERATION_LAYER" count that rank's tokens for each expert.
Summed over ranks and iterations.

Legend: E experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source, read_json
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.recording import About
from moesim.routing.tensorfile import open_tensors

META = "meta_info.json"
_RANK = re.compile(r"rank\d{1,6}\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,4})")


def recognises(source: Source) -> bool:
    if source.path.name == META:
        return source.has_key("num_experts_per_token")
    return META in source.names and any(_RANK.fullmatch(name) for name in source.names)


def read(files: Sequence[Path], about: About) -> MarginalProfile:
    """A marginal profile of the counts of all folders."""
    counts: dict[int, NDArray[np.int64]] = {}
    shapes = set()
    for file in files:
        folder = file if file.is_dir() else file.parent
        experts, top_k = _meta(folder / META)
        shapes.add((experts, top_k))
        for rank in sorted(folder.iterdir()):
            if _RANK.fullmatch(rank.name):
                _add(rank, experts, counts)
    if len(shapes) != 1 or not counts:
        raise InputError(str(files[0]), "must hold counts, in all folders of the same experts")
    layers = sorted(counts)
    return MarginalProfile.from_counts(
        np.array([counts[layer] for layer in layers]),
        layers,
        top_k,
        about.model,
        provenance=about.provenance,
    )


def _meta(path: Path) -> tuple[int, int]:
    content = read_json(path, 2**20)
    found = []
    for key, most in (
        ("num_experts", checks.MAX_EXPERTS),
        ("num_experts_per_token", checks.MAX_TOP_K),
    ):
        value = content.get(key) if isinstance(content, dict) else None
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"{path}: {key}", f"must be 1 to {most}", value)
        found.append(value)
    return found[0], found[1]


def _add(rank: Path, experts: int, counts: dict[int, NDArray[np.int64]]) -> None:
    file = open_tensors(rank)
    for name, tensor in file.tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or tensor.shape != (experts,) or tensor.dtype.kind != "i":
            rule = f"must hold counts of {experts} experts named ITERATION_LAYER"
            raise InputError(str(rank), rule, name)
        layer = int(match[2])
        if layer >= checks.MAX_LAYERS:
            raise InputError(str(rank), f"must have layers below {checks.MAX_LAYERS}", layer)
        found_E = file.map(name)
        if int(found_E.min()) < 0 or int(found_E.max()) > checks.MAX_TOKENS:
            raise InputError(str(rank), f"must hold counts from 0 in {name}", int(found_E.min()))
        total_E = counts.setdefault(layer, np.zeros(experts, np.int64))
        total_E += found_E


FORMAT = Format(
    "tensorrt-llm-statistics", "TensorRT-LLM expert statistics (folder)", recognises, read
)
