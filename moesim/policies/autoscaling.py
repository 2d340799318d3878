"""How many replicas run: more of them when load grows, after a cold start; fewer when it falls."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from moesim.spec import Spec, broken_rule

# Kubernetes' horizontal pod autoscaler leaves alone what is within a tenth of its target.
TOLERANCE = 0.1


class Autoscaling(Spec):
    """Kubernetes' rule (HorizontalPodAutoscaler v2): wanted = ceil(running x measured / target).

    Measured, a mean over the replicas that serve or start: waiting requests (`target_queue`), or
    the share of the cache that requests hold (`target_utilisation`). Fewer replicas are wanted only
    once that has been so for `stabilisation_s`; who leaves ends its requests first. `cold_start_s`
    null: what `faults.restart` says of loading weights and starting the engine.
    """

    min: int = Field(1, ge=1, le=100_000)
    max: int | None = Field(None, ge=1, le=100_000)
    initial: int | None = Field(None, ge=1, le=100_000)
    target_queue: float | None = Field(None, gt=0.0, le=1e6)
    target_utilisation: float | None = Field(None, gt=0.0, le=1.0)
    interval_s: float = Field(15.0, ge=0.01, le=86_400.0)
    stabilisation_s: float = Field(300.0, ge=0.0, le=86_400.0)
    cold_start_s: float | None = Field(None, ge=0.0, le=86_400.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.target_queue is None) == (self.target_utilisation is None):
            raise broken_rule("target_queue", "or target_utilisation is required, one of them")
        if self.max is not None and self.max < self.min:
            raise broken_rule("max", "must be at least min", self.max)
        if self.initial is not None and not self.min <= self.initial <= (self.max or self.initial):
            raise broken_rule("initial", "must be from min to max", self.initial)
        return self

    def wanted(self, running: int, measured: float) -> int:
        """Replicas that the rule asks for, within min but whatever max is."""
        target = self.target_queue or self.target_utilisation or 1.0
        ratio = measured / target
        if abs(ratio - 1.0) <= TOLERANCE:
            return max(self.min, running)
        return max(self.min, math.ceil(running * ratio - 1e-9))
