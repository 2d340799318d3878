"""Policies by name or as functions of one's own, applied to what they may see.

Legend: L MoE layers, P slots.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError
from moesim.placement.catalogue import POLICIES
from moesim.placement.placement import Placement
from moesim.placement.replica_choice import CHOICES
from moesim.placement.task import PlacementPolicy, PlacementTask, Workload
from moesim.placing import place
from moesim.what_if.setting import Setting

EPLB = "eplb"
EPLB_GLOBAL = "eplb-global"
HASH = "hash"
# Policies of a scenario file that look at no load: placed as a run places them.
_UNFITTED = ("contiguous", "round-robin", "random", "file")

Policies = Sequence[str | PlacementPolicy] | Mapping[str, PlacementPolicy]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A placement, and how long its policy took for it."""

    policy: str
    redundant: int
    choice: str
    placement: Placement
    seconds: float

    @property
    def name(self) -> str:
        """'eplb, 32 redundant experts, lp': what is not said is 0 and hash."""
        parts = [self.policy]
        if self.redundant:
            parts.append(f"{self.redundant} redundant experts")
        if self.choice != HASH:
            parts.append(self.choice)
        return ", ".join(parts)


def named_policies(policies: Policies) -> dict[str, PlacementPolicy]:
    """Policies by name: names of the catalogue, functions of one's own by theirs.

    Raises InputError for an unknown name, no policy at all, and two of one name.
    """
    if isinstance(policies, Mapping):
        pairs = [(str(name), policy) for name, policy in policies.items()]
    else:
        pairs = [_named(policy) for policy in policies]
    if not pairs:
        raise InputError("policies", f"must be among {', '.join(POLICIES)}", list(policies))
    found: dict[str, PlacementPolicy] = {}
    for name, policy in pairs:
        if name in found:
            raise InputError("policies", "must have different names", name)
        if not callable(policy):
            raise InputError("policies", "must be functions of a PlacementTask", name)
        found[name] = policy
    return found


def _named(policy: str | PlacementPolicy) -> tuple[str, PlacementPolicy]:
    if not isinstance(policy, str):
        return str(getattr(policy, "__name__", type(policy).__name__)).replace("_", "-"), policy
    if policy in POLICIES:
        return policy, POLICIES[policy]
    close = difflib.get_close_matches(policy, list(POLICIES), n=1)
    raise InputError(
        "policies",
        f"must be among {', '.join(POLICIES)}",
        policy,
        f"did you mean {close[0]}?" if close else "",
    )


def checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """Choices among copies, each once; InputError for one that there is not."""
    if not choices:
        raise InputError("choices", f"must be among {', '.join(CHOICES)}", list(choices))
    for choice in choices:
        if choice not in CHOICES:
            close = difflib.get_close_matches(choice, CHOICES, n=1)
            hint = f"did you mean {close[0]}?" if close else ""
            raise InputError("choices", f"must be among {', '.join(CHOICES)}", choice, hint)
    return tuple(dict.fromkeys(choices))


def fit_policy(name: str, policy: PlacementPolicy, task: PlacementTask) -> Fitted:
    """Ask a policy; InputError under its name for what is no placement of all experts."""
    started_s = time.perf_counter()
    table_LP = np.asarray(policy(task))
    seconds = time.perf_counter() - started_s
    field = f"policies.{name}"
    if table_LP.shape != (task.layers, task.slots):
        rule = f"must return {task.layers} layers x {task.slots} slots"
        raise InputError(field, rule, list(table_LP.shape))
    try:
        placement = Placement(table_LP, task.ranks)
        placement.validate(task.experts)
    except InputError as error:
        raise InputError(field, error.rule, error.value, error.hint) from None
    return Fitted(name, task.slots - task.experts, task.choice, placement, seconds)


def fit_present(setting: Setting, fit: tuple[Workload, ...]) -> Fitted:
    """What the scenario does today; fitted policies see the first half only."""
    chosen = setting.scenario.deployment.placement
    name, redundant = str(chosen.policy), chosen.redundant_experts
    choice = chosen.replica_choice if redundant else HASH
    if name not in _UNFITTED:
        if getattr(chosen, "hierarchical", None) is False:
            name = EPLB_GLOBAL
        return fit_policy(name, POLICIES[name], setting.task(fit, redundant, choice))
    made = setting.scenario, setting.deployment, setting.costs
    placement = place(*made, setting.trace, setting.ids_TLK)
    placement.validate(setting.experts)
    return Fitted(name, redundant, choice, placement, 0.0)
