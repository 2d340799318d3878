"""Charts and pages of finished runs. Importing it loads altair and pandas: do so when reporting."""

from __future__ import annotations

from moesim.report.charts import figures
from moesim.report.export import export_charts
from moesim.report.figure import Figure
from moesim.report.page import write_report

__all__ = ["Figure", "export_charts", "figures", "write_report"]
