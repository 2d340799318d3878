"""Offload: prefix blocks below the GPU's memory, in host memory and on disk.

A block that the GPU's prefix cache evicts goes to the first tier; what is too much there goes on to
the next, the least recently used first, and is lost behind the last. A request at the front of its
queue whose prompt goes on with blocks from a tier is set aside (sim/fetch.py) until they are back.
Each tier of each attention rank moves one request's blocks after another at its bandwidth; writing
takes no time (the link's other direction). All sizes are of one GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import simpy

from moesim.sim.clock import at
from moesim.sim.fleet import Fleet
from moesim.sim.kvcache import restore
from moesim.sim.state import NOBODY


class KVTierLike(Protocol):
    """One memory below the GPU's."""

    @property
    def name(self) -> str: ...
    @property
    def capacity_bytes(self) -> float: ...
    @property
    def bytes_per_s(self) -> float: ...
    @property
    def latency_s(self) -> float: ...


class Offload:
    """What lies in the tiers of every attention rank, and what is on its way up."""

    def __init__(self, env: simpy.Environment, fleet: Fleet, tiers: Sequence[KVTierLike]) -> None:
        state = fleet.state
        rules = state.rules[0]
        self.env = env
        self.fleet = fleet
        self.state = state
        self.tiers = tiers
        blocks = int(rules["prefix_block_tokens"]) // max(1, int(rules["block_tokens"]))
        self.block_bytes = blocks * int(rules["block_bytes"])
        self.capacity = [int(tier.capacity_bytes // max(1, self.block_bytes)) for tier in tiers]
        ranks = state.ranks.size
        # Dictionaries keep the order of insertion: least recently used first.
        self.held: list[list[dict[int, None]]] = [[{} for _ in tiers] for _ in range(ranks)]
        self.free_s = np.zeros((ranks, len(tiers)))
        self.coming: list[dict[int, float]] = [{} for _ in range(ranks)]
        self.restarts = np.zeros(ranks, np.int64)
        self.loaded_blocks = np.zeros(len(tiers), np.int64)
        self.busy_s = np.zeros(len(tiers))
        fleet.on_evictions = self.collect
        fleet.on_fetch = self._fetch_all

    def _fetch_all(self, replica: int, now_s: float) -> None:
        """Start to fetch for all requests of a replica that were set aside."""
        ranks = int(self.state.rules[0]["ranks"])
        for g in range(replica * ranks, (replica + 1) * ranks):
            asked: list[int] = []
            r = int(self.state.ranks[g]["asked"])
            while r != NOBODY:
                asked.append(r)
                r = int(self.state.requests[r]["next"])
            self.state.ranks[g]["asked"] = NOBODY
            for request in reversed(asked):  # who was first in the queue
                ready_s, fetched = self.fetch(request, g, now_s)
                there = at(self.env, ready_s)
                assert there.callbacks is not None
                came = partial(self._arrive, request, g, fetched, int(self.restarts[g]))
                there.callbacks.append(came)

    def forget(self, g: int) -> None:
        """The engine of rank g has died, and its memories with it."""
        self.restarts[g] += 1
        self.held[g] = [{} for _ in self.tiers]
        self.coming[g] = {}
        self.free_s[g] = self.env.now

    def _arrive(
        self, request: int, g: int, fetched: list[int], restarts: int, there: simpy.Event
    ) -> None:
        if self.restarts[g] != restarts:
            return
        self.land(request, g, fetched)
        self.fleet.rejoin(request, g)

    def collect(self) -> None:
        """Take in what the GPUs have evicted since the last time."""
        for g in range(self.state.ranks.size):
            count = int(self.state.ranks[g]["evictions"])
            for block in self.state.evicted[g, :count].tolist():
                self._put(g, block)
            self.state.ranks[g]["evictions"] = 0

    def _put(self, g: int, block: int) -> None:
        """Into the first tier; each tier hands on what is too much for it."""
        for held in self.held[g]:
            held.pop(block, None)
        self.state.below[g, block] = True
        for held, capacity in zip(self.held[g], self.capacity, strict=True):
            held[block] = None
            if len(held) <= capacity:
                return
            block = next(iter(held))
            del held[block]
        self.state.below[g, block] = False

    def fetch(self, request: int, g: int, now_s: float) -> tuple[float, list[int]]:
        """Start to fetch what rank g lacks of the request's prompt: (when it is there, blocks).

        (now, []) where the tiers have nothing of it. A block that is fetched already is waited for.
        """
        self.collect()
        ready_s = now_s
        taken: list[list[int]] = [[] for _ in self.tiers]
        fetched: list[int] = []
        for block in self._prefix(request):
            if self.state.prefix_refs[g, block] >= 0:
                continue
            if block in self.coming[g]:
                ready_s = max(ready_s, self.coming[g][block])
                fetched.append(block)
                continue
            tier = next((t for t, held in enumerate(self.held[g]) if block in held), None)
            if tier is None:
                break
            del self.held[g][tier][block]
            taken[tier].append(block)
            fetched.append(block)
        for t, blocks in enumerate(taken):
            if blocks:
                there_s = self._move(g, t, len(blocks), now_s)
                self.coming[g].update(dict.fromkeys(blocks, there_s))
                ready_s = max(ready_s, there_s)
        return ready_s, fetched

    def _move(self, g: int, t: int, blocks: int, now_s: float) -> float:
        """When a tier has delivered so many blocks, after what it was asked before."""
        tier = self.tiers[t]
        took_s = tier.latency_s + blocks * self.block_bytes / tier.bytes_per_s
        self.free_s[g, t] = max(now_s, float(self.free_s[g, t])) + took_s
        self.loaded_blocks[t] += blocks
        self.busy_s[t] += took_s
        return float(self.free_s[g, t])

    def land(self, request: int, g: int, fetched: list[int]) -> None:
        """What was fetched joins the prefix cache; what finds no room goes back to the tiers."""
        wanted = set(fetched)
        prefix = np.array(self._prefix(request), np.int32)
        new = np.array([block in wanted for block in prefix.tolist()], np.bool_)
        held = restore(self.state, g, prefix, new)
        self.collect()
        for block in fetched:
            self.coming[g].pop(block, None)
            self.state.below[g, block] = False
            if self.state.prefix_refs[g, block] < 0:
                self._put(g, block)
        block_tokens = int(self.state.rules[0]["prefix_block_tokens"])
        self.state.requests[request]["loaded_tokens"] = int(new[:held].sum()) * block_tokens

    def _prefix(self, request: int) -> list[int]:
        """Prefix blocks that the request could find; at least one token is left to compute."""
        rules, row = self.state.rules[0], self.state.requests[request]
        tokens = int(rules["prefix_block_tokens"])
        if tokens == 0:
            return []
        most = min(int(row["prefix_count"]), (int(row["prompt_tokens"]) - 1) // tokens)
        start = int(row["prefix_start"])
        found: list[int] = self.state.prefix_blocks[start : start + most].tolist()
        return found

    def summary(self) -> dict[str, dict[str, float]]:
        """By tier: prefix blocks and bytes delivered to all ranks, and the time it took."""
        return {
            tier.name: {
                "loaded_blocks": float(self.loaded_blocks[t]),
                "loaded_bytes": float(self.loaded_blocks[t]) * self.block_bytes,
                "busy_s": float(self.busy_s[t]),
            }
            for t, tier in enumerate(self.tiers)
        }
