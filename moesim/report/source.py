"""What a report reads: the attributes of a finished run, and how several runs are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.figures.metrics import counted_rows
from moesim.figures.sketch import Sketch

if TYPE_CHECKING:
    import pandas as pd

MAX_RESULTS = 6
LABEL_LENGTH, NAME_LENGTH = 50, 160


class ReportedResult(Protocol):
    """One finished run. Legend: L MoE layers, R ranks of the expert-parallel group.

    `memory` is in bytes of the fullest GPU: ``weights_<part>_bytes``, ``kv_bytes``,
    ``reserved_bytes``, ``gpu_bytes``; `notes` are the labels that every reader must see.
    `itl` and `balance` are sketches of a streaming run, whose `step_totals` are rows of many steps.
    """

    @property
    def name(self) -> str: ...
    @property
    def scenario(self) -> Any: ...
    @property
    def requests(self) -> pd.DataFrame: ...
    @property
    def steps(self) -> pd.DataFrame: ...
    @property
    def step_totals(self) -> pd.DataFrame: ...
    @property
    def rebalances(self) -> pd.DataFrame: ...
    @property
    def itl(self) -> NDArray[np.float64] | Sketch: ...
    @property
    def balance(self) -> tuple[Sketch, Sketch] | None: ...
    @property
    def rank_tokens_LR(self) -> NDArray[np.float64]: ...
    @property
    def rank_active_LR(self) -> NDArray[np.float64]: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
    @property
    def memory(self) -> Mapping[str, float]: ...
    @property
    def notes(self) -> Sequence[str]: ...


def checked(results: Sequence[ReportedResult]) -> tuple[ReportedResult, ...]:
    """The results as a tuple; InputError unless there are 1 to 6 of them."""
    if not 1 <= len(results) <= MAX_RESULTS:
        raise InputError("results", f"must be 1 to {MAX_RESULTS} for one report", len(results))
    return tuple(results)


def labels(results: Sequence[ReportedResult]) -> list[str]:
    """A distinct, one-line name per result, for titles, prose and tables: whole unless absurd."""
    return _distinct([_cut(name, NAME_LENGTH) for name in _names(results)])


def chart_labels(results: Sequence[ReportedResult]) -> list[str]:
    """A short, distinct, one-line label per result, for axes and legends.

    Where names are too long, the words that all begin and end with go first: what is left tells
    variants apart. Only what is then still too long is cut.
    """
    names = _names(results)
    if max(map(len, names), default=0) > LABEL_LENGTH:
        names = _without_shared_words(names)
    return _distinct([_cut(name, LABEL_LENGTH) for name in names])


def _names(results: Sequence[ReportedResult]) -> list[str]:
    joined = (" ".join(str(result.name).split()) for result in results)
    return [name or f"run {position}" for position, name in enumerate(joined, start=1)]


def _without_shared_words(names: Sequence[str]) -> list[str]:
    """Names less the words at either end that all share; every name keeps a word."""
    split = [name.split(" ") for name in names]
    least = min(map(len, split)) - 1
    first = _shared(split, least)
    last = _shared([words[::-1] for words in split], least - first)
    kept = [" ".join(words[first : len(words) - last]).strip(",;: ") for words in split]
    return kept if len(names) > 1 and all(kept) else list(names)


def _shared(split: Sequence[Sequence[str]], most: int) -> int:
    """How many words all begin with, at most so many."""
    columns = zip(*(words[:most] for words in split), strict=True)
    alike = [len(set(column)) == 1 for column in columns]
    return alike.index(False) if False in alike else len(alike)


def _cut(name: str, length: int) -> str:
    """Both ends of a name: those of variants tend to differ at their end."""
    return name if len(name) <= length else f"{name[: length - 21]}…{name[-20:]}"


def _distinct(names: Sequence[str]) -> list[str]:
    distinct: list[str] = []
    for position, name in enumerate(names, start=1):
        distinct.append(f"{name} ({position})" if name in distinct else name)
    return distinct


def counted(result: ReportedResult) -> pd.DataFrame:
    """The requests that latency is measured on: completed, warm-up left out."""
    return result.requests[counted_rows(result.requests)]


def has_expert_ranks(result: ReportedResult) -> bool:
    """Whether there is a load to compare: MoE layers on more than one expert-parallel rank."""
    tokens_LR = np.asarray(result.rank_tokens_LR)
    return tokens_LR.ndim == 2 and tokens_LR.shape[0] > 0 and tokens_LR.shape[1] > 1


def is_moe(result: ReportedResult) -> bool:
    return np.asarray(result.rank_tokens_LR).size > 0
