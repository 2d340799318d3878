"""How fast, small and steady moesim is: `python -m tests.benchmarks.suite [--quick] [--out FILE]`.

Every run is a fresh process. Cases take turns, so that what else the machine does meets all alike;
figures are medians, with the extremes beside them, and are to be compared within one run of the
suite only. `--only` chooses by name (`four-*`, `decode-*`, counting, startup, vidur). A case that
is slower than its budget of seconds has fewer runs and sizes, and says so. `--checkout DIR` runs
another checkout of moesim under the same suite, in turns with this one.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import counting, machine, peers, startup, telling
from tests.benchmarks.cases import ROOT, all_cases
from tests.benchmarks.measuring import Measuring

SCHEMA = 1
SECTIONS = ("counting", "startup", "vidur")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="suite", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, no growth, 3 runs")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--runs", type=int, help="of which medians are taken (default 5)")
    parser.add_argument("--budget-s", type=float, default=120.0, help="seconds for a case")
    parser.add_argument("--checkout", type=Path, action="append", default=[])
    parser.add_argument("--cold", type=int, default=1, help="starts with an empty cache")
    parser.add_argument("--vidur", type=Path, help="Python of an environment that has Vidur")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures that were asked for."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine.describe(),
        "memory": machine.bandwidth(),
        "quick": options.quick,
    }
    wanted = [case for case in all_cases() if _asked(case.name, options.only)]
    runs = options.runs or (3 if options.quick else 5)
    checkouts = [ROOT, *(path.resolve() for path in options.checkout)]
    if wanted:
        measuring = Measuring(folder, checkouts, runs, options.budget_s, options.quick)
        found |= measuring.all(wanted, found["memory"])
    if _asked("counting", options.only):
        found["counting"] = counting.in_a_process(folder, options.quick)
    if _asked("startup", options.only):
        found["startup"] = startup.measure(folder, runs, options.cold)
    if _asked("vidur", options.only):
        requests = 1_000 if options.quick else 10_000
        found["vidur"] = peers.side_by_side(folder, options.vidur, requests, runs)
    return found


def _asked(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, tell and keep; 1 where a case failed."""
    options = _arguments(argv)
    names = [*(case.name for case in all_cases()), *SECTIONS]
    unknown = [p for p in options.only if not any(_asked(name, [p]) for name in names)]
    if unknown:
        print(f"no case is called {unknown[0]}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="moesim-bench-") as folder:
        found = measure(options, Path(folder))
    telling.tell(found)
    if options.out is not None:
        written = options.out.with_suffix(".part")
        written.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        written.replace(options.out)
    return int(any(case.get("error") for case in found.get("cases", [])))


if __name__ == "__main__":
    raise SystemExit(main())
