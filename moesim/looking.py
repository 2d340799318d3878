"""Looking at chosen steps of a run as they begin: what each rank computes, and for how long.

A run is deterministic: made once more, with a look at the steps that turned out slow, it takes the
same steps. Whoever looks only makes it stop just behind their beginnings, which changes nothing
(leaps of any length give the same numbers).

Legend: D attention ranks, L MoE layers, P slots, R ranks of the expert-parallel group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.assembly import Assembled
from moesim.sim.clock import LOW, at
from moesim.sim.cost_tables import DECODE, OUT, PROMPT, UP, slot_tokens
from moesim.sim.state import STEPS_FILLED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, float]  # replica and start of a step


@dataclass(frozen=True, eq=False)
class Seen:
    """A step's batch by attention rank, and its experts by rank of their group.

    `prompt_tokens_D` and `longest_chunk_D`: of prompts; `decoding_D`: requests; `context_tokens_D`:
    tokens whose keys and values the rank's requests hold, `longest_context_D` of one of them.
    `attention_s_D`: attention of all layers. `expert_s_LR`: experts of each MoE layer;
    `tokens_LP`: of each slot, whose expert is `expert_LP`. `far`: whether the links between
    scale-up domains bind its exchanges; `link_rank`: the rank with most on them (-1: all alike).

    Of a batch that is cut into parts, attention and experts are the last part's. Experts are empty
    where routing is averaged or the model is dense.
    """

    prompt_tokens_D: Ints
    longest_chunk_D: Ints
    decoding_D: Ints
    context_tokens_D: Ints
    longest_context_D: Ints
    attention_s_D: Floats
    expert_s_LR: Floats
    tokens_LP: NDArray[np.int32]
    expert_LP: NDArray[np.int32]
    far: bool
    link_rank: int


class Looker:
    """Looks at steps, given by replica and start, and keeps what it saw of each."""

    def __init__(self, steps: NDArray[Any]) -> None:
        """`steps`: rows of STEP."""
        self.wanted = frozenset(map(_key, steps))
        self.seen: dict[Key, Seen] = {}

    def attach(self, env: simpy.Environment, run: Assembled) -> None:
        """Look at a run that has not begun."""
        for start_s in sorted({start_s for _, start_s in self.wanted}):
            at(env, float(np.nextafter(start_s, np.inf)), LOW)
        run.fleet.on_turn = lambda: self._look(run)

    def of(self, step: Any) -> Seen | None:
        """What was seen of a row of STEP; None where another replica began at the same instant."""
        return self.seen.get(_key(step))

    def _look(self, run: Assembled) -> None:
        filled = int(run.record.counters[STEPS_FILLED])
        if not filled:
            return
        step = run.record.steps[filled - 1]
        key = _key(step)
        if key in self.wanted and key not in self.seen:
            self.seen[key] = _see(run, step)


def _key(step: Any) -> Key:
    return int(step["replica"]), float(step["start_s"])


def _see(run: Assembled, step: Any) -> Seen:
    """The step that began last."""
    seen = _batch(run, int(step["replica"]))
    tokens_LP = slot_tokens(run.work)
    if tokens_LP.any():
        prompts = bool(seen.prompt_tokens_D.any())
        seen = replace(
            seen,
            expert_s_LR=_expert_seconds(run, int(step["replica"]), prompts),
            tokens_LP=tokens_LP.copy(),
            expert_LP=_expert_of_slot(run, int(step["replica"])),
        )
    far, rank = _busiest_link(run, step)
    return replace(seen, far=far, link_rank=rank)


def _batch(run: Assembled, k: int) -> Seen:
    state, cost = run.state, run.wired.costs.scalars[0]
    replica, stages = state.replicas[k], int(state.rules[0]["stages"])
    b = int(replica["oldest"] + replica["in_flight"] - 1) % stages
    counts = np.zeros((5, run.ranks), np.int64)
    for d in range(run.ranks):
        size = int(state.batch_size[k, b, d])
        if not size:
            continue
        tokens = state.batch_tokens[k, b, d, :size].astype(np.int64)
        requests = state.requests[state.batch_request[k, b, d, :size]]
        context = requests["computed"].astype(np.int64)
        chunk = np.where(_decode(requests, context, tokens), 0, tokens)
        counts[:, d] = chunk.sum(), chunk.max(), (chunk == 0).sum(), context.sum(), context.max()
    layers = np.array([cost[f"{kind}_layers"] for kind in ("full", "window", "linear")], np.float64)
    empty = np.zeros((0, 0), np.int32)
    return Seen(
        prompt_tokens_D=counts[0],
        longest_chunk_D=counts[1],
        decoding_D=counts[2],
        context_tokens_D=counts[3],
        longest_context_D=counts[4],
        attention_s_D=run.work.attention_s @ layers,
        expert_s_LR=np.zeros((0, 0)),
        tokens_LP=empty,
        expert_LP=empty,
        far=False,
        link_rank=-1,
    )


def _decode(requests: NDArray[Any], computed: Ints, tokens: Ints) -> NDArray[np.bool_]:
    """Which of a batch's requests decode, as sim/attention.py `decodes` tells."""
    prompt = requests["prompt_tokens"].astype(np.int64)
    newest = prompt + requests["generated"] - 1
    drafted = (requests["generated"] > 0) & (computed - tokens == newest)
    return np.asarray(np.where(tokens == 1, computed > prompt - requests["landed"], drafted))


def _expert_seconds(run: Assembled, k: int, prompts: bool) -> Floats:
    """[L, R] what each rank's experts take, as sim/experts.py adds it up, kernels' fixed time
    aside."""
    costs, work = run.wired.costs, run.work
    cost, ranks = costs.scalars[0], costs.domain_of_rank.size
    tile = 1 << int(cost["tile_shift"])
    tokens_LP = slot_tokens(work)
    tokens_LRp = tokens_LP.reshape(len(tokens_LP), ranks, -1).astype(np.int64)
    tiles_LRp = -(-tokens_LRp // tile)
    pairs_LR = tokens_LRp.sum(axis=2)
    if costs.expert_tile_s.size:
        kind, group = (PROMPT if prompts else DECODE), _group_tokens(run, k, prompts)
        seconds = costs.expert_tile_s[tiles_LRp].sum(axis=2) + (
            pairs_LR * cost["expert_pair_s"] + group * cost["expert_token_s"]
        )
        fixed_s = cost["expert_kernel_s"]
        seconds = (seconds + fixed_s) * costs.expert_ratio[kind, group] - fixed_s
    else:
        read_s = (tokens_LRp > 0).sum(axis=2) * cost["expert_weight_s"]
        seconds = np.maximum(
            read_s + pairs_LR * cost["expert_pair_s"],
            tiles_LRp.sum(axis=2) * tile * cost["expert_flop_s"],
        )
    slow_LR = work.condition.expert_slow_KBR[k][costs.stage_of_layer]
    return np.asarray(seconds * slow_LR, np.float64)


def _group_tokens(run: Assembled, k: int, prompts: bool) -> int:
    """Tokens of the part on all ranks, decode's padded to a graph as sim/front.py does."""
    of_k = run.state.ranks[k * run.ranks : (k + 1) * run.ranks]
    tokens_D, padded = run.work.part_tokens, 0
    if not prompts:
        graph = run.wired.costs.graph_tokens[max(1, int(tokens_D.max()))]
        padded = max(int(graph), int(of_k["batch_size"].max()))
    return int(np.maximum(padded, tokens_D)[of_k["masked"] == 0].sum())


def _expert_of_slot(run: Assembled, k: int) -> NDArray[np.int32]:
    """[L, P] the expert in each slot now."""
    condition, placement = run.work.condition, run.wired.placement
    assert placement is not None
    if not run.state.replicas[k]["remapped"]:
        whole_LP = condition.expert_of_slot_LP  # with spare slots, where a rank may be masked
        return whole_LP if whole_LP.size else placement.slot_expert_LP
    held_LP = np.full(run.work.counts_LP.shape, -1, np.int32)
    for held_P, start_E1, slot_P in zip(
        held_LP, condition.copy_start_KLE1[k], condition.copy_slot_KLP[k], strict=True
    ):
        experts = np.repeat(np.arange(start_E1.size - 1), np.diff(start_E1))
        held_P[slot_P[start_E1[0] : start_E1[-1]]] = experts
    return held_LP


def _busiest_link(run: Assembled, step: Any) -> tuple[bool, int]:
    """(whether links between domains bind, the rank with most on the kind that does)."""
    work, cost, k = run.work, run.wired.costs.scalars[0], int(step["replica"])
    slow = work.condition
    up_s = step["scale_up_bytes"] * cost["up_byte_s"] * work.slowdown[UP] * slow.worst_up_K[k]
    out_s = step["scale_out_bytes"] * cost["out_byte_s"] * work.slowdown[OUT] * slow.worst_out_K[k]
    far = bool(out_s > up_s)
    sent, received, slow_KR = (
        (work.send_out_LR, work.recv_out_LR, slow.out_slow_KR)
        if far
        else (work.send_up_LR, work.recv_up_LR, slow.up_slow_KR)
    )
    if not sent.any() or sent.shape[1] != slow_KR.shape[1]:
        return far, -1
    return far, int((np.maximum(sent, received).sum(axis=0) * slow_KR[k]).argmax())
