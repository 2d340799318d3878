"""The timeline of the detailed mode: what Perfetto needs, and that it tells the whole step."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import InputError
from moesim.sim.cost_tables import LAYERED
from moesim.sim.detailed.timeline import Timeline
from tests.fixtures.random_engine import random_engine


def recorded(timeline: Timeline, **choices: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A run, and the slices of its timeline."""
    harness, demand = random_engine(seed=3, ranks=4, exchange=LAYERED, **choices)
    costs = harness.costs
    token_s = costs.token_s.copy()
    token_s[:, 1] += costs.shared_s
    costs = dataclasses.replace(costs, token_s=token_s)
    run = dataclasses.replace(harness, costs=costs, detailed=True, timeline=timeline).run(demand)
    return run, timeline.events()


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
def test_streams_are_busy_or_wait_for_the_whole_step(overlap: int) -> None:
    run, events = recorded(Timeline(0, 10**6), overlap=overlap)
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    computing, step_us = [], 1e6 * run.steps["duration_s"].sum()
    for (pid, tid), slices in rows.items():
        slices.sort(key=lambda e: e["ts"])
        for one, after in pairwise(slices):
            assert one["ts"] + one["dur"] <= after["ts"] + 1e-6
        process, row = names["process_name", pid, 0], names["thread_name", pid, tid]
        if row in ("compute", "host"):
            computing.append((process, sum(e["dur"] for e in slices)))
    host = dict(computing)["replica 0 host"]
    gpus = [busy for process, busy in computing if "GPU" in process]
    assert len(gpus) == 4
    for busy in gpus:
        assert busy + host == pytest.approx(step_us, rel=1e-9)


def test_what_is_written_is_a_trace(tmp_path: Path) -> None:
    timeline = Timeline(2, 4)
    run, events = recorded(timeline)
    timeline.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["traceEvents"] == events
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    slices = [event for event in events if event["ph"] == "X"]
    assert {event["args"]["step"] for event in slices} == {2, 3}
    for event in slices:
        assert set(event) == {"name", "ph", "pid", "tid", "ts", "dur", "args"}
        assert event["dur"] > 0
    first, last = (run.steps[i] for i in (2, 3))
    assert min(e["ts"] for e in slices) == pytest.approx(first["start_s"] * 1e6)
    end = max(e["ts"] + e["dur"] for e in slices)
    assert end == pytest.approx((last["start_s"] + last["duration_s"]) * 1e6)
    links = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"GPU 0 network out", "GPU 3 network in", "communication"} <= links


def test_it_is_bounded() -> None:
    timeline = Timeline(0, 100, most_events=50)
    _, events = recorded(timeline)
    assert sum(event["ph"] == "X" for event in events) == 50
    assert timeline.left_out > 0
    for wrong in ((3, 3), (-1, 2)):
        with pytest.raises(InputError, match="a later one"):
            Timeline(*wrong)


def test_flows_that_share_a_link_get_rows_of_their_own() -> None:
    timeline = Timeline()
    timeline.add("links", "leaf0", "a", 0.0, 2.0)
    timeline.add("links", "leaf0", "b", 1.0, 3.0)
    timeline.add("links", "leaf0", "c", 2.0, 4.0)
    timeline.add("links", "leaf0", "nothing", 2.0, 2.0)
    tids = [event["tid"] for event in timeline.events() if event["ph"] == "X"]
    assert tids[0] == tids[2] != tids[1]
