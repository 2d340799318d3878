"""Synthetic routing: one low-rank latent per token, shared by all layers, and Gumbel top-k.

logit[t, l, e] = a[l, e] + s_l W_l[e] . z_t / sqrt(d) + Gumbel, the K largest chosen, with
z_t = sqrt(alpha) r_request + sqrt(1 - alpha) x_t, x_t an AR(1) process along the sequence, and the
biases a calibrated so that each expert is chosen as often as a skewed target says. Against real
gpt-oss-20b and DeepSeek-V2-Lite traces this matches overlap by lag, request-level skew and the
spread of rank imbalance between batches, which independent sampling misses by an order.

Legend: T tokens, L MoE layers, E experts, K top-k, S sequences, D latent rank = G groups of U.
"""

from __future__ import annotations

import json
import math
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from moesim.errors import InputError
from moesim.routing import checks, marginals, sampling
from moesim.routing.trace import RoutingTrace
from moesim.spec import Spec

GENERATOR = "1"  # part of cache keys: raise it when the same settings give other ids
MAX_IDS = 2**33
# Skewed layers are also the ones with more locality (gpt-oss-20b: layers 10 to 13 lead in both).
STRENGTH_POWER = 0.5

Fraction = Annotated[float, Field(ge=0, le=1)]


class SynthesisSettings(Spec):
    """What a router does to tokens, in a few numbers; the defaults are gpt-oss-20b's.

    Sources: overlaps, skew and their layer shape measured on public gpt-oss-20b and
    DeepSeek-V2-Lite (ESFT) routing traces, 2026-11.
    """

    rank: int = Field(default=8, ge=1, le=16, description="dimensions of the latent")
    strength: float = Field(
        default=5.0,
        ge=0,
        le=12,
        description="standard deviation of a logit at the peak layer, nats",
    )
    first_layer_strength: Fraction = Field(
        default=0.1, description="of the peak, at the first MoE layer"
    )
    last_layer_strength: Fraction = Field(
        default=0.8, description="of the peak, at the last MoE layer"
    )
    peak_depth: Fraction = Field(default=0.45, description="relative depth of the peak layer")
    request_share: Fraction = Field(
        default=0.53, description="of the latent's variance that stays for a whole request"
    )
    persistence: float = Field(
        default=0.45, ge=0, lt=1, description="lag-1 correlation of the part that changes by token"
    )
    topics: int = Field(default=6, ge=1, le=4096, description="request clusters; each is a domain")
    topic_share: Fraction = Field(
        default=0.6,
        description="of the request part's variance that requests of a topic have in common",
    )
    template_tokens: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="first tokens of prompt and of output alike in all requests",
    )
    gini: float = Field(
        default=0.39, ge=0, lt=1, description="Gini coefficient of experts' load in a layer"
    )
    max_over_mean: float = Field(
        default=2.5, ge=1, le=1024, description="busiest expert's load over mean"
    )
    layer_spread: float = Field(
        default=0.25,
        ge=0,
        le=2,
        description="how much layers differ in skew: sd of log(max/mean - 1)",
    )


def layer_strengths(settings: SynthesisSettings, layers: int) -> NDArray[np.float64]:
    """Strength of each layer, [L], nats: a quarter sine up to the peak, a line down after it."""
    depth_L = np.linspace(0.0, 1.0, layers) if layers > 1 else np.array([settings.peak_depth])
    peak, first, last = (
        settings.peak_depth,
        settings.first_layer_strength,
        settings.last_layer_strength,
    )
    rise_L = np.sin(np.pi / 2 * np.minimum(1.0, depth_L / max(peak, 1e-9)))
    fall_L = np.maximum(0.0, depth_L - peak) / max(1.0 - peak, 1e-9)
    shape_L = np.where(depth_L <= peak, first + (1 - first) * rise_L, 1 - (1 - last) * fall_L)
    return np.asarray(settings.strength * shape_L)


def synthesise(
    settings: SynthesisSettings,
    layers: int,
    experts: int,
    top_k: int,
    sequences: int,
    tokens_per_sequence: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
    *,
    model: str = "synthetic",
    layers_L: ArrayLike | None = None,
    wanted_LE: NDArray[np.float64] | None = None,
) -> RoutingTrace:
    """Draw a trace of `sequences` requests from the generator.

    `tokens_per_sequence` is (prompt tokens, decode tokens), each one number or one per sequence.
    `wanted_LE` are the shares of tokens that choose each expert, [L, E], rows summing to top_k,
    where they are known; drawn from the settings otherwise.
    Domains are the topics, sequences spread over them evenly. The same settings, sizes and state
    of `rng` give the same trace. Raises InputError for impossible shapes and for more than 2^33
    ids.
    """
    _check_shape(layers, experts, top_k, sequences)
    prompt_S = _lengths(tokens_per_sequence[0], sequences, "prompt")
    total_S = prompt_S + _lengths(tokens_per_sequence[1], sequences, "decode")
    if (total_S < 1).any():
        raise InputError("routing.tokens_per_sequence", "must sum to at least 1", 0)
    tokens = int(total_S.sum())
    if tokens * layers * top_k > MAX_IDS:
        raise InputError("routing.tokens", f"times layers and top_k must be <= {MAX_IDS}", tokens)
    start_S1 = np.concatenate([[0], np.cumsum(total_S)])

    weights_rng, targets_rng, latent_rng = rng.spawn(3)
    factor_L = _layer_factors(settings.layer_spread, layers, targets_rng)
    strength_L = layer_strengths(settings, layers) * factor_L**STRENGTH_POWER
    loading_LGUE = _loadings(strength_L, settings.rank, experts, weights_rng)
    targets_LE = (
        marginals.draw_targets(
            factor_L, experts, top_k, settings.gini, settings.max_over_mean, targets_rng
        )
        if wanted_LE is None
        else wanted_LE
    )
    topics = min(settings.topics, sequences)
    topic_S = latent_rng.permutation(np.arange(sequences) % topics)
    z_TD = _latents(settings, start_S1, prompt_S, topic_S, latent_rng)
    seed = latent_rng.integers(0, 2**63, dtype=np.uint64)
    bias_LE = marginals.calibrate_biases(targets_LE, z_TD, loading_LGUE, top_k, seed)
    ids_TLK = np.empty((tokens, layers, top_k), checks.id_dtype(experts))
    sampling.choose(z_TD, bias_LE, loading_LGUE, seed ^ np.uint64(1 << 62), ids_TLK)
    return RoutingTrace(
        ids_TLK,
        start_S1,
        prompt_S.astype(np.int32),
        topic_S.astype(np.uint16),
        tuple(f"topic-{topic}" for topic in range(topics)),
        np.arange(layers, dtype=np.int32) if layers_L is None else np.asarray(layers_L, np.int32),
        experts,
        model,
        {
            "source": "synthetic",
            "captured_with": f"moesim low-rank latent with Gumbel top-k, generator {GENERATOR}",
            "settings": json.dumps(settings.model_dump(), sort_keys=True),
        },
        ids_checked=True,
    )


def _check_shape(layers: int, experts: int, top_k: int, sequences: int) -> None:
    limits = (
        ("layers", layers, checks.MAX_LAYERS),
        ("experts", experts, checks.MAX_EXPERTS),
        ("top_k", top_k, min(experts, checks.MAX_TOP_K)),
        ("sequences", sequences, checks.MAX_SEQUENCES),
    )
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise InputError(f"routing.{name}", f"must be 1 to {most}", value)


def _lengths(tokens: ArrayLike, sequences: int, part: str) -> NDArray[np.int64]:
    given = np.asarray(tokens)
    field = f"routing.tokens_per_sequence.{part}"
    if given.dtype.kind not in "iu" or given.shape not in ((), (sequences,)):
        raise InputError(field, f"must be one whole number, or one for each of {sequences}")
    if int(given.min()) < 0 or int(given.max()) > checks.MAX_TOKENS:
        raise InputError(field, f"must be 0 to {checks.MAX_TOKENS}", int(given.max()))
    return np.broadcast_to(given.astype(np.int64), (sequences,))


def _padded(rank: int) -> int:
    return -(-rank // sampling.UNROLL) * sampling.UNROLL


def _layer_factors(spread: float, layers: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Heavy-tailed factors of mean about 1, [L]: exp(spread * Student t with 4 degrees)."""
    noise_L = spread * rng.standard_t(4, layers) / math.sqrt(2.0)
    return np.asarray(np.exp(np.clip(noise_L, -3.0, 3.0) - spread**2 / 2))


def _loadings(
    strength_L: NDArray[np.float64], rank: int, experts: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """s_l W_l / sqrt(d) in log2 units, [L, G, U, E]; zero past the rank."""
    layers = len(strength_L)
    loading_LDE = np.zeros((layers, _padded(rank), experts), np.float32)
    scale_L = (strength_L / (math.sqrt(rank) * math.log(2.0))).astype(np.float32)
    drawn_LDE = rng.standard_normal((layers, rank, experts), np.float32)
    loading_LDE[:, :rank] = drawn_LDE * scale_L[:, None, None]
    return loading_LDE.reshape(layers, -1, sampling.UNROLL, experts)


def _latents(
    settings: SynthesisSettings,
    start_S1: NDArray[np.int64],
    prompt_S: NDArray[np.int64],
    topic_S: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """z of every token, [T, D], unit variance in each of the `rank` dimensions."""
    rank = settings.rank
    z_TD = np.zeros((int(start_S1[-1]), _padded(rank)), np.float32)
    centres_CD = rng.standard_normal((settings.topics, rank), np.float32)
    own_SD = rng.standard_normal((len(topic_S), rank), np.float32)
    topic, alpha = np.float32(settings.topic_share), np.float32(settings.request_share)
    request_SD = np.sqrt(topic) * centres_CD[topic_S] + np.sqrt(1 - topic) * own_SD
    noise_TD = rng.standard_normal((len(z_TD), rank), np.float32)
    sampling.autoregress(noise_TD, start_S1, np.float32(settings.persistence))
    request_TD = np.repeat(np.sqrt(alpha) * request_SD, np.diff(start_S1), axis=0)
    z_TD[:, :rank] = request_TD + np.sqrt(1 - alpha) * noise_TD
    template_PD = rng.standard_normal((2 * settings.template_tokens, rank), np.float32)
    for i in range(settings.template_tokens):
        in_prompt = i < prompt_S
        z_TD[start_S1[:-1][in_prompt] + i, :rank] = template_PD[2 * i]
        in_decode = i < np.diff(start_S1) - prompt_S
        z_TD[(start_S1[:-1] + prompt_S + i)[in_decode], :rank] = template_PD[2 * i + 1]
    return z_TD
