"""Every price that is shipped, as plain data with dates and sources."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moesim.economics.api_prices import api_prices
from moesim.economics.day import day_presets
from moesim.economics.owned import energy_presets
from moesim.hardware import gpu_names, load_gpu


def prices() -> dict[str, Any]:
    """The object that ``moesim prices --json`` prints.

    `gpu_hours` and `apis` are lists of rows (``pandas.DataFrame(prices()["apis"])``), in USD an
    hour and USD per million tokens; `energy` and `profiles` (of a day's demand) go by name.
    """
    gpus = [(name, price) for name in gpu_names() for price in load_gpu(name).prices]
    return {
        "gpu_hours": [{"gpu": name, **asdict(price)} for name, price in gpus],
        "apis": [asdict(price) for price in api_prices()],
        "energy": {name: asdict(each) for name, each in energy_presets().items()},
        "profiles": {
            name: {
                "description": day.description,
                "relative": day.relative_H.tolist(),
                "busiest_over_mean": day.busiest_over_mean,
                "date": day.date,
                "trust": day.trust,
                "source": day.source,
            }
            for name, day in day_presets().items()
        },
    }
