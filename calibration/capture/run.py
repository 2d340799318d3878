"""Run a model over prompts in batches, and write down where its routers sent every token.

Prompts are padded on the left and generated from; the hooks see every forward pass, and a token's
rows are found by its column: padding left of a prompt and what follows a sequence's end is dropped.
The last generated token is never computed, so N generated tokens are N - 1 decoded rows.

Legend: B prompts of a batch, T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.capture.encoding import Encoder
from calibration.capture.loading import Loaded
from calibration.capture.prompts import Prompts
from calibration.capture.spool import Shape, Spool
from calibration.capture.taps import Tap, find_taps, recording
from moesim.errors import InputError
from moesim.routing import RoutingTrace

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoding:
    """How to generate: `tokens` at most (0: prefill only), greedily where temperature is 0."""

    tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    ignore_end: bool = False  # go on to `tokens` whatever the model says

    def options(self, end: Any, pad: int) -> dict[str, Any]:
        """Arguments of `generate`; a prefill is a generation of one token."""
        count = max(1, self.tokens)
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {
            "max_new_tokens": count,
            "min_new_tokens": count if self.ignore_end else None,
            "eos_token_id": None if self.ignore_end else end,
            "do_sample": self.temperature > 0,
            "num_beams": 1,
            "pad_token_id": pad,
            "use_cache": True,
            **(sampled if self.temperature > 0 else {}),
        }


@dataclass(frozen=True)
class Captured:
    """What a capture came to: the trace as written, if it is whole, and how fast it went."""

    trace: RoutingTrace
    complete: bool
    tokens: int  # rows of this run, without those resumed
    seconds: float


def capture(
    loaded: Loaded,
    prompts: Prompts,
    out: Path,
    *,
    decoding: Decoding,
    batch: int = 8,
    prompt_tokens: int | None = None,
    chat: bool = False,
    weights: bool = True,
    resume: bool = False,
    progress: Progress = lambda done, total: None,
    provenance: Mapping[str, str] | None = None,
) -> Captured:
    """Write the trace of all prompts to `out`, or of those done when Ctrl-C stops it.

    `prompt_tokens` cuts prompts (their first tokens stay); `weights` keeps the routers' weights.
    After an interruption `out` is a sound trace of what was done, `complete` is false, and `resume`
    goes on from there. Raises InputError for a model without MoE layers, prompts that cannot be
    tokenised, and settings that differ from those of the capture to resume.
    """
    taps = find_taps(loaded.model)
    settings = {
        **loaded.provenance,
        "prompts": f"{len(prompts.prompts)} prompts, SHA-256 {prompts.sha256}",
        "decoding": _told(decoding),
        "batch": str(batch),
        "prompt_tokens": "all" if prompt_tokens is None else f"the first {prompt_tokens}",
        "chat": "template" if chat else "no template",
        "weights": "kept" if weights else "not kept",
    }
    encoder = Encoder(loaded, prompt_tokens, chat, max(0, decoding.tokens - 1))
    encoder.check(prompts.prompts)
    spool = Spool.start(out, settings, resume)
    done, begun, rows = len(spool.sequences), time.monotonic(), 0
    complete = True
    try:
        while done < len(prompts.prompts):
            progress(done, len(prompts.prompts))
            chosen = prompts.prompts[done : done + batch]
            torch.manual_seed(decoding.seed + done)
            inputs, lengths = encoder.encode(chosen)
            ids, kept, prefilled = run_batch(loaded, taps, inputs, lengths, decoding)
            numbers = [prompts.domains.index(prompt.domain) for prompt in chosen]
            marks = [
                (len(each), prompt, domain)
                for each, prompt, domain in zip(ids, prefilled, numbers, strict=True)
            ]
            shape = Shape(
                tuple(tap.layer for tap in taps), taps[0].experts, ids[0].shape[2], weights
            )
            spool.append(
                np.concatenate(ids), np.concatenate(kept) if weights else None, marks, shape
            )
            rows += sum(len(each) for each in ids)
            done += len(chosen)
    except KeyboardInterrupt:
        if not spool.sequences:
            raise
        complete = False
    seconds = time.monotonic() - begun
    about = {**settings, **(provenance or {}), "captured": f"{datetime.now(UTC):%Y-%m-%d}"}
    if not complete:
        about["unfinished"] = f"{done} of {len(prompts.prompts)} prompts"
    spool.trace(prompts.domains, loaded.name, about).save(out)
    if complete:
        spool.remove()
    return Captured(RoutingTrace.open(out), complete, rows, seconds)


def _told(decoding: Decoding) -> str:
    if decoding.tokens <= 1:
        return "prefill only"
    how = "greedy"
    if decoding.temperature > 0:
        how = f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, "
        how += f"seed {decoding.seed}"
    end = ", end of text ignored" if decoding.ignore_end else ""
    return f"up to {decoding.tokens} tokens, {how}{end}"


def run_batch(
    loaded: Loaded,
    taps: list[Tap],
    inputs: dict[str, torch.Tensor],
    lengths_B: list[int],
    decoding: Decoding,
) -> tuple[list[NDArray[Any]], list[NDArray[np.float16]], list[int]]:
    """(ids, weights, prompt tokens) of each prompt: ids and weights [T, L, K] without padding."""
    model = loaded.model
    columns = inputs["input_ids"].shape[1]
    end = model.generation_config.eos_token_id
    ends = {end} if isinstance(end, int) else set(end or ())
    pad = int(inputs["pad"])
    tensors = {name: tensor for name, tensor in inputs.items() if name != "pad"}
    with torch.inference_mode(), recording(taps) as record:
        made_BT = model.generate(**tensors, **decoding.options(end, pad))
    if loaded.encoder_decoder:  # the decoder starts from one token of its own
        columns, lengths_B = 1, [1] * len(lengths_B)
    ids_BTLK, weights_BTLK = record.arrays(len(lengths_B))
    new_BT = made_BT[:, columns:].tolist()
    expected = columns + len(new_BT[0]) - 1
    if ids_BTLK.shape[1] != expected:
        rule = f"must route each of a batch's {expected} columns once"
        raise InputError("model", rule, ids_BTLK.shape[1])
    ids, weights = [], []
    for b, (length, new) in enumerate(zip(lengths_B, new_BT, strict=True)):
        count = len(new)
        if not decoding.ignore_end:
            count = next((i + 1 for i, token in enumerate(new) if token in ends), count)
        kept = slice(columns - length, columns + count - 1)
        ids.append(ids_BTLK[b, kept])
        weights.append(weights_BTLK[b, kept])
    return ids, weights, list(lengths_B)
