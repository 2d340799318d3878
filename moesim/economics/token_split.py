"""Who pays for a step: its time shared between the input and the output tokens that it computes.

Legend: W steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.economics.api_prices import MILLION

Floats = NDArray[np.float64]
RULE = (
    "a step of decodes alone is the output's; one with prompts is the input's but for what a step "
    "of its decodes alone takes (a line through those steps); idle time goes with the busy time"
)


def prefill_time(
    duration_s: ArrayLike, prefill_tokens: ArrayLike, decode_tokens: ArrayLike
) -> Floats:
    """[W] seconds of each step that its prompts take.

    What a step of d decodes alone takes is a least-squares line over the steps that have no
    prompts, kept between 0 and the step's own duration. Where there is no such step the time is
    shared by tokens.
    """
    duration_W = np.asarray(duration_s, np.float64)
    prompt_W = np.asarray(prefill_tokens, np.float64)
    decode_W = np.asarray(decode_tokens, np.float64)
    alone_W = (prompt_W == 0) & (decode_W > 0)
    if not alone_W.any():
        tokens_W = prompt_W + decode_W
        return duration_W * np.divide(prompt_W, tokens_W, out=np.zeros_like(prompt_W),
                                      where=tokens_W > 0)  # fmt: skip
    x, y = decode_W[alone_W], duration_W[alone_W]
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    of_decodes_W = np.where(decode_W > 0, y.mean() + slope * (decode_W - x.mean()), 0.0)
    of_decodes_W = np.clip(of_decodes_W, 0.0, duration_W)
    return np.where(prompt_W > 0, duration_W - of_decodes_W, 0.0)


def input_share(
    duration_s: ArrayLike, prefill_tokens: ArrayLike, decode_tokens: ArrayLike
) -> float:
    """Share of all steps' time that is the input's; 0 where there are no steps."""
    total = float(np.sum(duration_s))
    prefill_s = prefill_time(duration_s, prefill_tokens, decode_tokens)
    return float(prefill_s.sum()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class PerMillion:
    """USD per million tokens. `input` and `output` share one bill: they are not to be added up.

    `whole_bill_over_output` charges everything to output tokens, as rates of output tokens do.
    """

    total: float
    input: float | None
    output: float | None
    whole_bill_over_output: float | None


def per_million(
    usd: float, tokens: float, input_tokens_share: float, input_bill_share: float
) -> PerMillion:
    """A bill over tokens, of which `input_tokens_share` are prompts, which take
    `input_bill_share` of the bill: input x share + output x (1 - share) = total."""
    each = usd / tokens * MILLION
    of_input, of_output = input_tokens_share, 1.0 - input_tokens_share
    return PerMillion(
        total=each,
        input=each * input_bill_share / of_input if of_input > 0 else None,
        output=each * (1.0 - input_bill_share) / of_output if of_output > 0 else None,
        whole_bill_over_output=each / of_output if of_output > 0 else None,
    )
