"""Routed experts of one rank, for the tokens that each of them got.

Timed: gathering the tokens' rows by expert, the grouped GEMM of gate and up, the gated activation,
the grouped GEMM of down, gathering the results by token and adding those of one token. Not timed:
choosing experts and sorting pairs by them, and the routing weights, which engines multiply in the
second GEMM's epilogue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from calibration.kernels.operations import L2_ROUNDS, Bench, Calls
from calibration.kernels.points import Point
from calibration.kernels.timing import Call

MOST_ROLLS = 64


class ExpertWeights(NamedTuple):
    """Copies of a rank's weights: gate and up [C, E, 2 I, H], down [C, E, H, I]."""

    gate_up: Any
    down: Any


def expert_calls(point: Point, bench: Bench) -> Calls:
    """The same counts, moved round the experts from call to call, so that other weights are read
    where few experts are active; and on copies of the weights where all of them fit the cache."""
    weights = _weights(point, bench)
    copies, experts = int(weights.down.shape[0]), int(weights.down.shape[1])
    active = sum(count > 0 for count in point.counts)
    rolls = min(MOST_ROLLS, max(copies, math.ceil(experts / active)))
    layer = ExpertLayer(point, bench)

    def call(i: int) -> Call:
        offsets, bounds = layer.offsets(_rolled(point.counts, i * active))
        of = ExpertWeights(weights.gate_up[i % copies], weights.down[i % copies])
        return lambda: layer.forward(of, offsets, bounds)

    return [call(i) for i in range(rolls)], layer.kernel


class ExpertLayer:
    """One rank's pairs: P rows of a token and an expert, sorted by expert, `group` of a token."""

    def __init__(self, point: Point, bench: Bench) -> None:
        torch, place = bench.torch, bench.device.place
        self.torch, self.place = torch, place
        self.word = str(point.of["dtype"])
        self.pairs = sum(point.counts)
        # A token's pairs on this rank: as many as chance sends there, at least one.
        share = point.number("topk") / point.number("ep")
        self.group = max(1, min(round(share), self.pairs))
        self.tokens = self.pairs // self.group
        self.x = bench.filled(self.tokens, point.number("hidden"))
        # Pair i is number mixed[i]; numbers t, t + tokens, t + 2 tokens, ... belong to token t.
        mixed = torch.randperm(self.pairs, device=place)
        self.token_of_pair = mixed % self.tokens
        of_number = torch.argsort(mixed)[: self.tokens * self.group]
        self.pair_of_token = of_number.view(self.group, self.tokens).t().reshape(-1)
        self.grouped = bench.device.grouped
        self.scales: dict[tuple[int, ...], Any] = {}
        self.kernel = f"torch_{'grouped_mm' if self.grouped else 'expert_loop'}"
        if self.word == "fp8":
            self.kernel += "_fp8"

    def offsets(self, counts: Sequence[int]) -> tuple[Any, list[tuple[int, int, int]]]:
        """(end of each expert's pairs, int32 [E] on the device; (expert, first, end) of those that
        have any)."""
        ends, bounds = [], []
        end = 0
        for expert, count in enumerate(counts):
            if count:
                bounds.append((expert, end, end + count))
            end += count
            ends.append(end)
        return self.torch.tensor(ends, dtype=self.torch.int32, device=self.place), bounds

    def forward(
        self, weights: ExpertWeights, offsets: Any, bounds: Sequence[tuple[int, int, int]]
    ) -> Any:
        """Sums of each token's pairs, [tokens, H]."""
        rows = self.x.index_select(0, self.token_of_pair)
        both = self._matmul(rows, weights.gate_up, offsets, bounds)
        width = both.shape[1] // 2
        active = self.torch.nn.functional.silu(both[:, :width]).mul_(both[:, width:])
        results = self._matmul(active, weights.down, offsets, bounds)
        of_token = results.index_select(0, self.pair_of_token)
        return of_token.view(self.tokens, self.group, -1).sum(dim=1)

    def _matmul(
        self, rows: Any, weights_ENK: Any, offsets: Any, bounds: Sequence[tuple[int, int, int]]
    ) -> Any:
        """[P, K] x [E, N, K] -> [P, N], each row by its expert's matrix."""
        if self.word == "fp8":
            return self._scaled_matmul(rows.to(weights_ENK.dtype), weights_ENK, offsets, bounds)
        if self.grouped:
            return self.torch._grouped_mm(rows, weights_ENK.transpose(-2, -1), offs=offsets)
        out = rows.new_empty((rows.shape[0], weights_ENK.shape[1]))
        for expert, first, end in bounds:
            self.torch.mm(rows[first:end], weights_ENK[expert].t(), out=out[first:end])
        return out

    def _scaled_matmul(
        self, rows: Any, weights_ENK: Any, offsets: Any, bounds: Sequence[tuple[int, int, int]]
    ) -> Any:
        """The same in fp8: one scale per row where grouped, per tensor in the loop."""
        torch, wide = self.torch, self.torch.bfloat16
        experts, width, _ = weights_ENK.shape
        if self.grouped:
            return torch._scaled_grouped_mm(
                rows, weights_ENK.transpose(-2, -1), self._ones(rows.shape[0]),
                self._ones(experts, width), offs=offsets, out_dtype=wide, use_fast_accum=True,
            )  # fmt: skip
        one = self._ones()
        parts = [
            torch._scaled_mm(rows[first:end], weights_ENK[expert].t(), scale_a=one, scale_b=one,
                             out_dtype=wide)
            for expert, first, end in bounds
        ]  # fmt: skip
        return torch.cat(parts)

    def _ones(self, *shape: int) -> Any:
        """Scales, made by the first call, which is not timed."""
        if shape not in self.scales:
            self.scales[shape] = self.torch.ones(shape, dtype=self.torch.float32, device=self.place)
        return self.scales[shape]


def _rolled(counts: Sequence[int], places: int) -> list[int]:
    at = places % len(counts)
    return [*counts[-at:], *counts[:-at]] if at else list(counts)


def _weights(point: Point, bench: Bench) -> ExpertWeights:
    """Weights of the point's shape, kept until another shape is asked for."""
    hidden, inter = point.number("hidden"), point.number("inter") // point.number("tp")
    experts, word = len(point.counts), str(point.of["dtype"])
    name = f"{hidden}/{inter}/{experts}/{word}"
    if name not in bench.kept:
        bench.kept.clear()
        whole_bytes = 3 * hidden * inter * experts * (1 if word == "fp8" else 2)
        bench.sets(whole_bytes)  # refuses what does not fit
        copies = max(1, min(MOST_ROLLS, math.ceil(L2_ROUNDS * bench.device.l2_bytes / whole_bytes)))
        bench.kept[name] = ExpertWeights(
            bench.filled(copies, experts, 2 * inter, hidden, word=word, scale=hidden**-0.5),
            bench.filled(copies, experts, hidden, inter, word=word, scale=inter**-0.5),
        )
    weights: ExpertWeights = bench.kept[name]
    return weights
