"""Steps of a run that has too many to keep each: sums over stretches of them, and every n-th one.

A stretch is n consecutive steps of a replica. Its steps are added up by kind (with or without work,
prompts, a queue), so that sums and counts stay exact; its first one is kept as it is. n is 1 until
MOST_STRETCHES are there, and doubles each time that there would be more. Imbalance is also counted
in bins (sim/bins.py), by block of consecutive steps of all replicas.

Legend: W steps, K replicas, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.sim.bins import bins_of
from moesim.sim.state import REPLICA, STEP, row_dtype

MOST_STRETCHES = 65_536
MOST_BLOCKS = 256
BLOCK_STEPS = 64  # at first
FIRST_BIN, STOP_BIN = int(bins_of(0.5)), int(bins_of(1e5))  # of an imbalance

_NAMES = STEP.names or ()
_KEYS = ("replica", "dummy")
# Means over time, weighed by duration; means over steps that have experts to balance.
OVER_TIME = ("running", "waiting", "kv_used_fraction")
OVER_BALANCED = ("imbalance", "active_experts")
MOSTS = ("imbalance_max", "most_kv_used_fraction", "most_tokens")
SUMS = tuple(n for n in _NAMES if n not in (*_KEYS, "start_s", "imbalance_max"))

# A row of `totals`: as STEP, sums; beyond it how many steps, where the last one ends, and mosts.
TOTAL = row_dtype(
    [
        *((name, "f8" if name not in _KEYS else "i4") for name in _NAMES),
        ("steps", "i8"),
        ("balanced_steps", "i8"),
        ("end_s", "f8"),
        ("most_kv_used_fraction", "f8"),
        ("most_tokens", "f8"),
    ]
)


@dataclass(eq=False)
class _Rows:
    """Sums of steps: keys (replica, stretch, kind), [W, sums], [W, mosts], first and last times."""

    key: NDArray[np.int64]
    sums: NDArray[np.float64]
    mosts: NDArray[np.float64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]

    def grouped(self) -> _Rows:
        """Rows of the same key as one."""
        order = np.lexsort(self.key.T[::-1])
        key = self.key[order]
        new = np.ones(len(key), np.bool_)
        new[1:] = (key[1:] != key[:-1]).any(axis=1)
        at = np.flatnonzero(new)
        if not at.size:
            return self
        return _Rows(
            key[at],
            np.add.reduceat(self.sums[order], at, axis=0),
            np.maximum.reduceat(self.mosts[order], at, axis=0),
            np.minimum.reduceat(self.start_s[order], at),
            np.maximum.reduceat(self.end_s[order], at),
        )

    @classmethod
    def together(cls, parts: list[_Rows]) -> _Rows:
        names = ("key", "sums", "mosts", "start_s", "end_s")
        return cls(*(np.concatenate([getattr(one, name) for one in parts]) for name in names))


@dataclass(frozen=True, eq=False)
class FoldedSteps:
    """What is left of a fleet's steps.

    `steps`: STEP rows, every `spacing`-th of each replica; `totals`: TOTAL rows. Imbalance of the
    steps with work: `block_start_s` [B], and counts [B, 2, bins] of steps without prompts and with,
    from FIRST_BIN on.
    """

    steps: NDArray[Any]
    totals: NDArray[Any]
    spacing: int
    block_start_s: NDArray[np.float64]
    counts_BI: NDArray[np.int64]


@dataclass(eq=False)
class StepFolder:
    """Takes rows of STEP as they come, in order of their start."""

    replicas: int
    spacing: int = 1
    block_steps: int = BLOCK_STEPS
    _rows: list[_Rows] = field(default_factory=list)
    _kept: list[tuple[NDArray[np.int64], NDArray[Any]]] = field(default_factory=list)
    _starts_s: list[float] = field(default_factory=list)
    _counts: list[NDArray[np.int64]] = field(default_factory=list)
    _seen: int = 0
    _ungrouped: int = 0  # rows added since equal keys were added up

    def __post_init__(self) -> None:
        self._taken_K = np.zeros(self.replicas, np.int64)

    def take(self, chunks: list[NDArray[Any]], replicas: NDArray[Any]) -> list[NDArray[Any]]:
        """Fold all rows but those of steps in flight, which may still be cut; the latter.

        `replicas`: rows of REPLICA.
        """
        steps = np.concatenate(chunks)
        behind = _rank(steps["replica"][::-1], self.replicas)[::-1]
        flying = behind < replicas["in_flight"][steps["replica"]]
        self._fold(steps[~flying])
        return [steps[flying]] if flying.any() else []

    def finish(self, chunks: list[NDArray[Any]]) -> FoldedSteps:
        """Fold what is left, and say what there was."""
        if chunks:
            self.take(chunks, np.zeros(self.replicas, REPLICA))
        steps = np.concatenate([each for _, each in self._kept] or [np.zeros(0, STEP)])
        totals = _totals(_Rows.together(self._rows).grouped() if self._rows else _nothing())
        width = 2 * (STOP_BIN - FIRST_BIN)
        counts = np.stack(self._counts) if self._counts else np.zeros((0, width), np.int64)
        return FoldedSteps(
            steps[np.argsort(steps["start_s"], kind="stable")],
            totals[np.argsort(totals["start_s"], kind="stable")],
            self.spacing,
            np.array(self._starts_s),
            counts.reshape(len(counts), 2, -1),
        )

    def _fold(self, steps: NDArray[Any]) -> None:
        if not steps.size:
            return
        replica = steps["replica"]
        number = self._taken_K[replica] + _rank(replica, self.replicas)
        self._taken_K += np.bincount(replica, minlength=self.replicas)
        self._rows.append(_single(steps, number // self.spacing).grouped())
        self._ungrouped += len(self._rows[-1].key)
        if self._ungrouped > MOST_STRETCHES:
            self._rows, self._ungrouped = [_Rows.together(self._rows).grouped()], 0
        first = number % self.spacing == 0
        self._kept.append((number[first], steps[first]))
        while int((self._taken_K // self.spacing).sum()) > MOST_STRETCHES:
            self._double()
        self._balance(steps)

    def _double(self) -> None:
        """Stretches of twice as many steps."""
        self.spacing *= 2
        rows = _Rows.together(self._rows)
        rows.key[:, 1] //= 2
        self._rows, self._ungrouped = [rows.grouped()], 0
        numbers, steps = (np.concatenate([each[i] for each in self._kept]) for i in range(2))
        first = numbers % self.spacing == 0
        self._kept = [(numbers[first], steps[first])]

    def _balance(self, steps: NDArray[Any]) -> None:
        """Count the imbalance of steps in the bins of their blocks."""
        block = (self._seen + np.arange(steps.size)) // self.block_steps
        self._seen += steps.size
        value, prompts = steps["imbalance"], steps["prefill_tokens"] > 0
        known = (value > 0) & (steps["dummy"] == 0)
        width = STOP_BIN - FIRST_BIN
        at = np.clip(bins_of(np.maximum(value, 1e-6)) - FIRST_BIN, 0, width - 1) + width * prompts
        edges = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
        for first, stop in zip(edges, np.append(edges[1:], block.size), strict=True):
            if block[first] == len(self._counts):
                self._counts.append(np.zeros(2 * width, np.int64))
                self._starts_s.append(float(steps["start_s"][first]))
            part = slice(first, stop)
            self._counts[-1] += np.bincount(at[part][known[part]], minlength=2 * width)
        while len(self._counts) > MOST_BLOCKS:
            pairs = range(0, len(self._counts), 2)
            self._counts = [np.sum(self._counts[i : i + 2], axis=0) for i in pairs]
            self._starts_s = self._starts_s[::2]
            self.block_steps *= 2


def _rank(replica: NDArray[np.int32], replicas: int) -> NDArray[np.int64]:
    """How many rows of the same replica come before each."""
    order = np.argsort(replica, kind="stable")
    counts = np.bincount(replica, minlength=replicas)
    found = np.empty(replica.size, np.int64)
    found[order] = np.arange(replica.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def _single(steps: NDArray[Any], stretch: NDArray[np.int64]) -> _Rows:
    """Rows of one step each."""
    kinds = (steps["dummy"], steps["prefill_tokens"] > 0, steps["waiting"] > 0)
    kind = sum(each.astype(np.int64) << i for i, each in enumerate(kinds))
    balanced = steps["imbalance"] > 0
    weight = dict.fromkeys(OVER_TIME, steps["duration_s"])
    weight |= dict.fromkeys(OVER_BALANCED, balanced)
    sums = [steps[name] * weight[name] if name in weight else steps[name] for name in SUMS]
    tokens = steps["prefill_tokens"].astype(np.int64) + steps["decode_tokens"]
    mosts = (steps["imbalance_max"], steps["kv_used_fraction"], tokens)
    return _Rows(
        np.stack([steps["replica"], stretch, kind], axis=1).astype(np.int64),
        np.stack([*sums, np.ones(steps.size), balanced], axis=1).astype(np.float64),
        np.stack(mosts, axis=1).astype(np.float64),
        steps["start_s"].copy(),
        steps["start_s"] + steps["duration_s"],
    )


def _nothing() -> _Rows:
    return _single(np.zeros(0, STEP), np.zeros(0, np.int64))


def _totals(rows: _Rows) -> NDArray[Any]:
    """TOTAL rows of sums."""
    found = np.zeros(len(rows.key), TOTAL)
    for i, name in enumerate((*SUMS, "steps", "balanced_steps")):
        found[name] = rows.sums[:, i]
    for i, name in enumerate(MOSTS):
        found[name] = rows.mosts[:, i]
    found["replica"], found["dummy"] = rows.key[:, 0], rows.key[:, 2] & 1
    found["start_s"], found["end_s"] = rows.start_s, rows.end_s
    for names, weight in ((OVER_TIME, "duration_s"), (OVER_BALANCED, "balanced_steps")):
        for name in names:
            found[name] /= np.where(found[weight] > 0, found[weight], 1.0)
    return found
