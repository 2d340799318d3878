"""A RoutingTrace for other tools: an .npz in the layout that `import_npz` reads, or a CSV table.

Legend: T tokens, L MoE layers, K top-k, S sequences.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.routing.trace import RoutingTrace

ROWS_AT_ONCE = 1024


def export_trace(trace: RoutingTrace, path: str | os.PathLike[str]) -> None:
    """Write the trace as .npz or .csv, by the name's ending; InputError for another one.

    The .npz has `ids` [T, L, K], `seq_lens` [S], `num_experts`, `layers` [L], `prompt_tokens` [S],
    `domain` [S], `domains` and, if known, `weights`. The CSV has a row for each token and layer:
    sequence, domain, token, phase, layer, then an expert (and its weight) per column.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".npz", ".csv"):
        raise InputError("routing.export", "must end in .npz or .csv", str(path))
    with replace_atomically(path) as temporary:
        if ending == ".npz":
            _write_npz(trace, temporary)
        else:
            _write_csv(trace, temporary)


def _write_npz(trace: RoutingTrace, path: Path) -> None:
    arrays: dict[str, Any] = {
        "ids": trace.ids_TLK,
        "seq_lens": trace.sequence_tokens_S,
        "num_experts": np.int64(trace.experts),
        "layers": trace.layers_L,
        "prompt_tokens": trace.prompt_tokens_S,
        "domain": trace.domain_S,
        "domains": np.array(trace.domains),
    }
    if trace.weights_TLK is not None:
        arrays["weights"] = trace.weights_TLK
    with path.open("wb") as file:  # given a name, numpy would add an ending
        np.savez_compressed(file, **arrays)


def _write_csv(trace: RoutingTrace, path: Path) -> None:
    known = trace.weights_TLK
    header = ["sequence", "domain", "token", "phase", "layer"]
    header += [f"expert_{k}" for k in range(trace.top_k)]
    header += [f"weight_{k}" for k in range(trace.top_k)] if known is not None else []
    layers = trace.layers_L.tolist()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for s in range(trace.sequences):
            first, last = (int(row) for row in trace.sequence_start_S1[s : s + 2])
            domain, prompt = trace.domains[int(trace.domain_S[s])], int(trace.prompt_tokens_S[s])
            for start in range(first, last, ROWS_AT_ONCE):
                block = slice(start, min(start + ROWS_AT_ONCE, last))
                ids = trace.ids_TLK[block].tolist()
                weights = None if known is None else known[block].tolist()
                for i, chosen_LK in enumerate(ids):
                    token = start - first + i
                    phase = "prompt" if token < prompt else "output"
                    for j, chosen_K in enumerate(chosen_LK):
                        weight_K = weights[i][j] if weights else []
                        writer.writerow([s, domain, token, phase, layers[j], *chosen_K, *weight_K])
