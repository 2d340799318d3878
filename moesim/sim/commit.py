"""Ending a step: output tokens are handed out, finished requests leave."""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.kvcache import release
from moesim.sim.queues import tokens_due
from moesim.sim.speculation import accepted_drafts, drafts_in_flight
from moesim.sim.state import COMPLETED, DONE_FILLED, LEAST_SERVED
from moesim.sim.token_times import count_gaps, note_tokens


@inner
def commit(s: Any, record: Any, k: int) -> int:
    """End the oldest batch of replica k; the number of requests that finished with it."""
    rules = s.rules[0]
    replica = s.replicas[k]
    b = replica.oldest
    now = s.batch_end_s[k, b]
    finished = 0
    for d in range(rules.ranks):
        g = k * rules.ranks + d
        left = 0
        for i in range(s.batch_size[k, b, d]):
            r = s.batch_request[k, b, d, i]
            request = s.requests[r]
            request.in_flight -= 1
            # No output token while chunks of the prompt are to come, or follow in later batches.
            if request.in_flight > 0 or tokens_due(s, r) > 0:
                continue
            drafts = drafts_in_flight(s, r)
            tokens = 1 + accepted_drafts(s, r, drafts)
            request.computed -= drafts + 1 - tokens  # rejected ones are computed again
            tokens = min(tokens, request.output_tokens - request.generated)
            if rules.queue_order == LEAST_SERVED:
                s.service_GT[g, request.tenant] += tokens * rules.output_weight
            if request.generated == 0:
                request.first_token_s = now
            note_tokens(record, request, r, tokens, now)
            if request.generated == request.output_tokens:
                request.finish_s = now
                request.status = COMPLETED
                count_gaps(record, request, r)
                if rules.keeps_kv == 0:
                    release(s, g, r)
                record.done[record.counters[DONE_FILLED]] = r
                record.counters[DONE_FILLED] += 1
                finished += 1
                left += 1
        s.ranks[g].left = left
        if left > 0:
            kept = 0
            for i in range(s.ranks[g].running):
                r = s.running[g, i]
                if s.requests[r].status != COMPLETED:
                    s.running[g, kept] = r
                    kept += 1
            s.ranks[g].running = kept
    replica.oldest = (b + 1) % rules.stages
    replica.in_flight -= 1
    return finished
