"""Key-value blocks of an attention rank, and the prefix cache that keeps them after use.

A pool is counted in bytes so that layers with a sliding window, which stop growing at the window,
share it with layers that do not. A prefix block (say 512 tokens of prompt that other requests may
start with too) is in one of three states: absent (refs -1), idle (0: evictable, in least-recently-
used order) or held (number of requests). Sources: vLLM v1 `kv_cache_manager.py`, `block_pool.py`.

`s` is a State, `g` an attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.state import NOBODY


@hot
def blocks_of(rules: Any, tokens: int) -> int:
    """Cache blocks that hold `tokens` tokens."""
    return (tokens + rules.block_tokens - 1) // rules.block_tokens


@hot
def bytes_of(rules: Any, blocks: int) -> int:
    """Bytes of a request with `blocks` blocks over all layers of a rank, its state included."""
    if blocks == 0:
        return 0
    windowed = min(blocks, rules.window_blocks) * rules.window_block_bytes
    return rules.state_bytes + blocks * rules.block_bytes + windowed


@inner
def prefix_block_bytes(rules: Any) -> int:
    """Bytes of one cached prefix block; its windowed layers are not kept."""
    return (rules.prefix_block_tokens // rules.block_tokens) * rules.block_bytes


@inner
def _unlink_idle(s: Any, g: int, block: int) -> None:
    """Take a block out of the idle list of its rank."""
    before, after = s.prefix_prev[g, block], s.prefix_next[g, block]
    if before == NOBODY:
        s.ranks[g].idle_head = after
    else:
        s.prefix_next[g, before] = after
    if after == NOBODY:
        s.ranks[g].idle_tail = before
    else:
        s.prefix_prev[g, after] = before


@inner
def _append_idle(s: Any, g: int, block: int) -> None:
    """Put a block at the recently-used end of the idle list."""
    tail = s.ranks[g].idle_tail
    s.prefix_prev[g, block] = tail
    s.prefix_next[g, block] = NOBODY
    if tail == NOBODY:
        s.ranks[g].idle_head = block
    else:
        s.prefix_next[g, tail] = block
    s.ranks[g].idle_tail = block


@inner
def make_room(s: Any, g: int, need_bytes: int) -> bool:
    """Evict idle prefix blocks, oldest first, until `need_bytes` are free; False if in vain."""
    rank = s.ranks[g]
    if rank.kv_free_bytes + rank.kv_idle_bytes < need_bytes:
        return False
    size = prefix_block_bytes(s.rules[0])
    while rank.kv_free_bytes < need_bytes:
        block = rank.idle_head
        _unlink_idle(s, g, block)
        s.prefix_refs[g, block] = -1
        if rank.evictions < s.evicted.shape[1]:
            s.evicted[g, rank.evictions] = block
            rank.evictions += 1
        rank.kv_idle_bytes -= size
        rank.kv_free_bytes += size
    return True


@inner
def growth_bytes(s: Any, r: int, tokens: int) -> int:
    """Bytes that request r needs beyond what it holds, to cache its first `tokens` tokens."""
    rules = s.rules[0]
    held = s.requests[r].blocks
    if tokens <= held * rules.block_tokens:  # without the division: this is asked for every token
        return 0
    return bytes_of(rules, blocks_of(rules, tokens)) - bytes_of(rules, held)


@inner
def grow(s: Any, g: int, r: int, tokens: int) -> bool:
    """Give request r the blocks for its first `tokens` tokens; False if there is no room."""
    need = growth_bytes(s, r, tokens)
    if need == 0:
        return True
    if not make_room(s, g, need):
        return False
    s.ranks[g].kv_free_bytes -= need
    blocks = blocks_of(s.rules[0], tokens)
    s.ranks[g].taken_blocks += blocks - s.requests[r].blocks
    s.requests[r].blocks = blocks
    return True


@inner
def cached_prefix(s: Any, g: int, r: int) -> int:
    """Leading prefix blocks of request r that rank g has; at least one token is left to compute."""
    rules = s.rules[0]
    request = s.requests[r]
    if rules.prefix_block_tokens == 0 or request.prefix_count == 0:
        return 0
    most = min(request.prefix_count, (request.prompt_tokens - 1) // rules.prefix_block_tokens)
    found = 0
    while found < most and s.prefix_refs[g, s.prefix_blocks[request.prefix_start + found]] >= 0:
        found += 1
    return found


@inner
def spare_bytes(s: Any, g: int, r: int, found: int, tokens: int) -> int:
    """Bytes that rank g would have left with `tokens` tokens of waiting request r, sharing `found`
    blocks; negative where they do not fit."""
    rules = s.rules[0]
    request = s.requests[r]
    size = prefix_block_bytes(rules)
    need = bytes_of(rules, blocks_of(rules, tokens))
    room = s.ranks[g].kv_free_bytes + s.ranks[g].kv_idle_bytes
    for i in range(found):
        need -= size
        if s.prefix_refs[g, s.prefix_blocks[request.prefix_start + i]] == 0:
            room -= size
    return room - need


@inner
def hold_prefix(s: Any, g: int, r: int, count: int) -> None:
    """Let request r, which holds nothing, start from `count` cached prefix blocks.

    Only where `spare_bytes` allows it: windowed layers and state are the request's own.
    """
    rules = s.rules[0]
    request = s.requests[r]
    size = prefix_block_bytes(rules)
    for i in range(count):
        block = s.prefix_blocks[request.prefix_start + i]
        if s.prefix_refs[g, block] == 0:
            _unlink_idle(s, g, block)
            s.ranks[g].kv_idle_bytes -= size
        s.prefix_refs[g, block] += 1
    tokens = count * rules.prefix_block_tokens
    request.shared = count
    request.computed = tokens
    request.blocks = tokens // rules.block_tokens
    own = bytes_of(rules, request.blocks) - count * size
    make_room(s, g, own)
    s.ranks[g].kv_free_bytes -= own


@inner
def recall(s: Any, g: int, r: int) -> None:
    """Give waiting request r, preempted before, those of its old blocks that are still free.

    vLLM's block pool takes free blocks in the order in which they were freed, and a request's are
    freed from its last to its first (`block_pool.py`, `free_blocks`): what is left is its
    beginning. At least one token is left to compute.
    """
    rules = s.rules[0]
    request = s.requests[r]
    rank = s.ranks[g]
    if rules.recall == 0 or request.freed_blocks == 0:
        return
    overwritten = min(max(0, rank.taken_blocks - request.freed_at), request.freed_blocks)
    most = (request.prompt_tokens + request.generated - 1) // rules.block_tokens
    found = min(request.freed_blocks - overwritten, request.freed_full, most)
    request.freed_blocks = 0
    if found <= 0:
        return
    request.blocks = found
    request.computed = found * rules.block_tokens
    rank.kv_free_bytes -= bytes_of(rules, found)
    rank.freed_blocks -= found  # they leave the line


@inner
def publish_prefix(s: Any, g: int, r: int) -> None:
    """Offer the whole prefix blocks among the computed tokens of request r to others."""
    rules = s.rules[0]
    request = s.requests[r]
    if rules.prefix_block_tokens == 0 or request.shared == request.prefix_count:
        return
    whole = min(request.prefix_count, request.computed // rules.prefix_block_tokens)
    while request.shared < whole:
        block = s.prefix_blocks[request.prefix_start + request.shared]
        if s.prefix_refs[g, block] >= 0:
            # Another request computed it meanwhile: keep one copy.
            size = prefix_block_bytes(rules)
            s.ranks[g].kv_free_bytes += size
            if s.prefix_refs[g, block] == 0:
                _unlink_idle(s, g, block)
                s.ranks[g].kv_idle_bytes -= size
            s.prefix_refs[g, block] += 1
        else:
            s.prefix_refs[g, block] = 1
        request.shared += 1


@inner
def release(s: Any, g: int, r: int) -> None:
    """Take back everything request r holds; shared blocks nobody else holds become idle."""
    rules = s.rules[0]
    request = s.requests[r]
    size = prefix_block_bytes(rules)
    own = bytes_of(rules, request.blocks) - request.shared * size
    s.ranks[g].kv_free_bytes += own
    if rules.recall > 0 and request.shared == 0:
        request.freed_at = s.ranks[g].freed_blocks
        request.freed_blocks = request.blocks
        request.freed_full = request.computed // rules.block_tokens
        s.ranks[g].freed_blocks += request.blocks
    for i in range(request.shared - 1, -1, -1):
        block = s.prefix_blocks[request.prefix_start + i]
        s.prefix_refs[g, block] -= 1
        if s.prefix_refs[g, block] == 0:
            _append_idle(s, g, block)
            s.ranks[g].kv_idle_bytes += size
    request.shared = 0
    request.blocks = 0
    request.computed = 0


@hot
def restore(s: Any, g: int, blocks: Any, fetched: Any) -> int:
    """Put the `fetched` ones among a prompt's leading blocks into the prefix cache, idle.

    What of the others is cached counts as just used. Returns how many now lead without a gap. The
    last block is evicted before the first, as always.
    """
    size = prefix_block_bytes(s.rules[0])
    rank = s.ranks[g]
    held = 0
    while held < blocks.size:
        block = blocks[held]
        if s.prefix_refs[g, block] < 0:
            if not fetched[held] or not make_room(s, g, size):
                break
            rank.kv_free_bytes -= size
            s.prefix_refs[g, block] = 0
        elif s.prefix_refs[g, block] == 0:
            _unlink_idle(s, g, block)
            rank.kv_idle_bytes -= size
        s.prefix_refs[g, block] += 1
        held += 1
    for i in range(held - 1, -1, -1):
        block = blocks[i]
        s.prefix_refs[g, block] -= 1
        if s.prefix_refs[g, block] == 0:
            _append_idle(s, g, block)
            rank.kv_idle_bytes += size
    return held
