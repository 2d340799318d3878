"""RoutingTrace: which experts each token of real (or synthetic) sequences chose at each layer.

Legend: T tokens, L MoE layers, K top-k, E experts, S sequences.

A trace is one safetensors file: tensors `ids` [T, L, K], optional `weights` [T, L, K],
`sequence_start` [S+1], `prompt_tokens` [S], `domain` [S], `layers` [L]; in its metadata `format`,
`experts`, `model` as text and `domains`, `provenance` as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moesim.errors import InputError
from moesim.routing import checks
from moesim.routing.tensorfile import TensorFile, open_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Expert ids of T tokens in S sequences, read-only.

    Sequence s is rows sequence_start_S1[s] to sequence_start_S1[s+1]; its first prompt_tokens_S[s]
    tokens were prefilled, the rest decoded. `layers_L` are the model's layer indices, `domain_S`
    indexes `domains`. Raises InputError for shapes, types, ids or boundaries that do not fit
    together; `ids_checked` skips the scan of ids that were just scanned.
    """

    ids_TLK: NDArray[Any]
    sequence_start_S1: NDArray[np.int64]
    prompt_tokens_S: NDArray[np.int32]
    domain_S: NDArray[np.uint16]
    domains: tuple[str, ...]
    layers_L: NDArray[np.int32]
    experts: int
    model: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    weights_TLK: NDArray[np.float16] | None = None
    ids_checked: InitVar[bool] = False

    def __post_init__(self, ids_checked: bool) -> None:
        checks.check_shapes(self)
        checks.check_sequences(self)
        checks.check_names(self)
        if not ids_checked:
            checks.check_ids(self.ids_TLK, self.experts, 0, "ids")
            if self.weights_TLK is not None:
                checks.check_weights(self.weights_TLK, self.experts, 0, "weights")
        self._freeze("ids_TLK", self.ids_TLK.dtype)
        self._freeze("sequence_start_S1", np.int64)
        self._freeze("prompt_tokens_S", np.int32)
        self._freeze("domain_S", np.uint16)
        self._freeze("layers_L", np.int32)
        if self.weights_TLK is not None:
            self._freeze("weights_TLK", np.float16)

    def _freeze(self, name: str, dtype: DTypeLike) -> None:
        view = np.ascontiguousarray(getattr(self, name), dtype).view()
        view.flags.writeable = False
        object.__setattr__(self, name, view)

    @property
    def tokens(self) -> int:
        return int(self.ids_TLK.shape[0])

    @property
    def layers(self) -> int:
        return int(self.ids_TLK.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.ids_TLK.shape[2])

    @property
    def sequences(self) -> int:
        return len(self.prompt_tokens_S)

    @property
    def sequence_tokens_S(self) -> NDArray[np.int64]:
        return np.diff(self.sequence_start_S1)

    def select(self, domains: Sequence[str]) -> NDArray[np.int64]:
        """Indices of the sequences of these domains; InputError for one that the trace lacks."""
        for name in domains:
            if name not in self.domains:
                known = ", ".join(self.domains[:12])
                raise InputError("routing.domains", f"must be among the trace's ({known})", name)
        wanted = np.array([name in domains for name in self.domains])
        return np.flatnonzero(wanted[self.domain_S])

    def subset(self, sequence_indices: NDArray[Any] | Sequence[int]) -> Self:
        """A trace of these sequences, in this order; rows are copied."""
        indices = np.asarray(sequence_indices, np.int64)
        if indices.ndim != 1 or not len(indices):
            raise InputError("routing.sequences", "must name at least one sequence")
        if indices.min() < 0 or indices.max() >= self.sequences:
            raise InputError("routing.sequences", f"must be below {self.sequences}", indices.max())
        start_S1 = np.concatenate([[0], np.cumsum(self.sequence_tokens_S[indices])])
        first = np.repeat(self.sequence_start_S1[indices] - start_S1[:-1], np.diff(start_S1))
        rows_T = np.arange(start_S1[-1]) + first
        return type(self)(
            self.ids_TLK[rows_T],
            start_S1,
            self.prompt_tokens_S[indices],
            self.domain_S[indices],
            self.domains,
            self.layers_L,
            self.experts,
            self.model,
            self.provenance,
            None if self.weights_TLK is None else self.weights_TLK[rows_T],
            ids_checked=True,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as one safetensors file, replacing `path` only once it is whole."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": self.ids_TLK,
            "sequence_start": self.sequence_start_S1,
            "prompt_tokens": self.prompt_tokens_S,
            "domain": self.domain_S,
            "layers": self.layers_L,
        }
        if self.weights_TLK is not None:
            arrays["weights"] = self.weights_TLK
        metadata = {
            "format": checks.FORMAT,
            "experts": str(self.experts),
            "model": self.model,
            "domains": json.dumps(self.domains),
            "provenance": json.dumps(dict(self.provenance)),
        }
        write_tensors(path, arrays, metadata)

    @classmethod
    def open(cls, path: str | os.PathLike[str], name: str = "") -> Self:
        """Map a trace file: every id is checked once through a small buffer, none stays in memory.

        Raises InputError under `name` (the path if empty) for anything but a sound trace file.
        """
        file = open_tensors(path, name)
        where = name or str(file.path)
        try:
            return cls._from(file)
        except InputError as error:
            if error.field == where:
                raise
            raise InputError(where, f"must be a sound routing trace: {error}") from None
        except OSError as error:
            raise InputError(where, f"cannot be read: {error}") from None

    @classmethod
    def _from(cls, file: TensorFile) -> Self:
        experts, domains, provenance = checks.read_metadata(file.metadata)
        checks.check_tensors(file)
        _scan(file, "ids", experts, checks.check_ids)
        weighted = "weights" in file.tensors
        if weighted:
            _scan(file, "weights", experts, checks.check_weights)
        return cls(
            file.map("ids"),
            file.read("sequence_start"),
            file.read("prompt_tokens"),
            file.read("domain"),
            domains,
            file.read("layers"),
            experts,
            file.metadata["model"],
            provenance,
            file.map("weights") if weighted else None,
            ids_checked=True,
        )


def _scan(
    file: TensorFile, name: str, experts: int, check: Callable[[NDArray[Any], int, int, str], None]
) -> None:
    first = 0
    for block in file.chunks(name):
        check(block, experts, first, name)
        first += len(block)
