"""In which order a host issues the work of one pipeline stage to the streams of its GPUs.

One list of items for each GPU's computing stream, and one of meetings for all communicating ones.
What overlaps follows from these orders, and from nothing else:

- none, shared experts: layer by layer; shared experts compute while the stream would wait;
- two batches: attention 0, attention 1, experts 0, experts 1 of each layer (vLLM
  `v1/worker/ubatching.py`);
- five stages: projections; core; send and shared experts; routed experts and send; wait; the
  second half two stages behind (DeepSeek's decode profile, SGLang
  `batch_overlap/operations_strategy.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import simpy

from moesim.sim.cost_tables import ALL_GATHER, ALL_REDUCE, FIVE_STAGE, SHARED_EXPERTS, Costs
from moesim.sim.detailed.batch import Batch
from moesim.sim.detailed.layers import NO_EXPERTS, Layer
from moesim.sim.detailed.links import Collective, Events, Links, Tell
from moesim.sim.detailed.prices import Part, attention_layer_s, reduction
from moesim.sim.detailed.streams import Hidden, Item, Join, Meeting, Post, Wait, Work
from moesim.sim.detailed.traffic import Move

FIVE = 5


@dataclass(frozen=True)
class Site:
    """Where a stage's work is done: replica k, its stage, and who its GPUs are.

    rank_G, expert_G: attention and expert rank of each GPU; slow_D, slow_R: factors of computing.
    """

    env: simpy.Environment
    costs: Costs
    links: Links
    k: int
    stage: int
    rank_G: list[int]
    expert_G: list[int]
    slow_D: list[float]
    slow_R: list[float]
    tell: Tell

    @property
    def gpus(self) -> range:
        return range(len(self.rank_G))

    def members(self, d: int) -> list[int]:
        """GPUs of attention rank d."""
        return [g for g in self.gpus if self.rank_G[g] == d]


@dataclass
class Issue:
    """The work of one stage: items of each GPU, meetings of the communicating streams."""

    site: Site
    batch: Batch
    parts: list[Part]
    items_G: list[list[Item]] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    _dispatched: dict[int, Meeting] = field(default_factory=dict)  # of each half: the last
    _arriving: list[Meeting | None] = field(default_factory=list)  # its last combine

    def __post_init__(self) -> None:
        self.items_G = [[] for _ in self.site.gpus]
        self._arriving = [None] * len(self.parts)

    def layers(self, layers: list[Layer]) -> None:
        """Issue all layers of the stage."""
        if self.batch.overlap == FIVE_STAGE:
            self._five_stages(layers)
        else:
            for layer in layers:
                for half in range(len(self.parts)):
                    self._front(layer, half)
                for half in range(len(self.parts)):
                    if layer.moe != NO_EXPERTS:
                        self._experts(layer, half)
        for half in range(len(self.parts)):
            self._arrive(half)

    def _each(self, item: Callable[[int], Item]) -> None:
        for g in self.site.gpus:
            self.items_G[g].append(item(g))

    def _work(self, name: str, part: str, seconds: Callable[[int], float]) -> None:
        """Compute on every GPU; `seconds` of an attention rank, its own slowness aside."""
        rank, slow = self.site.rank_G, self.site.slow_D
        of_rank = [seconds(d) * slow[d] for d in range(len(slow))]
        self._each(lambda g: Work(name, part, of_rank[rank[g]]))

    def _arrive(self, half: int) -> None:
        """What a half needs from its last combine before it goes on."""
        meeting, self._arriving[half] = self._arriving[half], None
        if meeting is not None:
            self._each(lambda g: Wait(meeting))

    def _name(self, what: str, layer: Layer, half: int) -> str:
        return f"{what}, {layer.name}" + (f", half {half}" if len(self.parts) > 1 else "")

    # --- attention and dense parts ---

    def _front(self, layer: Layer, half: int) -> None:
        """A layer up to its dispatch, which is issued; dense layers whole."""
        self._arrive(half)
        self._projections(layer, half)
        self._core(layer, half)
        if layer.moe != NO_EXPERTS:
            if self.batch.overlap != SHARED_EXPERTS:
                self._shared(layer, half)
            self._dispatch(layer, half)

    def _projections(self, layer: Layer, half: int) -> None:
        part, cost = self.parts[half], self.site.costs.scalars[0]
        self._work(
            self._name("projections", layer, half),
            "attention_s",
            lambda d: attention_layer_s(cost, part, layer, d)[0],
        )

    def _core(self, layer: Layer, half: int) -> None:
        """Attention and what is dense, shared experts of MoE layers aside."""
        part, cost = self.parts[half], self.site.costs.scalars[0]
        if part.split_s:
            launch = Work("launch", "overhead_s", part.split_s * layer.share)
            self._each(lambda g: launch)
        self._work(
            self._name("attention", layer, half),
            "attention_s",
            lambda d: attention_layer_s(cost, part, layer, d)[1],
        )
        # One tensor-parallel group over the stage reduces again behind its MLP or experts.
        alone = len(self.site.slow_D) == 1
        self._reduce(layer, half, 0.5 if alone else 1.0, "attention_imbalance_s")
        self._work(
            self._name("dense", layer, half), "dense_s", lambda d: part.dense_D[d] * layer.share
        )
        if alone and layer.moe == NO_EXPERTS:
            self._reduce(layer, half, 0.5, "attention_imbalance_s")

    def _shared_s(self, half: int, d: int) -> float:
        """Shared experts of one layer, without slowness."""
        return self.parts[half].shared_D[d] / self.site.costs.stage_of_layer.size

    def _shared(self, layer: Layer, half: int) -> None:
        name = self._name("shared experts", layer, half)
        self._work(name, "dense_s", lambda d: self._shared_s(half, d))

    def _reduce(self, layer: Layer, half: int, share: float, waiting: str) -> None:
        """All-reduces of the tensor-parallel groups."""
        site, part = self.site, self.parts[half]
        for d in range(len(site.slow_D)):
            gpus = site.members(d)
            what = reduction(site.costs, part, layer, d, share, gpus)
            if what.seconds == 0.0 and len(gpus) == 1:
                continue
            name = self._name("all-reduce", layer, half)
            meeting = self._meeting(name, gpus, waiting, "all_reduce_s", self._collect(what))
            for g in gpus:
                self.items_G[g].append(Join(meeting))

    # --- experts ---

    def _dispatch(self, layer: Layer, half: int) -> None:
        """Send the tokens out; the stream goes on."""
        if len(self.site.slow_D) == 1:
            return
        name = self._name("dispatch", layer, half)
        meeting = self._meeting(
            name, self.site.gpus, "attention_imbalance_s", "dispatch_s", self._sends(layer, half, 0)
        )
        self.meetings.append(meeting)
        self._dispatched[half] = meeting
        self._each(lambda g: Post(meeting))

    def _experts(self, layer: Layer, half: int) -> None:
        """Routed experts once their tokens are there; then these are sent back."""
        site = self.site
        combine = None
        if len(site.slow_D) > 1:
            name = self._name("combine", layer, half)
            sends = self._sends(layer, half, 1)
            combine = self._meeting(name, site.gpus, "expert_imbalance_s", "combine_s", sends)
            dispatch = self._dispatched[half]
            if self.batch.overlap == SHARED_EXPERTS:
                self._hide_shared(layer, half, dispatch, combine)
            self._each(lambda g: Wait(dispatch))
        kernel_s = float(site.costs.scalars[0]["expert_kernel_s"])
        seconds_R = self.parts[half].experts_LR[layer.moe].tolist()
        seconds_R = [one * slow for one, slow in zip(seconds_R, site.slow_R, strict=True)]
        experts = self._name("experts", layer, half)
        self._each(lambda g: Work(experts, "experts_s", seconds_R[site.expert_G[g]] + kernel_s))
        if combine is None:
            self._reduce(layer, half, 0.5, "expert_imbalance_s")
            return
        self.meetings.append(combine)
        self._arriving[half] = combine
        self._each(lambda g: Post(combine))

    def _hide_shared(self, layer: Layer, half: int, first: Meeting, last: Meeting) -> None:
        name, site = self._name("shared experts", layer, half), self.site
        of_rank = [self._shared_s(half, d) * slow for d, slow in enumerate(site.slow_D)]
        self._each(lambda g: Hidden(Work(name, "dense_s", of_rank[site.rank_G[g]]), first, last))

    # --- DeepSeek's five stages ---

    def _five_stages(self, layers: list[Layer]) -> None:
        """Turns of the halves; dense layers go with the projections of the next MoE layer, but
        those that come first before everything."""
        first = next((i for i, one in enumerate(layers) if one.moe != NO_EXPERTS), len(layers))
        for layer in layers[:first]:
            for half in range(2):
                self._front(layer, half)
        rest, groups = layers[first:], []
        ahead: list[Layer] = []
        for layer in rest:
            if layer.moe == NO_EXPERTS:
                ahead.append(layer)
            else:
                groups.append((ahead, layer))
                ahead = []
        stages = FIVE * len(groups)
        for turn in range(2 * stages + 4):
            half, stage = turn % 2, turn // 2 - 2 * (turn % 2)
            if 0 <= stage < stages:
                before, layer = groups[stage // FIVE]
                self._stage_of_five(stage % FIVE, before, layer, half)
        for layer in ahead:
            for half in range(2):
                self._front(layer, half)

    def _stage_of_five(self, which: int, before: list[Layer], layer: Layer, half: int) -> None:
        if which == 0:
            for dense in before:
                self._front(dense, half)
            self._projections(layer, half)
        elif which == 1:
            self._core(layer, half)
        elif which == 2:
            self._dispatch(layer, half)
            self._shared(layer, half)
        elif which == 3:
            self._experts(layer, half)
        else:
            self._arrive(half)

    # --- meetings ---

    def _meeting(
        self,
        name: str,
        gpus: range | list[int],
        waiting: str,
        moving: str,
        act: Callable[[], Events],
    ) -> Meeting:
        return Meeting(self.site.env, name, gpus, waiting, moving, act)

    def _collect(self, what: Collective) -> Callable[[], Events]:
        site = self.site
        return lambda: site.links.collect(site.k, site.stage, what, site.tell)

    def _sends(self, layer: Layer, half: int, phase: int) -> Callable[[], Events]:
        """One exchange of a layer: dispatch (0) or combine (1)."""
        part = self.parts[half]
        if self.batch.exchange == ALL_GATHER:
            assert part.gather is not None
            return self._collect(part.gather)
        if self.batch.exchange <= ALL_REDUCE:
            return _nothing
        return lambda: self._exchange(part.moves[layer.moe][phase])

    def _exchange(self, move: Move) -> Events:
        """Every GPU posts its copies; then these travel."""
        env, site = self.site.env, self.site
        floor = env.timeout(float(move.law["floor_s"]) * move.ratio)
        yield simpy.AllOf(env, [env.timeout(t) for t in (move.posted_G * move.ratio).tolist()])
        yield from site.links.move(site.k, site.stage, move, site.tell)
        if not floor.processed:
            yield floor


def _nothing() -> Events:
    return
    yield  # a generator all the same
