"""ESFT's `expert_weights_LAYER.txt`: a file for each MoE layer, a line for each sequence.

Source: deepseek-ai/ESFT, scripts/expert: a line is the ids of all tokens, top-k of each, then as
many softmax weights; tabs between numbers, two tabs between the halves. A folder of such files is a
domain. Sequences are training texts that were read, not generated.

Legend: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text
from moesim.routing.formats.base import Format, Source
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.trace import RoutingTrace

MAX_BYTES = 512e6
_NAME = re.compile(r"expert_weights_(\d{1,3})\.txt")

Halves = tuple[NDArray[np.int64], NDArray[np.float32]]


def recognises(source: Source) -> bool:
    return any(_NAME.fullmatch(name) for name in (source.path.name, *source.names))


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace: a domain from each folder, named after it."""
    top_k = about.needed_top_k()
    folders = _folders(files)
    found: list[Recorded] = []
    layers_L: list[int] = []
    for number, (folder, layers) in enumerate(folders.items()):
        if layers_L and sorted(layers) != layers_L:
            raise InputError(str(folder), f"must have files of the layers {layers_L}")
        layers_L = sorted(layers)
        texts = [_lines(layers[layer]) for layer in layers_L]
        if len({len(text) for text in texts}) != 1:
            raise InputError(str(folder), "must have as many lines in every layer's file")
        domain = about.domain(number, len(folders), folder.name)
        for line, parts in enumerate(zip(*texts, strict=True)):
            where = f"{folder}: line {line + 1}"
            found.append(_sequence(where, parts, top_k, domain, about))
    return assemble(found, about, None, layers_L)


def _folders(files: Sequence[Path]) -> Mapping[Path, dict[int, Path]]:
    """Files by folder and layer, whether folders or files were named."""
    found: dict[Path, dict[int, Path]] = {}
    for given in files:
        for file in sorted(given.iterdir()) if given.is_dir() else [given]:
            if match := _NAME.fullmatch(file.name):
                found.setdefault(file.parent, {})[int(match[1])] = file
    return found


def _lines(file: Path) -> list[Halves]:
    lines = [line for line in read_text(file, MAX_BYTES).split("\n") if line.strip()]
    found = []
    for number, line in enumerate(lines):
        ids, _, weights = line.partition("\t\t")
        try:
            found.append((_parse(ids, np.int64), _parse(weights, np.float32)))
        except (ValueError, OverflowError):
            rule = f"must be numbers with tabs between, twice, in line {number + 1}"
            raise InputError(str(file), rule) from None
    return found


def _parse(text: str, dtype: Any) -> NDArray[Any]:
    return np.array(text.strip("\t\r").split("\t")).astype(dtype)


def _sequence(
    where: str, parts: Sequence[Halves], top_k: int, domain: str, about: About
) -> Recorded:
    size = len(parts[0][0])
    if size % top_k or any(len(ids) != size or len(weights) != size for ids, weights in parts):
        raise InputError(where, f"must have {top_k} ids and weights a token, in every layer", size)
    ids = np.stack([ids.reshape(-1, top_k) for ids, _ in parts], axis=1)
    weights = np.stack([weights.reshape(-1, top_k) for _, weights in parts], axis=1)
    return Recorded(ids, 0 if about.phase == "decode" else len(ids), domain, weights)


FORMAT = Format("esft", "ESFT expert_weights_LAYER.txt (folder or files)", recognises, read)
