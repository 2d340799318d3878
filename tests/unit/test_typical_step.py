"""Typical steps: prompts dealt to ranks never exceed what a rank computes at once."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.sim.state import REQUEST, STEP
from moesim.typical_step import typical_batches


@pytest.mark.parametrize(
    ("new", "prompt", "ranks", "most"),
    [
        (940 * 60, 940, 72, 1_024),  # fewer prompts than ranks
        (8_136, 8_136, 72, 113),  # one prompt, which SGLang cuts for every rank
        (9 * 900, 900, 8, 1_024),  # nine prompts for eight ranks
        (300, 940, 2, 8_192),
    ],
)
def test_no_rank_is_dealt_more_than_it_computes(
    new: int, prompt: int, ranks: int, most: int
) -> None:
    steps, requests = np.zeros(1, STEP), np.zeros(1, REQUEST)
    steps["prefill_tokens"] = new
    requests["prompt_tokens"] = prompt
    (batch,) = typical_batches(steps, requests, ranks, most)
    dealt = [sum(n for n, _ in chunks) for chunks in batch.chunks]
    assert sum(dealt) == new
    assert max(dealt) <= most
