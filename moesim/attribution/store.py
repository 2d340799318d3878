"""Finished runs of a study in a file of JSON lines, so that an interrupted one goes on.

A line has the key of what was run (scenario, version, seed, what was switched off) and its samples.
Lines that are not understood, as the half one of an interruption, are passed over; a file that does
not begin as such a line does is refused, so that nothing is written into somebody's other file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import moesim
from moesim.attribution.samples import Sample, Samples
from moesim.attribution.setting import Setting
from moesim.errors import InputError
from moesim.file_stamps import file_stamps
from moesim.files import existing_file
from moesim.findings.attribution import METRICS

MOST_BYTES = 4e9
FORMAT = 1
BEGINS = b'{"key": "'
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)
Pair = tuple[Samples, Samples]


class Store:
    """What has been run: in memory, and in a file where one is named."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, Pair] = {}
        if self.path is not None:
            self._append("")  # refuse before anything runs
            self._read(self.path)

    def find(self, key: str) -> Pair | None:
        """What `add` was given with this key; None where nothing was."""
        return self._known.get(key)

    def add(self, key: str, pair: Pair) -> None:
        """Keep the samples of a run, as they were and without queueing."""
        self._known[key] = pair
        if self.path is None:
            return
        data = [{metric: each[metric].to_json() for metric in METRICS} for each in pair]
        # ITL is the same twice.
        del data[1]["itl_s"]
        self._append(json.dumps({"key": key, "samples": data}, allow_nan=False) + "\n")

    def _append(self, text: str) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError("store", f"cannot be written: {reason}", str(self.path)) from None

    def _read(self, path: Path) -> None:
        with existing_file(path, MOST_BYTES, "store").open("rb") as file:
            if not BEGINS.startswith(file.read(len(BEGINS))):
                hint = "name a file that does not exist yet"
                raise InputError("store", "must be a file of a study of causes", str(path), hint)
            file.seek(0)
            whole = True
            for line in file:
                whole = line.endswith(b"\n")
                try:
                    entry = json.loads(line)
                    self._known[str(entry["key"])] = _pair(entry["samples"])
                except UNREADABLE:
                    continue
        if not whole:  # what follows must not continue a half line
            self._append("\n")


def _pair(data: Any) -> Pair:
    first, second = data
    real = {metric: Sample.from_json(first[metric]) for metric in METRICS}
    told = {metric: Sample.from_json(second[metric]) for metric in METRICS if metric != "itl_s"}
    if len({each.count_N.size for each in (*real.values(), *told.values())}) > 1:
        raise ValueError("all samples of a run have its requests")
    return real, {metric: told.get(metric, real["itl_s"]) for metric in METRICS}


def key_of(setting: Setting, seed: int, warmup: int) -> str:
    """SHA-256 of everything that a run's samples depend on; files by their size and time."""
    said = {
        "format": FORMAT,
        "version": moesim.__version__,
        "scenario": setting.scenario.model_dump(mode="json", exclude={"name", "question", "seed"}),
        "files": file_stamps(setting.scenario),
        "ideal": vars(setting.ideal),
        "equal_lengths": setting.equal_lengths,
        "seed": seed,
        "warmup": warmup,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
