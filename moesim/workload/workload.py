"""The `workload:` section of a scenario: who asks what, and when."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from moesim.spec import Spec, broken_rule
from moesim.workload.arrivals import (
    MAX_REQUESTS,
    AllAtOnce,
    Arrivals,
    ArrivalsChoice,
    ClosedLoop,
    Gamma,
    Replay,
)
from moesim.workload.drift import MAX_DOMAINS, Domains, DriftPoint
from moesim.workload.groups import RequestClass, Tenant
from moesim.workload.lengths import MAX_TOKENS, LengthChoice, Tokens, no_flag, or_short
from moesim.workload.prefixes import SharedPrefix
from moesim.workload.presets import load_preset, preset_names
from moesim.workload.readers import FormatName
from moesim.workload.threads import Chains, Sessions

MAX_GROUPS = 1000


def _exact_or_tokens(value: object) -> object:
    """One message for the two things allowed, where a union would report each on its own."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS
    if value is None or value == "exact" or whole:
        return value
    raise ValueError(f"must be exact or a whole number from 1 to {MAX_TOKENS}")


class TraceSource(Spec):
    """A file of recorded requests; ``trace: FILE`` is short for ``trace: {file: FILE}``.

    `skip` rows are left out at the top, then `limit` are used.
    """

    model_config = ConfigDict(json_schema_extra=or_short({"type": "string", "minLength": 1}))

    file: Annotated[str, Field(min_length=1, max_length=4096)]
    format: FormatName = "auto"
    skip: Annotated[int, Field(ge=0, le=10**12), BeforeValidator(no_flag)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_REQUESTS), BeforeValidator(no_flag)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: object) -> object:
        return {"file": data} if isinstance(data, str) else data


class Workload(Spec):
    """Requests to be served: arrivals, and lengths from distributions, a preset or a trace.

    `requests` or `duration_s` says how many; replaying a trace may leave both out and take all of
    it. With a trace and other arrivals, whole rows (prompt, output and prefix together) are drawn
    from it with replacement. `max_output_tokens` is the limit that a client declares, the only
    thing a scheduler may know of an output: ``exact`` for benchmark clients that ignore the end of
    text, a number that also cuts longer outputs, or nothing for the largest output of the workload.

    `drift` is `domains` over time: each mix holds from its `at_s` on, or changes to the next in
    proportion (`drift_blend` linear). A request has the domain of its arrival, a session or chain
    that of its first.

    With `sessions` or `chains` the arrivals are those of their first requests, a closed loop holds
    so many of them in flight, `prompt` is the new text of a turn, and `requests` still counts
    requests: the last session or chain is cut short.
    """

    arrivals: ArrivalsChoice
    requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS), BeforeValidator(no_flag)] | None = None
    duration_s: Annotated[float, Field(gt=0, le=1e9), BeforeValidator(no_flag)] | None = None
    prompt: LengthChoice | None = None
    output: LengthChoice | None = None
    trace: TraceSource | None = None
    preset: str | None = None
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    chains: Chains | None = None
    classes: Annotated[tuple[RequestClass, ...], Field(max_length=MAX_GROUPS)] = ()
    tenants: Annotated[tuple[Tenant, ...], Field(max_length=MAX_GROUPS)] = ()
    domains: Domains = Field(default_factory=dict, max_length=MAX_DOMAINS)
    drift: Annotated[tuple[DriftPoint, ...], Field(max_length=MAX_GROUPS)] = ()
    drift_blend: Literal["step", "linear"] = "step"
    max_output_tokens: Annotated[
        Literal["exact"] | Tokens | None, BeforeValidator(_exact_or_tokens)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _lengths_are_not_nested(cls, data: object) -> object:
        if isinstance(data, Mapping) and "lengths" in data:
            raise broken_rule("lengths", "is written as prompt and output, or as trace or preset")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_amount()
        self._check_lengths()
        self._check_threads()
        self._check_groups()
        if self.domains and not sum(self.domains.values()) > 0:
            raise broken_rule("domains", "must have a positive weight")
        self._check_drift()
        if isinstance(self.arrivals, Gamma) and self.arrivals.cv is None and not self.preset:
            raise broken_rule("arrivals.gamma.cv", "is required without a preset to take it from")
        return self

    def _check_drift(self) -> None:
        if not self.drift:
            return
        if self.domains:
            raise broken_rule("domains", "must be left out where drift gives them over time")
        if isinstance(self.arrivals, ClosedLoop | AllAtOnce):
            rule = "needs arrivals with times of their own: the demand is the same for everybody"
            raise broken_rule("drift", rule)
        times = [point.at_s for point in self.drift]
        if times[0] != 0.0 or any(a >= b for a, b in pairwise(times)):
            raise broken_rule("drift", "must have ascending at_s, the first of them 0", times)
        if not all(sum(point.domains.values()) > 0 for point in self.drift):
            raise broken_rule("drift", "must have a positive weight in every mix")

    def _check_amount(self) -> None:
        if self.requests is not None and self.duration_s is not None:
            raise broken_rule("duration_s", "cannot be given together with requests")
        if isinstance(self.arrivals, Replay):
            if self.trace is None:
                raise broken_rule("trace", "is required by arrivals: replay")
            return
        if isinstance(self.arrivals, ClosedLoop | AllAtOnce) and self.requests is None:
            rule = "is required: these arrivals have no rate, so no duration limits them"
            raise broken_rule("requests", rule)
        if self.requests is None and self.duration_s is None:
            raise broken_rule("requests", "is required (or duration_s)")

    def _check_threads(self) -> None:
        if self.sessions is not None and self.chains is not None:
            raise broken_rule("chains", "cannot be given together with sessions")
        if self.trace is not None:
            for field in ("sessions", "chains"):
                if getattr(self, field) is not None:
                    rule = "cannot be given with a trace, whose prompts are whole already"
                    raise broken_rule(field, rule)

    def _check_groups(self) -> None:
        for field in ("classes", "tenants"):
            names = [each.name for each in getattr(self, field)]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise broken_rule(field, "must have different names", twice)
        if self.trace is not None and any(each.prompt or each.output for each in self.classes):
            raise broken_rule("classes", "cannot set lengths with a trace, which says them already")

    def _check_lengths(self) -> None:
        if self.preset is not None and self.preset not in preset_names():
            rule = f"must be one of {', '.join(preset_names())}"
            raise broken_rule("preset", rule, self.preset)
        if self.trace is not None:
            for field in ("prompt", "output", "preset", "shared_prefix"):
                if getattr(self, field) is not None:
                    raise broken_rule(
                        field,
                        "must be left out where workload.trace is given: the requests are its own",
                    )
        elif self.preset is None:
            for field in ("prompt", "output"):
                if getattr(self, field) is None:
                    raise broken_rule(field, "is required (or a preset, or a trace)")

    def with_preset(self) -> Workload:
        """The same workload with everything that its preset supplies written out.

        A preset's shared prefix belongs to its prompts: it is left out when `prompt` is given.
        """
        if self.preset is None:
            return self
        preset = load_preset(self.preset)
        arrivals: Arrivals = self.arrivals
        if isinstance(arrivals, Gamma) and arrivals.cv is None:
            arrivals = arrivals.model_copy(update={"cv": preset.arrival_cv})
        return self.model_copy(
            update={
                "preset": None,
                "arrivals": arrivals,
                "prompt": self.prompt or preset.prompt,
                "output": self.output or preset.output,
                "shared_prefix": self.shared_prefix
                or (None if self.prompt else preset.shared_prefix),
            }
        )
