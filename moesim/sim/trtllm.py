"""TensorRT-LLM's in-flight batching: a token of every running request, then whole prompts.

Source: TensorRT-LLM 1.2, PyTorch backend, `tensorrt_llm/_torch/pyexecutor/`:
`scheduler/scheduler.py` (GuaranteedNoEvictPolicy, PyMicroBatchScheduler) and `py_executor.py`
(_schedule, _waiting_requests, _balance_adp_requests).
`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.kvcache import cached_prefix, grow, growth_bytes, spare_bytes
from moesim.sim.queues import add_to_batch, admit, tokens_due
from moesim.sim.state import NOBODY


@inner
def _declared_tokens(s: Any, r: int) -> int:
    """Tokens whose keys and values request r may come to need."""
    request = s.requests[r]
    declared = request.prompt_tokens + request.max_output_tokens + s.rules[0].drafts
    if s.rules[0].max_context > 0:
        return min(declared, s.rules[0].max_context)
    return declared


@inner
def _unpromised_bytes(s: Any, g: int) -> int:
    """Bytes of rank g that its running requests will not need, whatever they come to declare."""
    rank = s.ranks[g]
    room = rank.kv_free_bytes + rank.kv_idle_bytes
    for i in range(rank.running):
        r = s.running[g, i]
        room -= growth_bytes(s, r, _declared_tokens(s, r))
    return room


@inner
def _piece(rules: Any, tokens: int, left: int) -> int:
    """Of `tokens` prompt tokens those that `left` has room for: all, or whole blocks of them."""
    if tokens <= left:
        return tokens
    if rules.chunked_prefill == 0:
        return 0
    return left // rules.block_tokens * rules.block_tokens


@inner
def _prompts(s: Any, k: int, b: int, d: int, start: bool) -> Any:
    """(requests, tokens) of the prompts that this step has room for, in order of arrival.

    They are put into the batch if `start`. A request enters if the blocks of its prompt and of all
    the output that it declares remain when every running request has had its own
    (GUARANTEED_NO_EVICT), so nobody is ever preempted. One alone enters in any case.
    """
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    left = rules.token_budget - s.batch_size[k, b, d] * (1 + rules.drafts)
    found_requests = 0
    found_tokens = 0
    if rules.chunked_prefill > 0:
        for i in range(rank.running):
            r = s.running[g, i]
            if s.requests[r].computed >= s.requests[r].prompt_tokens:
                continue
            granted = _piece(rules, tokens_due(s, r), left)
            if granted == 0:
                return found_requests, found_tokens
            if start and grow(s, g, r, s.requests[r].computed + granted):
                add_to_batch(s, k, b, d, r, granted)
            left -= granted
            found_requests += 1
            found_tokens += granted
    r = rank.head
    running = rank.running
    if r == NOBODY or running >= rules.max_running:
        return found_requests, found_tokens
    room = _unpromised_bytes(s, g)
    while r != NOBODY and running < rules.max_running:
        after = s.requests[r].next
        found = cached_prefix(s, g, r)
        due = s.requests[r].prompt_tokens - found * rules.prefix_block_tokens
        granted = _piece(rules, due, left)
        spare = spare_bytes(s, g, r, found, _declared_tokens(s, r))
        room += spare - rank.kv_free_bytes - rank.kv_idle_bytes
        if granted == 0 or (room < 0 and running > 0):
            break
        if start:
            if admit(s, g, r, granted) == 0:
                break
            add_to_batch(s, k, b, d, r, granted)
        running += 1
        left -= granted
        found_requests += 1
        found_tokens += granted
        if granted < due:
            break
        r = after
    return found_requests, found_tokens


@inner
def _generate(s: Any, k: int, b: int, d: int) -> None:
    """One token of every request whose prompt is computed."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    for i in range(s.ranks[g].running):
        r = s.running[g, i]
        request = s.requests[r]
        if request.computed < request.prompt_tokens or tokens_due(s, r) == 0:
            continue
        if (s.batch_size[k, b, d] + 1) * (1 + rules.drafts) > rules.token_budget:
            return
        if grow(s, g, r, request.computed + 1 + rules.drafts):
            add_to_batch(s, k, b, d, r, 1 + rules.drafts)


@inner
def _gathers(s: Any, k: int, b: int) -> bool:
    """Whether prompts are held back until more have come (`_waiting_requests`).

    They are while requests generate and the step would not reach wait_token_ratio of the budget,
    but for no more than wait_iters steps. Either at 0 lets every prompt pass.
    """
    rules = s.rules[0]
    replica = s.replicas[k]
    if rules.wait_iters == 0 or rules.wait_token_ratio == 0.0:
        return False
    generating = s.batch_size[k, b, 0]
    requests, tokens = _prompts(s, k, b, 0, False)
    if generating == 0 or requests == 0:
        return False
    enough = tokens + generating >= rules.wait_token_ratio * rules.token_budget
    if enough or replica.held_steps >= rules.wait_iters:
        replica.held_steps = 0
        return False
    replica.held_steps += 1
    return True


@inner
def _evens_out(s: Any, k: int, b: int) -> bool:
    """Whether prompts are held back until every attention rank has one (`_balance_adp_requests`).

    No more than timeout_iters steps; and where all have one, still batching_wait_iters steps for
    more to come. A rank with nothing to do counts as generating: it runs a dummy request.
    """
    rules = s.rules[0]
    replica = s.replicas[k]
    all_prompts = True
    all_generate = True
    for d in range(rules.ranks):
        rank = s.ranks[k * rules.ranks + d]
        generating = s.batch_size[k, b, d]
        if generating == 0 and rank.running + rank.waiting > 0:
            all_generate = False
        requests, _ = _prompts(s, k, b, d, False)
        if requests == 0 or generating >= rules.max_running:
            all_prompts = False
    if all_prompts:
        replica.held_steps = 0
        if all_generate and replica.gathering_steps < rules.batching_wait_iters:
            replica.gathering_steps += 1
            return True
        if all_generate:
            replica.gathering_steps = 0
        return False
    replica.held_steps += 1
    if all_generate and replica.held_steps < rules.timeout_iters:
        return True
    replica.held_steps = 0
    return False


@inner
def in_flight(s: Any, k: int, b: int) -> None:
    """TensorRT-LLM: every running request goes on, and prompts join unless they are held back."""
    rules = s.rules[0]
    for d in range(rules.ranks):
        _generate(s, k, b, d)
    # With attention data parallelism only the balancing of ranks holds prompts back.
    if rules.ranks == 1 and _gathers(s, k, b):
        return
    if rules.ranks > 1 and rules.balance_ranks > 0 and _evens_out(s, k, b):
        return
    for d in range(rules.ranks):
        _prompts(s, k, b, d, True)
