"""Loads of a trace's experts by domain, with no more detail than its requests bear out.

A domain of few requests shows their favourites, not its own. So its load is drawn towards that of
all, by how far domains differ beyond what requests of one domain do (empirical Bayes, one number
for all experts and layers).

Legend: S sequences, C domains, L MoE layers, E experts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moesim.routing.kernels import count
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]


def domain_loads(trace: RoutingTrace) -> Floats:
    """Loads over mean of the domains that occur, in their order, [C, L, E].

    One row, the load of all, where domains differ by no more than chance.
    """
    group_S = np.unique(trace.domain_S, return_inverse=True)[1]
    tokens_S = trace.sequence_tokens_S.astype(np.float64)
    tokens_C = np.bincount(group_S, tokens_S)
    scale = trace.experts / trace.top_k
    load_CLE = np.zeros((len(tokens_C), trace.layers, trace.experts))
    square = 0.0  # of requests' loads, summed over experts and layers, weighted by tokens
    for s, (first, last) in enumerate(pairwise(trace.sequence_start_S1)):
        counts_LE = count(trace.ids_TLK[first:last], trace.experts) * scale
        load_CLE[group_S[s]] += counts_LE
        square += float((counts_LE**2).sum()) / tokens_S[s]
    load_CLE /= tokens_C[:, None, None]
    share_C = tokens_C / tokens_C.sum()
    pooled_LE: Floats = np.einsum("c,cle->le", share_C, load_CLE)
    square_C = (load_CLE**2).sum(axis=(1, 2))
    # Kish: so many requests of equal length would tell a domain's load as well.
    requests_C = tokens_C**2 / np.bincount(group_S, tokens_S**2)
    freedom = tokens_C.sum() - (tokens_C / requests_C).sum()
    if len(tokens_C) == 1 or freedom <= 0:
        return np.asarray(pooled_LE[None])
    of_request = (square - float(tokens_C @ square_C)) / freedom
    noise_C = of_request / requests_C
    apart = float(share_C @ square_C) - float((pooled_LE**2).sum())
    by_chance = float((share_C * (1 - share_C)) @ noise_C)
    of_domain = (apart - by_chance) / (1 - float(share_C @ share_C))
    if of_domain <= 0:
        return np.asarray(pooled_LE[None])
    kept_C = of_domain / (of_domain + noise_C)
    return np.asarray(pooled_LE + kept_C[:, None, None] * (load_CLE - pooled_LE))
