"""Sending keys and values from one pool's GPUs to another's, whole or as they are computed.

What is sent at once: the whole prompt when it is computed (`request`), every chunk of it when that
is (`chunk`), or every layer of a chunk as the step goes on (`layer`). Of a step's keys and values
the bytes that exist grow from the end of its first layer to its end, and no more than those can
have been sent. One transfer that begins there, is held to that rate until the step ends and is free
after it ends when transfers of layer after layer would (they queue behind each other). With
bandwidth to spare, only the last layer's bytes remain when the step has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.fabric import Endpoint, gpu, host
from moesim.sim.clock import at
from moesim.sim.state import NOBODY, State, row_dtype
from moesim.sim.transfers import Transfers

HANDED = row_dtype(
    [
        ("prefill_rank", "i4"),  # attention ranks, counted over the replicas of their pool
        ("decode_rank", "i4"),
        ("offered_s", "f8"),  # when it came to the decode pool's queue
        ("reserved_s", "f8"),  # when it had its blocks there
        ("prefilled_s", "f8"),  # when its prompt was computed
        ("sent_s", "f8"),  # when its first transfer began, setup included
        ("landed_s", "f8"),  # when all of its keys and values were there
        ("kv_bytes", "f8"),
        ("local_tokens", "i4"),  # of its prompt, found in the decode pool
        ("sent_tokens", "i4"),  # leading tokens sent, or found there
    ]
)
TIMES = ("offered_s", "reserved_s", "prefilled_s", "sent_s", "landed_s")


class FlowLike(Protocol):
    """A flow of moesim.kv_layout."""

    @property
    def source(self) -> int: ...
    @property
    def target(self) -> int: ...
    def size_bytes(self, tokens: int, window_tokens: int, whole: bool) -> float: ...


@dataclass(frozen=True)
class KVTransfer:
    """How keys and values go from pool to pool.

    `first_token`: who hands out the first output token: `prefill` when it is computed, `transfer`
    the decode pool when it has come with the keys and values, `decode` when that pool has computed
    the last prompt token again. `setup_s` passes before the first byte of each transfer.
    """

    flows: Sequence[FlowLike]
    layers: int = 1
    window: int = 0
    direction: Literal["pull", "push"] = "pull"
    granularity: Literal["request", "chunk", "layer"] = "request"
    first_token: Literal["prefill", "transfer", "decode"] = "transfer"
    setup_s: float = 0.0
    rate_cap: float | None = None  # bytes/s of each flow


@dataclass(frozen=True)
class PoolGPUs:
    """Where a pool lies: its first GPU, and the shape of its replicas."""

    first: int
    ranks: int  # attention ranks of a replica
    tp: int = 1
    stages: int = 1

    def gpu(self, g: int, number: int) -> int:
        """The GPU `number` (stage x tp + t) of attention rank g."""
        k, d = divmod(g, self.ranks)
        stage, t = divmod(number, self.tp)
        return self.first + ((k * self.stages + stage) * self.ranks + d) * self.tp + t


def nothing_handed(requests: int) -> NDArray[Any]:
    """HANDED rows before anything happened."""
    rows = np.zeros(requests, HANDED)
    for name in TIMES:
        rows[name] = np.nan
    for name in ("prefill_rank", "decode_rank"):
        rows[name] = NOBODY
    return rows


@dataclass
class _Moving:
    """What of a request is under way."""

    parts: int = 0
    all_sent: bool = False


class Sending:
    """Moves keys and values; `on_arrival` hears when all that was sent of a request is there."""

    def __init__(
        self,
        transfers: Transfers,
        by: KVTransfer,
        prefill: State,
        places: tuple[PoolGPUs, PoolGPUs],
        handed: NDArray[Any],
    ) -> None:
        self.env: simpy.Environment = transfers.env
        self.transfers = transfers
        self.by = by
        self.state = prefill
        self.places = places
        self.handed = handed
        self.on_arrival: Callable[[int], None] | None = None
        self._moving: dict[int, _Moving] = {}
        self._steps = np.zeros(prefill.replicas.size, np.int64)

    def arrived(self, request: int) -> bool:
        """Whether all of it has been sent and is there."""
        moving = self._moving.get(request)
        return moving is not None and moving.all_sent and moving.parts == 0

    def forget(self, request: int) -> None:
        """It has joined the decode pool."""
        self._moving.pop(request, None)

    def send_whole(self, request: int) -> None:
        """Send the keys and values of a prompt that has been computed."""
        tokens = self._unsent(request, int(self.state.requests[request]["prompt_tokens"]))
        self._send(request, tokens, True, self.env.now, self.env.now)

    def launched(self, k: int, now_s: float) -> None:
        """Replica k of the prefill pool may have launched a step: send what it computes."""
        replica = self.state.replicas[k]
        if replica["steps"] == self._steps[k]:
            return
        self._steps[k] = replica["steps"]
        stages = int(self.state.rules[0]["stages"])
        b = int(replica["oldest"] + replica["in_flight"] - 1) % stages
        end_s = float(self.state.batch_end_s[k, b])
        for d in range(int(self.state.rules[0]["ranks"])):
            size = int(self.state.batch_size[k, b, d])
            for request in self.state.batch_request[k, b, d, :size].tolist():
                row = self.state.requests[request]
                computed, prompt = int(row["computed"]), int(row["prompt_tokens"])
                # What was preempted is computed again, but not sent again.
                if computed > self.handed[request]["sent_tokens"]:
                    tokens = self._unsent(request, computed)
                    self._send(request, tokens, computed == prompt, now_s, end_s)

    def reload(self, request: int, tokens: int) -> None:
        """Bring the keys and values of a preempted request back from its node's host memory."""
        moving = self._moving[request] = _Moving(all_sent=True)
        sizes: dict[int, float] = {}
        for flow in self.by.flows:
            size = flow.size_bytes(tokens, min(tokens, self.by.window), True)
            sizes[flow.target] = sizes.get(flow.target, 0.0) + size
        cluster, rank = self.transfers.fabric.cluster, int(self.handed[request]["decode_rank"])
        for number, size in sizes.items():
            to = self.places[1].gpu(rank, number)
            self._begin(request, moving, host(cluster.node_of(to)), gpu(to), size)

    def _unsent(self, request: int, computed: int) -> int:
        """Tokens before `computed` that nobody has sent and the decode pool lacks."""
        handed = self.handed[request : request + 1]
        before = max(int(handed["sent_tokens"][0]), int(handed["local_tokens"][0]))
        handed["sent_tokens"] = computed
        return max(0, computed - before)

    def _send(self, request: int, tokens: int, last: bool, start_s: float, end_s: float) -> None:
        """Send `tokens` that are computed from `start_s` to `end_s`."""
        moving = self._moving.setdefault(request, _Moving())
        moving.all_sent = moving.all_sent or last
        moving.parts += 1  # until it begins
        begin_s = end_s
        if self.by.granularity == "layer":
            begin_s = start_s + (end_s - start_s) / self.by.layers
        handed = self.handed[request : request + 1]
        if np.isnan(handed["sent_s"][0]):
            handed["sent_s"] = begin_s
        window_tokens = 0
        if last:
            window_tokens = min(int(self.state.requests[request]["prompt_tokens"]), self.by.window)
        sizes = [flow.size_bytes(tokens, window_tokens, last) for flow in self.by.flows]
        handed["kv_bytes"] += sum(sizes)
        step_s = end_s - start_s if begin_s < end_s else 0.0
        self._call(begin_s + self.by.setup_s, partial(self._depart, request, sizes, step_s, end_s))

    def _depart(self, request: int, sizes: list[float], step_s: float, end_s: float) -> None:
        moving = self._moving[request]
        row = self.handed[request]
        for flow, size in zip(self.by.flows, sizes, strict=True):
            source = gpu(self.places[0].gpu(int(row["prefill_rank"]), flow.source))
            target = gpu(self.places[1].gpu(int(row["decode_rank"]), flow.target))
            if size > 0.0:
                self._begin(request, moving, source, target, size, step_s, end_s)
        self._part_arrived(request, None)

    def _begin(
        self,
        request: int,
        moving: _Moving,
        source: Endpoint,
        target: Endpoint,
        size: float,
        step_s: float = 0.0,
        end_s: float = 0.0,
    ) -> None:
        """Start one flow, no faster than a step of `step_s` computes it until the step's end."""
        cap = self.by.rate_cap
        if step_s > 0.0:
            made = size / step_s
            transfer = self.transfers.begin(
                source, target, size, made if cap is None else min(made, cap)
            )
            self._call(end_s + self.by.setup_s, partial(self.transfers.cap, transfer, cap))
        else:
            transfer = self.transfers.begin(source, target, size, cap)
        moving.parts += 1
        assert transfer.arrived.callbacks is not None
        transfer.arrived.callbacks.append(partial(self._part_arrived, request))

    def _part_arrived(self, request: int, event: simpy.Event | None) -> None:
        self._moving[request].parts -= 1
        if self.arrived(request):
            assert self.on_arrival is not None
            self.on_arrival(request)

    def _call(self, time_s: float, then: Callable[[], None]) -> None:
        event = at(self.env, time_s)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: then())
