"""Steps as processes: stages of a pipeline, their GPUs' streams, and the host that feeds them.

A batch takes a stage for itself; the next one may enter when all GPUs of the stage are done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import simpy

from moesim.sim.cost_tables import DECODE, PROMPT, TWO_BATCH, Condition, Costs
from moesim.sim.detailed.batch import Batch, read_batch
from moesim.sim.detailed.issue import Issue, Site
from moesim.sim.detailed.layers import Layer
from moesim.sim.detailed.links import Events, Links
from moesim.sim.detailed.prices import Part, price_part
from moesim.sim.detailed.rows import RowWalk
from moesim.sim.detailed.streams import COMPUTE, Streams
from moesim.sim.detailed.timeline import Timeline
from moesim.sim.replay import Routes
from moesim.sim.state import COUNTED_STEPS, ROUTED_IDS, STEP_PARTS, Record, State


@dataclass
class Step:
    """One batch on its way. `row`: its STEP row, [1]; `layers_s`: all layers so far, the output
    layer aside; `exchanged_s`: exchanges, whether they were waited for or not."""

    number: int
    k: int
    b: int
    batch: Batch
    parts: list[Part]
    row: Any
    seen: bool  # whether the timeline shows it
    layers_s: float = 0.0
    exchanged_s: float = 0.0

    def count(self, part: str, seconds: float) -> None:
        """Add to a part of the step."""
        self.row[part][0] += seconds


class StepTimer:
    """Times batches, layer by layer and GPU by GPU."""

    def __init__(
        self,
        env: simpy.Environment,
        state: State,
        routes: Routes,
        costs: Costs,
        record: Record,
        condition: Condition,
        links: Links,
        layers: list[list[Layer]],
        timeline: Timeline | None = None,
    ) -> None:
        self.env = env
        self.state = state
        self.routes = routes
        self.costs = costs
        self.record = record
        self.condition = condition
        self.links = links
        self.layers = layers
        self.timeline = timeline
        self.walk = RowWalk(state, routes)
        self._began = 0
        rules = state.rules[0]
        self.ranks, self.stages = int(rules["ranks"]), int(rules["stages"])
        expert_ranks = max(1, costs.domain_of_rank.size)
        gpus = max(self.ranks * int(costs.scalars[0]["attention_tp"]), expert_ranks)
        self._rank_G = [g * self.ranks // gpus for g in range(gpus)]
        self._expert_G = [g * expert_ranks // gpus for g in range(gpus)]
        replicas = int(rules["replicas"])
        self._places = [[simpy.Resource(env) for _ in range(self.stages)] for _ in range(replicas)]

    def begin(self, k: int, b: int, row: Any) -> Step:
        """Price the batch in slot b of replica k; `row`: its STEP row, [1]."""
        batch = read_batch(self.state, self.costs, k, b)
        expand = int(self.state.rules[0]["expand_drafts"]) > 0
        parts = [
            price_part(self.costs, self.routes, self.walk, batch, half, expand)
            for half in range(len(batch.halves))
        ]
        seen = self.timeline is not None and self.timeline.wants(self._began)
        step = Step(self._began, k, b, batch, parts, row, seen)
        self._began += 1
        self._describe(step)
        return step

    def _describe(self, step: Step) -> None:
        """What a STEP row says besides times, and what the run counts of experts."""
        row, cost = step.row[0], self.costs.scalars[0]
        grants = [grant for grants in step.batch.grants_D for grant in grants]
        row["decode_tokens"] = sum(grant.tokens for grant in grants if grant.decodes)
        row["prefill_tokens"] = sum(grant.tokens for grant in grants if not grant.decodes)
        layers, shares = self.costs.stage_of_layer.size, []
        for part in step.parts:
            for way in ("up", "out"):
                row[f"scale_{way}_bytes"] += float(cost[f"reduce_{way}_bytes"]) * max(part.tokens_D)
                if part.gather is not None:
                    row[f"scale_{way}_bytes"] += 2 * layers * getattr(part.gather, f"{way}_bytes")
                for pair in part.moves:
                    row[f"scale_{way}_bytes"] += sum(getattr(m, f"{way}_bytes") for m in pair)
            if part.routed is None:
                continue
            counts_LRE = part.routed.counts_LP.reshape(layers, self.costs.domain_of_rank.size, -1)
            pairs_LR, active_LR = counts_LRE.sum(axis=2), (counts_LRE > 0).sum(axis=2)
            self.record.rank_tokens_LR[:] += pairs_LR
            self.record.rank_active_LR[:] += active_LR
            self.record.counters[ROUTED_IDS] += part.routed.ids
            row["active_experts"] += active_LR.sum() / (layers * len(step.parts))
            means_L = pairs_LR.mean(axis=1)
            shares += (pairs_LR.max(axis=1)[means_L > 0] / means_L[means_L > 0]).tolist()
        if layers:
            self.record.counters[COUNTED_STEPS] += 1
            row["imbalance"] = sum(shares) / (layers * len(step.parts))
            row["imbalance_max"] = max(shares, default=0.0)

    # --- a step's way through the stages ---

    def run(self, step: Step, first_free: Callable[[Step], None] | None = None) -> Events:
        """A step's way through all stages; `first_free` is called when it has left the first."""
        for stage in range(self.stages):
            with self._places[step.k][stage].request() as place:
                yield place
                start_s = self.env.now
                yield from self._stage(step, stage)
                step.count("duration_s", self.env.now - start_s)
            if stage == 0 and first_free is not None:
                first_free(step)
        exposed_s = float(step.row["dispatch_s"][0] + step.row["combine_s"][0])
        step.row["hidden_s"] = max(0.0, step.exchanged_s - exposed_s)

    def _stage(self, step: Step, stage: int) -> Events:
        """One stage of one step, whose GPUs are free."""
        cost, batch = self.costs.scalars[0], step.batch
        if stage > 0:
            most = max(batch.tokens(d) for d in range(self.ranks))
            hop_s = float(cost["pipeline_base_s"] + most * cost["pipeline_token_s"])
            yield from self._host(step, "hop", "pipeline_s", hop_s)
        begun_s = self.env.now
        if stage == 0:
            yield from self._host(step, "schedule and launch", "overhead_s", self._engine_s(batch))
        yield from self._layers(step, stage)
        if stage == self.stages - 1:
            yield from self._output(step, stage)
            yield from self._drafts(step)
        # A host that launches kernel by kernel may be slower than the GPUs.
        floor_s = float(cost["prompt_floor_s"]) * float(self.costs.stage_share[stage])
        left_s = begun_s + floor_s - self.env.now
        if batch.kind == PROMPT and left_s > 0.0:
            yield from self._host(step, "launch", "overhead_s", left_s)

    def _engine_s(self, batch: Batch) -> float:
        """What the engine does before the GPUs begin."""
        cost = self.costs.scalars[0]
        seconds = float(cost["step_s"] + cost["request_s"] * batch.most_requests)
        if batch.overlap >= TWO_BATCH:  # both halves launch their kernels themselves
            seconds -= float(cost["split_s"])
        return seconds + (float(cost["prefill_step_s"]) if batch.kind == PROMPT else 0.0)

    def _host(self, step: Step, name: str, part: str, seconds: float) -> Events:
        start_s = self.env.now
        yield self.env.timeout(max(0.0, seconds))
        step.count(part, self.env.now - start_s)
        if step.seen and self.timeline is not None:
            row = (f"replica {step.k} host", "host", name, start_s, self.env.now)
            self.timeline.add(*row, {"step": step.number})

    def _layers(self, step: Step, stage: int) -> Events:
        """All layers of a stage on all its GPUs."""
        start_s = self.env.now
        issue = Issue(self._site(step, stage), step.batch, step.parts)
        issue.layers(self.layers[stage])
        streams = [Streams(self.env, g, self._teller(step, stage)) for g in issue.site.gpus]
        ends = [
            self.env.process(one.compute(items))
            for one, items in zip(streams, issue.items_G, strict=True)
        ]
        if issue.meetings:
            ends += [self.env.process(one.communicate(issue.meetings)) for one in streams]
        yield simpy.AllOf(self.env, ends)
        for one in streams:
            one.idle()
        for part in STEP_PARTS:
            step.count(part, sum(one.spent.get(part, 0.0) for one in streams) / len(streams))
        step.layers_s += self.env.now - start_s
        step.exchanged_s += sum(one.end_s - one.start_s for one in issue.meetings)

    def _site(self, step: Step, stage: int) -> Site:
        tell = self._teller(step, stage)
        condition = self.condition
        return Site(
            env=self.env,
            costs=self.costs,
            links=self.links,
            k=step.k,
            stage=stage,
            rank_G=self._rank_G,
            expert_G=self._expert_G,
            slow_D=condition.attention_slow_KBD[step.k, stage].tolist(),
            slow_R=condition.expert_slow_KBR[step.k, stage].tolist(),
            tell=lambda row, g, start_s, end_s: tell(f"link {row}", g, row, start_s, end_s),
        )

    def _teller(self, step: Step, stage: int) -> Any:
        """Who hears of what the GPUs of a stage do: the timeline, or nobody."""
        timeline, first = self.timeline, stage * len(self._rank_G)
        if timeline is None or not step.seen:
            return _nobody
        args = {"step": step.number}

        def tell(row: str, g: int, name: str, start_s: float, end_s: float) -> None:
            if row.startswith("link "):
                process, row = f"replica {step.k} links", f"GPU {first + g} {row[5:]}"
            else:
                process = f"replica {step.k} GPU {first + g}"
            timeline.add(process, row, name, start_s, end_s, args)

        return tell

    def _output(self, step: Step, stage: int) -> Events:
        """The output layer of every rank."""
        slow_D = self.condition.attention_slow_KBD[step.k, stage]
        seconds_D = [
            float(self.costs.head_s[step.batch.logits(d)] * slow_D[d]) for d in range(self.ranks)
        ]
        yield from self._on_all(step, "output layer", "dense_s", seconds_D)

    def _drafts(self, step: Step) -> Events:
        """Draft passes: each is one more layer as the step's are in the mean, and the output layer.
        In a step with prompts there is one, as only the first pass sees them."""
        drafts = int(self.state.rules[0]["drafts"])
        if not drafts:
            return
        layers = int(self.costs.scalars[0]["layers"])
        once_s = step.layers_s / layers + float(self.costs.head_s[step.batch.most_requests])
        for number in range(drafts if step.batch.kind == DECODE else 1):
            yield from self._on_all(step, f"draft {number}", "draft_s", [once_s] * self.ranks)

    def _on_all(self, step: Step, name: str, part: str, seconds_D: list[float]) -> Events:
        """Something that every GPU of the last stage computes by itself."""
        start_s, tell = self.env.now, self._teller(step, self.stages - 1)
        ends = [self.env.timeout(seconds_D[d]) for d in self._rank_G]
        yield simpy.AllOf(self.env, ends)
        step.count(part, self.env.now - start_s)
        for g, d in enumerate(self._rank_G):
            tell(COMPUTE, g, name, start_s, start_s + seconds_D[d])
            tell(COMPUTE, g, "wait for other GPUs", start_s + seconds_D[d], self.env.now)


def _nobody(row: str, g: int, name: str, start_s: float, end_s: float) -> None:
    """Nobody looks."""
