"""Which experts real tokens chose: traces, their statistics, and synthetic stand-ins."""

from __future__ import annotations

from moesim.routing.trace import RoutingTrace

__all__ = ["RoutingTrace"]
