"""Routing recorded elsewhere, as a RoutingTrace.

Layout of the .npz files of re-encoded public traces: `ids` [T, L, K] whole numbers, `seq_lens` [S]
(sum T), `num_experts`; optional `weights` [T, L, K], `layers` [L] (the model's layer indices) and
`seq_index` [S], rows of a JSON list beside it whose objects name each sequence's category and
dataset.

Legend: T tokens, L MoE layers, K top-k, S sequences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text
from moesim.routing import checks
from moesim.routing.npz import read_npz
from moesim.routing.trace import RoutingTrace

PathLike = str | os.PathLike[str]
Phase = Literal["prefill", "decode"]

_ARRAYS = ("ids", "seq_lens", "num_experts", "weights", "layers", "seq_index")


def import_npz(
    paths: PathLike | Sequence[PathLike],
    *,
    model: str,
    phase: Phase,
    domain: str | Sequence[str] | None = None,
    index: PathLike | None = None,
    label: str = "category",
    experts: int | None = None,
    provenance: Mapping[str, str] | None = None,
) -> RoutingTrace:
    """One trace of the sequences of all files.

    `phase` says what the files recorded: prefilled or decoded tokens. A sequence's domain is
    `domain` (one for all files, or one for each), or the `label` of its row in the JSON list
    `index`; without either, the file's name. `experts` overrules the files' `num_experts`.
    Raises InputError, with the file, for anything unsound, and for files that do not fit together.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise InputError("routing.import", "needs at least one file")
    if phase not in ("prefill", "decode"):
        raise InputError("routing.import.phase", "must be prefill or decode", phase)
    labels = None if index is None else _read_index(index, label)
    names = [domain] * len(files) if domain is None or isinstance(domain, str) else list(domain)
    if len(names) != len(files):
        raise InputError("routing.import.domain", f"must be one, or one for each of {len(files)}")
    traces = []
    for file, name in zip(files, names, strict=True):
        try:
            arrays = read_npz(file, _ARRAYS)
            domains = _domains(arrays, name or Path(file).stem, labels if name is None else None)
            traces.append(_trace(arrays, model, phase, domains, experts, provenance or {}))
        except InputError as error:
            if error.field == str(file):
                raise
            raise InputError(str(file), f"must hold a routing trace: {error}") from None
    return merge(traces)


def merge(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of all sequences, in order; weights are kept if every trace has them.

    Raises InputError unless all have the same layers, experts and top-k.
    """
    if not traces:
        raise InputError("routing.merge", "needs at least one trace")
    first = traces[0]
    for other in traces[1:]:
        same = (other.experts, other.top_k) == (first.experts, first.top_k)
        if not same or not np.array_equal(other.layers_L, first.layers_L):
            raise InputError(
                "routing.merge",
                f"needs traces of {first.layers} layers, {first.top_k} of {first.experts} experts",
                f"{other.layers} layers, {other.top_k} of {other.experts}",
            )
    if len(traces) == 1:
        return first
    domains = tuple(dict.fromkeys(name for trace in traces for name in trace.domains))
    renumbered = [np.array([domains.index(name) for name in trace.domains]) for trace in traces]
    lengths_S = np.concatenate([trace.sequence_tokens_S for trace in traces])
    weights = [trace.weights_TLK for trace in traces if trace.weights_TLK is not None]
    return RoutingTrace(
        np.concatenate([trace.ids_TLK for trace in traces]),
        np.concatenate([[0], np.cumsum(lengths_S)]),
        np.concatenate([trace.prompt_tokens_S for trace in traces]),
        np.concatenate([new[t.domain_S] for new, t in zip(renumbered, traces, strict=True)]),
        domains,
        first.layers_L,
        first.experts,
        " + ".join(dict.fromkeys(trace.model for trace in traces)),
        _joined([trace.provenance for trace in traces]),
        np.concatenate(weights) if len(weights) == len(traces) else None,
        ids_checked=True,
    )


def _joined(provenances: Sequence[Mapping[str, str]]) -> dict[str, str]:
    keys = dict.fromkeys(key for each in provenances for key in each)
    return {
        key: "; ".join(dict.fromkeys(each[key] for each in provenances if key in each))
        for key in keys
    }


def _read_index(path: PathLike, label: str) -> list[str]:
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
    arrays: Mapping[str, NDArray[Any]],
    model: str,
    phase: Phase,
    domain_of_sequence: Sequence[str],
    experts: int | None,
    provenance: Mapping[str, str],
) -> RoutingTrace:
    _whole(arrays, "ids", 3)
    ids_TLK = arrays["ids"]
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
        np.diff(start_S1) if phase == "prefill" else np.zeros(len(lengths_S), np.int64),
        np.array([number[name] for name in domain_of_sequence]),
        domains,
        arrays.get("layers", np.arange(ids_TLK.shape[1])),
        experts,
        model,
        {"model": model, **provenance},
        weights_TLK,
    )
