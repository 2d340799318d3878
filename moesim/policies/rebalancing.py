"""When experts are placed anew while a deployment serves, and how their weights get there.

Every replica counts the tokens of each expert over a window of its steps; every `interval_steps` a
placement policy makes a new placement of those counts, and what has moved is copied from GPU to
GPU: while the replica stands still (`sync`), or behind its steps, some layers at a time (`async`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from moesim.errors import InputError
from moesim.spec import Spec, broken_rule

FIELD = "deployment.rebalancing"

# What engines do unless told otherwise (their sources; read 2026-11-21), and how long it takes.
# vLLM 0.33, EPLBConfig: window_size 1,000, step_interval 3,000, use_async; its counter starts at
# three quarters. Planning: 10 ms for 26 layers of 64 experts (pull request 28369), in proportion
# 0.1 s for 58 of 256; the rest of 0.91 s that a rearrangement of 58 layers took (issue 43219) is
# 14 ms a layer.
# SGLang 0.5.23: eplb_rebalance_num_iterations 1,000 over a buffer as long, stop-the-world; about
# 1 s of planning and 20 ms a layer reported (issues 6739, 7879).
_ENGINES = {
    "vllm": {
        "mode": "async",
        "interval_steps": 3000,
        "first_share": 0.25,
        "planning_s": 0.1,
        "layer_s": 0.014,
    },
    "sglang": {
        "mode": "sync",
        "interval_steps": 1000,
        "first_share": 1.0,
        "planning_s": 1.0,
        "layer_s": 0.02,
    },
}
POLICIES = ("eplb", "settle")
WINDOW_STEPS = 1000  # vLLM and SGLang


def _known_policy(name: object) -> object:
    if name in POLICIES:
        return name
    close = difflib.get_close_matches(str(name)[:200], POLICIES, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    rule = "must be 'eplb' or 'settle'%s; simulate(..., rebalancing=FUNCTION) takes one of your own"
    raise ValueError(rule % meant)


class Rebalancing(Spec):
    """Experts placed anew by recent load; None: as the engine does.

    `policy`: eplb packs from nothing; settle changes few slots until every layer is within 2 % of
    that (moesim.placement.settling; no engine does this).
    `first_steps`: steps before the first time. `threshold`: a window whose balancedness (sum over
    layers of the mean rank's tokens, over that of the busiest rank's) reaches it changes nothing.
    `layers_per_chunk`: layers copied at once; with sync the replica takes a step between chunks
    (None: all at once), with async one chunk is switched at a step's end (None: one layer), for
    which each GPU keeps a buffer. `layer_s`: what copying a layer takes beside its bytes on the
    links. `relabel`: hand what the policy puts on each rank to the rank that has most of it, which
    changes no balance and moves fewest experts (engines only leave in its slot what stays on its
    rank). `copy_bytes_per_s`: most that a GPU sends or receives of them; None: its links' limit.
    """

    policy: Annotated[Literal["eplb", "settle"], BeforeValidator(_known_policy)] = "eplb"
    hierarchical: bool | None = None  # None: where groups divide over nodes, as the algorithm does
    relabel: bool = False
    mode: Literal["sync", "async"] | None = None
    window_steps: int | None = Field(None, ge=1, le=10**9)
    interval_steps: int | None = Field(None, ge=1, le=10**9)
    first_steps: int | None = Field(None, ge=1, le=10**9)
    threshold: float = Field(1.0, gt=0.0, le=1.0)
    layers_per_chunk: int | None = Field(None, ge=1, le=100_000)
    planning_s: float | None = Field(None, ge=0.0, le=3600.0)
    layer_s: float | None = Field(None, ge=0.0, le=3600.0)
    copy_bytes_per_s: float | None = Field(None, gt=0.0, le=1e15)

    @model_validator(mode="after")
    def _window_within_interval(self) -> Self:
        if self.window_steps and self.interval_steps and self.window_steps > self.interval_steps:
            rule = f"must be at most interval_steps ({self.interval_steps})"
            raise broken_rule("window_steps", rule, self.window_steps)
        return self


@dataclass(frozen=True)
class RebalancingPlan:
    """Rebalancing with everything decided; see Rebalancing."""

    mode: Literal["sync", "async"]
    window_steps: int
    interval_steps: int
    first_steps: int
    threshold: float
    layers_per_chunk: int | None  # None: all layers
    planning_s: float
    layer_s: float
    copy_bytes_per_s: float
    relabel: bool = False

    @property
    def stops(self) -> bool:
        """Whether replicas stand still for it."""
        return self.mode == "sync"


def plan_rebalancing(spec: Rebalancing, engine: str) -> RebalancingPlan:
    """The settings with the engine's own where the scenario has none. Raises InputError."""
    of = _ENGINES.get(engine, {})
    chosen: dict[str, object] = {}
    for name in ("mode", "interval_steps", "planning_s", "layer_s"):
        value = getattr(spec, name)
        if value is None and name not in of:
            rule = f"is required: nothing is known of how {engine} does it"
            raise InputError(f"{FIELD}.{name}", rule)
        chosen[name] = of[name] if value is None else value
    interval = int(chosen["interval_steps"])  # type: ignore[call-overload]
    window = spec.window_steps or min(WINDOW_STEPS, interval)
    if window > interval:
        rule = f"must be at most interval_steps ({interval})"
        raise InputError(f"{FIELD}.window_steps", rule, window)
    layers = spec.layers_per_chunk or (1 if chosen["mode"] == "async" else None)
    return RebalancingPlan(
        window_steps=window,
        first_steps=spec.first_steps or max(1, int(interval * float(of.get("first_share", 1.0)))),  # type: ignore[arg-type]
        threshold=spec.threshold,
        relabel=spec.relabel,
        layers_per_chunk=layers,
        copy_bytes_per_s=float("inf") if spec.copy_bytes_per_s is None else spec.copy_bytes_per_s,
        **chosen,  # type: ignore[arg-type]
    )
