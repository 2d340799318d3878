"""JSON Lines of johanna-rock/moe-balance: a line for each request (or batch) and layer.

Source: sim/trace_format.md there: `layer`, `batch_id`, `topk_experts` [T][K], optional
`topk_weights`, `request_id` and `source_file`. Lines of one request are those with its
`request_id`, else its `batch_id`.

Legend: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source, read_json_lines
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.trace import RoutingTrace

_Layers = dict[int, tuple[NDArray[Any], NDArray[Any] | None]]


def recognises(source: Source) -> bool:
    return source.has_key("topk_experts")


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace, a sequence from each request."""
    if about.phase is None:
        raise InputError("phase", "is not in this format: give --phase prefill or decode")
    found: list[Recorded] = []
    layers_L: list[int] = []
    for number, file in enumerate(files):
        domain = about.domain(number, len(files), file.stem)
        requests: dict[object, _Layers] = {}
        for line in read_json_lines(file):
            _add(line, requests, str(file))
        for request, layers in requests.items():
            if layers_L and sorted(layers) != layers_L:
                raise InputError(f"{file}: request {request}", f"must have the layers {layers_L}")
            layers_L = sorted(layers)
            found.append(_sequence(f"{file}: request {request}", layers, domain, about))
    return assemble(found, about, None, layers_L)


def _add(line: dict[str, Any], requests: dict[object, _Layers], where: str) -> None:
    layer, request = line.get("layer"), line.get("request_id", line.get("batch_id"))
    if type(layer) is not int or not 0 <= layer < checks.MAX_LAYERS:
        raise InputError(where, f"must have a layer below {checks.MAX_LAYERS} in each line", layer)
    if type(request) not in (int, str):
        raise InputError(where, "must have a batch_id or request_id in each line", request)
    layers = requests.setdefault(request, {})
    if layer in layers:
        raise InputError(f"{where}: request {request}", "must have each layer once", layer)
    weights = line.get("topk_weights")
    layers[layer] = (
        _table(line.get("topk_experts"), "iu", where),
        None if weights is None else _table(weights, "fiu", where),
    )


def _table(rows: object, kinds: str, where: str) -> NDArray[Any]:
    try:
        table = np.array(rows)
    except (ValueError, OverflowError):
        table = np.empty(0)
    if not isinstance(rows, list) or table.ndim != 2 or table.dtype.kind not in kinds:
        raise InputError(where, "must have tables of numbers, [tokens][top_k], in each line")
    return table.astype(np.int64 if kinds == "iu" else np.float32)


def _sequence(where: str, layers: _Layers, domain: str, about: About) -> Recorded:
    parts = [layers[layer] for layer in sorted(layers)]
    shape = parts[0][0].shape
    weighted = all(weights is not None for _, weights in parts)
    for ids, weights in parts:
        if ids.shape != shape or (weighted and weights is not None and weights.shape != shape):
            raise InputError(where, f"must have {shape} ids and weights in every layer", ids.shape)
    ids = np.stack([ids for ids, _ in parts], axis=1)
    all_weights = [weights for _, weights in parts if weights is not None]
    prompt = len(ids) if about.phase == "prefill" else 0
    return Recorded(ids, prompt, domain, np.stack(all_weights, axis=1) if weighted else None)


FORMAT = Format("moe-balance", "moe-balance routing trace (JSON Lines)", recognises, read)
