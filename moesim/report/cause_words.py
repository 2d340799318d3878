"""Why latency varies, in words."""

from __future__ import annotations

from moesim.findings.attribution import Explanation


def causes(found: Explanation) -> list[str]:
    """The sentences on variance: gaps, first token, whole answers."""
    splits = [found.of(metric, "variance") for metric in ("itl_s", "ttft_s", "e2e_s")]
    return [split.sentence for split in splits if split is not None]
