"""How often each expert was chosen, where nothing else was recorded: counts from an engine.

Counts say nothing about which experts are chosen together or one after another. The synthesiser
adds that from a routing profile and keeps to these shares.

Legend: L MoE layers, E experts, K top-k.

File: JSON with `format`, `model`, `experts`, `top_k`, `layers` [L], `share` [L][E] (the part of all
tokens that chose the expert; a layer's sum is K), `tokens` or null, `provenance`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError
from moesim.files import read_text, replace_atomically
from moesim.routing import checks
from moesim.routing.marginals import MOST_INCLUDED

FORMAT = "moesim-marginals-1"
MAX_BYTES = 256e6
# A share above 1 says that top_k is wrong; approximate recorders may exceed it a little.
TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class MarginalProfile:
    """Share of all tokens that chose each expert, `share_LE`, read-only; each row sums to top_k.

    `tokens` counted per layer, if known. Raises InputError unless shapes fit together and shares
    are between 0 and 1.
    """

    share_LE: NDArray[np.float64]
    layers_L: tuple[int, ...]
    top_k: int
    model: str
    tokens: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        share_LE = np.array(self.share_LE, np.float64)
        if share_LE.ndim != 2:
            raise InputError("share", "must be a [layers, experts] table", share_LE.shape)
        limits = (checks.MAX_LAYERS, checks.MAX_EXPERTS)
        checks.check_size("share", share_LE.shape, limits)
        layers = list(self.layers_L)
        if len(layers) != len(share_LE) or sorted(set(layers)) != layers or layers[0] < 0:
            raise InputError("layers", "must number the rows of share, in rising order", layers)
        if not 1 <= self.top_k <= share_LE.shape[1]:
            raise InputError("top_k", f"must be 1 to {share_LE.shape[1]}", self.top_k)
        if not np.isfinite(share_LE).all() or (share_LE < 0).any() or (share_LE > 1).any():
            raise InputError("share", "must be between 0 and 1", float(share_LE.max()))
        if (abs(share_LE.sum(axis=1) - self.top_k) > TOLERANCE * self.top_k).any():
            raise InputError("share", f"must sum to top_k ({self.top_k}) in every layer")
        for text in (self.model, *self.provenance, *self.provenance.values()):
            if not text.isprintable():
                raise InputError("provenance", "must be printable text", text)
        share_LE.setflags(write=False)
        object.__setattr__(self, "share_LE", share_LE)

    @property
    def experts(self) -> int:
        return int(self.share_LE.shape[1])

    @classmethod
    def from_counts(
        cls,
        counts_LE: NDArray[Any],
        layers: Sequence[int],
        top_k: int,
        model: str,
        tokens: int | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> Self:
        """Shares from how often each expert was chosen; layers without counts (dense) are left out.

        Raises InputError for counts that are negative or not finite, and where an expert was chosen
        more often than there are tokens.
        """
        if counts_LE.ndim != 2 or not counts_LE.size:
            raise InputError("counts", "must be a [layers, experts] table", counts_LE.shape)
        counts_LE = counts_LE.astype(np.float64)
        if not np.isfinite(counts_LE).all() or (counts_LE < 0).any():
            raise InputError("counts", "must be finite and not negative", float(counts_LE.min()))
        total_L = counts_LE.sum(axis=1)
        known = np.flatnonzero(total_L > 0).tolist()
        if not known:
            raise InputError("counts", "must not all be 0")
        share_LE = top_k * counts_LE[known] / total_L[known, None]
        if share_LE.max() > 1 + TOLERANCE:
            worst = known[int(share_LE.max(axis=1).argmax())]
            rule = f"is chosen more often than there are tokens, with top_k {top_k}"
            raise InputError(f"an expert of layer {layers[worst]}", rule, float(share_LE.max()))
        return cls(
            np.minimum(share_LE, 1.0),
            tuple(int(layers[row]) for row in known),
            top_k,
            model,
            tokens if tokens is not None else round(float(total_L[known].max()) / top_k),
            {"model": model, **(provenance or {})},
        )

    def targets(self, layers: int) -> NDArray[np.float64]:
        """Inclusion probabilities [layers, E] for the synthesiser, rows summing to K.

        Another number of layers is mapped by relative depth. No share is left at 0 or at 1, which
        no finite bias reaches: an expert never seen gets half a count.
        """
        rows = np.rint(np.linspace(0, len(self.share_LE) - 1, layers)).astype(np.int64)
        least = 0.5 / max(self.tokens or 0, 1000)
        most = max(MOST_INCLUDED, self.top_k / self.experts)
        targets_LE = np.clip(self.share_LE[rows], least, most)
        for _ in range(50):
            targets_LE = targets_LE * (self.top_k / targets_LE.sum(axis=1, keepdims=True))
            if (targets_LE <= most * (1 + 1e-9)).all():
                break
            targets_LE = np.minimum(targets_LE, most)
        return np.asarray(targets_LE)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, replacing `path` only once it is whole."""
        content = {
            "format": FORMAT,
            "model": self.model,
            "experts": self.experts,
            "top_k": self.top_k,
            "layers": list(self.layers_L),
            "tokens": self.tokens,
            "provenance": dict(self.provenance),
            "share": [[float(f"{share:.7g}") for share in row] for row in self.share_LE.tolist()],
        }
        with replace_atomically(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def open(cls, path: str | os.PathLike[str], name: str = "") -> Self:
        """Read a profile; InputError under `name` (the path if empty) if it is not sound."""
        where = name or str(path)
        text = read_text(path, MAX_BYTES, where)
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f"its format must be {FORMAT}")
            return cls(
                _table(content.get("share")),
                tuple(_whole(layer) for layer in content["layers"]),
                _whole(content["top_k"]),
                str(content["model"]),
                None if content["tokens"] is None else _whole(content["tokens"]),
                {str(key): str(value) for key, value in content["provenance"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(where, f"must be a marginal profile: {error}") from None


def _table(value: ArrayLike | None) -> NDArray[np.float64]:
    table = np.array(value)
    if table.dtype.kind not in "fiu":
        raise ValueError("share must be a table of numbers")
    return table.astype(np.float64)


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"must hold whole numbers, got {value!r:.40}")
    return value
