"""Runs with more tokens and steps than memory should hold: when, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.figures.gaps import GapBlocks, block_starts
from moesim.scenario import Scenario
from moesim.sim.bins import RELATIVE_ERROR
from moesim.sim.fleet import Fleet
from moesim.sim.state import Record
from moesim.sim.step_folding import FoldedSteps, StepFolder
from moesim.workload.demand import Demand

# Output tokens up to which all is kept: their times, gaps, and copies of these while figures are
# worked out, take about 50 bytes each (measured 2026-11), so 1 GB.
MOST_TOKEN_TIMES = 20_000_000
MOST_EXACT = 500_000_000  # where the scenario wants it so


def streams(scenario: Scenario, demand: Demand) -> bool:
    """Whether a run is to count instead of keep; InputError where it must not keep so much."""
    tokens = int(demand.output_tokens.astype(np.int64).sum())
    choice = scenario.measure.statistics
    if choice == "exact" and tokens > MOST_EXACT:
        raise InputError(
            "measure.statistics",
            f"must not be exact for more than {MOST_EXACT:,} output tokens",
            tokens,
            hint="streaming is exact in counts and means, and says how far off quantiles may be",
        )
    return choice == "streaming" or (choice == "auto" and tokens > MOST_TOKEN_TIMES)


def least_gap_s(scenario: Scenario) -> float:
    """Gaps that are no longer are none: those between tokens of one message."""
    drafts = [of.deployment.speculation.drafts for _, of in scenario.pools()]
    return 0.0 if any(drafts) else -1.0


def record_options(scenario: Scenario, demand: Demand, streaming: bool) -> dict[str, Any]:
    """How sim.setup.build_record is to keep token times."""
    if not streaming:
        return {"keep_token_times": True}
    warmup = scenario.measure.warmup
    also = warmup if isinstance(warmup, int) else 0
    return {
        "keep_token_times": False,
        "gap_blocks": block_starts(len(demand), also),
        "least_gap_s": least_gap_s(scenario),
    }


def fold_steps(fleet: Fleet) -> None:
    """Let a fleet add its steps up as they come."""
    fleet.folder = StepFolder(fleet.state.replicas.size)


def steps_of(fleet: Fleet) -> tuple[NDArray[Any], FoldedSteps | None]:
    """(rows of STEP, sums of all steps) of a fleet that has finished; None where all are kept."""
    if fleet.folder is not None:
        folded = fleet.folder.finish(fleet.step_chunks)
        fleet.step_chunks = []
        return folded.steps, folded
    return fleet.kept_steps.all(), None


def gaps_of(record: Record) -> GapBlocks | None:
    """What a record has counted; None where token times are kept, or nothing is."""
    if not record.gap_counts_BI.size:
        return None
    left_out = int(record.page_line[0]["left_out"])
    return GapBlocks(record.gap_block_N, record.gap_counts_BI, record.gap_moments_B, left_out)


def joined(folded: Sequence[FoldedSteps | None], steps: NDArray[Any]) -> FoldedSteps | None:
    """The sums of two fleets whose replicas are numbered through; `steps` of both."""
    known = [each for each in folded if each is not None]
    if len(known) < len(folded):
        return None
    totals = np.concatenate([each.totals for each in known])
    return FoldedSteps(
        steps,
        totals[np.argsort(totals["start_s"], kind="stable")],
        max(each.spacing for each in known),
        np.concatenate([each.block_start_s for each in known]),
        np.concatenate([each.counts_BI for each in known]),
    )


def streaming_notes(
    scenario: Scenario, gaps: GapBlocks | None, folded: FoldedSteps | None
) -> list[str]:
    """What a reader of a streaming run must know."""
    if gaps is None or folded is None:
        return []
    share = f"{RELATIVE_ERROR:.1%}"
    said = [
        f"streaming statistics: counts, means and standard deviations are exact; quantiles of gaps "
        f"between tokens and of imbalance are within {share} of the exact ones; warm-up is cut in "
        f"whole blocks of requests ({gaps.blocks} in all)"
    ]
    if folded.spacing > 1:
        said.append(
            f"streaming statistics: of the steps one in {folded.spacing} is kept, and sums over "
            f"stretches of {folded.spacing}"
        )
        if scenario.deployment.rebalancing is not None:
            said.append("streaming statistics: gains of rebalances need every step; not known")
    if scenario.deployment.rebalancing is not None:
        said.append("streaming statistics: gaps during rebalances need token times; not known")
    if gaps.left_out:
        said.append(
            f"streaming statistics: {gaps.left_out:,} gaps left out, of requests for whose tokens "
            "there was no room while they were under way"
        )
    return said
