"""A run's tables and summary as files: all of a file is there, or nothing of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.sketch import Sketch
from moesim.files import replace_atomically
from moesim.sim.bins import edges_of

if TYPE_CHECKING:
    import pandas as pd


def save_run(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    itl: NDArray[np.float64] | Sketch,
    scenario: Mapping[str, Any],
    summary: Mapping[str, object],
) -> None:
    """Write `tables` (parquet, by name), itl_s.npy, scenario.yaml and summary.json.

    Of a sketch of gaps itl_bins.parquet: the edges of the bins that hold any, and how many.
    """
    import pandas as pd
    import yaml

    if isinstance(itl, Sketch):
        low_s, high_s = edges_of(itl.bin_V)
        bins = {"low_s": low_s, "high_s": high_s, "count": itl.count_V}
        tables = {**tables, "itl_bins": pd.DataFrame(bins)}
    for name, table in tables.items():
        with replace_atomically(folder / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    if not isinstance(itl, Sketch):
        with replace_atomically(folder / "itl_s.npy") as path, path.open("wb") as file:
            np.save(file, itl, allow_pickle=False)
    with replace_atomically(folder / "scenario.yaml") as path:
        path.write_text(yaml.safe_dump(dict(scenario), sort_keys=False), encoding="utf-8")
    with replace_atomically(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False), encoding="utf-8")
