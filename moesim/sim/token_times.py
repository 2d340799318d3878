"""When output tokens were handed out: of all requests, or of those under way alone.

Kept whole, a token takes 8 bytes to the end of the run. In a streaming run a request's times lie in
pages while it is under way; when it completes, the gaps between them are counted in bins (sim/
bins.py) and the pages are free for others. A request that begins anew forgets its times: gaps are
those of completed requests, as where all is kept.

Legend: N requests, T output tokens, P pages, B blocks of neighbouring requests. `record` is a
Record, `request` its row, `r` its number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import hot, inner
from moesim.sim.bins import BINS, bin_of
from moesim.sim.state import NOBODY, row_dtype

PAGE = 32  # tokens
# Room for pages; only what is written takes memory. Beyond it, gaps are left out and counted.
MOST_PAGE_BYTES = 1e9

PAGES = row_dtype(
    [
        ("free", "i8"),  # the page freed last; NOBODY without
        ("used", "i8"),  # pages that were ever taken; those behind are untouched
        ("left_out", "i8"),  # gaps that no page was left for
        ("least_s", "f8"),  # gaps that are no longer are none: tokens of one message
    ]
)

# Of the gaps of a block's completed requests, exact: `squares` are those of the distances from
# `mean_s` (Chan, Golub, LeVeque 1983 for adding two of them up).
MOMENTS = row_dtype(
    [
        ("count", "i8"),
        ("mean_s", "f8"),
        ("squares", "f8"),
        ("least_s", "f8"),
        ("most_s", "f8"),
    ]
)


@inner
def note_tokens(record: Any, request: Any, r: int, tokens: int, now: float) -> None:
    """`tokens` more output tokens of request r are handed out now."""
    if record.token_s.size > 0:
        first = request.token_start + request.generated
        for i in range(first, first + tokens):
            record.token_s[i] = now
    elif record.page_N.size > 0:
        for i in range(request.generated, request.generated + tokens):
            if i % PAGE == 0:
                _next_page(record, r)
            if record.page_N[r] >= 0:
                record.page_s[record.page_N[r], i % PAGE] = now
    request.generated += tokens


@inner
def _next_page(record: Any, r: int) -> None:
    """Request r begins a page; it has none any more where no page is left."""
    line = record.page_line[0]
    before = record.page_N[r]
    page = line.free
    if page != NOBODY:
        line.free = record.page_before[page]
    elif line.used < record.page_before.size:
        page = line.used
        line.used += 1
    else:
        _free_pages(record, r)
        return
    record.page_before[page] = before
    record.page_N[r] = page


@inner
def _free_pages(record: Any, r: int) -> None:
    line = record.page_line[0]
    page = record.page_N[r]
    record.page_N[r] = NOBODY
    while page != NOBODY:
        before = record.page_before[page]
        record.page_before[page] = line.free
        line.free = page
        page = before


@inner
def count_gaps(record: Any, request: Any, r: int) -> None:
    """Request r has completed: its gaps are counted, and its pages are free."""
    if record.page_N.size == 0:
        return
    last = request.generated - 1
    page = record.page_N[r]
    if page == NOBODY:
        record.page_line[0].left_out += last
        return
    least_s = record.page_line[0].least_s
    block = record.gap_block_N[r]
    # Distances from a value near their mean keep all digits of the squares.
    near_s = (request.finish_s - request.first_token_s) / max(1, last)
    count = 0
    off_s = 0.0
    squares = 0.0
    row = record.gap_moments_B[block]
    later_s = record.page_s[page, last % PAGE]
    for i in range(last, 0, -1):
        if i % PAGE == 0:
            page = record.page_before[page]
        earlier_s = record.page_s[page, (i - 1) % PAGE]
        gap_s = later_s - earlier_s
        later_s = earlier_s
        if not gap_s > least_s:
            continue
        record.gap_counts_BI[block, bin_of(gap_s)] += 1
        count += 1
        off_s += gap_s - near_s
        squares += (gap_s - near_s) * (gap_s - near_s)
        row.least_s = min(row.least_s, gap_s)
        row.most_s = max(row.most_s, gap_s)
    if count > 0:
        mean_s = near_s + off_s / count
        apart_s = mean_s - row.mean_s
        both = row.count + count
        row.squares += squares - off_s * off_s / count
        row.squares += apart_s * apart_s * row.count * count / both
        row.mean_s += apart_s * count / both
        row.count = both
    _free_pages(record, r)


@hot
def hand_out(record: Any, requests: Any, r: int, tokens: int, now: float) -> None:
    """As `note_tokens`, outside a step."""
    note_tokens(record, requests[r], r, tokens, now)


@hot
def complete(record: Any, requests: Any, r: int) -> None:
    """As `count_gaps`, outside a step."""
    count_gaps(record, requests[r], r)


@hot
def forget_tokens(record: Any, requests: Any, r: int) -> None:
    """Request r begins anew: what was handed out is nobody's."""
    request = requests[r]
    if record.token_s.size > 0:
        for i in range(request.token_start, request.token_start + request.output_tokens):
            record.token_s[i] = np.nan
    elif record.page_N.size > 0:
        _free_pages(record, r)


def kept_times(tokens: int) -> dict[str, NDArray[Any]]:
    """Fields of a Record that keeps the times of so many tokens; 0: of none."""
    return {
        "token_s": np.full(tokens, np.nan),
        "page_s": np.zeros((0, PAGE)),
        "page_before": np.zeros(0, np.int32),
        "page_N": np.zeros(0, np.int32),
        "page_line": np.zeros(1, PAGES),
        "gap_block_N": np.zeros(0, np.uint16),
        "gap_counts_BI": np.zeros((0, BINS), np.int64),
        "gap_moments_B": np.zeros(0, MOMENTS),
    }


def counted_gaps(
    output_tokens_N: NDArray[np.int32], block_start: NDArray[np.int64], least_s: float
) -> dict[str, NDArray[Any]]:
    """Fields of a Record that counts gaps by block of requests.

    `block_start` [B]: the first request of each block. `least_s`: gaps that are no longer are none.
    """
    requests, blocks = output_tokens_N.size, block_start.size
    each = (output_tokens_N.astype(np.int64) + PAGE - 1) // PAGE
    pages = min(int(each.sum()), int(MOST_PAGE_BYTES / (8 * PAGE)))
    line, moments = np.zeros(1, PAGES), np.zeros(blocks, MOMENTS)
    line["free"], line["least_s"] = NOBODY, least_s
    moments["least_s"] = np.inf
    ends = np.append(block_start[1:], requests)
    block_N = np.repeat(np.arange(blocks, dtype=np.uint16), ends - block_start)
    return {
        **kept_times(0),
        "page_s": np.empty((pages, PAGE)),
        "page_before": np.empty(pages, np.int32),
        "page_N": np.full(requests, NOBODY, np.int32),
        "page_line": line,
        "gap_block_N": block_N,
        "gap_counts_BI": np.zeros((blocks, BINS), np.int64),
        "gap_moments_B": moments,
    }
