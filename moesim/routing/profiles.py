"""Generator settings for known models, and the trace that a model gets when nobody gives one.

A profile is a file of presets/routing: the generator's numbers, where they come from, and the
models it stands for. Synthetic traces are made once and kept in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from moesim import plain_yaml
from moesim.architecture import MoEModel
from moesim.compiled import cache_root
from moesim.errors import InputError
from moesim.files import read_text, replace_atomically
from moesim.presets import preset_names, read_preset
from moesim.routing.settings import GENERATOR, SynthesisSettings
from moesim.routing.trace import RoutingTrace
from moesim.spec import Spec

if TYPE_CHECKING:
    from moesim.routing.marginal_profile import MarginalProfile

# Selections times what each costs: about 3 s of one core.
EXPERTS_WEIGHED = 5e8
FEWEST_TOKENS, MOST_TOKENS = 4096, 65_536
TOKENS_PER_SEQUENCE = 384
MOST_CACHED_FILES = 64
MAX_PROFILE_BYTES = 2e6


class RoutingProfile(Spec):
    """Settings that stand for a model's router, and what they rest on."""

    name: str
    source: str = Field(min_length=1)
    models: tuple[str, ...] = Field((), description="shipped models that use it by default")
    experts: tuple[int, int] | None = Field(
        None, description="other models with this many experts, first to last, use it too"
    )
    settings: SynthesisSettings


def profile_names() -> tuple[str, ...]:
    """Names of the shipped routing profiles, sorted."""
    return preset_names("routing", ".yaml")


@functools.cache
def load_profile(name: str) -> RoutingProfile:
    """A shipped routing profile, or one in a .yaml file; InputError for anything else."""
    if name.endswith(".yaml"):
        data = plain_yaml.read_yaml(read_text(name, MAX_PROFILE_BYTES), name)
        return RoutingProfile.parse({"name": Path(name).stem, **_mapping(data, name)}, name)
    if name not in profile_names():
        known = ", ".join(profile_names())
        raise InputError("routing.profile", f"must be one of {known}", name)
    data = plain_yaml.read_shipped(read_preset("routing", f"{name}.yaml"))
    return RoutingProfile.parse({"name": name, **data}, f"presets/routing/{name}.yaml")


def _mapping(data: object, name: str) -> dict[str, object]:
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(name, "must be a routing profile: source and settings")
    return data


def fit_profile(trace: RoutingTrace, name: str, seed: int = 0) -> RoutingProfile:
    """A profile whose synthetic traces have this trace's statistics. Raises InputError for traces
    too short to tell."""
    from moesim.routing.estimate import fit_settings  # here, as few runs need it

    about = trace.provenance.get("source", "a trace")
    source = f"Fitted to {trace.tokens} tokens of {trace.model}: {about}"
    return RoutingProfile(name=name, source=source, settings=fit_settings(trace, seed))


def save_profile(profile: RoutingProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile as YAML that `load_profile` reads, replacing `path` only once it is whole."""
    data = profile.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    with replace_atomically(path) as temporary:
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
        temporary.write_text(text, encoding="utf-8")


def profile_for(model: MoEModel) -> RoutingProfile:
    """The profile of the model by its name, else the one for its number of experts."""
    profiles = [load_profile(name) for name in profile_names()]
    name = model.name.lower().replace("_", "-")
    for profile in profiles:
        if name in profile.models:
            return profile
    for profile in profiles:
        if profile.experts and profile.experts[0] <= model.experts <= profile.experts[1]:
            return profile
    raise InputError("model.experts", "must be 2 to 65536 for synthetic routing", model.experts)


def default_tokens(model: MoEModel) -> int:
    """Tokens of a default trace that take about 3 s to draw on one core."""
    # 100: what a draw costs beside weighing the experts, in experts (measured at 8 to 384).
    affordable = int(EXPERTS_WEIGHED / (len(model.moe_layers) * (model.experts + 100)))
    return min(max(affordable, FEWEST_TOKENS), MOST_TOKENS)


def default_trace(
    model: MoEModel, seed: int, tokens: int | None = None, profile: RoutingProfile | None = None
) -> RoutingTrace:
    """A synthetic trace with the profile that fits the model, or another one; drawn once, then
    read from a cache.

    Sequences of 384 tokens, half prompt and half output, one domain for each topic. The same model,
    seed and tokens give the same trace. Raises InputError for a dense model.
    """
    if not model.moe_layers:
        raise InputError("routing.trace", f"is of no use to {model.name}, a dense model")
    profile = profile or profile_for(model)
    wanted = default_tokens(model) if tokens is None else tokens
    path = _cache_path(profile, model, seed, wanted)
    try:
        return RoutingTrace.open(path)
    except InputError:  # not there yet, or damaged: draw it
        trace = _draw(profile, model, seed, wanted)
    # A read-only or full disk costs time on the next run, nothing else.
    with suppress(OSError):
        trace.save(path)
        _prune(path.parent)
    return trace


def completed_trace(
    marginals: MarginalProfile,
    model: MoEModel,
    seed: int,
    tokens: int | None = None,
    profile: RoutingProfile | None = None,
) -> RoutingTrace:
    """A synthetic trace whose experts are chosen as often as an engine counted it.

    Which of them follow each other, and differ by topic, comes from the routing profile. Raises
    InputError if the counts are of other experts or another top-k than the model's.
    """
    if (marginals.experts, marginals.top_k) != (model.experts, model.top_k):
        raise InputError(
            "routing.marginals",
            f"must choose {model.top_k} of {model.experts} experts as {model.name} does",
            f"{marginals.top_k} of {marginals.experts} ({marginals.model})",
        )
    profile = profile or profile_for(model)
    wanted = default_tokens(model) if tokens is None else tokens
    made = _draw(profile, model, seed, wanted, marginals.targets(len(model.moe_layers)))
    counted = {f"counts_{key}": value for key, value in marginals.provenance.items()}
    return replace(made, provenance={**made.provenance, **counted}, ids_checked=True)


def _draw(
    profile: RoutingProfile,
    model: MoEModel,
    seed: int,
    tokens: int,
    wanted_LE: NDArray[np.float64] | None = None,
) -> RoutingTrace:
    from moesim.routing.synthesis import synthesise  # here, as most traces are kept ones

    if tokens < 2:
        raise InputError("routing.tokens", "must be at least 2", tokens)
    sequences = max(1, tokens // TOKENS_PER_SEQUENCE)
    total_S = np.full(sequences, tokens // sequences, np.int64)
    total_S[: tokens % sequences] += 1
    prompt_S = total_S // 2
    trace = synthesise(
        profile.settings,
        len(model.moe_layers),
        model.experts,
        model.top_k,
        sequences,
        (prompt_S, total_S - prompt_S),
        np.random.default_rng(seed),
        model=f"{model.name} (synthetic)",
        layers_L=model.moe_layers,
        wanted_LE=wanted_LE,
    )
    about = {**trace.provenance, "profile": profile.name, "profile_source": profile.source}
    return replace(trace, provenance=about, ids_checked=True)


def _cache_path(profile: RoutingProfile, model: MoEModel, seed: int, tokens: int) -> Path:
    key = {
        "generator": GENERATOR,
        "profile": profile.model_dump(),
        "model": model.name,
        "layers": model.moe_layers,
        "experts": model.experts,
        "top_k": model.top_k,
        "tokens": tokens,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_root() / "routing" / f"{digest}.safetensors"


def _prune(folder: Path) -> None:
    """Keep the newest files only: a sweep over seeds must not fill the disk."""
    files = sorted(folder.glob("*.safetensors"), key=os.path.getmtime, reverse=True)
    for file in files[MOST_CACHED_FILES:]:
        file.unlink(missing_ok=True)
