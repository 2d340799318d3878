"""Gate: who is let in, by the limits of moesim.policies.admission."""

from __future__ import annotations

import numpy as np

from moesim.policies.admission import Admission, RateLimit, TokenBucket
from moesim.sim.state import State

IN_FLIGHT = ("waiting", "inbox", "running", "loading")
# Tokens that rounding may cost a bucket: a request every 1 / rate would else miss its turn.
ROUNDING = 1e-9


class Gate:
    """Counts what is in flight at each replica, and what each tenant has used of its rate."""

    def __init__(self, state: State, limits: Admission) -> None:
        self.state = state
        self.limits = limits
        self.buckets: dict[int, list[TokenBucket]] = {}
        self.without_token: dict[int, list[int]] = {}  # replica -> requests in their prefill phase

    def within_rate(self, request: int, now_s: float) -> bool:
        """Whether the request's tenant has enough left; takes it if so."""
        rate = self.limits.rate_limit
        if rate is None:
            return True
        row = self.state.requests[request]
        tenant = int(row["tenant"])
        if tenant not in self.buckets:
            self.buckets[tenant] = _buckets(rate)
        tokens = float(row["prompt_tokens"]) + float(row["max_output_tokens"])
        costs = [1.0] * (rate.requests_per_s is not None)
        costs += [tokens] * (rate.tokens_per_s is not None)
        buckets = self.buckets[tenant]
        for bucket in buckets:
            bucket.fill(now_s)
        if any(bucket.held + ROUNDING < cost for bucket, cost in zip(buckets, costs, strict=True)):
            return False
        for bucket, cost in zip(buckets, costs, strict=True):
            bucket.held -= cost
        return True

    def has_room(self, replica: int) -> bool:
        """Whether a replica takes another request."""
        limits = self.limits
        if limits.max_queued_requests is not None:
            ranks = int(self.state.rules[0]["ranks"])
            rows = self.state.ranks[replica * ranks : (replica + 1) * ranks]
            in_flight = sum(int(rows[name].sum()) for name in IN_FLIGHT)
            if in_flight >= limits.max_queued_requests:
                return False
        if limits.max_queued_tokens is not None:
            requests = self.state.requests
            held = [
                r
                for r in self.without_token.get(replica, [])
                if np.isnan(requests[r]["first_token_s"])
            ]
            self.without_token[replica] = held
            if sum(int(requests[r]["prompt_tokens"]) for r in held) >= limits.max_queued_tokens:
                return False
        return True

    def leave(self, request: int) -> None:
        """A request was taken away from where it had been let in."""
        for held in self.without_token.values():
            if request in held:
                held.remove(request)

    def enter(self, request: int, replica: int) -> None:
        """A request was let in to a replica."""
        if self.limits.max_queued_tokens is not None:
            self.without_token.setdefault(replica, []).append(request)


def _buckets(rate: RateLimit) -> list[TokenBucket]:
    found = []
    if rate.requests_per_s is not None:
        found.append(TokenBucket(rate.requests_per_s, rate.burst_requests))
    if rate.tokens_per_s is not None:
        found.append(TokenBucket(rate.tokens_per_s, rate.burst_tokens or 1.0))
    return found
