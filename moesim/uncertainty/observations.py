"""What one run shows of its headline figures, and how it is cut into batches.

Batches are equally many counted requests, neighbours in order of arrival; values of a request, and
the steps that begin while a batch arrives, belong to its batch. Two runs of the same demand are cut
alike, so that their parts are pairs.

Legend: N requests of a run, G gaps between tokens, W steps, J parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Table, flags, floats
from moesim.figures.gaps import GapBlocks
from moesim.figures.metrics import counted_rows, counted_steps, measured_window
from moesim.figures.steps import balanced
from moesim.uncertainty.intervals import Floats, Pooled
from moesim.uncertainty.parts import LATENCIES, Parts, moments_of, sum_by_part

REQUEST_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
END_STAYS = 3.0
MOST_GAPS = 4_000_000  # between tokens


@dataclass(frozen=True, eq=False)
class Observed:
    """What one run shows.

    [N] requests in order of their rows: `counted_N` (completed, not warm-up), `arrival_s_N`,
    `latency_N` by metric (NaN: does not apply), tokens; `met_N` whether one met its limits (None:
    there are none), `asked_N` whether that counts. Gaps with the row of their request; counted
    steps with their imbalance. `window_s`: of the measured window. In a streaming run gaps are bins
    of a block of requests, with a row of that block and `gap_weight_G` values each; `of_blocks` has
    such rows and [blocks, 3] counts, sums and sums of squares. Steps weigh `step_weight_W`.
    """

    counted_N: NDArray[np.bool_]
    arrival_s_N: Floats
    latency_N: Mapping[str, Floats]
    input_tokens_N: Floats
    output_tokens_N: Floats
    met_N: NDArray[np.bool_] | None
    asked_N: NDArray[np.bool_]
    gap_s_G: Floats
    gap_row_G: NDArray[np.int64]
    step_start_s_W: Floats
    imbalance_W: Floats
    window_s: float
    gpus: int
    usd_per_gpu_hour: float | None
    step_weight_W: Floats
    gap_weight_G: Floats | None = None
    of_blocks: tuple[NDArray[np.int64], Floats] | None = None

    @property
    def order(self) -> NDArray[np.int64]:
        """Rows of requests in order of arrival."""
        return np.argsort(self.arrival_s_N, kind="stable")

    def batches(self, parts: int) -> Parts:
        """Cut into batches of neighbours; as many as there are requests at most."""
        return self.cut(part_of_request(self.order, self.counted_N, parts), self.counted_N)

    def cut(self, part_N: NDArray[np.int64], counted_N: NDArray[np.bool_]) -> Parts:
        """Cut by the batch of each request, of which `counted_N` count."""
        parts = int(part_N.max(initial=0)) + 1
        starts_s, ends_s = self._times(part_N, counted_N, parts)
        return self._parts(part_N, counted_N, parts, starts_s, ends_s - starts_s, True)

    def whole(self) -> Parts:
        """All of the run as one part, over its measured window."""
        part_N = np.zeros(self.counted_N.size, np.int64)
        window = np.array([self.window_s])
        return self._parts(part_N, self.counted_N, 1, np.array([-np.inf]), window, False)

    def settled(self) -> Observed:
        """Without the requests of its two ends, which meet a system that fills up or empties.

        These arrive within END_STAYS of a mean stay of the first or the last arrival; all stay
        where that would leave less than half. Chosen by arrival, never by what became of one.
        """
        known_N = self.counted_N & ~np.isnan(self.latency_N["e2e_s"])
        if not known_N.any():
            return self
        end_s = END_STAYS * float(self.latency_N["e2e_s"][known_N].mean())
        first_s, last_s = np.nanmin(self.arrival_s_N) + end_s, np.nanmax(self.arrival_s_N) - end_s
        inside_N = (self.arrival_s_N >= first_s) & (self.arrival_s_N <= last_s)
        if 2 * int((known_N & inside_N).sum()) < int(known_N.sum()):
            return self
        inside_W = (self.step_start_s_W >= first_s) & (self.step_start_s_W <= last_s)
        return replace(
            self,
            counted_N=self.counted_N & inside_N,
            asked_N=self.asked_N & inside_N,
            step_start_s_W=self.step_start_s_W[inside_W],
            imbalance_W=self.imbalance_W[inside_W],
            step_weight_W=self.step_weight_W[inside_W],
        )

    def arrivals_s(self) -> float:
        """From the first counted arrival to the last, and one gap on."""
        arrival_s = self.arrival_s_N[self.counted_N]
        if arrival_s.size < 2:
            return 0.0
        return float(np.ptp(arrival_s)) * arrival_s.size / (arrival_s.size - 1)

    def _times(
        self, part_N: NDArray[np.int64], counted_N: NDArray[np.bool_], parts: int
    ) -> tuple[Floats, Floats]:
        """[J] when the first request of each batch arrives, and of the next one."""
        arrival_s, part = self.arrival_s_N[counted_N], part_N[counted_N]
        starts_s = np.full(parts, np.inf)
        np.minimum.at(starts_s, part, arrival_s)
        starts_s = np.minimum.accumulate(starts_s[::-1])[::-1]
        last_s = float(arrival_s.max(initial=0.0))
        gap_s = (last_s - starts_s[0]) / max(1, arrival_s.size - 1)
        return starts_s, np.append(starts_s[1:], last_s + gap_s)

    def _parts(
        self,
        part_N: NDArray[np.int64],
        counted_N: NDArray[np.bool_],
        parts: int,
        starts_s: Floats,
        seconds_J: Floats,
        ordered: bool,
    ) -> Parts:
        pooled, moments = {}, {}
        for metric in LATENCIES:
            values, owner, weights = self._values(metric, counted_N)
            pooled[metric] = Pooled.of(values, part_N[owner], parts, weights)
            moments[metric] = moments_of(values, part_N[owner], parts)
        if self.of_blocks is not None:
            row_B, sums_B3 = (each[counted_N[self.of_blocks[0]]] for each in self.of_blocks)
            columns = [sum_by_part(part_N[row_B], column, parts) for column in sums_B3.T]
            moments["itl_s"] = np.stack(columns, axis=1)
        part, rows = part_N[counted_N], counted_N
        step = np.clip(np.searchsorted(starts_s, self.step_start_s_W, "right") - 1, 0, None)
        met_N = np.zeros(counted_N.size, np.bool_) if self.met_N is None else self.met_N
        asked_N = self.asked_N if self.met_N is not None else np.zeros_like(self.asked_N)
        totals = {
            "requests": sum_by_part(part, np.ones(part.size), parts),
            "output_tokens": sum_by_part(part, self.output_tokens_N[rows], parts),
            "total_tokens": sum_by_part(
                part, self.output_tokens_N[rows] + self.input_tokens_N[rows], parts
            ),
            "seconds": seconds_J,
            "steps": sum_by_part(step, self.step_weight_W, parts),
            "imbalance": sum_by_part(step, self.imbalance_W * self.step_weight_W, parts),
            "met": sum_by_part(part_N[asked_N], met_N[asked_N].astype(np.float64), parts),
            "asked": sum_by_part(part_N[asked_N], np.ones(int(asked_N.sum())), parts),
        }
        return Parts(pooled, moments, totals, self.gpus, self.usd_per_gpu_hour, ordered)

    def _values(
        self, metric: str, counted_N: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.int64], Floats | None]:
        """(values of counted requests, rows of these, how many each is: None for one)."""
        if metric == "itl_s":
            kept_G = counted_N[self.gap_row_G]
            weights = None if self.gap_weight_G is None else self.gap_weight_G[kept_G]
            return self.gap_s_G[kept_G], self.gap_row_G[kept_G], weights
        rows = np.flatnonzero(counted_N & ~np.isnan(self.latency_N[metric]))
        return self.latency_N[metric][rows], rows, None


def observe(
    requests: Table,
    steps: Table,
    gaps: tuple[Floats, NDArray[np.int64]] | GapBlocks,
    met_N: NDArray[np.bool_] | None,
    gpus: int,
    usd_per_gpu_hour: float | None,
) -> Observed:
    """What a run's tables show; `gaps` between tokens with the row of their request (of very many,
    equally spaced ones), or as a streaming run counts them; `steps`: step_totals."""
    counted_N = counted_rows(requests)
    weights = of_blocks = None
    if isinstance(gaps, GapBlocks):
        gap_s, gap_row, weights, row_B, sums_B3 = gaps.by_block(counted_N)
        of_blocks = row_B, sums_B3
    else:
        spacing = max(1, -(-gaps[0].size // MOST_GAPS))
        gap_s, gap_row = gaps[0][::spacing], gaps[1][::spacing]
    window_s = measured_window(requests)
    shown = steps[counted_steps(steps, window_s)]
    imbalance_W = floats(shown, "imbalance")
    real_W = imbalance_W > 0  # steps of a dense model have none
    return Observed(
        counted_N=counted_N,
        arrival_s_N=floats(requests, "arrival_s"),
        latency_N={name: floats(requests, name) for name in REQUEST_LATENCIES},
        input_tokens_N=floats(requests, "prompt_tokens"),
        output_tokens_N=floats(requests, "output_tokens"),
        met_N=met_N,
        asked_N=~flags(requests, "warmup"),
        gap_s_G=gap_s,
        gap_row_G=gap_row,
        step_start_s_W=floats(shown, "start_s")[real_W],
        imbalance_W=imbalance_W[real_W],
        window_s=window_s[1] - window_s[0],
        gpus=gpus,
        usd_per_gpu_hour=usd_per_gpu_hour,
        step_weight_W=balanced(shown)[real_W],
        gap_weight_G=weights,
        of_blocks=of_blocks,
    )


def part_of_request(
    order: NDArray[np.int64], counted_N: NDArray[np.bool_], parts: int
) -> NDArray[np.int64]:
    """[N] batch of each request: equally many counted ones in each, in `order`."""
    counted = int(counted_N.sum())
    parts = max(1, min(parts, counted))
    shown = counted_N[order].astype(np.int64)
    rank = np.cumsum(shown) - shown
    part_N = np.empty(counted_N.size, np.int64)
    part_N[order] = np.minimum(rank * parts // max(1, counted), parts - 1)
    return part_N
