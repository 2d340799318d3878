"""Formats of recorded routing, one small module each; `FORMATS` is their list.

To add one, write a module with a `FORMAT` (recognise the files by what is in them, read them into a
RoutingTrace, or a MarginalProfile where there are only counts) and name it below.
"""

from __future__ import annotations

from pathlib import Path

from moesim.errors import InputError
from moesim.routing.formats import (
    csv_rows,
    esft,
    fingerprinting,
    imatrix,
    moe_balance,
    npz_shards,
    routed_experts,
    sglang_recorder,
    trtllm_statistics,
)
from moesim.routing.formats.base import Format, Source

FORMATS: tuple[Format, ...] = (
    npz_shards.FORMAT,
    sglang_recorder.FORMAT,
    routed_experts.FORMAT,
    trtllm_statistics.FORMAT,
    imatrix.FORMAT,
    csv_rows.FORMAT,
    fingerprinting.FORMAT,
    esft.FORMAT,
    moe_balance.FORMAT,
)


def find_format(name: str) -> Format:
    """The format of this name; InputError for another one."""
    for found in FORMATS:
        if found.name == name:
            return found
    known = ", ".join(each.name for each in FORMATS)
    raise InputError("routing.import.format", f"must be one of {known}", name)


def detect(path: Path) -> Format:
    """The format that the file's (or folder's) content has; InputError for none."""
    source = Source.look(path)
    for found in FORMATS:
        if found.recognises(source):
            return found
    if not source.head and not source.names:
        raise InputError(str(path), "is empty: there is no recording in it")
    known = ", ".join(each.name for each in FORMATS)
    rule = f"must be a recording in one of the formats {known}; its content is none of them"
    raise InputError(str(path), rule, hint="docs/reference/routing-formats.md describes them")
