"""Which routing rows the tokens of a batch take: a second implementation, in plain Python.

Token p of a prompt takes row p of the request's stream of prompt pieces, output token q row q of
its stream of output pieces; a stream is the concatenation of pieces drawn from its domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.sim.replay import Routes
from moesim.sim.speculation import MOST_DRAFTS
from moesim.sim.state import State

if TYPE_CHECKING:
    from moesim.sim.detailed.batch import Piece

Rows = NDArray[np.int64]
_MASK = 2**64 - 1


def hashed(seed: int, request: int, count: int) -> int:
    """64 bits of (seed, request, count): splitmix64 (Steele et al. 2014) on whole numbers."""
    z = seed ^ (request * 0x9E3779B97F4A7C15 & _MASK)
    z = (z + (count + 1) * 0xD1B54A32D192ED03) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


def accepted(state: State, r: int, position: int, drafts: int) -> int:
    """Drafts behind output position `position` that are accepted, up to the first that is not."""
    seed = int(state.rules[0]["draft_seed"])
    for i in range(drafts):
        chance = (hashed(seed, r, position * MOST_DRAFTS + i) >> 11) * 2.0**-53
        if chance >= state.acceptance[i]:
            return i
    return drafts


class Stream:
    """Rows of one request's prompt or output, drawn as far as somebody asked for them."""

    def __init__(
        self,
        seed: int,
        request: int,
        first_Q: NDArray[np.int64],
        rows_Q: NDArray[np.int32],
        pieces: tuple[int, int],  # of its domain: first, stop
    ) -> None:
        self._key = seed, request
        self._first_Q, self._rows_Q = first_Q, rows_Q
        self._pieces = pieces
        self._rows = np.zeros(0, np.int64)
        self._ends: list[int] = []  # position behind each piece drawn

    def take(self, first: int, stop: int) -> Rows:
        """Rows of positions [first, stop)."""
        low, high = self._pieces
        while self._rows.size < stop:
            q = low + hashed(*self._key, len(self._ends)) % (high - low)
            start = int(self._first_Q[q])
            piece = np.arange(start, start + int(self._rows_Q[q]))
            self._rows = np.concatenate([self._rows, piece])
            self._ends.append(self._rows.size)
        return self._rows[first:stop]

    def ahead(self, position: int, offsets: range) -> Rows:
        """Rows so many behind the next one, `position`, or the last of the piece it is in."""
        last = next(end for end in self._ends if end >= position) - 1
        return np.array([self._rows[min(position + i, last)] for i in offsets], np.int64)


class RowWalk:
    """Streams of all requests."""

    def __init__(self, state: State, routes: Routes) -> None:
        self._state = state
        self._routes = routes
        self._streams: dict[tuple[int, bool], Stream] = {}

    def rows(self, piece: Piece) -> Rows:
        """Routing rows of the tokens of a piece of a grant, in order."""
        grant = piece.grant
        request: Any = self._state.requests[grant.request]
        prompt = int(request["prompt_tokens"])
        first, stop = grant.before + piece.first, grant.before + piece.stop
        kept = min(stop, grant.before + grant.kept)
        parts = []
        if first < min(kept, prompt):
            parts.append(self._stream(grant.request, False).take(first, min(kept, prompt)))
        if max(first, prompt) < kept:
            parts.append(
                self._stream(grant.request, True).take(max(first, prompt) - prompt, kept - prompt)
            )
        rejected = stop - max(first, kept)
        if rejected > 0:  # they meet what follows, as the tokens in their place will
            next_one = grant.before + grant.kept - prompt
            stream = self._stream(grant.request, True)
            stream.take(0, next_one)
            parts.append(stream.ahead(next_one, range(rejected)))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _stream(self, r: int, output: bool) -> Stream:
        found = self._streams.get((r, output))
        if found is None:
            of, domain = self._routes, int(self._state.requests["domain"][r])
            seed = int(self._state.rules[0]["seed"])
            start = of.decode_domain_start if output else of.prompt_domain_start
            pieces = int(start[domain]), int(start[domain + 1])
            first = of.decode_first_Q if output else of.prompt_first_Q
            rows = of.decode_rows_Q if output else of.prompt_rows_Q
            found = self._streams[r, output] = Stream(seed, r, first, rows, pieces)
        return found
