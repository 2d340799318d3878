"""Everything that studies found about one deployment, beside its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.findings.attribution import Explanation, SlowSteps, Twin
from moesim.findings.costs import CostFindings
from moesim.findings.estimates import Uncertainty
from moesim.findings.placement import PlacementFindings
from moesim.findings.shift import Shifted
from moesim.findings.strain import Strain


@dataclass(frozen=True, eq=False)
class Case:
    """What was not studied is None or empty; `absent` then says why, by field, where there is a
    reason ("placement": "the model is dense")."""

    uncertainty: Uncertainty | None = None
    explanation: Explanation | None = None
    costs: CostFindings | None = None
    placement: PlacementFindings | None = None
    slow_steps: tuple[SlowSteps, ...] = ()
    twins: tuple[Twin, ...] = ()
    strain: Strain | None = None
    shifts: tuple[Shifted, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
