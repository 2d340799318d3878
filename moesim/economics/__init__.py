"""Money: prices of GPU-hours and of managed APIs, demand over a day, replicas, break-even volumes.

Pure functions of numbers; only `moesim.serving_cost.study` puts them together with simulations.
"""

from __future__ import annotations

from moesim.economics.gpu_hours import cost_summary, gpu_hour

__all__ = ["cost_summary", "gpu_hour"]
