"""moesim: what a Mixture-of-Experts model will do on a serving cluster, before it is rented."""

from __future__ import annotations

__version__ = "0.1.0"
