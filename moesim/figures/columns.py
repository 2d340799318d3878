"""Columns: a table of a run as NumPy arrays; figures need no more, and pandas loads slowly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


class Table(Protocol):
    """What figures are computed from: Columns, or a DataFrame with the same columns.

    By a name a column, by a mask the rows that it chooses.
    """

    def __getitem__(self, key: Any, /) -> Any: ...

    def __len__(self) -> int: ...

    def __contains__(self, key: Any, /) -> bool: ...


class Columns:
    """Named columns of one length, which may be views of a run's arrays: nothing writes in them.

    Chosen rows are copied of the columns that are then asked for, which are few of many.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], chosen: NDArray[np.int64] | None = None
    ) -> None:
        self._columns = dict(columns)
        self._chosen = chosen  # numbers of the rows; None for all

    @overload
    def __getitem__(self, key: str, /) -> NDArray[Any]: ...

    @overload
    def __getitem__(self, key: NDArray[np.bool_], /) -> Columns: ...

    def __getitem__(self, key: str | NDArray[np.bool_], /) -> NDArray[Any] | Columns:
        if isinstance(key, str):
            column = self._columns[key]
            return column if self._chosen is None else column[self._chosen]
        rows = np.flatnonzero(key)
        return Columns(self._columns, rows if self._chosen is None else self._chosen[rows])

    def __len__(self) -> int:
        if self._chosen is not None:
            return self._chosen.size
        return next(iter(self._columns.values())).size

    def __contains__(self, key: object, /) -> bool:
        return key in self._columns

    def with_column(self, name: str, column: NDArray[Any]) -> Columns:
        """With one more, the last."""
        assert self._chosen is None
        return Columns({**self._columns, name: column})

    def frame(self) -> pd.DataFrame:
        """A copy as a DataFrame."""
        import pandas as pd

        return pd.DataFrame({name: self[name] for name in self._columns})


def floats(table: Table, name: str) -> NDArray[np.float64]:
    """A column as numbers."""
    return np.asarray(table[name], np.float64)


def known(table: Table, name: str) -> NDArray[np.float64]:
    """The numbers of a column that are not NaN."""
    values = floats(table, name)
    return values[~np.isnan(values)]


def flags(table: Table, name: str) -> NDArray[np.bool_]:
    """A column of yes and no."""
    return np.asarray(table[name], np.bool_)


def equal(table: Table, name: str, value: str) -> NDArray[np.bool_]:
    """The rows that have this value in a column of words."""
    return np.asarray(table[name] == value, np.bool_)


def total(table: Table, name: str) -> int:
    """The sum of a column of whole numbers."""
    return int(np.asarray(table[name]).sum())
