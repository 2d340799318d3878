"""Named workloads whose numbers were fitted to public traces, with the source and the fit's error.

`calibration/workload_fit.py` makes the files.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Annotated

from pydantic import Field

from moesim.errors import InputError
from moesim.plain_yaml import read_shipped
from moesim.spec import Spec
from moesim.workload.lengths import LengthChoice
from moesim.workload.prefixes import SharedPrefix

_FOLDER = files("moesim").joinpath("presets", "workloads")


class FitError(Spec):
    """How far a fitted length distribution is from its trace; errors are relative, 0.01 = 1 %.

    `ks` is the largest distance of the two cumulative distributions. `held_out_ks` and the
    `held_out_p*` errors come from fitting every other row and comparing with the rows left out.
    """

    ks: float
    mean: float
    held_out_ks: float
    held_out_p50: float
    held_out_p90: float
    held_out_p99: float


class WorkloadPreset(Spec):
    """What a kind of traffic looks like: lengths, burstiness, shared prefixes; and whence."""

    name: str
    description: str
    source: str
    rows: int
    prompt: LengthChoice
    output: LengthChoice
    arrival_cv: float
    arrival_cv_source: str
    shared_prefix: SharedPrefix | None = None
    shared_prefix_source: str = ""
    prompt_fit: FitError
    output_fit: FitError
    not_modelled: Annotated[str, Field(min_length=1)]


def preset_names() -> tuple[str, ...]:
    """The workload presets that ship, in alphabetical order."""
    names = (entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir())
    return tuple(sorted(name for name in names if "." not in name))


def load_preset(name: str) -> WorkloadPreset:
    """The preset of that name; InputError names the closest one there is."""
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise InputError("workload.preset", f"must be one of {', '.join(names)}", name, hint)
    text = _FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return WorkloadPreset.parse(read_shipped(text), f"presets/workloads/{name}.yaml")
