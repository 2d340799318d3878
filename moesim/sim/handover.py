"""Handover: requests go from the pool that computes prompts to the one that decodes.

Pull (vLLM's NixlConnector, TensorRT-LLM): a request goes to the decode pool when its prompt is
computed; there it takes its blocks when it has come to the front of its queue, and what fills them
is fetched. Until that is there the prefill pool keeps its own: a full decode pool holds up prefill.
Push (SGLang): a request takes its blocks in the decode pool first and only then joins a queue of
the prefill pool, which sends what it has computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import simpy

from moesim.sim.clock import at
from moesim.sim.fleet import Fleet
from moesim.sim.kv_sending import KVTransfer, PoolGPUs, Sending, nothing_handed
from moesim.sim.state import COMPLETED, NOBODY, Record
from moesim.sim.token_times import complete, hand_out
from moesim.sim.transfers import Transfers


class Handover:
    """Two pools, and who of their requests is where. `handed` [N] has a row for each.

    `choose` names an attention rank of the decode pool for a request; `on_end` hears of requests
    that end outside a step of it; `record` holds when output tokens of the decode pool were
    handed out.
    """

    def __init__(
        self,
        prefill: Fleet,
        decode: Fleet,
        transfers: Transfers,
        by: KVTransfer,
        places: tuple[PoolGPUs, PoolGPUs],
        record: Record,
        choose: Callable[[int], int],
    ) -> None:
        self.env = prefill.env
        self.prefill = prefill
        self.decode = decode
        self.by = by
        self.record = record
        self.choose = choose
        self.requests = decode.state.requests
        self.on_end: Callable[[list[int]], None] | None = None
        self.handed = nothing_handed(self.requests.size)
        self.sending = Sending(transfers, by, prefill.state, places, self.handed)
        self.sending.on_arrival = self._arrived
        prefill.on_completion = self._prefilled
        decode.on_fetch = self._set_aside
        if by.granularity != "request":
            prefill.on_launch = self.sending.launched

    def take(self, request: int, rank: int) -> None:
        """A request is to be computed on attention rank `rank` of the prefill pool."""
        self.handed[request]["prefill_rank"] = rank
        # Who comes when another one ends has no arrival before: queues by priority ask for it.
        self.requests[request]["arrival_s"] = self.prefill.state.requests[request]["arrival_s"]
        if self.by.direction == "push":
            self._offer(request)
        else:
            self.prefill.enqueue(request, rank)

    def finish(self) -> None:
        """Requests that never came so far ended in the prefill pool."""
        elsewhere = self.prefill.state.requests["status"] > COMPLETED
        self.requests["status"][elsewhere] = self.prefill.state.requests["status"][elsewhere]

    def _offer(self, request: int) -> None:
        rank = self.choose(request)
        self.handed[request]["decode_rank"] = rank
        self.handed[request]["offered_s"] = self.env.now
        self.decode.enqueue(request, rank)

    def _prefilled(self, done: list[int]) -> None:
        """Prompts have been computed, and the first output token with each."""
        for request in done:
            self.handed[request]["prefilled_s"] = self.env.now
            over = self.by.first_token == "prefill" and self._first_token(request)
            if self.by.direction == "pull":
                if over:
                    self.requests[request]["status"] = COMPLETED
                    self.prefill.let_go(request)
                else:
                    self._offer(request)
            elif self.by.granularity == "request":
                self.sending.send_whole(request)
            else:
                self._arrived(request)

    def _set_aside(self, k: int, time_s: float) -> None:
        """Requests of replica k of the decode pool have taken their blocks at `time_s`."""
        ranks = int(self.decode.state.rules[0]["ranks"])
        asked: list[int] = []
        for g in range(k * ranks, (k + 1) * ranks):
            of_rank: list[int] = []
            request = int(self.decode.state.ranks[g]["asked"])
            while request != NOBODY:
                of_rank.append(request)
                request = int(self.requests[request]["next"])
            self.decode.state.ranks[g]["asked"] = NOBODY
            asked += reversed(of_rank)  # who was first in the queue
        if asked:
            then = at(self.env, time_s)
            assert then.callbacks is not None
            then.callbacks.append(partial(self._reserved, asked))

    def _reserved(self, asked: list[int], event: simpy.Event) -> None:
        for request in asked:
            row, handed = self.requests[request], self.handed[request : request + 1]
            if row["preemptions"] > 0:
                tokens = int(row["prompt_tokens"]) + int(row["generated"]) - 1
                self.sending.reload(request, tokens)
                continue
            handed["reserved_s"] = self.env.now
            handed["local_tokens"] = row["computed"]
            if self.by.direction == "push":
                self.prefill.enqueue(request, int(handed["prefill_rank"][0]))
            else:
                self.sending.send_whole(request)

    def _arrived(self, request: int) -> None:
        """What has been sent of a request is there: if that is all, it joins the decode pool."""
        handed = self.handed[request : request + 1]
        if np.isnan(handed["prefilled_s"][0]) or not self.sending.arrived(request):
            return
        self.sending.forget(request)
        rank = int(handed["decode_rank"][0])
        if self.requests[request]["preemptions"] == 0:
            handed["landed_s"] = self.env.now
            self.prefill.let_go(request)
            if self.by.first_token == "transfer":
                self._first_token(request)
            if not np.isnan(self.requests[request]["finish_s"]):
                self.decode.end_at_landing(request, rank)
                return
        self.decode.land(request, rank)

    def _first_token(self, request: int) -> bool:
        """The first output token is handed out now; whether it is the last as well."""
        row = self.requests[request : request + 1]
        row["first_token_s"] = self.env.now
        hand_out(self.record, self.requests, request, 1, self.env.now)
        if row["output_tokens"][0] > 1:
            return False
        row["finish_s"] = self.env.now
        complete(self.record, self.requests, request)
        if self.on_end is not None:
            self.on_end([request])
        return True
