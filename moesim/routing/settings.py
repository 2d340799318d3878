"""What the synthetic router is told: a few numbers, some of them by relative depth."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.spec import Spec, broken_rule

GENERATOR = "2"  # part of cache keys: raise it when the same settings give other ids
# Lag-1 correlation of what a passage has in common: a memory of 10 tokens. Overlap by lag of
# gpt-oss-20b and DeepSeek-V2-Lite (2026-11) would have .85 and .95: too near to be a setting.
PASSAGE_PERSISTENCE = 0.9
MOST_LAYERS, MOST_EXPERTS = 1024, 65_536
MOST_LOADS = 300_000  # numbers: what a profile of 2 MB holds

Fraction = Annotated[float, Field(ge=0, le=1)]
Gini = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=1, le=MOST_EXPERTS)]
Load = Annotated[float, Field(ge=0, le=MOST_EXPERTS)]
Depths = Field(min_length=1, max_length=MOST_LAYERS)


class SynthesisSettings(Spec):
    """What a router does to tokens.

    Values by depth are one or more, for relative depths at equal steps from the first MoE layer to
    the last; layers between them are interpolated. Defaults: see presets/routing/generic.yaml.
    """

    strength: float = Field(
        default=4.0, ge=0, le=12, description="standard deviation of a logit, nats"
    )
    locality: Annotated[tuple[Fraction, ...], Depths] = Field(
        default=(0.3, 0.9, 0.8),
        description="share of that variance that context explains, by depth; the rest is the token",
    )
    request_share: Fraction = Field(
        default=0.3, description="of the context's variance that stays for a whole request"
    )
    passage_share: Fraction = Field(
        default=0.1, description="of the context's variance that lasts some 10 tokens"
    )
    persistence: float = Field(
        default=0.45, ge=0, lt=1, description="lag-1 correlation of the rest, a phrase's"
    )
    topics: int = Field(default=6, ge=1, le=4096, description="request clusters; each is a domain")
    topic_share: Fraction = Field(
        default=0.6,
        description="of the request part's variance that requests of a topic have in common",
    )
    prompt_template_tokens: int = Field(
        default=0, ge=0, le=4096, description="first prompt tokens that requests of a topic share"
    )
    output_template_tokens: int = Field(
        default=0, ge=0, le=4096, description="first output tokens that all requests share"
    )
    template_agreement: Fraction = Field(
        default=1.0, description="share of requests that follow the template at each of its tokens"
    )
    stray: Annotated[tuple[Fraction, ...], Depths] = Field(
        default=(0.0,),
        description="share of choices after the first that ignore the token, by depth",
    )
    gini: Annotated[tuple[Gini, ...], Depths] = Field(
        default=(0.3,), description="Gini coefficient of experts' load, by depth"
    )
    max_over_mean: Annotated[tuple[Ratio, ...], Depths] = Field(
        default=(2.5,), description="busiest expert's load over mean, by depth"
    )
    layer_spread: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="how much layers differ in skew beyond that: sd of log(max/mean - 1)",
    )
    load: tuple[tuple[Load, ...], ...] = Field(
        default=(),
        max_length=MOST_LAYERS,
        description="measured loads of all experts over mean, by layer, instead of the three above",
    )
    domain_load: tuple[tuple[tuple[Load, ...], ...], ...] = Field(
        default=(),
        max_length=MOST_LAYERS,
        description="the same by topic, layer and expert, where topics load different experts",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.request_share + self.passage_share > 1 + 1e-9:
            raise broken_rule("passage_share", "and request_share must sum to at most 1", None)
        _check_loads("load", self.load)
        if self.domain_load:
            _check_loads("domain_load", tuple(row for load in self.domain_load for row in load))
            if len({len(load) for load in self.domain_load}) > 1:
                raise broken_rule("domain_load", "must have as many layers in every topic", None)
            if self.load or len(self.domain_load) != self.topics:
                raise broken_rule(
                    "domain_load", "needs a load for each of topics and no load", None
                )
        return self


def _check_loads(field: str, rows: tuple[tuple[float, ...], ...]) -> None:
    if len({len(row) for row in rows}) > 1:
        raise broken_rule(field, "must have as many experts in every layer", None)
    if any(not sum(row) > 0 for row in rows):
        raise broken_rule(field, "must be above 0 for some expert of every layer", None)
    if sum(map(len, rows)) > MOST_LOADS:
        raise broken_rule(field, f"must be at most {MOST_LOADS} numbers", None)


def over_depth(values: tuple[float, ...], layers: int) -> NDArray[np.float64]:
    """Values at equal steps of relative depth, interpolated at each of the layers, [L]."""
    if layers == len(values):
        return np.array(values)
    depth_L = np.linspace(0.0, 1.0, layers) if layers > 1 else np.array([0.5])
    return np.asarray(np.interp(depth_L, np.linspace(0.0, 1.0, len(values)), values))
