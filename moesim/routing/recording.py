"""Recorded routing on its way to a trace: what the user adds, and the last steps of each importer.

Engines record logical ids per request in shapes of their own, some with rows for dense layers, some
with rows for tokens that were not recorded. What is common to them is settled here, once.

Legend: T tokens, L layers, K top-k, S sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.model import load_model
from moesim.routing import checks
from moesim.routing.trace import RoutingTrace

Phase = Literal["prefill", "decode"]
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class About:
    """What a user says of a recording; None and empty where the files have to say it.

    `domains` is one for all files, or one for each. `layers` counts the model's decoder layers,
    dense ones included; `moe_layers` are the indices of those with experts. `index` is a JSON list
    beside .npz files whose objects have each sequence's domain under `label`.
    """

    model: str = "unknown"
    phase: Phase | None = None
    domains: tuple[str, ...] = ()
    experts: int | None = None
    top_k: int | None = None
    layers: int | None = None
    moe_layers: tuple[int, ...] = ()
    index: Path | None = None
    label: str = "category"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.phase is not None and self.phase not in PHASES:
            raise InputError("routing.import.phase", "must be prefill or decode", self.phase)
        for name, value, most in (
            ("experts", self.experts, checks.MAX_EXPERTS),
            ("top_k", self.top_k, checks.MAX_TOP_K),
        ):
            if value is not None and not 1 <= value <= most:
                raise InputError(f"routing.import.{name}", f"must be 1 to {most}", value)

    def domain(self, number: int, files: int, own: str) -> str:
        """The domain of one of the files; `own` where the user named none."""
        if len(self.domains) not in (0, 1, files):
            raise InputError("routing.import.domain", f"must be one, or one for each of {files}")
        if not self.domains:
            return own
        return self.domains[0] if len(self.domains) == 1 else self.domains[number]

    def needed_top_k(self) -> int:
        """Experts per token where the files cannot say it; InputError if nobody did."""
        if self.top_k is None:
            raise InputError("top_k", "is not in this format: give --top-k or a model that ships")
        return self.top_k


def about_model(name: str, **given: Any) -> About:
    """`About` with the shape of a shipped model or config.json; what is `given` goes before it.

    A name that is neither is kept as a name. InputError for a file that is no model.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    try:
        model = load_model(name)
    except InputError:
        if Path(name).exists():
            raise
        return About(model=name, **chosen)
    known: dict[str, Any] = {"layers": model.layers, "moe_layers": model.moe_layers}
    if model.moe_layers:
        known |= {"experts": model.experts, "top_k": model.top_k}
    return About(model=model.name, **{**known, **chosen})


@dataclass(frozen=True)
class Recorded:
    """One recorded request: ids [T, L, K] of any whole type, its prefilled tokens, its domain.

    Ids below 0, and in a token all of whose ids are 0, mean that the engine recorded nothing.
    """

    ids_TLK: NDArray[Any]
    prompt_tokens: int
    domain: str
    weights_TLK: NDArray[Any] | None = None


def assemble(
    sequences: Sequence[Recorded],
    about: About,
    experts: int | None = None,
    layers_L: Sequence[int] | None = None,
) -> RoutingTrace:
    """One trace of recorded requests.

    `experts` and `layers_L` are what the files say. Without `layers_L`, as many layers as the model
    has MoE layers are those; as many as it has layers, dense ones included, are cut down to them;
    of an unknown model, layers in which no token has two different experts are taken to be dense.
    Tokens that were not recorded are cut off a sequence's ends. Raises InputError for ids out of
    range or twice, shapes that differ, gaps, and where nobody says how many experts there are.
    """
    if not sequences:
        raise InputError("sequences", "must be at least one with recorded tokens")
    if experts is not None and about.experts is not None and experts != about.experts:
        raise InputError("experts", f"must be {about.experts} as {about.model} has them", experts)
    experts = about.experts if experts is None else experts
    if experts is None:
        raise InputError("experts", "is not in this format: give --experts or a model that ships")
    _check_shapes(sequences, about)
    rows, layers = _moe_rows(sequences, about, layers_L)
    kept = [_recorded(number, one, rows) for number, one in enumerate(sequences)]
    whole = [one for one in kept if len(one.ids_TLK)]
    if not whole:
        raise InputError("sequences", "must be at least one with recorded tokens")
    lengths_S = np.array([len(one.ids_TLK) for one in whole])
    lost = sum(len(one.ids_TLK) for one in sequences) - int(lengths_S.sum())
    domains = tuple(dict.fromkeys(one.domain for one in whole))
    weighted = all(one.weights_TLK is not None for one in whole)
    return RoutingTrace(
        np.concatenate([_narrow(one.ids_TLK, experts) for one in whole]),
        np.concatenate([[0], np.cumsum(lengths_S)]),
        np.array([one.prompt_tokens for one in whole]),
        np.array([domains.index(one.domain) for one in whole]),
        domains,
        np.asarray(layers, np.int32),
        experts,
        about.model,
        {
            "model": about.model,
            **({"tokens_not_recorded": str(lost)} if lost else {}),
            **about.provenance,
        },
        np.concatenate([_half(one.weights_TLK) for one in whole]) if weighted else None,
    )


def _check_shapes(sequences: Sequence[Recorded], about: About) -> None:
    first = sequences[0].ids_TLK.shape
    tokens = 0
    for number, one in enumerate(sequences):
        ids_TLK, name = one.ids_TLK, f"sequence {number}"
        if ids_TLK.ndim != 3 or ids_TLK.dtype.kind not in "iu":
            raise InputError(name, "must have whole ids [tokens, layers, top_k]", ids_TLK.shape)
        checks.check_size(name, (max(1, len(ids_TLK)), *ids_TLK.shape[1:]), checks.MAX_IDS_SHAPE)
        if ids_TLK.shape[1:] != first[1:]:
            raise InputError(name, f"must have layers and top-k of {first[1:]}", ids_TLK.shape[1:])
        if one.weights_TLK is not None and one.weights_TLK.shape != ids_TLK.shape:
            raise InputError(name, "must have a weight for each id", one.weights_TLK.shape)
        if not 0 <= one.prompt_tokens <= len(ids_TLK):
            raise InputError(name, "must not have more prompt than tokens", one.prompt_tokens)
        tokens += len(ids_TLK)
    if tokens > checks.MAX_TOKENS:
        raise InputError("tokens", f"must be at most {checks.MAX_TOKENS}", tokens)
    if about.top_k is not None and first[2] != about.top_k:
        raise InputError("top_k", f"must be {about.top_k} as {about.model} has it", first[2])


def _moe_rows(
    sequences: Sequence[Recorded], about: About, layers_L: Sequence[int] | None
) -> tuple[list[int], Sequence[int]]:
    """Which rows of the second dimension are MoE layers, and their indices in the model."""
    found = sequences[0].ids_TLK.shape[1]
    every = list(range(found))
    if layers_L is not None:
        return every, layers_L
    if about.moe_layers and found == len(about.moe_layers):
        return every, about.moe_layers
    if about.moe_layers and found == about.layers:
        return list(about.moe_layers), about.moe_layers
    if about.moe_layers:
        wanted = f"{len(about.moe_layers)} MoE layers, or {about.layers} in all"
        raise InputError("layers", f"must be those of {about.model}: {wanted}", found)
    chosen = np.zeros(found, bool)
    for one in sequences:
        differ = one.ids_TLK.max(axis=2) != one.ids_TLK.min(axis=2)
        chosen |= differ.any(axis=0) if one.ids_TLK.shape[2] > 1 else True
    rows = np.flatnonzero(chosen).tolist()
    if not rows:
        raise InputError("layers", "must be at least one in which experts were chosen")
    return rows, rows


def layers_note(layers: int, about: About) -> str:
    """What is odd about a recording of so many layers; empty where they are the model's."""
    if not about.moe_layers or layers in (len(about.moe_layers), about.layers):
        return ""
    recorded = "1 layer" if layers == 1 else f"{layers} layers"
    return (
        f"{recorded} recorded, but {about.model} has {len(about.moe_layers)} MoE layers of "
        f"{about.layers}: a run maps them by relative depth; is a part missing?"
    )


def _recorded(number: int, one: Recorded, rows: list[int]) -> Recorded:
    """The sequence's MoE layers, without the tokens at either end that were not recorded."""
    ids_TLK = one.ids_TLK if len(rows) == one.ids_TLK.shape[1] else one.ids_TLK[:, rows]
    missing_T = np.asarray((ids_TLK < 0).all(axis=(1, 2)))
    if ids_TLK.shape[2] > 1:
        missing_T |= (ids_TLK == 0).all(axis=(1, 2))
    known = np.flatnonzero(~missing_T)
    first, last = (int(known[0]), int(known[-1]) + 1) if len(known) else (0, 0)
    if last - first != len(known):
        gap = first + int(np.asarray(missing_T[first:last]).argmax())
        raise InputError(f"sequence {number}", f"must have routing for every token: {gap} has none")
    weights = one.weights_TLK
    if weights is not None:
        weights = weights[first:last] if ids_TLK is one.ids_TLK else weights[first:last, rows]
    prompt = min(max(one.prompt_tokens - first, 0), last - first)
    return Recorded(ids_TLK[first:last], prompt, one.domain, weights)


def _narrow(ids_TLK: NDArray[Any], experts: int) -> NDArray[Any]:
    low, high = int(ids_TLK.min()), int(ids_TLK.max())
    if low < 0 or high >= experts:
        raise InputError("ids", f"must be 0 to {experts - 1}", low if low < 0 else high)
    return ids_TLK.astype(checks.id_dtype(experts), copy=False)


def _half(weights_TLK: NDArray[Any] | None) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return np.asarray(weights_TLK, np.float16)


def merge(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of all sequences, in order; weights are kept if every trace has them.

    Raises InputError unless all have the same layers, experts and top-k.
    """
    if not traces:
        raise InputError("routing.merge", "needs at least one trace")
    first = traces[0]
    for other in traces[1:]:
        same = (other.experts, other.top_k) == (first.experts, first.top_k)
        if not same or not np.array_equal(other.layers_L, first.layers_L):
            raise InputError(
                "routing.merge",
                f"needs traces of {first.layers} layers, {first.top_k} of {first.experts} experts",
                f"{other.layers} layers, {other.top_k} of {other.experts}",
            )
    if len(traces) == 1:
        return first
    domains = tuple(dict.fromkeys(name for trace in traces for name in trace.domains))
    renumbered = [np.array([domains.index(name) for name in trace.domains]) for trace in traces]
    lengths_S = np.concatenate([trace.sequence_tokens_S for trace in traces])
    weights = [trace.weights_TLK for trace in traces if trace.weights_TLK is not None]
    return RoutingTrace(
        np.concatenate([trace.ids_TLK for trace in traces]),
        np.concatenate([[0], np.cumsum(lengths_S)]),
        np.concatenate([trace.prompt_tokens_S for trace in traces]),
        np.concatenate([new[t.domain_S] for new, t in zip(renumbered, traces, strict=True)]),
        domains,
        first.layers_L,
        first.experts,
        " + ".join(dict.fromkeys(trace.model for trace in traces)),
        _joined([trace.provenance for trace in traces]),
        np.concatenate(weights) if len(weights) == len(traces) else None,
        ids_checked=True,
    )


def _joined(provenances: Sequence[Mapping[str, str]]) -> dict[str, str]:
    keys = dict.fromkeys(key for each in provenances for key in each)
    return {
        key: "; ".join(dict.fromkeys(each[key] for each in provenances if key in each))
        for key in keys
    }
