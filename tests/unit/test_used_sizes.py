"""The sizes of steps that stand for a run's."""

from __future__ import annotations

import numpy as np

from moesim.costs.measured.provenance import StepSize
from moesim.provenance import used_sizes
from moesim.sim.state import REQUEST, STEP


def test_small_median_and_large_steps_of_each_kind_stand_for_a_run() -> None:
    """21 decode steps of 10, 20, ... 210 tokens and three with prompts, on two ranks; the 5 %
    quantile is the second of 21."""
    steps = np.zeros(25, STEP)
    steps["decode_tokens"][:21] = np.random.default_rng(0).permutation(np.arange(1, 22) * 10)
    steps["decode_tokens"][21:24] = 5  # prompts beside decodes; the last step does nothing
    steps["prefill_tokens"][21:24] = [3001, 1000, 2000]
    requests = np.zeros(3, REQUEST)
    requests["prompt_tokens"], requests["output_tokens"] = [100, 200, 1500], [10, 20, 30]
    assert used_sizes(steps, requests, ranks=2) == (
        StepSize(16, 10, (), 10, 105.0, 32),
        StepSize(500, 1, ((100, 0),), 0, 0.0, 1000),
        StepSize(56, 55, (), 55, 210.0, 112),
        StepSize(1000, 1, ((200, 0),), 0, 0.0, 2000),
        StepSize(104, 100, (), 100, 1515.0, 208),
        StepSize(1501, 1, ((1500, 0),), 0, 0.0, 3001),
    )


def test_a_run_without_steps_has_no_sizes() -> None:
    assert used_sizes(np.zeros(0, STEP), np.zeros(0, REQUEST), ranks=1) == ()
