""".npz shards: `ids` [T, L, K] whole numbers, `seq_lens` [S] (sum T), `num_experts`.

The layout of re-encoded public traces and of `moesim trace export`. Optional: `weights` [T, L, K],
`layers` [L] (the model's layer indices), `prompt_tokens` [S], and `seq_index` [S], rows of a JSON
list beside the files whose objects name each sequence's category.

Legend: T tokens, L MoE layers, K top-k, S sequences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source
from moesim.routing.npz import read_npz
from moesim.routing.recording import About, merge
from moesim.routing.trace import RoutingTrace

_ARRAYS = (
    "ids",
    "seq_lens",
    "num_experts",
    "weights",
    "layers",
    "seq_index",
    "prompt_tokens",
)


def recognises(source: Source) -> bool:
    return {"ids.npy", "seq_lens.npy"} <= source.names


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace of the sequences of all files.

    A sequence's domain is the file's in `about.domains`, or `about.label` of its row in the JSON
    list `about.index`; without either, the file's name. Raises InputError, with the file, for
    anything unsound, and for files that do not fit together.
    """
    labels = None if about.index is None else _read_index(about.index, about.label)
    traces = []
    for number, file in enumerate(files):
        name = about.domain(number, len(files), file.stem)
        try:
            arrays = read_npz(file, _ARRAYS)
            domains = _domains(arrays, name, None if about.domains else labels)
            traces.append(_trace(arrays, domains, about))
        except InputError as error:
            if error.field == str(file):
                raise
            raise InputError(str(file), f"must hold a routing trace: {error}") from None
    return merge(traces)


def _read_index(path: str | os.PathLike[str], label: str) -> list[str]:
    where = str(path)
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, f"must be JSON: {str(error)[:100]}") from None
    if not isinstance(rows, list):
        raise InputError(where, "must be a list with an object for each sequence")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get(label), str):
            raise InputError(f"{where}[{number}]", f"must be an object with a text {label!r}")
    return [row[label] for row in rows]


def _domains(
    arrays: Mapping[str, NDArray[Any]], name: str, labels: Sequence[str] | None
) -> list[str]:
    """The domain of each sequence."""
    _whole(arrays, "seq_lens", 1)
    sequences = len(arrays["seq_lens"])
    if labels is None:
        return [name] * sequences
    _whole(arrays, "seq_index", 1)
    rows_S = arrays["seq_index"]
    if rows_S.shape != (sequences,) or not sequences:
        raise InputError("seq_index", f"must have one row for each of {sequences} sequences")
    if int(rows_S.min()) < 0 or int(rows_S.max()) >= len(labels):
        raise InputError("seq_index", f"must be below the index's {len(labels)} rows")
    return [labels[row] for row in rows_S]


def _whole(arrays: Mapping[str, NDArray[Any]], name: str, dimensions: int) -> None:
    if name not in arrays:
        raise InputError(name, "is required")
    array = arrays[name]
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        raise InputError(name, f"must be whole numbers in {dimensions} dimensions", array.shape)


def _trace(
    arrays: Mapping[str, NDArray[Any]], domain_of_sequence: Sequence[str], about: About
) -> RoutingTrace:
    _whole(arrays, "ids", 3)
    ids_TLK = arrays["ids"]
    experts = about.experts
    if experts is None:
        _whole(arrays, "num_experts", 0)
        experts = int(arrays["num_experts"])
    if not 1 <= experts <= checks.MAX_EXPERTS:
        raise InputError("num_experts", f"must be 1 to {checks.MAX_EXPERTS}", experts)
    checks.check_size("ids", ids_TLK.shape, checks.MAX_IDS_SHAPE)
    if int(ids_TLK.min()) < 0 or int(ids_TLK.max()) >= experts:
        raise InputError("ids", f"must be 0 to {experts - 1}", int(ids_TLK.max()))
    lengths_S = arrays["seq_lens"]
    if not len(lengths_S) or (lengths_S < 1).any() or (lengths_S > checks.MAX_TOKENS).any():
        raise InputError("seq_lens", f"must be 1 to {checks.MAX_TOKENS} each, and at least one")
    start_S1 = np.concatenate([[0], np.cumsum(lengths_S, dtype=np.int64)])
    domains = tuple(dict.fromkeys(domain_of_sequence))
    number = {name: i for i, name in enumerate(domains)}
    if "layers" in arrays:
        _whole(arrays, "layers", 1)
    weights_TLK = arrays.get("weights")
    if weights_TLK is not None:
        if weights_TLK.dtype.kind != "f":
            raise InputError("weights", "must be floating point", str(weights_TLK.dtype))
        weights_TLK = weights_TLK.astype(np.float16, copy=False)
    return RoutingTrace(
        ids_TLK.astype(checks.id_dtype(experts), copy=False),
        start_S1,
        _prompts(arrays, np.diff(start_S1), about),
        np.array([number[name] for name in domain_of_sequence]),
        domains,
        arrays.get("layers", np.arange(ids_TLK.shape[1])),
        experts,
        about.model,
        {"model": about.model, **about.provenance},
        weights_TLK,
    )


def _prompts(
    arrays: Mapping[str, NDArray[Any]], lengths_S: NDArray[np.int64], about: About
) -> NDArray[Any]:
    """Prefilled tokens of each sequence: as the user says, else as the file does."""
    if about.phase is not None:
        return lengths_S if about.phase == "prefill" else np.zeros_like(lengths_S)
    if "prompt_tokens" not in arrays:
        raise InputError("prompt_tokens", "is required, or --phase: prefill or decode")
    _whole(arrays, "prompt_tokens", 1)
    return arrays["prompt_tokens"]


FORMAT = Format("npz", "moesim .npz shards", recognises, read)
