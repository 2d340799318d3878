"""What makes a routing trace sound: shapes, types, ids, sequence boundaries, metadata.

Legend: T tokens, L MoE layers, K top-k, E experts, S sequences. Every check raises InputError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import kernels
from moesim.routing.tensorfile import TensorFile

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

FORMAT = "moesim-routing-1"
MAX_TOKENS = 10**9
MAX_SEQUENCES = 10**7
MAX_EXPERTS = 65_536
MAX_LAYERS = 1024
MAX_TOP_K = 1024

MAX_IDS_SHAPE = (MAX_TOKENS, MAX_LAYERS, MAX_TOP_K)

# name -> numpy types, and the largest size of each dimension
_TENSORS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "ids": (("|u1", "<u2"), MAX_IDS_SHAPE),
    "weights": (("<f2",), MAX_IDS_SHAPE),
    "sequence_start": (("<i8",), (MAX_SEQUENCES + 1,)),
    "prompt_tokens": (("<i4",), (MAX_SEQUENCES,)),
    "domain": (("<u2",), (MAX_SEQUENCES,)),
    "layers": (("<i4",), (MAX_LAYERS,)),
}


def id_dtype(experts: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every expert id."""
    return np.dtype(np.uint8 if experts <= 256 else np.uint16)


def _refuse(name: str, rule: str, value: object = None) -> None:
    raise InputError(name, rule, value)


def read_metadata(metadata: Mapping[str, str]) -> tuple[int, tuple[str, ...], dict[str, str]]:
    """Experts, domains and provenance out of a file's metadata strings."""
    if metadata.get("format") != FORMAT:
        _refuse("format", f"must be {FORMAT}", metadata.get("format", "nothing"))
    for name in ("experts", "model", "domains", "provenance"):
        if name not in metadata:
            _refuse(name, "is required in the metadata")
    if not (metadata["experts"].isascii() and metadata["experts"].isdigit()):
        _refuse("experts", "must be a whole number", metadata["experts"])
    if len(metadata["experts"]) > 6 or not 1 <= int(metadata["experts"]) <= MAX_EXPERTS:
        _refuse("experts", f"must be 1 to {MAX_EXPERTS}", metadata["experts"])
    try:
        domains, provenance = json.loads(metadata["domains"]), json.loads(metadata["provenance"])
    except (ValueError, RecursionError):
        raise InputError("metadata", "must hold domains and provenance as JSON") from None
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        _refuse("domains", "must be a list of names")
    if not isinstance(provenance, dict) or not all(
        isinstance(value, str) for value in provenance.values()
    ):
        _refuse("provenance", "must map names to text")
    return int(metadata["experts"]), tuple(domains), provenance


def check_tensors(file: TensorFile) -> None:
    """Refuse missing and unknown tensors, types and sizes, before anything is read."""
    for name in file.tensors:
        if name not in _TENSORS:
            _refuse("tensors", f"must be among {', '.join(_TENSORS)}", name)
    for name, (dtypes, limits) in _TENSORS.items():
        if name not in file.tensors:
            if name != "weights":
                _refuse(name, "is required")
            continue
        tensor = file.tensors[name]
        if tensor.dtype.str not in dtypes:
            _refuse(name, f"must be of type {' or '.join(dtypes)}", tensor.dtype.str)
        if len(tensor.shape) != len(limits):
            _refuse(name, f"must have {len(limits)} dimensions", tensor.shape)
        check_size(name, tensor.shape, limits)


def check_size(name: str, shape: tuple[int, ...], limits: tuple[int, ...]) -> None:
    """Refuse an empty or absurdly large array before anything of its size is allocated."""
    if not all(shape):
        _refuse(name, "must not be empty", shape)
    if any(size > limit for size, limit in zip(shape, limits, strict=True)):
        _refuse(name, f"must be at most {limits}", shape)


def check_ids(ids_TLK: NDArray[Any], experts: int, first_row: int, name: str) -> None:
    """Refuse ids out of range or twice in a token's layer; `first_row` is the block's row."""
    row = kernels.first_bad_row(np.ascontiguousarray(ids_TLK), experts)
    if row >= 0:
        rule = f"must be distinct and below {experts} within a token's layer"
        _refuse(f"{name}[{first_row + row}]", rule, ids_TLK[row].tolist())


def check_weights(weights_TLK: NDArray[Any], experts: int, first_row: int, name: str) -> None:
    """Refuse weights that are negative, infinite or not numbers."""
    bad_T = ~(np.isfinite(weights_TLK) & (weights_TLK >= 0)).all(axis=(1, 2))
    if bad_T.any():
        row = int(bad_T.argmax())
        _refuse(f"{name}[{first_row + row}]", "must be finite and not negative")


def check_shapes(trace: RoutingTrace) -> None:
    """Refuse arrays whose sizes and types do not fit together."""
    shape = trace.ids_TLK.shape
    if len(shape) != 3:
        _refuse("ids", "must be [tokens, layers, top_k]", shape)
    check_size("ids", shape, MAX_IDS_SHAPE)
    if not 1 <= trace.experts <= MAX_EXPERTS:
        _refuse("experts", f"must be 1 to {MAX_EXPERTS}", trace.experts)
    if shape[2] > trace.experts:
        _refuse("top_k", f"must be at most the number of experts ({trace.experts})", shape[2])
    if trace.ids_TLK.dtype != id_dtype(trace.experts):
        _refuse("ids", f"must be {id_dtype(trace.experts)}", str(trace.ids_TLK.dtype))
    if trace.weights_TLK is not None and trace.weights_TLK.shape != shape:
        _refuse("weights", f"must have the shape of ids {shape}", trace.weights_TLK.shape)
    if trace.layers_L.shape != (shape[1],):
        _refuse("layers", f"must number the {shape[1]} layers of ids", trace.layers_L.shape)
    if (
        not 0 <= trace.layers_L[0] <= trace.layers_L[-1] < 2**31
        or (np.diff(trace.layers_L.astype(np.int64)) <= 0).any()
    ):
        _refuse("layers", "must be layer indices in rising order", trace.layers_L.tolist())


def check_names(trace: RoutingTrace) -> None:
    """Refuse text that a terminal would obey instead of showing."""
    texts = {"domains": trace.domains, "model": (trace.model,)}
    for key, value in trace.provenance.items():
        texts[f"provenance.{key[:40]!r}"] = (key, value)
    for name, values in texts.items():
        for value in values:
            if not value.isprintable():
                _refuse(name, "must be printable text", value)


def check_sequences(trace: RoutingTrace) -> None:
    """Refuse sequences that do not make up the tokens, and marks that leave them."""
    start_S1, prompt_S, domain_S = trace.sequence_start_S1, trace.prompt_tokens_S, trace.domain_S
    for name, array in (
        ("sequence_start", start_S1),
        ("prompt_tokens", prompt_S),
        ("domain", domain_S),
    ):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            _refuse(name, "must be a list of whole numbers", array.shape)
    sequences = len(start_S1) - 1
    if sequences < 1 or start_S1[0] != 0 or start_S1[-1] != trace.tokens:
        _refuse("sequence_start", f"must run from 0 to the {trace.tokens} tokens")
    if (start_S1[1:] <= start_S1[:-1]).any():
        _refuse("sequence_start", "must rise: a sequence has at least one token")
    for name, array in (("prompt_tokens", prompt_S), ("domain", domain_S)):
        if len(array) != sequences:
            _refuse(name, f"must have one entry for each of {sequences} sequences", len(array))
    if (prompt_S < 0).any() or (prompt_S > np.diff(start_S1)).any():
        _refuse("prompt_tokens", "must be 0 to the sequence's length")
    if domain_S.min() < 0 or domain_S.max() >= min(len(trace.domains), 65_536):
        _refuse("domain", f"must be below the {len(trace.domains)} named domains")
