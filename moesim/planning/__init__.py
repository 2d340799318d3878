"""`moesim plan`: the cheapest deployment that keeps an SLO under a demand."""

from __future__ import annotations

from moesim.planning.study import Plan, plan

__all__ = ["Plan", "plan"]
