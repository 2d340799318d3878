"""Attention time of a batch on each rank: from rates per query-key pair, or from measured kernels.

Both write w.attention_s[d], seconds of one layer of each kind: full, windowed, linear, for the
tokens [first, stop) of the rank's batch; and w.part_tokens[d]. Legend: D attention ranks.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.costs.grids import BATCH, KV_TOKENS, NEW_TOKENS, PREFIX_TOKENS, look_up, position

NEW_SCALE, NEW_POINTS = NEW_TOKENS.scale, NEW_TOKENS.octave_points
PREFIX_SCALE, PREFIX_POINTS = PREFIX_TOKENS.scale, PREFIX_TOKENS.octave_points
BATCH_SCALE, BATCH_POINTS = BATCH.scale, BATCH.octave_points
KV_SCALE, KV_POINTS = KV_TOKENS.scale, KV_TOKENS.octave_points


@inner
def _windowed_pairs(computed: int, tokens: int, window: int) -> float:
    """Query-key pairs of tokens [computed, computed + tokens) that see `window` keys at most."""
    full = max(0, min(tokens, window - computed))  # queries that still see every key
    pairs = 1.0 * full * computed + 0.5 * full * (full + 1)
    return pairs + 1.0 * (tokens - full) * window


@inner
def decodes(request: Any, tokens: int) -> bool:
    """Whether the last `tokens` tokens of a request in a batch are its newest output token, alone
    or with drafts."""
    if tokens == 1:
        # The last prompt token of one whose keys and values came from afar is a batch of decode's.
        return bool(request.computed > request.prompt_tokens - request.landed)
    newest = request.prompt_tokens + request.generated - 1
    return bool(request.generated > 0 and request.computed - tokens == newest)


@inner
def attend(s: Any, c: Any, w: Any, k: int, b: int, d: int, first: int, stop: int) -> None:
    """Attention time per layer of rank d."""
    if c.context_log_s.shape[1] > 0:
        _attend_measured(s, c, w, k, b, d, first, stop)
    else:
        _attend_rated(s, c, w, k, b, d, first, stop)


@inner
def _attend_measured(s: Any, c: Any, w: Any, k: int, b: int, d: int, first: int, stop: int) -> None:
    """Each prompt's chunk by itself, all decoding requests together at their mean length."""
    cost = c.scalars[0]
    at = 0
    requests = 0
    queries = 0
    tokens = 0
    longest = 0
    decoding = 0
    kv_tokens = 0.0
    prefill = False
    for kind in range(3):
        w.attention_s[d, kind] = 0.0
    for i in range(s.batch_size[k, b, d]):
        whole = s.batch_tokens[k, b, d, i]
        skipped = max(0, first - at)
        n = min(whole, stop - at) - skipped
        at += whole
        if n <= 0:
            continue
        request = s.requests[s.batch_request[k, b, d, i]]
        before = request.computed - whole + skipped
        tokens += n
        requests += 1
        longest = max(longest, n)
        if decodes(request, whole):
            decoding += 1
            queries += n
            kv_tokens += before + n
            continue
        prefill = True
        x = position(NEW_SCALE, NEW_POINTS, n)
        y = position(PREFIX_SCALE, PREFIX_POINTS, before)
        if cost.full_layers > 0:
            w.attention_s[d, 0] += look_up(c.context_log_s[0], x, y)
        if cost.window_layers > 0:
            w.attention_s[d, 1] += look_up(c.context_log_s[1], x, y)
        if cost.linear_layers > 0:
            w.attention_s[d, 2] += look_up(c.context_log_s[2], x, y)
    if decoding > 0:
        mean_kv_tokens = kv_tokens / decoding
        # Several queries of a request read its keys and values once: the kernel's time grows as the
        # slower of reading and computing does.
        each = queries / decoding
        once_s = max(cost.kv_token_s, cost.decode_pair_s)
        many = 1.0
        if s.rules[0].expand_drafts > 0:
            decoding = queries
            each = 1.0
        elif each > 1.0 and once_s > 0.0:
            many = max(cost.kv_token_s, each * cost.decode_pair_s) / once_s
        table = c.generation_log_s
        if prefill and c.mixed_log_s.shape[1] > 0:
            table = c.mixed_log_s
        x = position(BATCH_SCALE, BATCH_POINTS, decoding)
        y = position(KV_SCALE, KV_POINTS, mean_kv_tokens)
        if cost.full_layers > 0:
            w.attention_s[d, 0] += look_up(table[0], x, y) * many
        if cost.window_layers > 0:
            w.attention_s[d, 1] += look_up(table[1], x, y) * many
        if cost.linear_layers > 0:
            w.attention_s[d, 2] += look_up(table[2], x, y) * each
    if prefill:
        uneven = longest * requests - tokens
        w.attention_s[d, 0] += uneven * cost.uneven_token_s
    w.part_tokens[d] = tokens


@inner
def _attend_rated(s: Any, c: Any, w: Any, k: int, b: int, d: int, first: int, stop: int) -> None:
    """Attention time per layer of rank d from rates."""
    cost = c.scalars[0]
    at = 0
    requests = 0
    prefill_pairs = 0.0
    prefill_window_pairs = 0.0
    decode_pairs = 0.0
    decode_window_pairs = 0.0
    kv_tokens = 0.0
    kv_window_tokens = 0.0
    tokens = 0
    window = cost.window
    for i in range(s.batch_size[k, b, d]):
        whole = s.batch_tokens[k, b, d, i]
        skipped = max(0, first - at)
        n = min(whole, stop - at) - skipped
        at += whole
        if n <= 0:
            continue
        request = s.requests[s.batch_request[k, b, d, i]]
        computed = request.computed - whole + skipped
        tokens += n
        requests += 1
        kv_tokens += computed + n
        kv_window_tokens += min(computed + n, window + n - 1)
        if s.rules[0].expand_drafts > 0 and decodes(request, whole):
            kv_tokens += (n - 1) * (computed + 0.5 * n)
            kv_window_tokens += (n - 1) * min(computed + 1, window)
        if not decodes(request, whole):
            prefill_pairs += 1.0 * n * computed + 0.5 * n * (n + 1)
            if window > 0:
                prefill_window_pairs += _windowed_pairs(computed, n, window)
        else:
            decode_pairs += n * computed + 0.5 * n * (n + 1)
            for i_new in range(n):
                decode_window_pairs += min(computed + 1 + i_new, window)
    w.part_tokens[d] = tokens
    compute_s = prefill_pairs * cost.prefill_pair_s + decode_pairs * cost.decode_pair_s
    w.attention_s[d, 0] = max(compute_s, kv_tokens * cost.kv_token_s)
    compute_s = (
        prefill_window_pairs * cost.window_prefill_pair_s
        + decode_window_pairs * cost.window_decode_pair_s
    )
    w.attention_s[d, 1] = max(compute_s, kv_window_tokens * cost.window_kv_token_s)
    w.attention_s[d, 2] = requests * cost.state_request_s
