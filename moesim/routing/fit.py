"""A trace and a model need not have the same layers: which trace layer stands for which.

Legend: T tokens, L layers of the trace, M MoE layers of the model, K top-k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.architecture import MoEModel
from moesim.errors import InputError
from moesim.model import load_model, model_names
from moesim.routing.trace import RoutingTrace

MAX_MAPPED_BYTES = 2**34


def fit_to_model(trace: RoutingTrace, model: MoEModel) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The trace layer that each MoE layer of the model replays, [M], and notes for the result.

    As many layers map one to one; others by relative depth, first to first and last to last.
    Raises InputError, field ``routing.trace``, where experts or top-k differ: which of the model's
    experts another router's choice would stand for, nothing can say.
    """
    if not model.moe_layers:
        raise InputError("routing.trace", f"is of no use to {model.name}, a dense model")
    if (trace.experts, trace.top_k) != (model.experts, model.top_k):
        raise InputError(
            "routing.trace",
            f"must choose {model.top_k} of {model.experts} experts as {model.name} does",
            f"{trace.top_k} of {trace.experts} ({trace.model})",
            _advice(trace),
        )
    wanted = len(model.moe_layers)
    if wanted == trace.layers:
        return np.arange(wanted), ()
    layer_map = np.rint(np.linspace(0, trace.layers - 1, wanted)).astype(np.int64)
    note = (
        f"routing of {trace.layers} layers ({trace.model}) mapped onto {wanted} of {model.name} "
        "by relative depth"
    )
    return layer_map, (note,)


def ids_for_model(trace: RoutingTrace, layer_map: NDArray[np.int64]) -> NDArray[Any]:
    """Expert ids by the model's layers, [T, M, K]: the trace's own array for the identity map.

    Raises InputError for a map that leaves the trace, or a copy of more than 16 GiB.
    """
    if np.array_equal(layer_map, np.arange(trace.layers)):
        return trace.ids_TLK
    if not len(layer_map) or layer_map.min() < 0 or layer_map.max() >= trace.layers:
        raise InputError("routing.layer_map", f"must name layers below {trace.layers}")
    mapped_bytes = trace.ids_TLK.nbytes // trace.layers * len(layer_map)
    if mapped_bytes > MAX_MAPPED_BYTES:
        raise InputError("routing.trace", f"mapped must take <= {MAX_MAPPED_BYTES}", mapped_bytes)
    ids_TMK = np.ascontiguousarray(trace.ids_TLK[:, layer_map])
    ids_TMK.flags.writeable = False
    return ids_TMK


def _advice(trace: RoutingTrace) -> str:
    models = (load_model(name) for name in model_names())
    shape = (trace.experts, trace.top_k)
    alike = [model.name for model in models if (model.experts, model.top_k) == shape]
    suits = f"this trace suits {', '.join(alike[:4])}; " if alike else ""
    return f"{suits}use trace: synthetic for this model"
