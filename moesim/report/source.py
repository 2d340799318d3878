"""What a report reads: the attributes of a finished run, and how several runs are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.metrics import counted_rows

if TYPE_CHECKING:
    import pandas as pd

MAX_RESULTS = 6
LABEL_LENGTH = 50


class ReportedResult(Protocol):
    """One finished run. Legend: L MoE layers, R ranks of the expert-parallel group.

    `memory` is in bytes of the fullest GPU: ``weights_<part>_bytes``, ``kv_bytes``,
    ``reserved_bytes``, ``gpu_bytes``; `notes` are the labels that every reader must see.
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
    def itl_s(self) -> NDArray[np.float64]: ...
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
    """A short, distinct, one-line label per result."""
    distinct: list[str] = []
    for position, result in enumerate(results, start=1):
        label = " ".join(str(result.name).split()) or f"run {position}"
        if len(label) > LABEL_LENGTH:  # names of variants tend to differ at their end
            label = f"{label[: LABEL_LENGTH - 21]}…{label[-20:]}"
        if label in distinct:
            label = f"{label} ({position})"
        distinct.append(label)
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
