"""llama.cpp's importance matrix (GGUF): how many tokens were routed to each expert.

Source: ggml-org/llama.cpp, tools/imatrix/imatrix.cpp: `general.type` "imatrix"; for each weight
tensors `NAME.in_sum2` and `NAME.counts`, F32, [1, experts] for expert weights, exact counts. Those
of gate, up and down projections are equal. `imatrix.chunk_count` times `imatrix.chunk_size` is the
number of tokens, from which top-k follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source
from moesim.routing.gguffile import GGUFFile, open_gguf
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.recording import About

_COUNTS = re.compile(r"blk\.(\d{1,4})\.ffn_(gate|up|down|gate_up)_exps\.weight\.counts")


def recognises(source: Source) -> bool:
    return source.head.startswith(b"GGUF")


def read(files: Sequence[Path], about: About) -> MarginalProfile:
    """A marginal profile of the counts of all files."""
    totals: dict[int, NDArray[np.float64]] = {}
    tokens = 0
    for path in files:
        file = open_gguf(path)
        if file.values.get("general.type") != "imatrix":
            raise InputError(str(path), "must be an importance matrix (llama-imatrix)")
        for layer, counts_E in _layers(file).items():
            if counts_E.shape != totals.setdefault(layer, np.zeros_like(counts_E)).shape:
                raise InputError(str(path), "must have the experts of the other files")
            totals[layer] += counts_E
        tokens += _size(file, "chunk_count") * _size(file, "chunk_size")
    layers = sorted(totals)
    if not layers or len({len(counts_E) for counts_E in totals.values()}) != 1:
        raise InputError(str(files[0]), "must hold counts of experts (blk.N.ffn_*_exps)")
    counts_LE = np.array([totals[layer] for layer in layers])
    top_k = about.top_k if about.top_k is not None else _top_k(counts_LE, tokens)
    return MarginalProfile.from_counts(
        counts_LE, layers, top_k, about.model, provenance=about.provenance
    )


def _layers(file: GGUFFile) -> dict[int, NDArray[np.float64]]:
    """Counts [E] by layer, of the first of its projections in the file."""
    found: dict[int, NDArray[np.float64]] = {}
    for name, tensor in file.tensors.items():
        match = _COUNTS.fullmatch(name)
        if match is None or int(match[1]) in found:
            continue
        experts = tensor.shape[-1] if tensor.shape else 0
        if int(match[1]) >= checks.MAX_LAYERS or not 2 <= experts <= checks.MAX_EXPERTS:
            raise InputError(str(file.path), f"must count experts in {name!r}", tensor.shape)
        counts = file.floats(name).astype(np.float64)
        if len(counts) != experts:
            raise InputError(str(file.path), f"must have a row of counts in {name!r}", tensor.shape)
        if not np.isfinite(counts).all() or (counts < 0).any():
            raise InputError(str(file.path), f"must have counts from 0 in {name!r}")
        found[int(match[1])] = counts
    return found


def _size(file: GGUFFile, key: str) -> int:
    value: Any = file.values.get(f"imatrix.{key}")
    return value if type(value) is int and 0 <= value <= checks.MAX_TOKENS else 0


def _top_k(counts_LE: NDArray[np.float64], tokens: int) -> int:
    per_token = float(counts_LE.sum(axis=1).max()) / tokens if tokens else 0.0
    top_k = round(per_token)
    if top_k < 1 or abs(per_token - top_k) > 0.01 * top_k:
        rule = "does not follow from the file's chunks: give --top-k or a model that ships"
        raise InputError("top_k", rule, round(per_token, 4))
    return top_k


FORMAT = Format("imatrix", "llama.cpp importance matrix (GGUF)", recognises, read)
