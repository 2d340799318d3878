"""The cluster that a launch command needs: it says how many GPUs, seldom how they lie in nodes."""

from __future__ import annotations

from typing import Any

from moesim.errors import InputError
from moesim.hardware import MOST_GPUS, load_gpu

OF_A_NODE = 8
OF_A_RACK_NODE = 4  # compute trays of GB200 and GB300 NVL72


def cluster_of(gpu: str, gpus: int, per_node: int | None) -> dict[str, Any]:
    """Fields of a scenario's `cluster` for so many GPUs, in nodes of `per_node` if that is known.

    Else nodes have 8 GPUs (4 where a scale-up domain spans nodes), or as many as are needed if
    these are fewer. Raises InputError.
    """
    card = load_gpu(gpu)
    if gpus > MOST_GPUS:
        raise InputError("--from-command", f"must need at most {MOST_GPUS} GPUs", gpus)
    usual = OF_A_RACK_NODE if card.spans_nodes else OF_A_NODE
    size = min(gpus, per_node or min(usual, card.most_per_node))
    return {"gpu": gpu, "gpus_per_node": size, "nodes": -(-gpus // size)}
