"""Which requests are turned away at the door: full queues, and tenants above their rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from moesim.spec import Spec, broken_rule


class RateLimit(Spec):
    """Token buckets of each tenant: they fill at a rate, up to a burst, and a request empties them.

    A request takes 1 of the first and the tokens of its prompt and of the output that it declares
    of the second; it is turned away where either has less.
    """

    requests_per_s: float | None = Field(None, gt=0.0, le=1e9)
    burst_requests: float = Field(1.0, ge=1.0, le=1e9)
    tokens_per_s: float | None = Field(None, gt=0.0, le=1e12)
    burst_tokens: float | None = Field(None, ge=1.0, le=1e15)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.requests_per_s is None and self.tokens_per_s is None:
            raise broken_rule("requests_per_s", "is required (or tokens_per_s)")
        if (self.tokens_per_s is None) != (self.burst_tokens is None):
            raise broken_rule("burst_tokens", "and tokens_per_s are given together")
        return self


class Admission(Spec):
    """Limits of one replica, as in vLLM, whose API server answers 503 beyond them.

    Source: vLLM PR 49445 (`AsyncLLM.check_admission`, 2026-07). `max_queued_requests` counts all
    requests in flight, waiting and running. `max_queued_tokens`: prompt tokens of those still
    without an output token; a request is turned away once they have reached it. None: no limit.
    """

    max_queued_requests: int | None = Field(None, ge=1, le=10_000_000)
    max_queued_tokens: int | None = Field(None, ge=1, le=10**12)
    rate_limit: RateLimit | None = None


@dataclass
class TokenBucket:
    """A bucket of at most `burst` tokens that gains `per_s` a second; full at first."""

    per_s: float
    burst: float
    held: float = 0.0
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.held = self.burst

    def fill(self, now_s: float) -> None:
        """Bring what it holds up to date."""
        self.held = min(self.burst, self.held + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
