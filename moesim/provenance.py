"""The sizes of steps that a run really took, and what of them lay beyond what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.operators import MeasuredOperators
from moesim.costs.measured.provenance import StepSize, beyond_grid, tables_used, times_of_sizes
from moesim.engine import graph_tokens

# Steps at these quantiles of their tokens stand for all of a run.
QUANTILES = (0.05, 0.5, 0.95)


def decode_steps(steps: NDArray[Any]) -> NDArray[Any]:
    """Rows of STEP without prompts that decoded anything."""
    chosen: NDArray[Any] = steps[(steps["prefill_tokens"] == 0) & (steps["decode_tokens"] > 0)]
    return chosen


def prefill_steps(steps: NDArray[Any]) -> NDArray[Any]:
    """Rows of STEP with prompts."""
    chosen: NDArray[Any] = steps[steps["prefill_tokens"] > 0]
    return chosen


def context_tokens(requests: NDArray[Any], quantile: float) -> int:
    """Quantile over requests (rows of REQUEST) of their length when half of the output is there."""
    if not requests.size:
        return 1
    half = requests["prompt_tokens"] + requests["output_tokens"] // 2
    return max(1, int(np.quantile(half, quantile, method="nearest")))


def used_sizes(steps: NDArray[Any], requests: NDArray[Any], ranks: int) -> tuple[StepSize, ...]:
    """Sizes of small, median and large steps of a run, taken to be even over attention ranks."""
    # Two columns of rows that together may take hundreds of megabytes: never copies of whole rows.
    prompts_S = np.ascontiguousarray(steps["prefill_tokens"])
    decodes_S = np.ascontiguousarray(steps["decode_tokens"])
    decode_S, prefill_S = decodes_S[(prompts_S == 0) & (decodes_S > 0)], prompts_S[prompts_S > 0]
    decode_Q, prefill_Q, longest_Q = (
        np.quantile(tokens, QUANTILES, method="nearest").tolist() if tokens.size else ()
        for tokens in (decode_S, prefill_S, requests["prompt_tokens"])
    )
    sizes = []
    for q, quantile in enumerate(QUANTILES):
        kv = context_tokens(requests, quantile)
        if decode_Q:
            n = max(1, -(-decode_Q[q] // ranks))
            padded = int(graph_tokens(n)[n])
            sizes.append(StepSize(padded, n, (), n, float(kv), ranks * padded))
        if prefill_Q:
            # One rank computes prompts while others may not: the longest prompt bounds a chunk.
            new = prefill_Q[q]
            chunks = ((max(1, min(new, longest_Q[q])), 0),)
            sizes.append(StepSize(-(-new // ranks), 1, chunks, 0, 0.0, new))
    return tuple(sizes)


def run_notes(
    operators: MeasuredOperators, steps: NDArray[Any], requests: NDArray[Any], ranks: int
) -> list[str]:
    """Which tables timed the run, and one line for each kind of operators beyond them."""
    sizes = used_sizes(steps, requests, ranks)
    timed = times_of_sizes(operators, sizes)
    used = tables_used(timed)
    named = [f"{version} ({', '.join(sorted(groups))})" for version, groups in used.items()]
    tables = [f"kernel tables: {'; '.join(named)}"] if named else []
    return [*tables, *beyond_grid(operators, timed)]
