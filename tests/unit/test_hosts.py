"""Hosts that launch slower than those the profiles were fitted on."""

from __future__ import annotations

import pytest

from moesim.costs.hosts import host_launch_s


def test_only_grace_has_a_figure_of_its_own() -> None:
    """34.4 ms / 1,056 operations on x86, times 37.08 / 13.48 us."""
    grace = 34.4e-3 / 1056 * 37.08 / 13.48
    assert host_launch_s("gb200-nvl72", "vllm") == pytest.approx(grace, rel=2e-3)
    assert host_launch_s("h100-sxm", "vllm") == 0.0
    assert host_launch_s("gb200-nvl72", "sglang") == 0.0
