"""Advice before any search, from closed forms (moesim.placement.advice), in words."""

from __future__ import annotations

from moesim.placement_findings import Counsel
from moesim.what_if.board import Board


def counsel(board: Board) -> tuple[Counsel, ...]:
    """Replicate or not, EPLB or not, re-place or not."""
    return ()
