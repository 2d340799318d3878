"""Whether a routing trace holds enough for what is asked of it: notes, never refusals.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.routing.trace import RoutingTrace

# Below this share of the tokens that a run routes, rows repeat more than ten times on average ...
FEW_ROWS_SHARE = 0.1
# ... which is no harm where there are so many rows: a mean over them no longer depends on a few.
MANY_ROWS = 16_384


@dataclass(frozen=True)
class Pool:
    """What a run may draw from: usable sequences of the demand's domains, and their rows."""

    sequences: int
    rows: int

    @classmethod
    def of(cls, trace: RoutingTrace, domains: Sequence[str] = ()) -> Pool:
        """The usable part of a trace; all domains for none."""
        usable_S = usable_sequences(trace)
        if domains:
            wanted = np.array([name in domains for name in trace.domains])
            usable_S = usable_S & wanted[trace.domain_S]
        return cls(int(usable_S.sum()), int(trace.sequence_tokens_S[usable_S].sum()))

    def notes(self, routed_tokens: int, in_flight: int) -> tuple[str, ...]:
        """Notes on a pool that is small for a run of so many tokens and requests at a time."""
        few_rows = self.rows < min(FEW_ROWS_SHARE * routed_tokens, MANY_ROWS)
        if not few_rows and self.sequences >= in_flight:
            return ()
        rows = f"{self.rows:,} token{'' if self.rows == 1 else 's'}"
        sequences = f"{self.sequences:,} sequence{'' if self.sequences == 1 else 's'}"
        return (
            f"routing: {rows} of {sequences} stand for {routed_tokens:,} tokens, with up to "
            f"{in_flight:,} requests at a time; they repeat, and figures that depend on routing "
            "are those of a small sample",
        )


def usable_sequences(trace: RoutingTrace) -> NDArray[np.bool_]:
    """Sequences that a replay walks, [S]: those with prompt and output, or all if none has both."""
    prompt_S = trace.prompt_tokens_S.astype(np.int64)
    both_S = (prompt_S > 0) & (prompt_S < trace.sequence_tokens_S)
    return both_S if both_S.any() else np.asarray(trace.sequence_tokens_S > 0)


def phase_notes(trace: RoutingTrace) -> tuple[str, ...]:
    """What stands in for what, where no sequence of a trace has both prompt and output."""
    prompt_S = trace.prompt_tokens_S.astype(np.int64)
    if ((prompt_S > 0) & (prompt_S < trace.sequence_tokens_S)).any():
        return ()
    if not prompt_S.any():
        return ("routing: the trace has no prompts; decoded tokens stand in for them",)
    if (prompt_S == trace.sequence_tokens_S).all():
        return ("routing: the trace has no decoded tokens; prompts stand in for them",)
    return (
        "routing: no sequence of the trace has both prompt and output; each stands in for the "
        "other",
    )
