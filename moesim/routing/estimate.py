"""Fit the synthetic router to a trace: each number from the statistic that identifies it.

    load by expert and layer               counts, of each domain where domains differ
    template tokens, their agreement       overlap between requests, by position
    strength                               how well one layer's choices predict the next one's
    locality by layer                      overlap with the token before
    request, passage, phrase               overlap by lag
    topic share, without loads by domain   overlap between requests of a domain

Overlaps become correlations of the latent by the router's own curve: overlap of two tokens whose
latents correlate so much, simulated for each layer. Nothing is searched for but the strength and
the phrase's persistence.

Legend: T tokens, L MoE layers, E experts, S sequences, C domains, G lags, V correlations, P places.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import sampling, statistics
from moesim.routing.domain_loads import domain_loads
from moesim.routing.kernels import count
from moesim.routing.latents import Latents
from moesim.routing.predict import measure_prediction
from moesim.routing.settings import MOST_LOADS, PASSAGE_PERSISTENCE, SynthesisSettings
from moesim.routing.synthesis import make_router, synthesise, targets
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

LAGS = (1, 2, 4, 8, 16, 32)
CORRELATIONS = np.array([0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0])
SIMULATED_TOKENS = 3000
MOST_STRENGTH, STRENGTH_STEPS = 10.0, 6
# The next layer is predicted little better at 1.5 times the strength; and a short trace tells
# little of it.
MOST_SHORT, STRONGER, MOST_STRONGER = 0.02, 1.15, 1.55
STRENGTH_TOKENS = 8000
LEAST_TOKENS, LEAST_SEQUENCES = 500, 2
MOST_TEMPLATE = 64
# A position belongs to the template where requests agree this far of the way to always.
TEMPLATE_THRESHOLD = 0.5


def fit_settings(trace: RoutingTrace, seed: int = 0) -> SynthesisSettings:
    """Settings whose synthetic traces have this trace's statistics.

    Takes a few seconds. Raises InputError for traces too short to tell: under 500 tokens, 2
    sequences or 2 layers.
    """
    if trace.tokens < LEAST_TOKENS or trace.sequences < LEAST_SEQUENCES or trace.layers < 2:
        raise InputError(
            "trace",
            f"must have {LEAST_TOKENS} tokens, {LEAST_SEQUENCES} sequences, 2 layers to be fitted",
            f"{trace.tokens}, {trace.sequences}, {trace.layers}",
        )
    prompt, output, agreement = _templates(trace)
    known = SynthesisSettings(
        **_loads(trace),
        prompt_template_tokens=prompt,
        output_template_tokens=output,
        template_agreement=round(agreement, 3),
        topics=len(np.unique(trace.domain_S)),
    )
    overlap_GL = statistics.overlap_by_lag(trace, LAGS)
    measured = ~np.isnan(overlap_GL[:, 0])
    lag_G = np.array(LAGS)[measured]
    strength = _strength(trace, known, seed)
    most = MOST_STRONGER * strength if trace.tokens >= STRENGTH_TOKENS else MOST_STRENGTH
    while True:
        known = known.model_copy(update={"strength": round(strength, 2)})
        curve_LV = _overlap_curves(trace, known, seed)
        locality_L, course_G = _factors(_correlations(overlap_GL[measured], curve_LV))
        shares, short_by = _course(course_G, lag_G)
        # Neighbours are more alike than such a latent can make them: it must decide more.
        if short_by < MOST_SHORT or strength * STRONGER > most:
            break
        strength *= STRONGER
    # What has no memory is the token's own.
    context = max(1e-6, sum(shares[:3]))
    locality_L *= context
    request, passage, persistence = shares[0] / context, shares[1] / context, shares[3]
    topic = 0.0  # what requests of a domain have in common is its load, where it has one
    if known.load:
        between_L = _between_requests(trace, prompt, output)
        topic_L = _correlations(between_L[None], curve_LV)[0]
        topic = topic_L.mean() / max(1e-6, request * locality_L.mean())
    return known.model_copy(
        update={
            "locality": tuple(np.round(locality_L, 3).tolist()),
            "request_share": round(request, 3),
            "passage_share": round(passage, 3),
            "persistence": round(persistence, 3),
            "topic_share": round(float(np.clip(topic, 0.0, 1.0)), 3),
        }
    )


def _loads(trace: RoutingTrace) -> dict[str, Any]:
    """The settings' load: by domain where domains differ and a profile can hold as many."""
    load_CLE = domain_loads(trace)
    if len(load_CLE) > 1 and load_CLE.size > MOST_LOADS:
        load_CLE = domain_loads(replace(trace, domain_S=0 * trace.domain_S, ids_checked=True))
    load_CLE = np.round(load_CLE, 3)
    if len(load_CLE) == 1:
        return {"load": tuple(map(tuple, load_CLE[0].tolist()))}
    return {"domain_load": tuple(tuple(map(tuple, load)) for load in load_CLE.tolist())}


def _templates(trace: RoutingTrace) -> tuple[int, int, float]:
    """Template tokens of prompts and of outputs, and how many requests follow them."""
    first_S, last_S = trace.sequence_start_S1[:-1], trace.sequence_start_S1[1:]
    output_S = first_S + trace.prompt_tokens_S
    prompt_P = _agreement(trace, first_S, output_S, trace.domain_S)
    output_P = _agreement(trace, output_S, last_S, np.zeros_like(trace.domain_S))
    following = [*prompt_P, *output_P]
    # Two requests agree where both follow the template.
    agreement = float(np.sqrt(np.mean(following))) if following else 1.0
    return len(prompt_P), len(output_P), min(1.0, agreement)


def _agreement(
    trace: RoutingTrace,
    first_S: NDArray[np.int64],
    end_S: NDArray[np.int64],
    group_S: NDArray[np.uint16],
) -> list[float]:
    """How far requests of a group agree at each template position: 0 as any two, 1 always."""
    found_P: list[float] = []
    base = statistics.independent_overlap(statistics.expert_counts(trace), trace.top_k).mean()
    for place in range(MOST_TEMPLATE):
        shared, pairs = 0.0, 0.0
        for group in np.unique(group_S):
            rows = first_S[(group_S == group) & (first_S + place < end_S)] + place
            counts_LE = count(trace.ids_TLK[rows], trace.experts)
            shared += (counts_LE * (counts_LE - 1)).sum() / (trace.layers * trace.top_k)
            pairs += len(rows) * (len(rows) - 1)
        agreed = (shared / pairs - base) / (1 - base) if pairs else 0.0
        if agreed < TEMPLATE_THRESHOLD:
            break
        found_P.append(agreed)
    return found_P


def _strength(trace: RoutingTrace, known: SynthesisSettings, seed: int) -> float:
    """The strength at which one layer's choices predict the next one's as well as they do here.

    Predicting is learnt from a sample of the trace, and from synthetic ones of the same sizes: what
    too few tokens teach is then the same.
    """
    fewest = min(1.0, STRENGTH_TOKENS / trace.tokens)
    sequences = max(2, round(fewest * trace.sequences))
    spread = np.linspace(0, trace.sequences - 1, sequences)
    sample = trace.subset(np.rint(spread).astype(np.int64))
    wanted = _recall(sample)
    topic_S = np.unique(sample.domain_S, return_inverse=True)[1]
    prompt_S = sample.prompt_tokens_S.astype(np.int64)
    sizes = (prompt_S, sample.sequence_tokens_S - prompt_S)
    low, high = 0.0, MOST_STRENGTH
    for _ in range(STRENGTH_STEPS):
        middle = (low + high) / 2
        tried = synthesise(
            known.model_copy(update={"strength": middle}),
            trace.layers, trace.experts, trace.top_k, sequences, sizes,
            np.random.default_rng(seed), topic_S=topic_S,
        )  # fmt: skip
        if _recall(tried) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _recall(trace: RoutingTrace) -> float:
    """How well a layer's experts foretell the next layer's, mean over layers."""
    return float(np.nanmean(measure_prediction(trace).recall_L))


def _overlap_curves(trace: RoutingTrace, known: SynthesisSettings, seed: int) -> Floats:
    """Overlap of two tokens whose latents have each of the CORRELATIONS, [L, V]."""
    rng = np.random.default_rng(seed)
    shape = (SIMULATED_TOKENS, sampling.RANK)
    plain = known.model_copy(update={"locality": (1.0,)})
    z_TD, other_TD = (rng.standard_normal(shape, np.float32) for _ in range(2))
    none_TD, luck_T = np.zeros(shape, np.float32), np.arange(SIMULATED_TOKENS)
    wanted_GLE = targets(plain, trace.layers, trace.experts, trace.top_k, rng)
    group_T = _spread_groups(trace) if len(wanted_GLE) > 1 else None
    router = make_router(plain, wanted_GLE, Latents(z_TD, none_TD, luck_T), rng, group_T)
    first_TLK = router.choose(Latents(z_TD, none_TD, luck_T), group_T)
    curve_LV = np.empty((trace.layers, len(CORRELATIONS)))
    for v, c in enumerate(CORRELATIONS.astype(np.float32)):
        near_TD = c * z_TD + np.sqrt(1 - c * c) * other_TD
        near = Latents(near_TD, none_TD, luck_T + (v + 1) * SIMULATED_TOKENS)
        near_TLK = router.choose(near, group_T)
        same_TLKK = first_TLK[:, :, :, None] == near_TLK[:, :, None, :]
        curve_LV[:, v] = same_TLKK.sum(axis=(0, 2, 3)) / (SIMULATED_TOKENS * trace.top_k)
    return np.maximum.accumulate(curve_LV, axis=1)


def _spread_groups(trace: RoutingTrace) -> NDArray[np.int64]:
    """Groups of the simulated tokens: as many of each domain, in proportion, as the trace has."""
    topic_S = np.unique(trace.domain_S, return_inverse=True)[1]
    rows = np.linspace(0, trace.tokens - 1, SIMULATED_TOKENS).astype(np.int64)
    return np.asarray(np.repeat(topic_S, trace.sequence_tokens_S)[rows])


def _correlations(overlap_GL: Floats, curve_LV: Floats) -> Floats:
    """The latent's correlation that gives each overlap, [G, L]; 0 to 1."""
    found_GL = np.empty_like(overlap_GL)
    for layer, curve_V in enumerate(curve_LV):
        found_GL[:, layer] = np.interp(overlap_GL[:, layer], curve_V, CORRELATIONS)
    return found_GL


def _factors(correlation_GL: Floats) -> tuple[Floats, Floats]:
    """Locality by layer (1 at the most local) and the context's correlation by lag."""
    by_layer_L = correlation_GL.sum(axis=0)
    locality_L = by_layer_L / max(1e-9, by_layer_L.max())
    course_G = correlation_GL @ locality_L / max(1e-9, locality_L @ locality_L)
    return locality_L, course_G


def _course(
    course_G: Floats, lag_G: NDArray[np.int64]
) -> tuple[tuple[float, float, float, float], float]:
    """Request, passage and phrase share and the phrase's persistence of correlations by lag; and
    how much less they are at the first lag than they should be.

    Shares sum to at most 1; what is left has no memory at all.
    """
    from scipy.optimize import nnls

    best = (np.inf, 0.0, 0.0, 0.0, 0.0, 0.0)
    for persistence in np.linspace(0.05, 0.8, 31):
        terms_G3 = np.stack(
            [np.ones(len(lag_G)), PASSAGE_PERSISTENCE**lag_G, persistence**lag_G], axis=1
        )
        shares_3, _ = nnls(terms_G3, course_G)
        if shares_3.sum() > 1:  # then they sum to 1, a row that outweighs all lags
            heavy_3 = np.full((1, 3), 1e3)
            shares_3, _ = nnls(np.concatenate([terms_G3, heavy_3]), np.append(course_G, 1e3))
            shares_3 /= shares_3.sum()
        off_G = terms_G3 @ shares_3 - course_G
        found = (float(off_G @ off_G), *shares_3.tolist(), float(persistence), float(-off_G[0]))
        best = min(best, found)
    return best[1:5], best[5]


def _between_requests(trace: RoutingTrace, prompt: int, output: int) -> Floats:
    """Overlap of tokens of different requests of a domain, past their templates, [L]."""
    shared_L, pairs = np.zeros(trace.layers), 0.0
    counts_CLE: dict[int, NDArray[np.int64]] = {}
    for s, (first, last) in enumerate(pairwise(trace.sequence_start_S1)):
        middle = first + trace.prompt_tokens_S[s]
        rows = np.r_[first + prompt : middle, middle + output : last]
        counts_LE = count(trace.ids_TLK[rows], trace.experts)
        total_LE = counts_CLE.setdefault(int(trace.domain_S[s]), np.zeros_like(counts_LE))
        total_LE += counts_LE
        shared_L -= (counts_LE**2).sum(axis=1)
        pairs -= len(rows) ** 2
    for total_LE in counts_CLE.values():
        shared_L += (total_LE**2).sum(axis=1)
        pairs += (total_LE[0].sum() / trace.top_k) ** 2
    return shared_L / (max(pairs, 1.0) * trace.top_k)
