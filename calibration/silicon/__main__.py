"""`python -m calibration.silicon build --systems PATH --out calibration/profiles`; also `lint`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calibration.lint import lint_tables
from calibration.silicon.locate import find_systems
from calibration.silicon.profiles import build_profiles
from moesim.costs.measured.profile import profiles_folder
from moesim.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 2 and one line on standard error for bad input."""
    parser = argparse.ArgumentParser(prog="python -m calibration.silicon", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write compact profiles")
    build.add_argument("--out", type=Path, default=profiles_folder())
    build.add_argument("--only", nargs="*", default=[], help="words that file names must contain")
    lint = commands.add_parser("lint", help="judge tables and print those refused")
    lint.add_argument("--out", type=Path, help="also write all verdicts as CSV")
    for command in (build, lint):
        command.add_argument("--systems", type=Path, help="systems folder of aiconfigurator-core")
    chosen = parser.parse_args(arguments)
    try:
        systems = find_systems(chosen.systems)
        if chosen.command == "build":
            kept = build_profiles(systems, chosen.out, chosen.only, lambda line: print(line))
            print(kept.to_string(index=False))
        else:
            verdicts = lint_tables(systems)
            refused = verdicts[verdicts["verdict"] != "use"]
            columns = ["gpu", "engine", "version", "table", "group", "reason"]
            print(refused[columns].to_string(index=False))
            print(f"{len(refused)} of {len(verdicts)} groups refused")
            if chosen.out:
                verdicts.to_csv(chosen.out, index=False)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
