"""Workloads: arrivals, lengths, public request traces, and the demand drawn from them."""

from __future__ import annotations

from moesim.workload.arrivals import (
    AllAtOnce,
    ClosedLoop,
    Deterministic,
    Gamma,
    Poisson,
    Replay,
)
from moesim.workload.demand import Demand, DemandSeeds, DemandStreams, draw_demand
from moesim.workload.lengths import (
    Fixed,
    Histogram,
    Lognormal,
    Quantiles,
    RangeRatio,
    Uniform,
)
from moesim.workload.prefixes import SharedPrefix
from moesim.workload.presets import WorkloadPreset, load_preset, preset_names
from moesim.workload.readers import read_trace
from moesim.workload.trace import RequestTrace
from moesim.workload.workload import TraceSource, Workload

__all__ = [
    "AllAtOnce",
    "ClosedLoop",
    "Demand",
    "DemandSeeds",
    "DemandStreams",
    "Deterministic",
    "Fixed",
    "Gamma",
    "Histogram",
    "Lognormal",
    "Poisson",
    "Quantiles",
    "RangeRatio",
    "Replay",
    "RequestTrace",
    "SharedPrefix",
    "TraceSource",
    "Uniform",
    "Workload",
    "WorkloadPreset",
    "draw_demand",
    "load_preset",
    "preset_names",
    "read_trace",
]
