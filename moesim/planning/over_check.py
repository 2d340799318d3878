"""What --over names, looked at before anything runs: every field is known, every value can be its.

A value that its field takes but no deployment fits is left to pruning, which says why.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.errors import InputError
from moesim.hardware import load_gpu
from moesim.model import load_model
from moesim.planning.shapes import put
from moesim.planning.space import ALL, EP, GPU, OWN, PLACEMENT, POOLS, TOGETHER
from moesim.scenario import Scenario

RATIO = re.compile(r"[1-9][0-9]{0,5}:[1-9][0-9]{0,5}")
PLUS = re.compile(r"[1-9][0-9]{0,5}")
WHERE = {PLACEMENT: "deployment.placement", POOLS: POOLS}


def check_over(scenario: Scenario, over: Mapping[str, Sequence[Any]]) -> None:
    """InputError for a path that no scenario has, and for a value that its field refuses."""
    data = scenario.model_dump()
    data["deployment"]["batching"] = scenario.batching.model_dump()
    data["deployment"] |= {"autoscaling": None, "replicas": 1}
    for path, values in over.items():
        for value in values:
            if path == POOLS:
                _check_pools(value)
            elif path == PLACEMENT:
                policy = _policy(value)
                if policy != data["deployment"]["placement"]["policy"]:
                    _check_field(data, path, {"policy": policy}, value)
            elif not (path == EP and value == ALL):
                _check_field(data, path, value, value)


def _check_field(data: Mapping[str, Any], path: str, value: object, shown: object) -> None:
    """Parse the scenario with this value; a fault at the path, not beside it, is the value's."""
    changed = copy.deepcopy(dict(data))
    at = WHERE.get(path, path)
    try:
        put(changed, at, copy.deepcopy(value))
        Scenario.parse(changed)
        if path == GPU:
            load_gpu(str(value))
        elif path == "model":
            load_model(str(value))
    except InputError as error:
        field = error.field
        if path in (GPU, "model") or field == "--over" or _within(field, at) or _within(at, field):
            known = "known field" in error.rule or str(shown) in error.rule
            raise InputError(
                f"--over {path}", error.rule, None if known else shown, error.hint
            ) from None


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _check_pools(value: object) -> None:
    if value not in (TOGETHER, OWN) and not RATIO.fullmatch(str(value)):
        rule = f"must be {TOGETHER}, {OWN} or PREFILL:DECODE, e.g. 1:2"
        raise InputError(f"--over {POOLS}", rule, value)


def _policy(value: object) -> str:
    policy, plus, extra = str(value).partition("+")
    if plus and not PLUS.fullmatch(extra):
        rule = "must be a policy, or policy+SLOTS_PER_RANK"
        raise InputError(f"--over {PLACEMENT}", rule, value)
    return policy
