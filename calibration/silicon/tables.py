"""Read measured tables into one shape: keys, an axis, seconds; nothing pooled, nothing averaged.

A *source* is one file: the table of one GPU, engine and version. Where the publisher declares that
a version reuses another version's table (reuse.yaml beside it), the donor's rows fill the keys that
the version has not measured itself, and column `measured_version` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from calibration.silicon.catalogue import BALANCED, GPUS, TABLES, Table, table
from moesim.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MS = 1e-3
US = 1e-6
BYTES_OF = {"half": 2, "bfloat16": 2, "int8": 1, "float": 4}
# Columns that early collections lack, and what they held: no window, block-scaled fp8 linears.
ABSENT = {"window_size": 0, "gemm_type": "fp8_block", "device": ""}
# Tables whose `latency` is no milliseconds: 4,096 tokens of DeepSeek-V3 take 852 of it to combine
# in TRT-LLM, and 983 us in SGLang's table of the same library on the same GPU.
MICROSECONDS = ("moe_exchange",)
# Where a table spreads its time over phases: (phase, columns that add up to it).
PHASES = {
    "deepep_normal": (
        ("dispatch", ("dispatch_transmit_us", "dispatch_notify_us")),
        ("combine", ("combine_transmit_us", "combine_notify_us")),
    ),
    "deepep_low_latency": (
        ("dispatch", ("dispatch_avg_t_us",)),
        ("combine", ("combine_avg_t_us",)),
    ),
}


@dataclass(frozen=True)
class Source:
    """One file of the package; `gpu` is moesim's name, `engine` may be nccl."""

    gpu: str
    engine: str
    version: str
    table: str
    path: Path
    donor: str = ""  # version that this table is declared to reuse


def list_sources(systems: Path) -> list[Source]:
    """Every table of the catalogue for the GPUs of moesim, in a fixed order."""
    found = []
    for folder, gpu in GPUS.items():
        for each in TABLES:
            base = systems / "data" / folder / each.family
            for path in sorted(base.glob(f"*/*/{each.file}.parquet")):
                engine, version = path.parts[-3], path.parts[-2]
                donor = _donors(path.parent).get(each.file, "")
                found.append(Source(gpu, engine, version, each.name, path, donor))
    return found


def declared_copies(systems: Path) -> list[tuple[str, str, str, str, str]]:
    """(gpu, engine, version, table, donor version) of every declared reuse of a known table."""
    names = {each.file: each.name for each in TABLES}
    rows = []
    for folder, gpu in GPUS.items():
        for path in sorted((systems / "data" / folder).glob("*/*/*/reuse.yaml")):
            for file, donor in _donors(path.parent).items():
                if file in names:
                    rows.append((gpu, path.parts[-3], path.parts[-2], names[file], donor))
    return rows


def _donors(folder: Path) -> dict[str, str]:
    path = folder / "reuse.yaml"
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {row["table"]: str(row["from_version"]) for row in content.get("reuse", ())}


def read_source(source: Source, fill: bool = False) -> pd.DataFrame:
    """Rows of one source: the table's keys, its axis, `seconds`, `device`, `measured_version`.

    `fill` adds the declared donor's rows for keys that the source lacks. Rows without a positive
    time are dropped. Raises InputError for a file that is not such a table.
    """
    import pandas as pd

    own = _read(source)
    if not (fill and source.donor):
        return own
    donor_path = source.path.parents[1] / source.donor / source.path.name
    if not donor_path.is_file():
        return own
    donor = _read(Source(source.gpu, source.engine, source.donor, source.table, donor_path))
    shape = table(source.table)
    columns = [key for key in shape.keys if key != "kernel"] + [shape.axis]
    known = pd.MultiIndex.from_frame(own[columns])
    extra = donor[~pd.MultiIndex.from_frame(donor[columns]).isin(known)]
    return pd.concat([own, extra], ignore_index=True)


def _read(source: Source) -> pd.DataFrame:
    import pandas as pd

    shape = table(source.table)
    try:
        raw = pd.read_parquet(source.path)
        if "op_name" in raw:  # layers that reuse another layer's index are not of GLM-5 or V3.2
            raw = raw[~raw["op_name"].str.endswith("_skip_indexer")]
        frame = pd.concat(list(_phases(raw, shape)), ignore_index=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(source.path), f"must be a {shape.file} table: {error}") from error
    frame["device"] = frame["device"].astype(str)
    frame["measured_version"] = source.version
    if "distribution" in frame:
        frame["distribution"] = frame["distribution"].replace("uniform", BALANCED)
    if "window" in frame:
        frame["window"] = frame["window"].clip(lower=0)
    if "part" in frame:
        frame["part"] = np.where(frame["part"].str.startswith("causal_conv1d"), "conv", "scan")
        frame.loc[frame["phase"] == "generation", "batch"] = 1  # the axis is the batch
    good = np.isfinite(frame["seconds"]) & (frame["seconds"] > 0) & (frame[shape.axis] > 0)
    if shape.name == "quantize_scale":  # a difference of two times, down to noise
        frame["seconds"] = frame["seconds"].where(
            frame["seconds"] <= 0, frame["seconds"].clip(MS / 5e3)
        )
    return frame[good].reset_index(drop=True)


def _phases(raw: pd.DataFrame, shape: Table) -> Iterator[pd.DataFrame]:
    for phase, columns in PHASES.get(shape.name, (("", ()),)):
        part = {
            ours: phase if ours == "phase" and phase else _column(raw, theirs)
            for ours, theirs in shape.keys.items()
        }
        part[shape.axis] = _axis(raw, shape)
        unit = US if shape.name in MICROSECONDS else MS
        part["seconds"] = raw[list(columns)].sum(axis=1) * US if columns else raw["latency"] * unit
        part["device"] = _column(raw, "device")
        yield type(raw)(part)


def _column(raw: pd.DataFrame, name: str) -> object:
    return ABSENT[name] if name in ABSENT and name not in raw else raw[name]


def _axis(raw: pd.DataFrame, shape: Table) -> pd.Series:
    if shape.axis == "bytes":
        dtype = raw.get("nccl_dtype", raw.get("allreduce_dtype"))
        return raw["message_size"] * dtype.map(BYTES_OF)
    if shape.name == "linear_attention":
        return raw["seq_len"].where(raw["phase"] == "context", raw["batch_size"])
    if shape.name == "generation_mla_module":
        return raw["step"]  # already counts the new token
    if shape.name == "wideep_generation_mla":
        return raw["isl"]  # the context is in the sequence length
    if shape.axis == "kv_len":
        return raw["isl"] + raw["step"]
    return raw[shape.axis_from]
