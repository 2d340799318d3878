"""Speculative decoding: how many drafts go with a request's next token, and how many are accepted.

A draft is accepted with the probability of its position, given that those before it were (rejection
sampling keeps a prefix of the drafts: Leviathan et al. 2023). The draw is a hash of (seed, request,
output position, draft), so it depends neither on the batch nor on the deployment, and computing
again after a preemption accepts the same ones.

`s` is a State, `r` a request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import hot, inner
from moesim.sim.replay import draw

MOST_DRAFTS = 16  # of a token; numbers the draws


@inner
def with_drafts(s: Any, r: int, due: int) -> int:
    """Tokens that a request computes which is due `due` of them: drafts go with a lone new one."""
    if due == 1 and s.requests[r].generated > 0:
        return 1 + s.rules[0].drafts
    return due


@hot
def accepted_drafts(s: Any, r: int, drafts: int) -> int:
    """How many of the first `drafts` drafts behind the newest output token are accepted."""
    position = s.requests[r].generated
    for i in range(drafts):
        bits = draw(s.rules[0].draft_seed, r, position * MOST_DRAFTS + i) >> np.uint64(11)
        if np.float64(bits) * 2.0**-53 >= s.acceptance[i]:
            return i
    return drafts


@inner
def drafts_in_flight(s: Any, r: int) -> int:
    """Drafts among the tokens that request r has in flight."""
    request = s.requests[r]
    return max(0, request.computed - request.prompt_tokens - request.generated)
