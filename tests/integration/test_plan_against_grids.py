"""A plan against the whole grid, every point simulated; and a plan that is killed and goes on."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from moesim.planning import plan
from tests.fixtures.plan_cases import CASES, case, cheapest, grid

SHARE_OF_THE_GRID = 5


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_plan_finds_the_optimum_of_a_grid(name: str) -> None:
    """Within 2 % of its cost, with at most a fifth of its simulations."""
    data, given, percentile = CASES[name]
    points = grid(data, given)
    assert len(points) >= 200
    most = len(points) // SHARE_OF_THE_GRID
    found = plan(data, **given, percentile=percentile, seeds=0, trials=most).findings
    assert found.recommended is not None
    assert found.recommended.usd_per_hour is not None
    assert found.simulations <= most
    # Ranked by cost, the grid's first that keeps the SLO is its optimum: dearer ones need no run.
    cost = found.recommended.usd_per_hour
    rivals = [(shape, units) for shape, units in points
              if units * shape.usd_per_hour < cost / 1.02]  # fmt: skip
    assert cheapest(rivals, data["workload"]["requests"], percentile) is None


COMMAND = """
import sys
from moesim.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_plan_that_is_killed_goes_on(tmp_path: Path) -> None:
    scenario, study = tmp_path / "small.yaml", tmp_path / "study.db"
    scenario.write_text(yaml.safe_dump(case()))
    arguments = ["plan", str(scenario), "--study", str(study), "--max-gpus", "4", "--seeds", "0"]
    arguments += ["--percentile", "90", "--over", "pools=together", "--json"]
    command = [sys.executable, "-c", COMMAND, *arguments]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    until = time.monotonic() + 240
    while kept(study) < 3 and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = kept(study)
    assert before >= 3
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    after = kept(study)
    assert after > before, "it was killed before its end"
    whole = [*arguments]
    whole[whole.index(str(study))] = str(tmp_path / "another.db")
    command = [sys.executable, "-c", COMMAND, *whole]
    alone = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert told.stdout == alone.stdout
    assert kept(tmp_path / "another.db") == after, "nothing was simulated twice"


def kept(study: Path) -> int:
    """Simulations in the file that have ended."""
    try:
        with sqlite3.connect(f"file:{study}?mode=ro", uri=True) as database:
            query = "select count(*) from trials where state = 'COMPLETE'"
            return int(database.execute(query).fetchone()[0])
    except sqlite3.Error:
        return 0
