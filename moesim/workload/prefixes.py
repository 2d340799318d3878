"""Which leading blocks of a prompt are the same as another prompt's.

Legend: N requests, M listed blocks, T trace rows. Block ids are lists of lists stored flat:
request n owns `ids_M[start_N1[n] : start_N1[n + 1]]`, from the first token of its prompt onwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from moesim.errors import InputError
from moesim.spec import Spec
from moesim.workload.lengths import Tokens, no_flag, or_short

# An id takes about 40 bytes while lists of them are drawn.
MAX_BLOCKS = 50_000_000

Starts = NDArray[np.int64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Flat lists of prefix block ids; `block_tokens` 0 means that nothing is shared."""

    start_N1: Starts
    ids_M: Ids
    block_tokens: int

    def __len__(self) -> int:
        return len(self.start_N1) - 1


def no_prefixes(requests: int) -> Prefixes:
    """Requests that share nothing."""
    return Prefixes(np.zeros(requests + 1, np.int64), np.zeros(0, np.int64), 0)


def take(prefixes: Prefixes, rows_N: NDArray[np.int64]) -> Prefixes:
    """The lists of the given rows, in that order; a row may be taken more than once."""
    count_N = np.diff(prefixes.start_N1)[rows_N]
    start_N1 = np.concatenate([[0], np.cumsum(count_N)])
    if start_N1[-1] > MAX_BLOCKS:
        raise InputError("workload.requests", f"must list at most {MAX_BLOCKS} prefix blocks")
    inside_M = np.arange(start_N1[-1]) - np.repeat(start_N1[:-1], count_N)
    ids_M = prefixes.ids_M[np.repeat(prefixes.start_N1[rows_N], count_N) + inside_M]
    return Prefixes(start_N1, ids_M, prefixes.block_tokens)


def whole_blocks(prefixes: Prefixes, prompt_tokens_N: NDArray[np.int32]) -> Prefixes:
    """Without the blocks that a prompt does not fill: only full blocks can be cached."""
    if prefixes.block_tokens == 0:
        return prefixes
    count_N = np.diff(prefixes.start_N1)
    kept_N = np.minimum(count_N, prompt_tokens_N // prefixes.block_tokens)
    inside_M = np.arange(len(prefixes.ids_M)) - np.repeat(prefixes.start_N1[:-1], count_N)
    ids_M = prefixes.ids_M[inside_M < np.repeat(kept_N, count_N)]
    return Prefixes(np.concatenate([[0], np.cumsum(kept_N)]), ids_M, prefixes.block_tokens)


def resample(prefixes: Prefixes, rows_N: NDArray[np.int64]) -> Prefixes:
    """The lists of rows drawn with replacement, where a repeated row does not match itself.

    Ids must be dense (`renumber`). A block that only one row of the trace holds gets a new id at
    every draw, else two draws of one row would find the whole prompt in the cache. Blocks that rows
    share keep their ids.
    """
    taken = take(prefixes, rows_N)
    uses_U = np.bincount(prefixes.ids_M)
    once_M = uses_U[taken.ids_M] == 1
    fresh_M = len(uses_U) + np.arange(len(taken.ids_M))
    return Prefixes(taken.start_N1, np.where(once_M, fresh_M, taken.ids_M), taken.block_tokens)


def renumber(ids_M: Ids) -> NDArray[np.int32]:
    """The same equalities with ids 0, 1, 2, ... in order of first use."""
    _, first_U, place_M = np.unique(ids_M, return_index=True, return_inverse=True)
    order_U = np.empty(len(first_U), np.int32)
    order_U[np.argsort(first_U)] = np.arange(len(first_U), dtype=np.int32)
    return order_U[place_M]


class SharedPrefix(Spec):
    """A `fraction` of the requests start with one of `prefixes` texts of `tokens` tokens.

    The text is part of the drawn prompt: a prompt shorter than it shares what it has. With one
    text it is a system prompt (``shared_prefix: 512``); with many, documents that are asked about
    again. Which text a request has is uniform.
    """

    model_config = ConfigDict(json_schema_extra=or_short({"type": "integer", "minimum": 1}))

    tokens: Tokens
    prefixes: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(no_flag)] = 1
    fraction: Annotated[float, Field(gt=0, le=1), BeforeValidator(no_flag)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: object) -> object:
        return data if isinstance(data, Mapping | Spec) else {"tokens": data}

    @property
    def block_tokens(self) -> int:
        """The largest block of 16 to 512 tokens that divides `tokens`; 16 where none does.

        16 tokens is the KV block of vLLM and 512 the block of the Mooncake traces: as fine as an
        engine can match, as few ids as possible.
        """
        block = int(np.gcd(self.tokens, 512))
        return block if block >= 16 else 16

    def starts(
        self, quantile_N: NDArray[np.float64], prompt_tokens_N: NDArray[np.int32]
    ) -> Prefixes:
        """The blocks that each prompt shares; `quantile_N` in [0, 1) decides which text it has."""
        block_tokens = self.block_tokens
        has_text_N = quantile_N < self.fraction
        text_N = (quantile_N / self.fraction * self.prefixes).astype(np.int64)
        shared_N = np.where(has_text_N, np.minimum(self.tokens, prompt_tokens_N) // block_tokens, 0)
        start_N1 = np.concatenate([[0], np.cumsum(shared_N)])
        if start_N1[-1] > MAX_BLOCKS:
            rule = f"must list at most {MAX_BLOCKS} blocks of {block_tokens} tokens"
            raise InputError("workload.shared_prefix.tokens", rule, self.tokens)
        inside_M = np.arange(start_N1[-1]) - np.repeat(start_N1[:-1], shared_N)
        text_N = np.minimum(text_N, self.prefixes - 1)
        ids_M = np.repeat(text_N, shared_N) * (self.tokens // block_tokens) + inside_M
        return Prefixes(start_N1, ids_M, block_tokens)
