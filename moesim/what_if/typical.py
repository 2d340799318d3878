"""Which steps a placement should be good for: how many tokens they hold, and their share of time.

From a run of the scenario: the median step without prompts and the median step with them, and what
of all routed-expert time (the slowest rank's) passes in each kind. Without a run: 32 decoding
requests on each attention rank, chunks as large as the engine's token budget, and shares from the
tokens of the demand, priced step by step at experts in order of their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.deployment import Deployment
from moesim.errors import InputError
from moesim.placement_task import MOST_PROMPT
from moesim.results import Result

DECODE_PER_RANK = 32  # concurrent requests of an attention rank, unless a run or a user says more
MOST_DECODE = 65_536  # tokens of a step on all ranks, unless asked for
MOST_ASKED = 262_144


@dataclass(frozen=True)
class StepSizes:
    """Tokens of a step on all ranks, 0 where there is no such step; `decode_share` of expert time,
    None where it is still to be worked out. `basis` says where they come from."""

    decode_tokens: int
    prompt_tokens: int
    decode_share: float | None
    basis: str


def sizes_of_run(result: Result) -> StepSizes:
    """Median steps of a run, and where its routed-expert time went."""
    steps = result.steps[~result.steps["dummy"]]
    with_prompts = steps["prefill_tokens"].to_numpy() > 0
    tokens = (steps["prefill_tokens"] + steps["decode_tokens"]).to_numpy()
    expert_s = (steps["experts_s"] + steps["expert_imbalance_s"]).to_numpy()
    decode, prompt = (tokens[kind & (tokens > 0)] for kind in (~with_prompts, with_prompts))
    total_s = expert_s.sum()
    return StepSizes(
        min(int(np.median(decode)), MOST_DECODE) if decode.size else 0,
        min(int(np.median(prompt)), MOST_PROMPT) if prompt.size else 0,
        float(expert_s[~with_prompts].sum() / total_s) if total_s > 0 else None,
        "sizes of steps and their shares of routed-expert time: from a run of the scenario",
    )


def sizes_by_default(deployment: Deployment) -> StepSizes:
    """What is taken without a run."""
    ranks = deployment.sharding.attention_dp
    return StepSizes(
        min(DECODE_PER_RANK * ranks, MOST_DECODE),
        min(deployment.token_budget * ranks, MOST_PROMPT),
        None,
        f"sizes of steps: assumed, {DECODE_PER_RANK} decoding requests on each attention rank and "
        f"prompts in chunks of the token budget, {MOST_PROMPT:,} tokens on all ranks at most",
    )


def sizes_asked(found: StepSizes, decode: int | None, prefill: int | None, ranks: int) -> StepSizes:
    """`found`, with the decoding requests of an attention rank and the tokens of a step with
    prompts that somebody asks for; 0 leaves a kind of step out. InputError for absurd ones."""
    if decode is None and prefill is None:
        return found
    for field, tokens in (("decode", (decode or 0) * ranks), ("prefill", prefill or 0)):
        if not 0 <= tokens <= MOST_ASKED:
            rule = f"must make 0 to {MOST_ASKED} tokens on all ranks"
            raise InputError(field, rule, decode if field == "decode" else prefill)
    decode_tokens = found.decode_tokens if decode is None else decode * ranks
    prompt_tokens = found.prompt_tokens if prefill is None else prefill
    if decode_tokens == prompt_tokens == 0:
        raise InputError("decode", "must leave a kind of step: decode and prefill are both", 0)
    share = found.decode_share if decode_tokens and prompt_tokens else None
    asked = [
        name
        for name, given in (("without prompts", decode), ("with prompts", prefill))
        if given is not None
    ]
    basis = f"size of steps {' and '.join(asked)}: as asked for"
    if len(asked) == 1:
        basis += f"; else {found.basis}"
    return StepSizes(decode_tokens, prompt_tokens, share, basis)
