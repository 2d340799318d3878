"""Dense twins of a scenario in `moesim compare`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from moesim.cli.output import console
from moesim.errors import one_line

if TYPE_CHECKING:
    from moesim.results import Result


class DenseTwin(StrEnum):
    ACTIVE = "active"
    TOTAL = "total"


def print_twins(results: Sequence[Result], kinds: Sequence[DenseTwin]) -> None:
    """A paragraph for each twin, which are the last of `results`, against the first."""
    from moesim.twins import compare_twin

    chosen = list(dict.fromkeys(kinds))
    for kind, twin in zip(chosen, results[len(results) - len(chosen) :], strict=True):
        told = compare_twin(results[:1], (twin,), kind.value)
        console().print(one_line(told.sentence), soft_wrap=True)
