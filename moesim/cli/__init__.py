"""The command line: `moesim`. Only here is anything printed."""

from __future__ import annotations

from moesim.cli.app import main

__all__ = ["main"]
