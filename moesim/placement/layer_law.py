"""How long a rank computes its experts of one MoE layer, as a placement search needs to know it.

    t = fixed_s + sum over slots of tile_s[ceil(n / tile)]
                + ((active_s A + pair_s N)^p + (padded_s X)^p)^(1/p)

n tokens of a slot; of the rank's slots, A those with any token, whose weights must be read (what
binds decode), N all tokens, X tokens padded to tiles (what binds prefill). Measured kernels have
`tile_s`, each expert with a soft corner of its own between reading and computing, and no `active_s`
and `padded_s`; a law fitted to whole layers has one corner (p = 1.7 fits vLLM's fused kernel on an
RTX PRO 6000 to 3.1 %, the plain maximum to 6.5 %); assumed rates have a sharp one (p infinite).

Legend: P slots of a layer, R ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, inner


@bundle
class LayerLaw(NamedTuple):
    """Numbers of the formula above; tile = 1 << tile_shift, `tile_s` [tiles + 1] may be empty."""

    active_s: float
    padded_s: float
    power: float
    fixed_s: float
    pair_s: float
    tile_shift: int
    tile_s: NDArray[np.float64]


def one_corner(
    active_s: float, padded_s: float, fixed_s: float, power: float = 1.7, tile: int = 16
) -> LayerLaw:
    """A law of whole layers: weights against padded tokens, one soft corner."""
    shift = int(tile).bit_length() - 1
    return LayerLaw(active_s, padded_s, power, fixed_s, 0.0, shift, np.zeros(0))


@inner
def corner_s(law: Any, active: float, pairs: float, padded: float) -> float:
    """The last term of the formula."""
    read_s: float = law.active_s * active + law.pair_s * pairs
    compute_s: float = law.padded_s * padded
    if compute_s <= 0.0:
        return read_s
    if read_s <= 0.0:
        return compute_s
    high, low = max(read_s, compute_s), min(read_s, compute_s)
    seconds: float = high * (1.0 + (low / high) ** law.power) ** (1.0 / law.power)
    return seconds


@inner
def slots_s(law: Any, tokens_P: Any, first: int, stop: int) -> float:
    """Seconds of the rank that owns slots [first, stop), all terms of the formula."""
    tile = (1 << law.tile_shift) - 1
    measured = law.tile_s.size > 0
    active, pairs, tiles = 0, 0, 0
    seconds: float = law.fixed_s
    for p in range(first, stop):
        n = tokens_P[p]
        active += n > 0
        pairs += n
        own = (n + tile) >> law.tile_shift
        tiles += own
        if measured:
            seconds += law.tile_s[own]
    return seconds + corner_s(law, active, pairs, tiles << law.tile_shift)


@inner
def slowest_s(law: Any, tokens_P: Any, ranks: int) -> float:
    """Seconds of the slowest rank, which all others wait for."""
    per_rank = tokens_P.size // ranks
    slowest = 0.0
    for r in range(ranks):
        slowest = max(slowest, slots_s(law, tokens_P, r * per_rank, (r + 1) * per_rank))
    return slowest


def rank_seconds(
    law: LayerLaw, tokens_xP: NDArray[np.integer[Any]], ranks: int
) -> NDArray[np.float64]:
    """Seconds of every rank, float64 [..., R], from the tokens of every slot, integers [..., P]."""
    tile = 1 << law.tile_shift
    tokens_xRp = np.asarray(tokens_xP).reshape(*tokens_xP.shape[:-1], ranks, -1)
    tiles_xRp = -(-tokens_xRp // tile)
    read_s = law.active_s * (tokens_xRp > 0).sum(axis=-1) + law.pair_s * tokens_xRp.sum(axis=-1)
    compute_s = law.padded_s * tile * tiles_xRp.sum(axis=-1)
    high, low = np.maximum(read_s, compute_s), np.minimum(read_s, compute_s)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0.0)
    seconds = law.fixed_s + high * (1.0 + ratio**law.power) ** (1.0 / law.power)
    if law.tile_s.size:
        seconds = seconds + law.tile_s[tiles_xRp].sum(axis=-1)
    return np.asarray(seconds)
