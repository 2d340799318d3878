"""Running cases in turns, within a budget, and what their runs add up to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moesim.model import load_model
from tests.benchmarks import child
from tests.benchmarks.cases import ROUTING, Case
from tests.benchmarks.spread import exponent, spread

HERE = Path(__file__).resolve().parent
FROM = 10_000  # exponents are of these sizes on
MOST_NARROW = 256  # slots that a routed id of one byte can tell


@dataclass
class Point:
    """A case at one size, in one checkout, and the runs it had so far; `streaming`: of those that
    tell how it grows."""

    case: Case
    requests: int
    checkout: Path
    library: list[dict[str, Any]] = field(default_factory=list)
    command: list[child.Ran] = field(default_factory=list)
    error: str = ""
    cut: str = ""  # why it has fewer runs than others
    streaming: bool = False

    def last_s(self) -> float:
        """Seconds of its longest run; 0 before the first."""
        walls = [run["wall_s"] for run in self.library] + [run.wall_s for run in self.command]
        return max(walls, default=0.0)


class Measuring:
    """Runs cases of one or several checkouts in turns."""

    def __init__(
        self, folder: Path, checkouts: Sequence[Path], runs: int, budget_s: float, quick: bool
    ) -> None:
        self.folder = folder
        self.checkouts = checkouts
        self.runs = runs
        self.budget_s = budget_s
        self.quick = quick
        self._spent_s: dict[tuple[str, Path], float] = {}
        self._trace: Path | None = None

    def all(self, cases: Sequence[Case], memory: dict[str, float]) -> dict[str, Any]:
        """Figures of all cases, and how those with several sizes grow."""
        points = self._points(cases, lambda case: (case.quick if self.quick else case.requests,))
        grown = [] if self.quick else self._points(cases, lambda case: case.growth)
        for point in grown:
            point.streaming = True
        for every in (points, grown):
            self._spent_s.clear()
            for turn in range(self.runs):
                for point in every:
                    self._turn(point, turn)
        return {
            "cases": [self._figures(point, memory) for point in [*points, *grown]],
            "growth": self.growth(grown),
        }

    def _points(self, cases: Sequence[Case], sizes: Callable[[Case], Any]) -> list[Point]:
        return [
            Point(case, size, checkout)
            for case in cases
            for size in sizes(case)
            for checkout in self.checkouts
        ]

    def _turn(self, point: Point, turn: int) -> None:
        key = point.case.name, point.checkout
        spent_s = self._spent_s.setdefault(key, 0.0)
        if point.error or point.cut:
            return
        if turn and spent_s + point.last_s() > self.budget_s:
            point.cut = f"{self.budget_s:g} s were over"
            return
        source = self._file(point)
        if turn == 0 and point.requests <= FROM:  # compile, and draw the routing, before the clock
            self._library(point, source, warming=True)
        if not point.error:
            self._library(point, source)
        if not (point.error or point.streaming) and _has_command(point.case):
            self._command(point, source)

    def _file(self, point: Point) -> Path:
        kept = "-streaming" if point.streaming else ""
        path = self.folder / f"{point.case.name}-{point.requests}{kept}.yaml"
        if not path.is_file():
            trace = self._recorded() if point.case.recorded else None
            data = point.case.data(point.requests, trace, point.streaming)
            path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return path

    def _recorded(self) -> Path:
        """Recorded routing as a trace that moesim reads."""
        if self._trace is None:
            from moesim.routing.importers import import_npz

            self._trace = self.folder / "recorded.safetensors"
            import_npz(ROUTING, model="gpt-oss-20b", phase="decode").save(self._trace)
        return self._trace

    def _run(self, point: Point, command: list[str]) -> child.Ran:
        key = point.case.name, point.checkout
        limit_s = max(self.budget_s, 60.0) * 5  # the first run may compile
        environment = {"PYTHONPATH": str(point.checkout)}
        ran = child.run([sys.executable, *command], self.folder, limit_s, environment)
        self._spent_s[key] += ran.wall_s
        if ran.status:
            point.error = f"took more than {limit_s:g} s" if ran.late else ran.told
        return ran

    def _library(self, point: Point, source: Path, warming: bool = False) -> None:
        target = self.folder / "one.json"
        options = ["--policy"] if point.case.policy else []
        spent_s = self._spent_s[point.case.name, point.checkout]
        arguments = [str(HERE / "one_run.py"), str(source), str(target), "--digest", *options]
        ran = self._run(point, arguments)
        if ran.status:
            return
        if warming:
            self._spent_s[point.case.name, point.checkout] = spent_s
            return
        own = json.loads(target.read_text(encoding="utf-8"))
        outside = {"wall_s": ran.wall_s, "cpu_s": ran.cpu_s, "peak_bytes": ran.peak_bytes}
        point.library.append({**own, **outside})
        print(
            f"{point.case.name:32} {point.requests:9,} requests {own['loop_s']:8.2f} s in the loop "
            f"{ran.wall_s:8.2f} s in all",
            file=sys.stderr,
            flush=True,
        )

    def _command(self, point: Point, source: Path) -> None:
        ran = self._run(point, ["-m", "moesim", "run", str(source), "--json"])
        if not ran.status:
            point.command.append(ran)

    def _figures(self, point: Point, memory: dict[str, float]) -> dict[str, Any]:
        of: dict[str, Any] = {
            "name": point.case.name,
            "requests": point.requests,
            "model": point.case.scenario["model"],
            "streaming": point.streaming,
        }
        if len(self.checkouts) > 1:
            of["checkout"] = str(point.checkout)
        if point.error:
            of["error"] = point.error
        if point.cut:
            of["cut"] = point.cut
        if point.library:
            of |= _library_figures(point.library, memory, id_bytes(point.case.scenario))
        if point.command:
            of["command_requests_per_s"] = spread(
                [point.requests / r.wall_s for r in point.command]
            )
            of["command_peak_bytes"] = spread([r.peak_bytes for r in point.command])
        return of

    def growth(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """Exponents of time and memory over requests, of cases with several sizes."""
        found = []
        for name, checkout in dict.fromkeys((p.case.name, p.checkout) for p in points):
            of = [p for p in points if (p.case.name, p.checkout) == (name, checkout) and p.library]
            of = sorted((p for p in of if p.requests >= FROM), key=lambda p: p.requests)
            if len(of) < 2:
                continue
            sizes = [p.requests for p in of]
            row: dict[str, Any] = {"name": name, "requests": sizes}
            if len(self.checkouts) > 1:
                row["checkout"] = str(checkout)
            for key in ("loop_s", "wall_s", "peak_bytes"):
                costs = [spread([run[key] for run in p.library])["median"] for p in of]
                row[key] = costs
                row[f"{key}_exponent"] = exponent(sizes, costs)
            found.append(row)
        return found


def _has_command(case: Case) -> bool:
    """Whether the case is also run by the command line, statistics included."""
    return case.name.startswith("four-")


def id_bytes(scenario: Mapping[str, Any]) -> int:
    """Of a routed id as the engine keeps it: it tells a slot, of which experts may have several."""
    placement = scenario.get("deployment", {}).get("placement", {})
    slots = load_model(scenario["model"]).experts + placement.get("redundant_experts", 0)
    return 1 if slots <= MOST_NARROW else 2


def _library_figures(
    runs: Sequence[dict[str, Any]], memory: dict[str, float], bytes_of_id: int
) -> dict[str, Any]:
    first = runs[0]
    tokens = first["prompt_tokens"] + first["output_tokens"]
    of: dict[str, Any] = {key: first[key] for key in ("completed", "steps", "routed_ids", "tpot_s")}
    of["simulated_s"] = first["simulated_s"]
    of["digests"] = sorted({run["digest"] for run in runs})
    of["steps_per_request"] = first["steps"] / first["requests"]
    for name, seconds in (("loop", "loop_s"), ("loop_cpu", "loop_cpu_s"), ("process", "wall_s")):
        of[f"{name}_requests_per_s"] = spread([first["requests"] / run[seconds] for run in runs])
    of["loop_tokens_per_s"] = spread([tokens / run["loop_s"] for run in runs])
    of["times_real_time"] = spread([first["simulated_s"] / run["loop_s"] for run in runs])
    for key in ("import_s", "set_up_s", "loop_s", "wall_s", "peak_bytes"):
        of[key] = spread([run[key] for run in runs])
    if first["routed_ids"]:
        ids_per_s = spread([first["routed_ids"] / run["loop_s"] for run in runs])
        of["ids_per_s"] = ids_per_s
        read = ids_per_s["median"] * bytes_of_id
        of["share_of_read"] = read / memory["read_bytes_per_s"]
        of["share_of_copy"] = read / memory["copy_bytes_per_s"]
    return of
