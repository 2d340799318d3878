"""Whether a router has stopped to choose: experts that nobody takes, experts that everybody takes.

Legend: L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.routing.load import Load

# An even, independent router leaves an expert that expects so many tokens empty in one case of
# e^20; with fewer, "never chosen" may be chance.
DECIDABLE = 20.0
DOMINATING_SHARE = 0.5  # of all tokens
DOMINATING_RATIO = 4.0  # over a fair share: one of Mixtral's 8 experts has a quarter by right
COLLAPSED = 2.0  # effective experts over K


@dataclass(frozen=True)
class Finding:
    """Experts of one layer (the model's index); `effective` as in `Load.effective_experts_L`."""

    layer: int
    experts: tuple[int, ...]
    effective: float


@dataclass(frozen=True)
class Collapse:
    """Layers with experts that no token chose, that over half of the tokens chose, and layers that
    have less than twice K effective experts. `decidable`: whether there were tokens enough."""

    decidable: bool
    dead: tuple[Finding, ...]
    dominating: tuple[Finding, ...]
    collapsed: tuple[Finding, ...]
    warnings: tuple[str, ...]


def find_collapse(load: Load, layers: tuple[int, ...]) -> Collapse:
    """Findings and a plain sentence for each kind; none on too few tokens."""
    experts = load.counts_LE.shape[1]
    fair = load.tokens * load.top_k / experts
    decidable = fair >= DECIDABLE
    share_LE = load.counts_LE / max(1, load.tokens)
    dominates_LE = (share_LE >= DOMINATING_SHARE) & (load.relative_LE >= DOMINATING_RATIO)
    dominates_LE &= decidable
    few_L = (load.effective_experts_L < COLLAPSED * load.top_k) & (experts > COLLAPSED * load.top_k)

    def findings(mark_LE: np.ndarray) -> tuple[Finding, ...]:
        return tuple(
            Finding(
                layers[row],
                tuple(np.flatnonzero(mark_LE[row]).tolist()),
                float(load.effective_experts_L[row]),
            )
            for row in np.flatnonzero(mark_LE.any(axis=1))
        )

    dead = findings((load.counts_LE == 0) & decidable)
    dominating = findings(dominates_LE)
    collapsed = findings(few_L[:, None] & (load.relative_LE >= 1)) if decidable else ()
    warnings = _warnings(load, fair, dead, dominating, collapsed)
    return Collapse(decidable, dead, dominating, collapsed, warnings)


def _warnings(
    load: Load,
    fair: float,
    dead: tuple[Finding, ...],
    dominating: tuple[Finding, ...],
    collapsed: tuple[Finding, ...],
) -> tuple[str, ...]:
    told: list[str] = []
    places = load.counts_LE.size
    if fair < DECIDABLE:
        told.append(
            f"Too few tokens to look for dead or dominating experts: a fair share would be "
            f"{fair:.2g} tokens, and under {DECIDABLE:.0f} an idle expert may be chance."
        )
    if dead:
        number = sum(len(finding.experts) for finding in dead)
        told.append(
            f"Dead experts: {number} of {places:,} (layer, expert) places were chosen by none of "
            f"{load.tokens:,} tokens, where a fair share is {fair:,.0f}: {_where(dead)}. Their "
            "weights take memory and do no work on this workload; a wider one may need them."
        )
    if dominating:
        told.append(
            f"Dominating experts: in {_where(dominating)} one expert takes at least half of all "
            "tokens. Its rank sets the pace of the layer; give it copies or a rank of its own."
        )
    if collapsed:
        least = min(finding.effective for finding in collapsed)
        told.append(
            f"Routing has collapsed in {_where(collapsed, experts=False)}: the load is as narrow "
            f"as that of {least:.1f} even experts, where each token takes {load.top_k}. Check the "
            "router's training, or whether this trace repeats itself."
        )
    return tuple(told)


def _where(findings: tuple[Finding, ...], experts: bool = True, most: int = 4) -> str:
    parts = []
    for finding in findings[:most]:
        named = ", ".join(map(str, finding.experts[:most]))
        more = len(finding.experts) - most
        named += f" and {more} more" if more > 0 else ""
        noun = "expert" if len(finding.experts) == 1 else "experts"
        parts.append(f"layer {finding.layer}" + (f" ({noun} {named})" if experts else ""))
    more = len(findings) - most
    return "; ".join(parts) + (f" and {more} more layers" if more > 0 else "")
