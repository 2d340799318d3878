"""What one launch command comes to, before it becomes a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal[
    "", "prefill", "decode", "either"
]  # of two pools; either: the command says not which


@dataclass
class Parts:
    """Sections of a scenario, GPUs of all replicas, and what to know about it.

    `per_node`: GPUs of a node where the command says so. `gpus` is the number of one command's
    deployment, whatever number of nodes it is started on.
    """

    model: str
    deployment: dict[str, Any]
    precision: dict[str, str]
    gpus: int = 1
    per_node: int | None = None
    role: Role = ""
    notes: list[str] = field(default_factory=list)

    def put(self, path: str, value: object) -> None:
        """Set a field of the deployment, named with dots; None leaves it to the engine's rule."""
        if value is None:
            return
        at = self.deployment
        *above, last = path.split(".")
        for key in above:
            at = at.setdefault(key, {})
        at[last] = value


def batching(policy: str, settings: Mapping[str, object]) -> dict[str, Any] | None:
    """A batching policy with what is set of it; None where nothing is, for the engine's own."""
    found = {name: value for name, value in settings.items() if value is not None}
    return {"policy": policy, **found} if found else None
