"""Who a request belongs to: a service class with a priority and limits, and a tenant.

Legend: N requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field

from moesim.spec import Spec
from moesim.workload.lengths import LengthChoice, no_flag


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be one line of printable text")
    return text


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
Share = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(no_flag)]
Limit = Annotated[float, Field(gt=0.0, le=1e9), BeforeValidator(no_flag)] | None


class ClassLimits(Spec):
    """Service-level objective of a class; what is left out follows the scenario's `slo`."""

    ttft_s: Limit = None
    tpot_s: Limit = None
    e2e_s: Limit = None


class RequestClass(Spec):
    """A kind of request: its share, its priority (lower is served first, as in vLLM), its limits.

    `prompt` and `output` replace the workload's lengths for this class.
    """

    name: Name
    share: Share = 1.0
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    slo: ClassLimits = ClassLimits.default()
    prompt: LengthChoice | None = None
    output: LengthChoice | None = None


class Tenant(Spec):
    """A customer among whom the service is shared."""

    name: Name
    share: Share = 1.0


@dataclass(frozen=True, eq=False)
class Groups:
    """Class and tenant of each request, as indices into their names (one unnamed where none are).

    priority_N is that of the class.
    """

    class_N: NDArray[np.uint16]
    classes: tuple[str, ...]
    priority_N: NDArray[np.int32]
    tenant_N: NDArray[np.uint16]
    tenants: tuple[str, ...]

    def of(self, rows_N: NDArray[np.int32]) -> Groups:
        """The groups of the given rows, in that order."""
        return replace(
            self,
            class_N=self.class_N[rows_N],
            priority_N=self.priority_N[rows_N],
            tenant_N=self.tenant_N[rows_N],
        )


def draw_groups(
    classes: Sequence[RequestClass],
    tenants: Sequence[Tenant],
    quantile_N2: NDArray[np.float64],
) -> Groups | None:
    """Class and tenant of each request by two numbers from [0, 1); None without either."""
    if not classes and not tenants:
        return None
    class_N = drawn([each.share for each in classes], quantile_N2[:, 0])
    priorities = np.array([each.priority for each in classes] or [0], np.int32)
    return Groups(
        class_N=class_N,
        classes=tuple(each.name for each in classes),
        priority_N=priorities[class_N],
        tenant_N=drawn([each.share for each in tenants], quantile_N2[:, 1]),
        tenants=tuple(each.name for each in tenants),
    )


def drawn(shares: list[float], quantile_N: NDArray[np.float64]) -> NDArray[np.uint16]:
    """[N] which of some shares each quantile falls into; all 0 where there are none."""
    cumulative = np.cumsum(shares or [1.0])
    chosen_N = np.searchsorted(cumulative, quantile_N * cumulative[-1], side="right")
    return np.asarray(np.minimum(chosen_N, cumulative.size - 1), np.uint16)
