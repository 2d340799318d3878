"""How far the domains of a trace route apart, against the noise of halves of one domain.

    python -m calibration.tiny_moe.shift TRACE

Legend: L MoE layers, E experts, S sequences.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from moesim.routing import RoutingTrace
from moesim.routing.statistics import expert_counts

Floats = NDArray[np.float64]


def load_LE(trace: RoutingTrace, sequences: NDArray[np.int64]) -> Floats:
    """Share of the selections that each expert gets, rows summing to 1."""
    counts_LE = expert_counts(trace.subset(sequences))
    return np.asarray(counts_LE / counts_LE.sum(axis=1, keepdims=True))


def total_variation(first_LE: Floats, second_LE: Floats) -> float:
    """Mean over layers of half the sum of absolute differences: 0 the same, 1 disjoint."""
    return float(np.abs(first_LE - second_LE).sum(axis=1).mean() / 2)


def domain_shift(trace: RoutingTrace) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """(total variation of each pair of domains, split-half noise of each domain).

    The noise is the total variation of a domain's even against its odd sequences: two samples of
    half the size, so an upper bound of the noise that a pair of whole domains has.
    """
    of = {name: trace.select([name]) for name in trace.domains}
    loads = {name: load_LE(trace, sequences) for name, sequences in of.items()}
    pairs = {(a, b): total_variation(loads[a], loads[b]) for a, b in combinations(trace.domains, 2)}
    noise = {
        name: total_variation(load_LE(trace, some[::2]), load_LE(trace, some[1::2]))
        for name, some in of.items()
    }
    return pairs, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    pairs, noise = domain_shift(RoutingTrace.open(parser.parse_args().trace))
    for (a, b), shift in pairs.items():
        print(f"{a} - {b}: {shift:.3f}")
    for name, halves in noise.items():
        print(f"{name}, halves: {halves:.3f}")
    print(f"least shift over largest noise: {min(pairs.values()) / max(noise.values()):.1f}")


if __name__ == "__main__":
    main()
