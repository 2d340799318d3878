"""Kernels that the user measured (`moesim calibrate kernels`): the file checked, and what to say.

The file is a profile of measured kernels like the shipped ones, with the machine it was measured on
in its header under `measured`. It may come from a stranger: every table is checked when it is
opened, so that nothing else has to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.measured.curves import Curves
from moesim.costs.measured.light import CACHE_BYTES, FORMATS
from moesim.costs.measured.profile import KernelProfile, open_profile
from moesim.errors import InputError, one_line
from moesim.files import existing_file

FIELD = "deployment.kernels"
MOST_BYTES = 64e6

# Tables that such a file may hold, with their keys: names, then numbers.
_ATTENTION = (("dtype", "kv_dtype"), ("heads", "kv_heads", "head_dim", "window", "batch"))
OWN_TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gemm": (("dtype",), ("n", "k")),
    "context_attention": _ATTENTION,
    "generation_attention": _ATTENTION,
    "moe": (("kernel", "dtype"), ("hidden", "inter", "topk", "experts", "tp", "ep")),
    "nccl": (("kernel", "phase", "dtype"), ("gpus",)),
    "copy": (("kernel", "phase"), ()),
}
ROOF_NUMBERS, EXPERT_NUMBERS = 4, 7


def open_own_kernels(path: str | Path, gpu: str) -> KernelProfile:
    """A file of the user's kernels, of that GPU, every table checked. Raises InputError."""
    source = existing_file(path, MOST_BYTES, FIELD)
    try:
        profile = open_profile(source)
    except InputError as error:
        raise InputError(f"{FIELD} {error.field}", error.rule, error.value, error.hint) from None
    if profile.gpu != gpu:
        raise InputError(
            FIELD, f"must be measured on the scenario's cluster.gpu ({gpu})", profile.gpu
        )
    try:
        for name in profile.tables:
            _check_table(name, profile)
        about = profile.header["measured"]
        if not all(isinstance(about[key], str) for key in ("device", "date")):
            raise ValueError("its header must say on which device and when it was measured")
        if not (_word(profile.engine) and _word(profile.version)):
            raise ValueError("engine and version must be one word each")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = str(error) if not isinstance(error, KeyError) else f"it lacks {error}"
        raise InputError(
            FIELD, f"must be written by `moesim calibrate kernels`: {reason}"
        ) from None
    return profile


def own_notes(profile: KernelProfile, shipped: str) -> list[str]:
    """What every result says of the user's kernels; `shipped` answers for what they lack."""
    about = profile.header["measured"]
    device, date = one_line(about["device"])[:80], one_line(about["date"])[:20]
    rest = f"shipped {shipped} kernels" if " " in shipped else "assumed rooflines"
    name = one_line(profile.file.path.name)
    made = f"{profile.engine} {profile.version} on {device}, {date}"
    notes = [f"kernels: {name} ({made}); {rest} answer what it lacks"]
    if for_tests_only(profile):
        notes.append(
            f"kernels: {name} was timed on a CPU at tiny sizes: FOR TESTS ONLY, its times say "
            f"nothing about {profile.gpu}"
        )
    return notes


def for_tests_only(profile: KernelProfile) -> bool:
    """Whether the file was measured without a GPU."""
    return profile.header.get("tests_only", True) is not False


def _word(text: object) -> bool:
    return isinstance(text, str) and text.isprintable() and 0 < len(text) <= 64 and " " not in text


def _check_table(name: str, profile: KernelProfile) -> None:
    if name not in OWN_TABLES:
        raise ValueError(f"table {name!r} is not one of {', '.join(OWN_TABLES)}")
    curves = profile.curves(name)
    assert curves is not None
    words, numbers = OWN_TABLES[name]
    if set(curves.names) != {*words, *numbers} or set(curves.labels) != set(words):
        raise ValueError(f"table {name} must have the keys {', '.join((*words, *numbers))}")
    for word in words:
        column, labels = curves.column(word), curves.labels[word]
        if not all(_word(label) for label in labels) or column.max() >= len(labels):
            raise ValueError(f"table {name} has a bad {word}")
    least = {"window": 0}
    if any((curves.column(key) < least.get(key, 1)).any() for key in numbers):
        raise ValueError(f"table {name} has a key below its least value")
    if not (np.isfinite(curves.x_N).all() and (curves.x_N > 0).all() and _ascending(curves)):
        raise ValueError(f"the points of table {name} must ascend")
    _check_formats(name, curves)
    fits = profile.header["tables"][name]["fits"]
    if name == "moe":
        _check_expert_fits(curves, fits)
    elif not all(_sound(row, ROOF_NUMBERS) for row in fits.values()):
        raise ValueError(f"table {name} has a bad fit")


def _ascending(curves: Curves) -> bool:
    same_curve = np.diff(np.repeat(np.arange(len(curves.keys_CK)), np.diff(curves.start))) == 0
    return bool((np.diff(curves.x_N)[same_curve] > 0).all())


def _check_formats(name: str, curves: Curves) -> None:
    known = {"kv_dtype": set(CACHE_BYTES)}
    if name != "nccl":
        known["dtype"] = set(FORMATS)
    for key, formats in known.items():
        if not set(curves.labels.get(key, ())) <= formats:
            raise ValueError(f"table {name} has an unknown {key}")


def _check_expert_fits(curves: Curves, fits: Mapping[str, Any]) -> None:
    for kernel, dtype in {
        (curves.label("kernel", c), curves.label("dtype", c)) for c in range(len(curves.keys_CK))
    }:
        rows = fits[kernel][dtype]
        if "" not in rows or not all(_sound(row, EXPERT_NUMBERS) for row in rows.values()):
            raise ValueError("table moe has a bad fit")
        if any(row[6] not in (1, 2, 4, 8, 16, 32, 64, 128, 256) for row in rows.values()):
            raise ValueError("table moe has a tile that is no power of two")


def _sound(row: Any, numbers: int) -> bool:
    """Whether the row begins with that many positive numbers."""
    return len(row) >= numbers and all(
        isinstance(value, int | float) and math.isfinite(value) and value > 0
        for value in row[:numbers]
    )
