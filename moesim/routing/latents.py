"""The latent of every token: what its request, passage, phrase and the token itself make of it.

Legend: T tokens, S sequences, C topics, D latent dimensions, P template tokens.

A token's context is sqrt(a) r + sqrt(b) p + sqrt(1 - a - b) q: r of its request (half topic, half
its own, or as `topic_share` says), p an AR(1) process over a passage, q one over a phrase. Its own
part is white noise. Layers mix the two differently. Template tokens, which chat formats put at the
start of prompts (alike within a topic) and of outputs (alike everywhere), are copies of one model
request, noise of the router included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing import sampling
from moesim.routing.settings import PASSAGE_PERSISTENCE, SynthesisSettings

Singles = NDArray[np.float32]


class Latents(NamedTuple):
    """Context and own part of each token, [T, D], of unit variance; whose noise it has, [T]."""

    context_TD: Singles
    token_TD: Singles
    luck_T: NDArray[np.int64]


def draw_latents(
    settings: SynthesisSettings,
    start_S1: NDArray[np.int64],
    prompt_S: NDArray[np.int64],
    topic_S: NDArray[np.int64],
    rng: np.random.Generator,
) -> Latents:
    """Latents of S sequences of the topics given, templates put in place."""
    tokens, topics = int(start_S1[-1]), int(topic_S.max()) + 1
    centre_CD = rng.standard_normal((topics, sampling.RANK), np.float32)
    real_rng, template_rng = rng.spawn(2)
    context_TD, token_TD = _flow(settings, start_S1, centre_CD[topic_S], real_rng)
    made = Latents(context_TD, token_TD, np.arange(tokens))
    lengths = (settings.prompt_template_tokens, settings.output_template_tokens)
    if not any(lengths):
        return made
    # One model request for each topic's prompts, and one whose start all outputs share.
    span = max(lengths)
    model_C1 = np.arange(topics + 2) * span
    centre_C1D = np.concatenate([centre_CD, np.zeros((1, sampling.RANK), np.float32)])
    model = Latents(
        *_flow(settings, model_C1, centre_C1D, template_rng), tokens + np.arange(model_C1[-1])
    )
    ends = (start_S1[:-1] + prompt_S, start_S1[1:])
    starts = (start_S1[:-1], ends[0])
    sources = (topic_S * span, np.full(len(topic_S), topics * span))
    for length, start_S, end_S, source_S in zip(lengths, starts, ends, sources, strict=True):
        for i in range(length):
            follows_S = template_rng.random(len(start_S)) < settings.template_agreement
            rows = np.flatnonzero(follows_S & (start_S + i < end_S))
            place, source = start_S[rows] + i, source_S[rows] + i
            made.context_TD[place] = model.context_TD[source]
            made.token_TD[place] = model.token_TD[source]
            made.luck_T[place] = model.luck_T[source]
    return made


def _flow(
    settings: SynthesisSettings,
    start_S1: NDArray[np.int64],
    centre_SD: Singles,
    rng: np.random.Generator,
) -> tuple[Singles, Singles]:
    """Context and own part of every token of these sequences, [T, D] each."""
    shape = (int(start_S1[-1]), sampling.RANK)
    own_SD = rng.standard_normal(centre_SD.shape, np.float32)
    topic = np.float32(settings.topic_share)
    request_SD = np.sqrt(topic) * centre_SD + np.sqrt(1 - topic) * own_SD
    passage_TD, phrase_TD = (rng.standard_normal(shape, np.float32) for _ in range(2))
    sampling.autoregress(passage_TD, start_S1, np.float32(PASSAGE_PERSISTENCE))
    sampling.autoregress(phrase_TD, start_S1, np.float32(settings.persistence))
    request, passage = np.float32(settings.request_share), np.float32(settings.passage_share)
    context_TD = np.repeat(np.sqrt(request) * request_SD, np.diff(start_S1), axis=0)
    context_TD += np.sqrt(passage) * passage_TD
    context_TD += np.sqrt(np.maximum(0, 1 - request - passage)) * phrase_TD
    return context_TD, rng.standard_normal(shape, np.float32)
