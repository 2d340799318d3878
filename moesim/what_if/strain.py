"""Whether the present placement's run could keep up: a placement cannot mend an overload."""

from __future__ import annotations

from moesim.findings.placement import Candidate

# What a run's own notes (moesim.results) begin with where its demand is too much or too short.
ABOUT_LOAD = ("overload:", "short run:")
WELL_MET = 0.95  # of requests within their limits


def load_notes(present: Candidate) -> tuple[str, ...]:
    """What the present placement's run says of its load; () without a run."""
    summary = present.summary or {}
    who = f"run of {present.name}"
    said = [f"{who}: {note}" for note in summary.get("notes", ()) if note.startswith(ABOUT_LOAD)]
    met = summary.get("slo_attainment")
    if met is not None and met < WELL_MET:
        said.append(f"{who}: only {met:.0%} of requests are within their limits")
    return tuple(said)
