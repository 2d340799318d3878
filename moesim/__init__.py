"""moesim: what a Mixture-of-Experts model will do on a serving cluster, before it is rented.

The names below load what they need when they are first used; `import moesim` loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.attribution import Attribution, attribute
    from moesim.comparison import Comparison, compare
    from moesim.errors import InputError
    from moesim.hardware import GPU, Cluster, load_gpu, make_cluster
    from moesim.model import MoEModel, load_model
    from moesim.placement.placement import Placement
    from moesim.planning import Plan, plan
    from moesim.results import Result
    from moesim.reviewing import Review, review
    from moesim.routing.trace import RoutingTrace
    from moesim.scenario import Scenario, load_scenario
    from moesim.serving_cost import CostStudy, cost_study
    from moesim.serving_cost.price_list import prices
    from moesim.simulation import simulate
    from moesim.sweeping import Sweep, sweep
    from moesim.what_if import PlacementStudy, place_study

__version__ = "0.1.0"

_MODULES = {
    "Attribution": "attribution",
    "Cluster": "hardware",
    "Comparison": "comparison",
    "CostStudy": "serving_cost",
    "GPU": "hardware",
    "InputError": "errors",
    "MoEModel": "model",
    "Placement": "placement.placement",
    "PlacementStudy": "what_if",
    "Plan": "planning",
    "Result": "results",
    "Review": "reviewing",
    "RoutingTrace": "routing.trace",
    "Scenario": "scenario",
    "Sweep": "sweeping",
    "attribute": "attribution",
    "compare": "comparison",
    "cost_study": "serving_cost",
    "load_gpu": "hardware",
    "load_model": "model",
    "load_scenario": "scenario",
    "make_cluster": "hardware",
    "place_study": "what_if",
    "plan": "planning",
    "prices": "serving_cost.price_list",
    "review": "reviewing",
    "simulate": "simulation",
    "sweep": "sweeping",
}

__all__ = [
    "GPU",
    "Attribution",
    "Cluster",
    "Comparison",
    "CostStudy",
    "InputError",
    "MoEModel",
    "Placement",
    "PlacementStudy",
    "Plan",
    "Result",
    "Review",
    "RoutingTrace",
    "Scenario",
    "Sweep",
    "__version__",
    "attribute",
    "compare",
    "cost_study",
    "load_gpu",
    "load_model",
    "load_scenario",
    "make_cluster",
    "place_study",
    "plan",
    "prices",
    "review",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    value = getattr(import_module(f"moesim.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
