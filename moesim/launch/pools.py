"""Two commands as the two pools of one disaggregated deployment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moesim.deployment_spec import PoolSpec
from moesim.errors import InputError
from moesim.launch.flags import FIELD
from moesim.launch.parts import Parts, Role


def joined(parts: Sequence[Parts]) -> Parts:
    """One command's parts as they are; a prefill and a decode command's as one deployment.

    Where a command does not say which pool it is, the first is prefill. Raises InputError.
    """
    if len(parts) == 1:
        if parts[0].role in ("prefill", "decode"):
            rule = "is one of two pools: give the other's command, too"
            raise InputError(FIELD, rule, None, "--from-command once for each pool")
        if parts[0].role:
            parts[0].notes.append("able to serve as one of two pools; simulated as both at once")
            parts[0].role = ""
        return parts[0]
    first, second = parts
    if "" in (first.role, second.role):
        hint = "a command for each node is one deployment: give that of the first node alone"
        raise InputError(
            FIELD, "must be given once, or for a prefill and a decode pool", None, hint
        )
    _settle(first, second)
    if first.role == second.role:
        raise InputError(FIELD, f"must be given for two pools; both are {first.role}")
    pools = {each.role: each for each in parts}
    prefill, decode = pools["prefill"], pools["decode"]
    if (prefill.model, prefill.precision) != (decode.model, decode.precision):
        rule = "must name one checkpoint with one KV type in both pools"
        raise InputError(FIELD, rule, decode.model)
    shared: dict[str, Any] = {"engine": prefill.deployment["engine"]}
    transfers = [_pop_transfer(each) for each in (prefill, decode)]
    split = {role: _own(each, shared) for role, each in pools.items()}
    transfer = {**transfers[0], **transfers[1]}
    shared["disaggregation"] = {
        "prefill": split["prefill"],
        "decode": split["decode"],
        **({"kv_transfer": transfer} if transfer else {}),
    }
    return Parts(
        model=prefill.model,
        deployment=shared,
        precision=prefill.precision,
        gpus=prefill.gpus + decode.gpus,
        per_node=_per_node(prefill, decode),
        notes=list(dict.fromkeys([*prefill.notes, *decode.notes])),
    )


def _settle(first: Parts, second: Parts) -> None:
    """Give a pool that does not say which it is the place that the other leaves."""
    other: dict[Role, Role] = {"prefill": "decode", "decode": "prefill", "either": "decode"}
    if first.role == "either":
        first.role = "prefill" if second.role == "either" else other[second.role]
    if second.role == "either":
        second.role = other[first.role]


def _pop_transfer(parts: Parts) -> dict[str, Any]:
    return dict(parts.deployment.pop("disaggregation", {}).get("kv_transfer", {}))


def _own(parts: Parts, shared: dict[str, Any]) -> dict[str, Any]:
    """What a pool has of its own; what pools cannot differ in goes to `shared`."""
    own: dict[str, Any] = {}
    for key, value in parts.deployment.items():
        if key in PoolSpec.model_fields:
            own[key] = value
        elif key != "engine" and shared.setdefault(key, value) != value:
            raise InputError(f"deployment.{key}", "must be the same in both pools", value)
    if parts.role == "prefill":
        own.pop("speculation", None)
    return own


def _per_node(prefill: Parts, decode: Parts) -> int | None:
    """GPUs of a node that both pools fill whole nodes of; None for the usual number."""
    said = [each.per_node for each in (prefill, decode) if each.per_node]
    return math.gcd(*said) if said else None
