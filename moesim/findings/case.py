"""Everything that studies found about one deployment, beside its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.findings.attribution import Explanation
from moesim.findings.costs import CostFindings
from moesim.findings.estimates import Uncertainty
from moesim.findings.placement import PlacementFindings


@dataclass(frozen=True, eq=False)
class Case:
    """What was not studied is None; `absent` then says why, by field, where there is a reason
    ("placement": "the model is dense")."""

    uncertainty: Uncertainty | None = None
    explanation: Explanation | None = None
    costs: CostFindings | None = None
    placement: PlacementFindings | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
