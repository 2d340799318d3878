"""How an engine composes its batches: settings of the compiled policies, and the form of your own.

The compiled policies (sim/schedule.py) follow vLLM v1, SGLang, TensorRT-LLM and a static baseline.
A policy of your own is any callable that takes a `RankView` and returns grants (request, tokens);
the simulator carries them out and checks them. It runs in Python, one step at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.spec import Spec, by_policy
from moesim.units import GIB

MostTokens = Annotated[int, Field(ge=1, le=1_000_000)]
MostRequests = Annotated[int, Field(ge=1, le=65_536)]


class ChunkedPrefill(Spec):
    """vLLM v1: running requests first, then new ones, under one token budget; prompts in chunks.

    `async_scheduling` (vLLM's flag): a step is composed while the one before it computes, so that
    new requests and freed seats wait one step longer. `prefill_interval` is its
    prefill_schedule_interval, which acts with data-parallel attention: prompts are computed on
    every so many steps only, the same ones on all ranks.
    """

    policy: Literal["chunked-prefill"] = "chunked-prefill"
    token_budget: MostTokens | None = None
    max_requests: MostRequests | None = None
    long_prefill_tokens: int = Field(0, ge=0)
    async_scheduling: bool = False
    prefill_interval: int = Field(1, ge=1, le=1_000)


class PrefillFirst(Spec):
    """SGLang: a batch of prompts if one can be made, decode otherwise.

    `recv_interval` is its scheduler-recv-interval: new requests are looked for after so many decode
    steps, and after every step with prompts. `delay_passes` and `delay_low_usage` are those of its
    PrefillDelayer, which acts with data-parallel attention: prompts wait until every rank has one.
    """

    policy: Literal["prefill-first"] = "prefill-first"
    token_budget: MostTokens | None = None  # chunked_prefill_size
    max_requests: MostRequests | None = None
    max_prefill_tokens: MostTokens = 16_384
    mixed_chunk: bool = False
    schedule_conservativeness: float = Field(1.0, gt=0.0, le=10.0)
    recv_interval: int = Field(1, ge=1, le=1_000_000)
    delay_passes: int = Field(0, ge=0, le=1_000_000)  # SGLang: off; 30 where it is on
    delay_low_usage: float = Field(0.0, ge=0.0, le=1.0)


class InFlight(Spec):
    """TensorRT-LLM: every running request goes on, whole prompts join; nobody is preempted.

    `wait_iters` and `wait_token_ratio` are its batch_wait_timeout_iters and
    batch_wait_max_tokens_ratio, which act without attention data parallelism; the last three are
    attention_dp_config's enable_balance, timeout_iters and batching_wait_iters, which act with it.
    """

    policy: Literal["in-flight"] = "in-flight"
    token_budget: MostTokens | None = None  # max_num_tokens
    max_requests: MostRequests | None = None  # max_batch_size
    chunked_prefill: bool = False
    wait_iters: int = Field(0, ge=0, le=1_000_000)
    wait_token_ratio: float = Field(0.0, ge=0.0, le=1.0)
    balance_ranks: bool = False
    timeout_iters: int = Field(50, ge=0, le=1_000_000)
    batching_wait_iters: int = Field(10, ge=0, le=1_000_000)


class Static(Spec):
    """The baseline: a batch starts together and ends together."""

    policy: Literal["static"] = "static"
    max_requests: MostRequests = 8


Batching = Annotated[
    ChunkedPrefill | PrefillFirst | InFlight | Static,
    by_policy("batching policy", ChunkedPrefill, PrefillFirst, InFlight, Static),
]


def default_token_budget(engine: str, gpu_memory_bytes: float, gpu_name: str) -> int:
    """Tokens of a step by GPU memory.

    vLLM 0.33 `get_batch_defaults` (API server): 160 GiB and more 16,384; 70 GiB and more, not
    A100: 8,192; else 2,048. SGLang 0.5.23 chunked_prefill_size: below 20 GB 2,048; below 60 GB
    4,096; below 160 GB 8,192; else 16,384. TensorRT-LLM 1.2 max_num_tokens: 8,192 everywhere.
    """
    if engine == "trtllm":
        return 8_192
    gib = gpu_memory_bytes / GIB
    if engine == "vllm":
        if gib >= 160:
            return 16_384
        return 8_192 if gib >= 70 and not gpu_name.startswith("a100") else 2_048
    if gib < 20:
        return 2_048
    if gib < 60:
        return 4_096
    return 8_192 if gib < 160 else 16_384


def default_max_requests(engine: str, gpu_memory_bytes: float, gpu_name: str) -> int:
    """Requests that run at once: vLLM 1,024 on large GPUs, else 256 (same source); SGLang 1,024.

    TensorRT-LLM 1.2 max_batch_size: 2,048.
    """
    if engine == "trtllm":
        return 2_048
    if engine == "vllm":
        large = gpu_memory_bytes / GIB >= 70 and not gpu_name.startswith("a100")
        return 1_024 if large else 256
    return 1_024


class RequestsView:
    """What an engine knows of some requests, in order; arrays with one entry each.

    They are the policy's own, as they were at the moment of the decision.
    """

    __slots__ = ("_columns",)

    def __init__(
        self,
        request: NDArray[np.int64],
        prompt_tokens: NDArray[np.int64],
        max_output_tokens: NDArray[np.int64],
        computed_tokens: NDArray[np.int64],
        generated_tokens: NDArray[np.int64],
        arrival_s: NDArray[np.float64],
    ) -> None:
        whole = (request, prompt_tokens, max_output_tokens, computed_tokens, generated_tokens)
        columns = [np.asarray(each, np.int64) for each in whole]
        columns.append(np.maximum(0, columns[1] + columns[4] - columns[3]))
        columns.append(np.asarray(arrival_s, np.float64).view(np.int64))
        self._columns: Sequence[NDArray[np.int64]] = columns

    @classmethod
    def of(cls, columns: Sequence[NDArray[np.int64]]) -> RequestsView:
        """From columns in the order of the constructor, `due_tokens` ahead of `arrival_s`, whose
        floats are given as their bits."""
        view = cls.__new__(cls)
        view._columns = columns
        return view

    @property
    def request(self) -> NDArray[np.int64]:
        """What grants name a request by."""
        return self._columns[0]

    @property
    def prompt_tokens(self) -> NDArray[np.int64]:
        """Length of the prompt."""
        return self._columns[1]

    @property
    def max_output_tokens(self) -> NDArray[np.int64]:
        """Most output tokens that were asked for."""
        return self._columns[2]

    @property
    def computed_tokens(self) -> NDArray[np.int64]:
        """Leading tokens in the cache, or computed by the batches in flight."""
        return self._columns[3]

    @property
    def generated_tokens(self) -> NDArray[np.int64]:
        """Output tokens so far."""
        return self._columns[4]

    @property
    def due_tokens(self) -> NDArray[np.int64]:
        """Tokens to grant before the next output token; 0 where the last of them is in flight."""
        return self._columns[5]

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        """When it reached the front end."""
        return self._columns[6].view(np.float64)


class RankView(NamedTuple):
    """An attention rank at the moment it composes a batch."""

    now_s: float
    token_budget: int
    max_requests: int
    kv_free_tokens: int
    running: RequestsView
    waiting: RequestsView


class BatchingPolicy(Protocol):
    """A batching policy written in Python."""

    def __call__(self, view: RankView) -> Iterable[tuple[int, int]]:
        """Grants (request, tokens to compute), in order; waiting requests are admitted by one.

        A grant that memory forbids is passed over. A running request that is granted 0 tokens is
        preempted: it returns to the front of the queue and is computed again later.
        """
