"""Typical steps of a run: their batch, and its price by the compiled code of the simulation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.provenance import StepSize
from moesim.deployment import Deployment, run_rules
from moesim.native_arguments import forget_arguments
from moesim.provenance import context_tokens, decode_steps, prefill_steps
from moesim.scenario import Scenario
from moesim.sim.advance import launch
from moesim.sim.cost_tables import Work
from moesim.sim.setup import build_record, build_state, build_work
from moesim.sim.state import State
from moesim.wiring import Wired, ready_to_move
from moesim.workload.demand import Demand


class Batch(NamedTuple):
    """What each attention rank computes: (new tokens, tokens before) of prompts; decodes."""

    chunks: tuple[tuple[tuple[int, int], ...], ...]
    decoding: tuple[int, ...]
    kv_tokens: int

    @property
    def size(self) -> StepSize:
        """Of the busiest rank, before padding."""
        new = [sum(n for n, _ in chunks) for chunks in self.chunks]
        tokens = [n + decoding for n, decoding in zip(new, self.decoding, strict=True)]
        requests = [len(c) + d for c, d in zip(self.chunks, self.decoding, strict=True)]
        fullest = int(np.argmax(new))
        most, kv = max(tokens), float(self.kv_tokens)
        chunks, decoding = self.chunks[fullest], self.decoding[fullest]
        return StepSize(most, max(requests), chunks, decoding, kv, sum(tokens))


def typical_batches(
    steps: NDArray[Any], requests: NDArray[Any], ranks: int, most_tokens: int
) -> Iterator[Batch]:
    """The median decode step, decodes spread evenly over the ranks; and the median step with
    prompts, each of the median chunk, dealt to the ranks in turn: `most_tokens` each at most."""
    kv = context_tokens(requests, 0.5)
    decode, prefill = decode_steps(steps), prefill_steps(steps)
    if decode.size:
        n = max(1, round(float(np.median(decode["decode_tokens"])) / ranks))
        yield Batch(((),) * ranks, (n,) * ranks, kv)
    if prefill.size:
        new = max(1, int(np.median(prefill["prefill_tokens"])))
        riding = int(np.median(prefill["decode_tokens"])) // ranks
        prompt = max(1, int(np.median(requests["prompt_tokens"])))
        count = max(1, round(new / prompt))
        if -(-count // ranks) * -(-new // count) + riding > most_tokens:
            count = -(-count // ranks) * ranks
        chunks = [(len(each), 0) for each in np.array_split(np.arange(new), count)]
        dealt = tuple(tuple(chunks[d::ranks]) for d in range(ranks))
        yield Batch(dealt, (riding,) * ranks, kv)


def price(
    scenario: Scenario, deployment: Deployment, wired: Wired, batch: Batch
) -> tuple[Any, Work]:
    """Run the batch through the simulation's own step: (its row of STEP, the scratch arrays)."""
    ranks = len(batch.chunks)
    parts = [
        (d, n, before, before + n) for d, chunks in enumerate(batch.chunks) for n, before in chunks
    ]
    # Half of their context is output: all at their first output token, they would share the experts
    # that a chat format's first tokens choose.
    parts += [
        (d, 1, batch.kv_tokens - 1, batch.kv_tokens // 2)
        for d, decoding in enumerate(batch.decoding)
        for _ in range(decoding)
    ]
    prompts = np.array([prompt for *_, prompt in parts], np.int32)
    demand = _demand(np.maximum(prompts, 1))
    rules = run_rules(scenario, deployment, demand, external=False)
    rules |= {"replicas": 1, "prefix_block_tokens": 0}
    rules["max_running"] = max(int(rules["max_running"]), len(parts))
    state = build_state(rules, demand)
    _put(state, parts)
    record = build_record(False, demand, wired.costs, len(parts) + 1)
    work = build_work(ranks, int(rules["stages"]), wired.costs)
    work = ready_to_move(scenario, wired, work, 1)
    try:
        launch(state, wired.routes, wired.costs, work, record, 0, 0.0, len(parts))
    finally:
        forget_arguments()
    return record.steps[0], work


def _put(state: State, parts: list[tuple[int, int, int, int]]) -> None:
    """Put requests into the first batch: (rank, new tokens, computed before, prompt)."""
    for r, (d, n, before, prompt) in enumerate(parts):
        i = int(state.batch_size[0, 0, d])
        state.batch_request[0, 0, d, i] = r
        state.batch_tokens[0, 0, d, i] = n
        state.batch_size[0, 0, d] = i + 1
        state.requests[r]["computed"] = before + n
        # What is computed beyond the newest output token would be drafts.
        state.requests[r]["generated"] = max(0, before + n - prompt)


def _demand(prompt_tokens: NDArray[np.int32]) -> Demand:
    ones = np.ones(prompt_tokens.size, np.int32)
    return Demand(
        arrival_s=np.zeros(prompt_tokens.size),
        prompt_tokens=prompt_tokens,
        output_tokens=ones,
        max_output_tokens=ones,
        domain=np.zeros(prompt_tokens.size, np.uint16),
        domains=(),
        concurrency=None,
        prefix_start=np.zeros(prompt_tokens.size + 1, np.int64),
        prefix_blocks=np.zeros(0, np.int32),
        prefix_block_tokens=0,
    )
