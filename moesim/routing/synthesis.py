"""Synthetic routing: a low-rank latent per token, shared by all layers, and Gumbel top-k.

logit[t, l, e] = a[l, e] + s W_l[e] . z_tl / sqrt(d) + Gumbel, the K largest chosen. A layer's
latent is z_tl = sqrt(c_l) context_t + sqrt(1 - c_l) token_t: deep layers follow what the request
and the passage are about, first layers the token itself (latents.py). The biases a are calibrated
so that each expert is chosen as often as measured loads, or a skewed law, say. How few numbers do
all this, and how near they come to real routers: docs/explanation/synthetic-routing.md.

Legend: T tokens, L MoE layers, E experts, K top-k, S sequences, D latent rank,
G groups of tokens with loads of their own (one, or one for each topic).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError
from moesim.routing import checks, marginals, sampling
from moesim.routing.latents import Latents, draw_latents
from moesim.routing.settings import GENERATOR, SynthesisSettings, over_depth
from moesim.routing.trace import RoutingTrace

MAX_IDS = 2**33
# Between layers of gpt-oss-20b and DeepSeek-V2-Lite, Gini goes with the 0.4th to 0.7th power of
# the busiest expert's excess over the mean.
GINI_POWER = 0.6


@dataclass(frozen=True)
class Router:
    """Turns latents into choices: loadings [L, D, E], biases [G, L, E] and a table of noise."""

    share_L2: NDArray[np.float32]
    stray_L: NDArray[np.uint64]
    bias_GLE: NDArray[np.float32]
    loading_LDE: NDArray[np.float32]
    gumbel_N: NDArray[np.float32]
    top_k: int
    seed: np.uint64

    def choose(self, latents: Latents, group_T: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Experts of each token at each layer, [T, L, K], strongest first.

        `group_T` says whose biases a token has; the first group's by default.
        """
        _, layers, experts = self.bias_GLE.shape
        shape = (len(latents.luck_T), layers, self.top_k)
        ids_TLK = np.empty(shape, checks.id_dtype(experts))
        for group, rows, part in _by_group(latents, group_T):
            chosen_TLK = ids_TLK[rows]
            sampling.choose(
                *part, self.share_L2, self.stray_L, self.bias_GLE[group], self.loading_LDE,
                self.gumbel_N, self.seed, chosen_TLK,
            )  # fmt: skip
            if group_T is not None:
                ids_TLK[rows] = chosen_TLK
        return ids_TLK


def _by_group(
    latents: Latents, group_T: NDArray[np.int64] | None
) -> Iterator[tuple[int, Any, Latents]]:
    """Groups that occur, their rows (a slice for all of them), and these rows' latents."""
    if group_T is None:
        yield 0, slice(None), latents
        return
    for group in np.unique(group_T).tolist():
        rows = np.flatnonzero(group_T == group)
        context_TD, token_TD, luck_T = latents
        yield group, rows, Latents(context_TD[rows], token_TD[rows], luck_T[rows])


def make_router(
    settings: SynthesisSettings,
    targets_GLE: NDArray[np.float64],
    latents: Latents,
    rng: np.random.Generator,
    group_T: NDArray[np.int64] | None = None,
) -> Router:
    """A router that chooses experts as often as `targets_GLE` say, for tokens of these latents and
    groups."""
    _, layers, experts = targets_GLE.shape
    top_k = int(np.rint(targets_GLE[0, 0].sum()))
    drawn_LDE = rng.standard_normal((layers, sampling.RANK, experts), np.float32)
    loading_LDE = drawn_LDE * np.float32(settings.strength / math.sqrt(sampling.RANK))
    locality_L, stray_L = (over_depth(v, layers) for v in (settings.locality, settings.stray))
    share_L2 = np.sqrt(np.stack([locality_L, 1 - locality_L], axis=1)).astype(np.float32)
    gumbel_N = sampling.gumbel_table(rng, experts)
    first, second = rng.integers(0, 2**63, 2, dtype=np.uint64)
    chances_L = (stray_L * 2.0**32).astype(np.uint64)
    bias_GLE = np.zeros(targets_GLE.shape, np.float32)
    for group, _, part in _by_group(latents, group_T):
        bias_GLE[group] = marginals.calibrate_biases(
            targets_GLE[group], part[:2], share_L2, chances_L, loading_LDE, gumbel_N, top_k, first
        )
    return Router(share_L2, chances_L, bias_GLE, loading_LDE, gumbel_N, top_k, second)


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
    topic_S: NDArray[np.int64] | None = None,
    wanted_LE: NDArray[np.float64] | None = None,
) -> RoutingTrace:
    """Draw a trace of `sequences` requests from the generator.

    `tokens_per_sequence` is (prompt tokens, decode tokens), each one number or one per sequence.
    Domains are the topics; sequences are spread over them evenly unless `topic_S` [S] says which
    is of which. `wanted_LE` are the shares of tokens that choose each expert, [L, E], rows summing
    to top_k, where they are known; otherwise the settings say. The same settings, sizes and state
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
    router_rng, targets_rng, latent_rng = rng.spawn(3)
    if topic_S is None:
        topics = min(settings.topics, sequences)
        topic_S = latent_rng.permutation(np.arange(sequences) % topics)
    latents = draw_latents(settings, start_S1, prompt_S, topic_S, latent_rng)
    if wanted_LE is None:
        wanted_GLE = targets(settings, layers, experts, top_k, targets_rng)
    else:
        wanted_GLE = wanted_LE[None]
    group_T = _groups(len(wanted_GLE), topic_S, total_S)
    ids_TLK = make_router(settings, wanted_GLE, latents, router_rng, group_T).choose(
        latents, group_T
    )
    return RoutingTrace(
        ids_TLK,
        start_S1,
        prompt_S.astype(np.int32),
        topic_S.astype(np.uint16),
        tuple(f"topic-{topic}" for topic in range(int(topic_S.max()) + 1)),
        np.arange(layers, dtype=np.int32) if layers_L is None else np.asarray(layers_L, np.int32),
        experts,
        model,
        {
            "source": "synthetic",
            "captured_with": f"moesim low-rank latent with Gumbel top-k, generator {GENERATOR}",
            "settings": json.dumps(
                settings.model_dump(exclude={"load", "domain_load"}), sort_keys=True
            ),
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


def _groups(
    groups: int, topic_S: NDArray[np.int64], total_S: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The group of each token, [T]: its topic, where topics have loads of their own."""
    if groups == 1:
        return None
    if topic_S.max() >= groups:
        raise InputError("routing.topic", f"must be below {groups}", int(topic_S.max()))
    return np.repeat(topic_S, total_S)


def targets(
    settings: SynthesisSettings,
    layers: int,
    experts: int,
    top_k: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Inclusion probability of each expert, [G, L, E]: measured loads, or drawn from their law."""
    load_GMF = np.array(settings.domain_load or (settings.load,))
    if load_GMF.size:
        return marginals.resize_loads(load_GMF, layers, experts, top_k, rng)
    factor_L = _layer_factors(settings.layer_spread, layers, rng)
    gini_L = over_depth(settings.gini, layers) * factor_L**GINI_POWER
    max_L = 1 + (over_depth(settings.max_over_mean, layers) - 1) * factor_L
    return marginals.draw_targets(gini_L, max_L, experts, top_k, rng)[None]


def _layer_factors(spread: float, layers: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Heavy-tailed factors of mean about 1, [L]: exp(spread * Student t with 4 degrees)."""
    noise_L = spread * rng.standard_t(4, layers) / math.sqrt(2.0)
    return np.asarray(np.exp(np.clip(noise_L, -3.0, 3.0) - spread**2 / 2))
