"""JSON of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting: `*_examples.json`, a sequence each.

`router_data` lists tokens in order, each `{"token_N": {"layer_L": {"selected_experts": [K ids],
"selected_probs": [K weights]}}}`; `category` is the domain. Its recorder dropped the prompts'
tokens, so all are decoded ones.

Legend: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.routing.formats.base import Format, Source, read_json
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.trace import RoutingTrace

MAX_BYTES = 2**28
_TOKEN = re.compile(r"token_(\d{1,9})")
_LAYER = re.compile(r"layer_(\d{1,3})")


def recognises(source: Source) -> bool:
    return source.has_key("router_data")


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace, a sequence from each file."""
    found: list[Recorded] = []
    layers_L: list[int] = []
    for number, file in enumerate(files):
        content = read_json(file, MAX_BYTES)
        try:
            if not isinstance(content, dict) or not isinstance(content.get("router_data"), list):
                raise InputError("router_data", "must be a list of tokens")
            category = content.get("category")
            own = category if isinstance(category, str) else file.stem
            domain = about.domain(number, len(files), own)
            layers, sequence = _sequence(content["router_data"], domain, about)
            if found and layers != layers_L:
                raise InputError("router_data", f"must have the layers {layers_L}", layers)
            layers_L = layers
            found.append(sequence)
        except InputError as error:
            raise InputError(str(file), f"must hold a sequence: {error}") from None
    return assemble(found, about, None, layers_L)


def _sequence(router_data: Sequence[Any], domain: str, about: About) -> tuple[list[int], Recorded]:
    tokens: dict[int, Mapping[str, Any]] = {}
    for entry in router_data:
        for name, layers in entry.items() if isinstance(entry, dict) else ():
            match = _TOKEN.fullmatch(name)
            if match is None or not isinstance(layers, dict) or int(match[1]) in tokens:
                raise InputError("router_data", "must hold each token_N once", name)
            tokens[int(match[1])] = layers
    if not tokens:
        raise InputError("router_data", "must hold at least one token")
    order = sorted(tokens)
    if order[-1] - order[0] != len(order) - 1:
        raise InputError("router_data", "must hold every token from the first to the last")
    matches = [_LAYER.fullmatch(name) for name in tokens[order[0]]]
    layers_L = sorted(int(match[1]) for match in matches if match)
    names = [f"layer_{layer}" for layer in layers_L]
    try:
        chosen = [[tokens[t][name] for name in names] for t in order]
        ids = np.array([[one["selected_experts"] for one in row] for row in chosen])
        weights = np.array([[one["selected_probs"] for one in row] for row in chosen], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = "must have experts and weights in every layer of every token"
        raise InputError("router_data", f"{rule}: {str(error)[:80]}") from None
    prompt = len(ids) if about.phase == "prefill" else 0
    return layers_L, Recorded(ids, prompt, domain, weights)


FORMAT = Format(
    "fingerprinting", "GPT-OSS-MoE-ExpertFingerprinting examples (JSON)", recognises, read
)
