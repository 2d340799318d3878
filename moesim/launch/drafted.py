"""A launch command in the making: flags, options of a file, and what the engine cannot be told."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from moesim.deployment_spec import DeploymentSpec
from moesim.model import MoEModel, load_model
from moesim.precision import native_formats
from moesim.scenario import Scenario

HEAD = "$HEAD_ADDRESS"  # the reader's own: the first node of a deployment
_HUGGING_FACE = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]*\w)")


@dataclass
class Draft:
    """Of one server: `start` are its first words, `options` the YAML file, `notes` comments."""

    start: list[str]
    flags: list[tuple[str, str | None]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, flag: str, value: object = True, when: bool = True) -> None:
        """A flag with its value, or alone for True; nothing for None or False."""
        if when and value is not None and value is not False:
            self.flags.append((flag, None if value is True else _text(value)))

    def option(self, path: str, value: object) -> None:
        """An option of the YAML file, named with dots; nothing for None."""
        if value is None:
            return
        *above, last = path.split(".")
        at = self.options
        for key in above:
            at = at.setdefault(key, {})
        at[last] = value

    def note(self, text: str, when: bool = True) -> None:
        if when:
            self.notes.append(text)

    def text(self) -> str:
        """The command, a flag a line."""
        start = " ".join(shlex.quote(word) for word in self.start)
        lines = [f"{flag} {_quoted(value)}" if value else flag for flag, value in self.flags]
        return " \\\n    ".join([start, *lines])


def _text(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _quoted(value: str) -> str:
    return value if value.startswith(HEAD) else shlex.quote(value)


def checkpoint_name(scenario: Scenario, model: MoEModel) -> tuple[str, str]:
    """(what to serve: a Hugging Face id or a path, a note where the name has to be filled in)."""
    if "/" in scenario.model or scenario.model.endswith(".json"):
        return scenario.model.removesuffix("/config.json"), ""
    named = _HUGGING_FACE.search(model.source)
    if named and model.status == "published":
        return named[1], ""
    return scenario.model, f"{model.name} is {model.status}: put the name of your own checkpoint"


def wanted_format(scenario: Scenario, model: MoEModel) -> str | None:
    """The weight format that differs from the published one, as a flag asks for it.

    awq: int4 in every linear layer, where int4 is in experts alone.
    """
    precision = scenario.precision
    if precision.weights is None and precision.experts is None:
        return None
    weights, experts = native_formats(model.native_precision, model.is_moe)
    asked = (precision.weights or weights, precision.experts or precision.weights or experts)
    if asked == (weights, experts or weights):
        return None
    if precision.weights == "int4" and precision.experts in (None, "int4"):
        return "awq"
    return asked[1] if model.is_moe and asked[1] else asked[0]


def note_formats(draft: Draft, scenario: Scenario, model: MoEModel) -> None:
    """Comments on weights that a flag alone does not make."""
    wanted = wanted_format(scenario, model)
    if wanted is None:
        return
    if wanted not in ("fp8", "bf16"):
        draft.note(f"weights in {wanted}: serve a checkpoint that is stored so")
    if wanted == "bf16":
        draft.note("weights in bf16: serve a checkpoint that is stored so")
    kept = scenario.precision.weights or "bf16"
    if scenario.precision.experts not in (None, kept) and wanted == "fp8":
        draft.note(f"the flag quantises every linear layer, the scenario leaves some in {kept}")


def note_what_no_engine_is_told(draft: Draft, of: DeploymentSpec) -> None:
    """Comments on parts of a deployment that stand outside all servers, or outside all engines."""
    draft.note("set the rate limits of tenants in the gateway", _limits_rates(of))
    draft.note("replicas come and go as your orchestrator decides", of.autoscaling is not None)
    draft.note(
        "attention and FFN on GPUs of their own: no flag of this engine does it",
        of.attention_ffn is not None,
    )
    draft.note(
        "experts outside GPU memory: no flag of this engine does it as simulated",
        of.expert_offload is not None,
    )
    draft.note("memories below the GPU's need a KV connector", bool(of.kv_cache.tiers))
    draft.note(
        "queues that are fair to tenants (vtc): no flag of this engine does it",
        of.queue.policy == "vtc",
    )
    draft.note(
        "kv_cache.reserved_bytes: the engine works out its reserve itself",
        of.kv_cache.reserved_bytes is not None,
    )
    draft.note(f"placement {of.placement.policy}: no flag does it", of.placement.policy == "random")
    if of.speculation.drafts:
        draft.note(f"simulated with acceptance {of.speculation.acceptance}: measure yours")


def _limits_rates(of: DeploymentSpec) -> bool:
    return of.admission is not None and of.admission.rate_limit is not None


def note_replicas(draft: Draft, of: DeploymentSpec, gpus: int) -> None:
    """A comment on the copies of a server."""
    if of.replicas > 1:
        each = f"{gpus} GPU{'s' * (gpus > 1)}"
        balancing = of.load_balancing.policy
        draft.note(f"run {of.replicas} of these, each on {each}, behind a {balancing} balancer")


def loaded(scenario: Scenario) -> MoEModel:
    return load_model(scenario.model)


def replica_gpus(of: DeploymentSpec) -> int:
    split = of.parallelism
    return split.attention_tp * split.attention_dp * split.pipeline
