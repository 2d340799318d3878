"""SGLang's expert distribution recorder: .pt files of all four modes.

Source: sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py (read at 02295fe5).

- stat, stat_approx: `{rank, logical_count}`, counts int [buffered steps, layers, logical experts],
  already summed over ranks; rank 0 alone writes. Layers are all decoder layers, dense ones zero.
- per_pass: `{records, last_physical_to_logical_map}`, a file for each rank; a record has
  `forward_pass_id`, `rank` and `global_physical_count` [layers, physical experts].
- per_token: the same, and each record has `topk_ids_of_layer` int32 [layers, tokens, 8], physical
  ids padded with -1, `positions`, `input_ids`, `forward_mode` and `extend_seq_lens`.

Counts give a MarginalProfile, per_token a trace. Ranks that recorded the same tokens (tensor
parallel attention) count once; ranks with tokens of their own (data parallel) are all kept.

Legend: T tokens, L layers, K top-k, E logical experts, P physical experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import checks
from moesim.routing.formats.base import Format, Recording, Source
from moesim.routing.formats.sglang_requests import Pass, requests
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.torchfile import read_torch

Dump = Mapping[str, Any]
_MAX_LP = (checks.MAX_LAYERS, checks.MAX_EXPERTS)


def recognises(source: Source) -> bool:
    return any(name.endswith("/data.pkl") for name in source.names)


def read(files: Sequence[Path], about: About) -> Recording:
    """A trace of per_token recordings, a marginal profile of the others."""
    dumps = [_dump(file) for file in files]
    if all("logical_count" in dump for dump in dumps):
        return _profile(_total([_stat_counts(dump) for dump in dumps]), about)
    if any("logical_count" in dump for dump in dumps):
        raise InputError(str(files[0]), "must not be read together with another recorder mode")
    if all("topk_ids_of_layer" in record for dump in dumps for record in dump["records"]):
        return _trace(files, dumps, about)
    counts = [_pass_counts(dump, record) for dump in dumps for record in dump["records"]]
    return _profile(_total(counts), about)


def _dump(file: Path) -> Dump:
    content = read_torch(file)
    kinds = {"logical_count": np.ndarray, "records": list}
    if not isinstance(content, dict) or not any(
        isinstance(content.get(key), kind) for key, kind in kinds.items()
    ):
        raise InputError(str(file), "must hold logical_count, or records, of SGLang's recorder")
    if "logical_count" in content:
        return content
    if not content["records"] or not all(isinstance(one, dict) for one in content["records"]):
        raise InputError(str(file), "must hold at least one record of a forward pass")
    name = "last_physical_to_logical_map"
    map_LP = _check(str(file), name, content.get(name), 2, _MAX_LP)
    if int(map_LP.min()) < 0 or int(map_LP.max()) >= checks.MAX_EXPERTS:
        raise InputError(str(file), "must map to experts from 0", int(map_LP.min()))
    return content


def _check(
    where: str, name: str, array: object, dimensions: int, limits: tuple[int, ...]
) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise InputError(where, f"must hold {name} as whole numbers")
    if array.ndim != dimensions:
        raise InputError(where, f"must hold {name} in {dimensions} dimensions", array.shape)
    checks.check_size(f"{where}: {name}", array.shape, limits)
    return array


def _total(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    if any(table.shape != tables[0].shape for table in tables):
        raise InputError("files", "must count the same layers and experts")
    total_LE = np.zeros_like(tables[0])
    for table in tables:
        total_LE += table
    return total_LE


def _stat_counts(dump: Dump) -> NDArray[np.int64]:
    counts = dump["logical_count"]
    if isinstance(counts, np.ndarray) and counts.ndim == 2:
        counts = counts[None]
    counts_BLE = _check("recording", "logical_count", counts, 3, (10**7, *_MAX_LP))
    if int(counts_BLE.min()) < 0:
        raise InputError("logical_count", "must not be negative", int(counts_BLE.min()))
    return np.asarray(counts_BLE.sum(axis=0, dtype=np.int64))


def _pass_counts(dump: Dump, record: Mapping[str, Any]) -> NDArray[np.int64]:
    """Logical counts [L, E] of one forward pass on one rank."""
    map_LP: NDArray[Any] = dump["last_physical_to_logical_map"]
    counts = record.get("global_physical_count")
    count_LP = _check("record", "global_physical_count", counts, 2, _MAX_LP)
    if count_LP.shape != map_LP.shape:
        raise InputError("global_physical_count", f"must be {map_LP.shape}", count_LP.shape)
    if int(count_LP.min()) < 0:
        raise InputError("global_physical_count", "must not be negative", int(count_LP.min()))
    counts_LE = np.zeros((len(map_LP), int(map_LP.max()) + 1), np.int64)
    np.add.at(counts_LE, (np.arange(len(map_LP))[:, None], map_LP), count_LP)
    return counts_LE


def _profile(counts_LE: NDArray[np.int64], about: About) -> MarginalProfile:
    top_k = about.needed_top_k()
    if about.experts is not None and about.experts != counts_LE.shape[1]:
        rule = f"must be the {about.experts} experts of {about.model}"
        raise InputError("experts", rule, counts_LE.shape[1])
    alone = len(counts_LE) == len(about.moe_layers)
    layers = about.moe_layers if alone else range(len(counts_LE))
    return MarginalProfile.from_counts(
        counts_LE, layers, top_k, about.model, provenance=about.provenance
    )


def _trace(files: Sequence[Path], dumps: Sequence[Dump], about: About) -> Recording:
    sequences: list[Recorded] = []
    experts = max(int(dump["last_physical_to_logical_map"].max()) + 1 for dump in dumps)
    seen: set[int] = set()
    for number, dump in enumerate(dumps):
        passes, ids_TLK = _passes(dump)
        tokens = hash(tuple((p.number, p.positions, p.input_ids) for p in passes))
        if tokens in seen:  # the same tokens, seen by another rank of a tensor parallel group
            continue
        seen.add(tokens)
        domain = about.domain(number, len(files), "recorded")
        for rows, prompt in requests(passes):
            sequences.append(Recorded(ids_TLK[rows], prompt, domain))
    return assemble(sequences, about, experts)


def _passes(dump: Dump) -> tuple[list[Pass], NDArray[Any]]:
    """Forward passes in order, and logical ids [T, L, K] of all their tokens, -1 where none."""
    map_LP: NDArray[Any] = dump["last_physical_to_logical_map"]
    records = sorted(dump["records"], key=lambda record: _number(record, "forward_pass_id"))
    passes, blocks, first = [], [], 0
    for record in records:
        ids_LTK = record["topk_ids_of_layer"]
        limits = (checks.MAX_LAYERS, checks.MAX_TOKENS, checks.MAX_TOP_K)
        if not isinstance(ids_LTK, np.ndarray) or ids_LTK.size:
            _check("record", "topk_ids_of_layer", ids_LTK, 3, limits)
        if len(ids_LTK) != len(map_LP):
            raise InputError("topk_ids_of_layer", f"must have {len(map_LP)} layers", len(ids_LTK))
        found = Pass.of_record(record, first)
        if len(found.positions) != ids_LTK.shape[1]:
            raise InputError("positions", f"must be {ids_LTK.shape[1]}", len(found.positions))
        if ids_LTK.size:
            blocks.append(_logical(ids_LTK, map_LP).transpose(1, 0, 2))
        passes.append(found)
        first += ids_LTK.shape[1]
    if not blocks:
        raise InputError("records", "must hold at least one token")
    ids_TLK = np.concatenate(blocks)
    used = int((ids_TLK >= 0).any(axis=(0, 1)).sum())  # 8 slots whatever top-k is
    return passes, ids_TLK[:, :, :used]


def _logical(ids_LTK: NDArray[Any], map_LP: NDArray[Any]) -> NDArray[np.int32]:
    if int(ids_LTK.min()) < -1 or int(ids_LTK.max()) >= map_LP.shape[1]:
        rule = f"must be physical experts below {map_LP.shape[1]}, or -1"
        worst = ids_LTK.min() if ids_LTK.min() < -1 else ids_LTK.max()
        raise InputError("topk_ids_of_layer", rule, int(worst))
    rows = np.arange(len(map_LP))[:, None, None]
    logical_LTK = map_LP[rows, np.maximum(ids_LTK, 0)]
    return np.where(ids_LTK < 0, -1, logical_LTK).astype(np.int32)


def _number(record: Mapping[str, Any], key: str) -> int:
    value = record.get(key)
    if type(value) is not int:
        raise InputError(f"record.{key}", "must be a whole number", value)
    return value


FORMAT = Format("sglang-recorder", "SGLang expert distribution recorder (.pt)", recognises, read)
