"""SGLang: prompts first and apart from decode; output still to come is expected, not reserved.

Source: SGLang `managers/schedule_policy.py` (PrefillAdder), `schedule_batch.py` (retract_decode),
`scheduler_recv_skipper.py` (SchedulerRecvSkipper), `prefill_delayer.py` (PrefillDelayer).
`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.kvcache import cached_prefix, grow, growth_bytes, spare_bytes
from moesim.sim.order import favour_least_served
from moesim.sim.queues import add_to_batch, admit, preempt, receive, tokens_due
from moesim.sim.speculation import with_drafts
from moesim.sim.state import LEAST_SERVED, NOBODY

# What a step counts for towards the next look for requests: SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_*
# (`environ.py`, SGLang 0.5.23). DECODE 1; DEFAULT, which is every step with prompts, 1,000.
DECODE_WEIGHT, PROMPTS_WEIGHT = 1, 1000


@inner
def _output_to_come(s: Any, r: int) -> int:
    request = s.requests[r]
    left = request.max_output_tokens - request.generated
    return max(0, min(left, s.rules[0].clip_output_tokens))


@inner
def _decodes(s: Any, g: int, r: int) -> bool:
    """Whether running request r is due one more output token (not a chunk, not in flight)."""
    return r != s.ranks[g].chunked and tokens_due(s, r) > 0


@inner
def _decode_growth_bytes(s: Any, g: int) -> int:
    """Bytes that one token of every request of rank g needs, and its drafts."""
    need = 0
    for i in range(s.ranks[g].running):
        r = s.running[g, i]
        if _decodes(s, g, r):
            need += growth_bytes(s, r, s.requests[r].computed + with_drafts(s, r, 1))
    return need


@inner
def _continue_chunk(s: Any, k: int, b: int, d: int, most: int) -> int:
    """SGLang: the next chunk of the prompt under way, `most` tokens of it; tokens granted."""
    g = k * s.rules[0].ranks + d
    rank = s.ranks[g]
    r = rank.chunked
    due = tokens_due(s, r)
    granted = min(due, most)
    if not grow(s, g, r, s.requests[r].computed + granted):
        return 0
    add_to_batch(s, k, b, d, r, granted)
    if granted == due:
        rank.chunked = NOBODY
    return granted


@inner
def _prefill_batch(s: Any, k: int, b: int, d: int, delayed: bool) -> None:
    """SGLang: the prompt under way in chunks, then waiting ones while memory should do.

    None of those is let in where all ranks wait for each other (`delayed`).
    """
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    # Output still to come of running requests, expected in part; of new ones, in full.
    expected = 0.0
    chunk_left = rules.token_budget
    input_left = rules.max_prefill_tokens
    for i in range(rank.running):
        r = s.running[g, i]
        if r == rank.chunked:
            expected += _output_to_come(s, r)
        else:
            expected += _output_to_come(s, r) * rank.new_token_ratio
        if rules.mixed_chunk and _decodes(s, g, r):
            chunk_left -= 1
            input_left -= 1
    if rank.chunked != NOBODY and chunk_left > 0:
        granted = _continue_chunk(s, k, b, d, chunk_left)
        chunk_left -= granted
        input_left -= granted
    if rank.chunked != NOBODY or delayed:
        return
    token_bytes = rules.block_bytes // rules.block_tokens
    while chunk_left > 0 and input_left > 0 and rank.waiting > 0:
        if rank.running >= rules.max_running:
            return
        if rules.queue_order == LEAST_SERVED:
            favour_least_served(s, g)
        r = rank.head
        request = s.requests[r]
        to_come = _output_to_come(s, r)
        whole = request.prompt_tokens + request.generated + to_come
        spare = spare_bytes(s, g, r, cached_prefix(s, g, r), whole)
        # A request alone enters even if it declares more than fits, or it would wait for ever.
        if spare <= int(expected) * token_bytes and rank.running > 0:
            return
        due = request.prompt_tokens + request.generated
        granted = admit(s, g, r, chunk_left)
        if granted == 0:
            return
        add_to_batch(s, k, b, d, r, granted)
        chunk_left -= granted
        input_left -= granted
        expected += to_come
        if request.computed < due:
            rank.chunked = r
            return


@inner
def _victim(s: Any, g: int) -> int:
    """SGLang: position of the decoding request with least output (tie: longest prompt, latest).

    The prompt under way in chunks goes where only one decoding request is left, else NOBODY.
    """
    rank = s.ranks[g]
    worst = NOBODY
    chunked = NOBODY
    decoding = 0
    for i in range(rank.running):
        r = s.running[g, i]
        if s.requests[r].in_flight > 0:
            continue
        if r == rank.chunked:
            chunked = i
            continue
        decoding += 1
        if worst == NOBODY:
            worst = i
            continue
        least = s.requests[s.running[g, worst]]
        if s.requests[r].generated < least.generated or (
            s.requests[r].generated == least.generated
            and s.requests[r].prompt_tokens >= least.prompt_tokens
        ):
            worst = i
    return worst if decoding > 1 else chunked


@inner
def _retract(s: Any, g: int) -> None:
    """SGLang out of memory: keep requests with most output, send the others back one by one."""
    rank = s.ranks[g]
    while _decode_growth_bytes(s, g) > rank.kv_free_bytes + rank.kv_idle_bytes:
        victim = _victim(s, g)
        if victim == NOBODY:
            break
        preempt(s, g, victim, False)
    decoded = 0
    declared = 0
    for i in range(rank.running):
        request = s.requests[s.running[g, i]]
        decoded += request.generated
        declared += request.max_output_tokens
    rank.new_token_ratio = min(1.0, (decoded + 20.0 * rank.running) / (declared + 1.0))


@inner
def _decode_batch(s: Any, k: int, b: int, d: int) -> None:
    """SGLang: one token of every decoding request, fewer requests if memory is short."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    if _decode_growth_bytes(s, g) > rank.kv_free_bytes + rank.kv_idle_bytes:
        _retract(s, g)
    else:
        rank.new_token_ratio = max(rules.ratio_floor, rank.new_token_ratio - rules.ratio_decay)
    for i in range(rank.running):
        r = s.running[g, i]
        n = with_drafts(s, r, 1)
        if _decodes(s, g, r) and grow(s, g, r, s.requests[r].computed + n):
            add_to_batch(s, k, b, d, r, n)


@inner
def _look_for_requests(s: Any, k: int) -> None:
    """Receive what has come if the steps since the last look weigh enough, or none is under way.

    A scheduler with nothing to do looks again and again (weight NONE 1): it goes through any
    interval in no time.
    """
    rules = s.rules[0]
    replica = s.replicas[k]
    idle = True
    for d in range(rules.ranks):
        rank = s.ranks[k * rules.ranks + d]
        idle = idle and rank.running + rank.waiting == 0
    if idle or replica.unread_steps >= rules.recv_interval:
        replica.unread_steps = 0
        for d in range(rules.ranks):
            receive(s, k * rules.ranks + d)


@inner
def _delays_prompts(s: Any, k: int) -> bool:
    """Whether waiting prompts are held back because some rank has none (PrefillDelayer).

    For delay_passes steps at most, counting the one in which they are let in; not while a rank
    that has one uses less than delay_low_usage of its KV cache; and not where nobody computes, as
    an idle scheduler goes through any number of passes in no time.
    """
    rules = s.rules[0]
    replica = s.replicas[k]
    if rules.delay_passes == 0 or rules.ranks == 1:
        return False
    with_prompts = 0
    computing = 0
    low = False
    for d in range(rules.ranks):
        rank = s.ranks[k * rules.ranks + d]
        computing += rank.running
        if rank.waiting > 0 and rank.running < rules.max_running:
            with_prompts += 1
            free = rank.kv_free_bytes + rank.kv_idle_bytes
            low = low or free > (1.0 - rules.delay_low_usage) * rules.kv_capacity_bytes
    mixed = 0 < with_prompts < rules.ranks and computing > 0
    if not mixed or low or replica.held_steps >= rules.delay_passes - 1:
        replica.held_steps = 0
        return False
    replica.held_steps += 1
    return True


@inner
def prefill_first(s: Any, k: int, b: int) -> None:
    """SGLang: on each rank a prefill batch if one can be made, else decode; both if mixed."""
    rules = s.rules[0]
    _look_for_requests(s, k)
    delayed = _delays_prompts(s, k)
    weight = 0
    for d in range(rules.ranks):
        _prefill_batch(s, k, b, d, delayed)
        if s.batch_size[k, b, d] > 0:
            weight = PROMPTS_WEIGHT
        if s.batch_size[k, b, d] == 0 or rules.mixed_chunk:
            _decode_batch(s, k, b, d)
        if s.batch_size[k, b, d] > 0:
            weight = max(weight, DECODE_WEIGHT)
    s.replicas[k].unread_steps += weight
