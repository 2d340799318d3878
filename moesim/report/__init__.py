"""Charts and pages of finished runs.

`words`, `source` and this package itself are light; Altair loads with the first chart.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.report.charts import figures
    from moesim.report.export import export_charts
    from moesim.report.figure import Figure
    from moesim.report.page import write_report

_MODULES = {
    "Figure": "figure",
    "export_charts": "export",
    "figures": "charts",
    "write_report": "page",
}

__all__ = ["Figure", "export_charts", "figures", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
