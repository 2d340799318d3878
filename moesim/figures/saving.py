"""A run's tables and summary as files: all of a file is there, or nothing of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd


def save_run(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    itl_s: NDArray[np.float64],
    scenario: Mapping[str, Any],
    summary: Mapping[str, object],
) -> None:
    """Write `tables` (parquet, by name), itl_s.npy, scenario.yaml and summary.json."""
    import yaml

    for name, table in tables.items():
        with replace_atomically(folder / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    with replace_atomically(folder / "itl_s.npy") as path, path.open("wb") as file:
        np.save(file, itl_s, allow_pickle=False)
    with replace_atomically(folder / "scenario.yaml") as path:
        path.write_text(yaml.safe_dump(dict(scenario), sort_keys=False), encoding="utf-8")
    with replace_atomically(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False), encoding="utf-8")
