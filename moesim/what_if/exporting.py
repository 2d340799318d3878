"""A placement written for an engine, or for a scenario."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.model import MoEModel
from moesim.placement.engine_files import ENDINGS, write_engine_placement
from moesim.placement.filling import fill_empty
from moesim.placement.place_file import write_placement
from moesim.placement.placement import Placement

MOESIM = "moesim"
_ONCE_ON_A_DEVICE = "vllm-ascend"


def export_placement(
    placement: Placement,
    load_LE: NDArray[np.float64],
    path: str | Path,
    engine: str,
    model: MoEModel,
) -> tuple[int, int]:
    """Write a placement for `engine`: moesim, sglang, tensorrt-llm or vllm-ascend.

    Engines know no empty slots: these get the copies that do least harm under `load_LE`, tokens
    that chose each expert. Returns (empty slots that were filled, redundant experts that the engine
    is to be told). Raises InputError for another engine or ending.
    """
    if engine == MOESIM:
        write_placement(Path(path), placement)
        return 0, placement.redundant
    if engine not in ENDINGS:
        raise InputError("engine", f"must be one of {', '.join([MOESIM, *ENDINGS])}", engine)
    whole = placement
    if (placement.slot_expert_LP < 0).any():
        whole = fill_empty(placement, load_LE, repeat_on_rank=engine != _ONCE_ON_A_DEVICE)
    write_engine_placement(path, whole, engine, model.moe_layers, model.layers)
    used = int(placement.filled_LR().sum())
    return whole.slots * whole.layers - used, whole.redundant
