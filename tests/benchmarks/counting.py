"""Counting routed ids: the engine's kernels against the plain triple loop, in one process.

`python -m tests.benchmarks.counting OUT.json [--quick]`. Decode takes rows from anywhere in the
trace, a chunk of a prompt contiguous ones. The plain loop is what Numba makes of the obvious code.
Popularity of experts is log-normal; the trace is several times larger than caches.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, hot
from moesim.placement.load import load_from_trace
from moesim.sim.replay import (
    NO_PIECE,
    PREFIX_ROWS,
    ROWS_AHEAD,
    count_range,
    count_rows,
    read_ahead,
    running_counts,
)
from moesim.sim.routes import no_routes
from tests.benchmarks import child, machine
from tests.benchmarks.spread import spread

SHAPES = ((58, 256, 8), (94, 128, 8), (56, 8, 2), (24, 32, 4))  # layers, experts, top-k
TRACE_IDS = 160_000_000
ROWS = 2_048  # of a step that decodes
CHUNKS = (64, 512, 2_048, 8_192, 18_432)  # tokens of a prompt
POOL = 2_048  # selections of a layer that rows are made of
TURNS = 9
LIMIT_S = 600.0


@compiled
def plain_rows(ids_TLK: Any, rows_N: Any, counts_LE: Any) -> None:
    """The triple loop, over rows anywhere."""
    counts_LE[:] = 0
    for i in range(rows_N.size):
        for layer in range(ids_TLK.shape[1]):
            for j in range(ids_TLK.shape[2]):
                counts_LE[layer, ids_TLK[rows_N[i], layer, j]] += 1


@compiled
def plain_range(ids_TLK: Any, first: int, rows: int, counts_LE: Any) -> None:
    """The triple loop, over contiguous rows."""
    counts_LE[:] = 0
    for t in range(first, first + rows):
        for layer in range(ids_TLK.shape[1]):
            for j in range(ids_TLK.shape[2]):
                counts_LE[layer, ids_TLK[t, layer, j]] += 1


@hot
def engine_rows(routes: Any, rows_N: Any, counts_LP: Any) -> None:
    """The engine's way through the rows of a step that decodes, of 16 bits."""
    counts_LP[:] = 0
    last = rows_N.size - 1
    for i in range(rows_N.size):
        read_ahead(routes, rows_N[min(i + ROWS_AHEAD, last)])
        count_rows(routes, NO_PIECE, rows_N[i], 1, counts_LP)


@hot
def engine_range(routes: Any, first: int, rows: int, counts_LP: Any) -> None:
    """The engine's way through contiguous rows, without running sums."""
    counts_LP[:] = 0
    count_range(routes, first, first + rows, 1, counts_LP)


@hot
def engine_chunk(routes: Any, first: int, rows: int, counts_LP: Any) -> None:
    """The engine's way through a chunk of a prompt."""
    counts_LP[:] = 0
    count_rows(routes, 0, first, rows, counts_LP)


def make_trace(layers: int, experts: int, top_k: int) -> NDArray[np.uint8]:
    """[T, L, K] routed ids, distinct within a row and layer."""
    rng = np.random.default_rng(0)
    rows = TRACE_IDS // (layers * top_k)
    ids_TLK = np.empty((rows, layers, top_k), np.uint8)
    for layer in range(layers):
        score_NE = rng.gumbel(size=(POOL, experts)) + rng.normal(0.0, 0.8, experts)
        pool_NK = np.argpartition(-score_NE, top_k - 1, axis=1)[:, :top_k].astype(np.uint8)
        ids_TLK[:, layer] = pool_NK[rng.integers(0, POOL, rows)]
    return ids_TLK


def _rate(count: Callable[[int], None], ids: int) -> dict[str, float]:
    """Ids a second of `count(turn)`, which counts so many."""
    count(0)
    seconds = []
    for turn in range(TURNS):
        start_s = time.perf_counter()
        count(turn)
        seconds.append(time.perf_counter() - start_s)
    return spread([ids / each for each in seconds])


def measure_shape(shape: tuple[int, int, int], quick: bool) -> dict[str, Any]:
    """Rates of one model's shape. Raises ValueError if kernels disagree."""
    layers, experts, top_k = shape
    ids_TLK = make_trace(*shape)
    rng = np.random.default_rng(1)
    steps = 10 if quick else 40  # of a turn
    rows_TSN = rng.integers(0, len(ids_TLK), (TURNS, steps, ROWS))
    first_TS = rng.integers(0, len(ids_TLK) - ROWS, (TURNS, steps))
    routes = no_routes()._replace(
        narrow_TLK=ids_TLK,
        slots_TLK=np.zeros((0, layers, top_k), np.uint16),
        counts_ALP=np.zeros((0, layers, experts), np.uint16),
    )
    counts_LE = np.zeros((layers, experts), np.int32)
    tally_LE = counts_LE.astype(np.uint16)
    ways: dict[str, Callable[[int], None]] = {
        "random_plain": lambda turn: [
            plain_rows(ids_TLK, rows_N, counts_LE) for rows_N in rows_TSN[turn]
        ],
        "random_engine": lambda turn: [
            engine_rows(routes, rows_N, tally_LE) for rows_N in rows_TSN[turn]
        ],
        "contiguous_plain": lambda turn: [
            plain_range(ids_TLK, first, ROWS, counts_LE) for first in first_TS[turn].tolist()
        ],
        "contiguous_engine": lambda turn: [
            engine_range(routes, first, ROWS, tally_LE) for first in first_TS[turn].tolist()
        ],
    }
    _agree(ways, counts_LE, tally_LE)
    ids = steps * ROWS * layers * top_k
    found: dict[str, Any] = {"shape": list(shape), "id_bytes": ids_TLK.itemsize}
    found |= {name: _rate(count, ids) for name, count in ways.items()}
    found["placement_load"] = _rate(lambda turn: load_from_trace(ids_TLK, experts), ids_TLK.size)
    return found | {"chunks": _chunks(routes, rng, quick)}


def _agree(
    ways: dict[str, Callable[[int], None]],
    counts_LE: NDArray[np.int32],
    tally_LE: NDArray[np.uint16],
) -> None:
    told = {}
    for name, count in ways.items():
        counts_LE[:] = 0
        count(0)
        told[name] = (tally_LE if name.endswith("engine") else counts_LE).copy()
    for kind in ("random", "contiguous"):
        if not np.array_equal(told[f"{kind}_plain"], told[f"{kind}_engine"]):
            raise ValueError(f"the engine counts {kind} rows otherwise than the plain loop")


def _chunks(routes: Any, rng: np.random.Generator, quick: bool) -> list[dict[str, Any]]:
    """Microseconds of counting contiguous tokens with the engine's running sums."""
    layers, experts = routes.counts_ALP.shape[1:]
    ids_TLK = routes.narrow_TLK
    rows = np.array([len(ids_TLK)], np.int32)  # one prompt
    with_sums = routes._replace(
        edge_Q=np.zeros(1, np.int64), prompt_first_Q=np.zeros(1, np.int64), prompt_rows_Q=rows
    )
    edges = -(-len(ids_TLK) // PREFIX_ROWS)
    with_sums = with_sums._replace(counts_ALP=running_counts(with_sums, edges, experts))
    found = []
    for tokens in CHUNKS:
        first_N = rng.integers(0, len(ids_TLK) - tokens, 40 if quick else 200).tolist()
        tally_LE = np.zeros((layers, experts), np.uint16)
        for first in first_N[:10]:
            plain_LE = np.zeros((layers, experts), np.int32)
            engine_chunk(with_sums, first, tokens, tally_LE)
            plain_range(ids_TLK, first, tokens, plain_LE)
            if np.array_equal(tally_LE, plain_LE):
                continue
            raise ValueError(f"running sums are not exact for chunks of {tokens} tokens")
        micros = []
        for first in first_N:
            start_s = time.perf_counter()
            engine_chunk(with_sums, first, tokens, tally_LE)
            micros.append((time.perf_counter() - start_s) * 1e6)
        found.append({"tokens": tokens, "us": spread(micros)})
    return found


def in_a_process(folder: Path, quick: bool) -> dict[str, Any]:
    """`main` in a process of its own, and what it found."""
    target = folder / "counting.json"
    command = [sys.executable, "-m", "tests.benchmarks.counting", str(target)]
    root = Path(__file__).resolve().parents[2]
    ran = child.run([*command, *(["--quick"] if quick else [])], root, LIMIT_S)
    if ran.status:
        raise RuntimeError(ran.told)
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str]) -> None:
    """Measure all shapes; shares are of the bandwidth found in the same process."""
    quick = "--quick" in arguments
    memory = machine.bandwidth()
    shapes = [measure_shape(shape, quick) for shape in SHAPES[: 1 if quick else None]]
    for of in shapes:
        for kind in ("random", "contiguous"):
            engine = of[f"{kind}_engine"]["median"]
            of[f"{kind}_times_plain"] = engine / of[f"{kind}_plain"]["median"]
            of[f"{kind}_share_of_read"] = engine * of["id_bytes"] / memory["read_bytes_per_s"]
    found = {"numba": numba.__version__, "memory": memory, "shapes": shapes}
    Path(arguments[0]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
