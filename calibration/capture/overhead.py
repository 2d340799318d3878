"""What the hooks cost: the same prefill with and without them, in turns.

The least of several times counts: whatever else the machine does only adds to one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from calibration.capture.encoding import Encoder
from calibration.capture.loading import Loaded
from calibration.capture.prompts import Prompt
from calibration.capture.taps import Tap, find_taps, recording

ROUNDS = 10


@dataclass(frozen=True)
class Overhead:
    """Least seconds of a forward pass without and with hooks."""

    plain_s: float
    hooked_s: float

    @property
    def share(self) -> float:
        return self.hooked_s / self.plain_s - 1


def measure_overhead(
    loaded: Loaded, prompts: Sequence[Prompt], prompt_tokens: int | None, chat: bool
) -> Overhead:
    """Time one prefill of these prompts; the hooked one includes collecting what was recorded."""
    inputs, _ = Encoder(loaded, prompt_tokens, chat).encode(prompts)
    tensors = {name: tensor for name, tensor in inputs.items() if name != "pad"}
    if loaded.encoder_decoder:
        tensors["decoder_input_ids"] = torch.zeros_like(tensors["input_ids"])
    taps = find_taps(loaded.model)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(-2, 2 * ROUNDS):  # the first two warm up
        hooked = bool(turn % 2)
        seconds = _forward(loaded, tensors, taps if hooked else None)
        if turn >= 0:
            times[hooked].append(seconds)
    return Overhead(min(times[False]), min(times[True]))


def _forward(loaded: Loaded, tensors: dict[str, torch.Tensor], taps: list[Tap] | None) -> float:
    begun = time.perf_counter()
    with torch.inference_mode(), recording(taps) if taps else nullcontext() as record:
        loaded.model(**tensors)
        if record is not None:
            record.arrays(len(tensors["input_ids"]))
        elif loaded.model.device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - begun
