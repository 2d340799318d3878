"""Randomness: one seed, and a stream of its own for each thing that is drawn.

Streams are spawned in a fixed order, which is part of what a seed means; new ones go to the end. So
two deployments meet identical demand and routing, and their difference is paired.
"""

from __future__ import annotations

import numpy as np

STREAMS = (
    "arrivals",
    "lengths",
    "domains",
    "routing",
    "replica choice",
    "rank choice",
    "placement",
    "what-if batches",
    "averaged routing",
    "speculation",
    "threads",
    "groups",
    "faults",
    "decode replica choice",
    "decode rank choice",
    "shifted popularity",
    "sweep points",
)


def stream(seed: int | np.random.SeedSequence, name: str) -> np.random.Generator:
    """The generator of one named stream of a seed."""
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # Children are numbered from 0 whatever the root has spawned before.
    child = np.random.SeedSequence(
        entropy=root.entropy, spawn_key=(*root.spawn_key, STREAMS.index(name))
    )
    return np.random.default_rng(child)
