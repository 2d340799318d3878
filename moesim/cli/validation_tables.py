"""What a validation says, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moesim.cli.output import console, print_notes, print_table

NOTHING = "-"


def print_validation(told: Mapping[str, Any]) -> None:
    """The targets beside what others reach, then bias by band, the headline and its splits."""
    out = console()
    print_table(
        out,
        ["MAPE / median APE, %", "rows", "AIC 0.12", "prototype", "moesim", "all rows", "at most"],
        _target_rows(told["targets"]),
    )
    bands = list(told["bias_by_band"]["all"])
    if told["peer"] is not None:
        print_table(
            out,
            ["on the same rows, MAPE / median APE, %", "rows", "AIC", "AIC x factor", "moesim"],
            _peer_rows(told["peer"]["all"]),
        )
    print_table(
        out, ["TTFT: predicted / measured", *bands], _bias_rows(told["bias_by_band"], bands)
    )
    print_table(out, ["split", "rows", "covered, %", "TPOT", "TTFT"], _split_rows(told))
    notes = [f"split {told['split']}"]
    if told["sampled"] is not None:
        notes.append(f"a sample of {told['sampled']} runs: leave it out for the whole file")
    speed = told["speed"]
    if speed["median_s_per_row"] is not None:
        notes.append(
            f"{speed['median_s_per_row']:.2f} s per run at the median ({speed['machine']})"
        )
    missing = told["coverage"]
    notes += [
        f"{reason['rows']} of {missing['tried']} without prediction: {reason['reason']}"
        for reason in missing["reasons"]
    ]
    if told["request_runs"]:
        print_request_runs(told["request_runs"])
    print_notes(out, notes)


def print_request_runs(found: Sequence[Mapping[str, Any]]) -> None:
    """Errors of every run's distributions, in percent, with the measured values."""
    from calibration.request_runs import STATISTICS
    from calibration.validation.request_page import request_rows

    rows = [row for run in found for row in request_rows(run)]
    header = ["error, % (measured)", "", *STATISTICS, "target"]
    print_table(console(), header, rows)


def _target_rows(targets: Iterable[Mapping[str, Any]]) -> Iterable[list[str]]:
    for target in targets:
        most = target["at_most"]
        yield [
            target["name"],
            f"{target['rows']:,}",
            target["aic_published"] or NOTHING,
            target["prototype_published"] or NOTHING,
            errors(target["moesim"]) + ("" if target["met"] else " x"),
            NOTHING if target["all_rows"] is None else errors(target["all_rows"]),
            f"{most['mape']:g}"
            + ("" if most["median_ape"] is None else f" / {most['median_ape']:g}"),
        ]


def errors(found: Mapping[str, float | None]) -> str:
    """MAPE / median APE, or a dash."""
    if found["mape"] is None:
        return NOTHING
    return f"{found['mape']:.1f} / {found['median_ape']:.1f}"


def _peer_rows(peer: Mapping[str, Any]) -> Iterable[list[str]]:
    for metric in ("ttft", "tpot"):
        for engine, raw in peer["aic"].items():
            both = (raw, peer["aic_median_factor"][engine], peer["moesim"][engine])
            yield [
                f"{metric.upper()} {engine}",
                f"{raw['rows']:,}",
                *(errors(each[metric]) for each in both),
            ]


def _bias_rows(found: Mapping[str, Any], bands: list[str]) -> Iterable[list[str]]:
    for engine, by_band in found.items():
        cells = [by_band.get(name) for name in bands]
        yield [
            engine,
            *(
                NOTHING
                if cell is None or cell["ttft"] is None
                else f"{cell['ttft']:.2f} ({cell['rows']})"
                for cell in cells
            ),
        ]


def _split_rows(told: Mapping[str, Any]) -> Iterable[list[str]]:
    for name, found in splits(told):
        covered = NOTHING if found["coverage"] is None else f"{found['coverage']:.1f}"
        yield [name, f"{found['rows']:,}", covered, errors(found["tpot"]), errors(found["ttft"])]


def splits(told: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The headline, and the same rows under the other splits, and with flagged rows."""
    by_split = [
        ("blind (headline)", told["headline"]),
        *(
            (split.replace("_", " "), told[split] and told[split]["headline"])
            for split in ("leave_one_gpu_out", "in_sample")
        ),
        ("blind, flagged rows too", told["all_rows"] and told["all_rows"]["moe"]),
    ]
    return [(name, found) for name, found in by_split if found is not None]
