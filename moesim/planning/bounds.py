"""What no simulation of a shape can beat: its least TPOT and TTFT, and its least copies.

Each is a lower bound by construction (tests/properties/test_plan_bounds.py): nothing that could be
the cheapest is left out because of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.deployment import Deployment
from moesim.planning.demand_facts import DemandFacts
from moesim.planning.laws import StepLaw
from moesim.scenario import Scenario

Floats = NDArray[np.float64]
ROUNDING = 1e-9


@dataclass(frozen=True)
class Pool:
    """One pool (or the whole) of a shape's unit, with a law of its steps."""

    scenario: Scenario
    deployment: Deployment
    law: StepLaw

    @property
    def replicas(self) -> int:
        return self.scenario.deployment.replicas

    @property
    def tokens_per_step(self) -> int:
        """Output tokens of a request that a step can yield at most."""
        return 1 + self.scenario.deployment.speculation.drafts


@dataclass(frozen=True)
class Bounds:
    """Of a shape's unit, for a demand. `why`: what makes the SLO unreachable, "" where it may not
    be; `tpot_s`, `ttft_s`: least of any request; `least_s`: by limit, what the percentile of the
    requests cannot be below; `units`: least copies, for `units_why`."""

    tpot_s: float
    ttft_s: float
    units: int
    units_why: str
    why: str
    least_s: Mapping[str, float]


def bounds(pools: Sequence[Pool], facts: DemandFacts) -> Bounds:
    """Of one pool that does both, or of (prefill, decode)."""
    prefill, decode = pools[0], pools[-1]
    tpot_s = decode.law.step_s / decode.tokens_per_step
    law, stages = prefill.law, prefill.deployment.sharding.pipeline
    own = facts.prompt_N
    computed = own * law.prompt_token_s + own * own / 2.0 * law.prompt_pair_s
    ttft_N = np.maximum(law.step_s, computed / stages)
    e2e_N = ttft_N + (facts.output_N - 1.0) * tpot_s
    many_N = np.where(facts.output_N > 1, tpot_s, 0.0)
    why, least_s = "", {}
    for name, least_N, limit_N in (
        ("TPOT", many_N, facts.tpot_N),
        ("TTFT", ttft_N, facts.ttft_N),
        ("end to end", e2e_N, facts.e2e_N),
    ):
        least_s[name] = float(np.quantile(least_N, 1.0 - facts.share, method="inverted_cdf"))
        if not why and facts.beyond(least_N, limit_N):
            why = name
    units, units_why = 1, ""
    if not why:
        needs = copies_needed(prefill, decode, facts)
        units_why = max(needs, key=lambda name: needs[name])
        units = max(1, math.ceil(needs[units_why] * (1.0 - ROUNDING)))
    return Bounds(tpot_s, float(ttft_N.min()), units, units_why, why, least_s)


def copies_needed(prefill: Pool, decode: Pool, facts: DemandFacts) -> dict[str, float]:
    """Copies that the demand needs at least, with fractions: for steps, for keys and values."""
    needs = {}
    together = prefill is decode
    prompt_due = facts.arrival_N + np.minimum(facts.ttft_N, facts.e2e_N)
    by_tokens = facts.ttft_N + (facts.output_N - 1.0) * facts.tpot_N
    by_tokens = np.where(facts.output_N > 1, by_tokens, facts.ttft_N)
    done_due = facts.arrival_N + np.minimum(facts.e2e_N, by_tokens)
    prompts_N = facts.prompt_N
    outputs_N = np.maximum(0.0, facts.output_N - 1.0)
    need = [_busy(prefill, prompts_N, np.zeros_like(outputs_N), facts, prompt_due)]
    if together:
        need.append(_busy(decode, prompts_N, outputs_N, facts, done_due))
    else:
        need.append(_busy(decode, np.zeros_like(prompts_N), outputs_N, facts, done_due))
    needs["steps"] = max(need)
    needs["keys and values"] = _kept(decode, outputs_N, facts, done_due)
    return needs


def _busy(
    pool: Pool, prompts_N: Floats, outputs_N: Floats, facts: DemandFacts, due_N: Floats
) -> float:
    """Copies whose steps can do that work in time.

    For a line a + b n below every step: S steps take a S + b (all tokens). S is at least the tokens
    over those of one step, and, where tokens that keep a TPOT of L share steps of n each,
    sum n t(n) <= L N, hence sum n^2 <= N (L - a) / b and by Cauchy S >= N b / (L - a).
    """
    law, of = pool.law, pool.deployment
    each = pool.tokens_per_step
    seats = of.max_requests * of.sharding.attention_dp
    most = 0.0
    context = float(facts.context_N.min()) if len(facts) else 0.0
    kv_N = outputs_N / each * (facts.context_N + outputs_N / 2.0) * law.kv_token_s
    for a, b in law.lines:
        slope = b + law.kv_token_s * context
        slack = np.maximum(facts.tpot_N * each - a, 1e-12)
        shared_N = np.where(np.isfinite(facts.tpot_N), slope / slack, 0.0)
        steps_N = outputs_N / each * np.maximum(1.0 / seats, shared_N)
        work_N = b * (prompts_N + outputs_N / each) + kv_N + a * steps_N
        most = max(most, facts.least_rate(work_N, due_N))
    return most / of.sharding.pipeline / pool.replicas


def _kept(pool: Pool, outputs_N: Floats, facts: DemandFacts, due_N: Floats) -> float:
    """Copies whose memory holds what is under way (Little's law): tokens times the least time that
    each is decoded for, against what a copy holds over the same window."""
    of = pool.deployment
    if not of.memory.kv_full_bytes_per_token:
        return 0.0
    held_s = outputs_N * pool.law.step_s / pool.tokens_per_step
    bytes_N = (facts.context_N + outputs_N / 2.0) * of.memory.kv_full_bytes_per_token
    room = of.memory.kv_bytes * of.sharding.attention_dp * pool.replicas
    return facts.least_rate(held_s * bytes_N, due_N) / room
