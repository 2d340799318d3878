"""The measured kernels of one GPU and engine: which profile answers which query."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.curves import Curves
from moesim.costs.measured.light import Roof
from moesim.costs.measured.profile import (
    KernelProfile,
    open_profile,
    profile_names,
    profiles_folder,
)
from moesim.errors import InputError
from moesim.hardware import GPU, load_gpu


@dataclass(frozen=True, eq=False)
class Found:
    """Curves of one table that match a query, and the profile they come from."""

    profile: KernelProfile
    table: str
    curves: Curves
    ids: NDArray[np.int64]
    foreign: bool = False  # another engine's

    @property
    def about(self) -> dict[str, Any]:
        """The header's entry of the table."""
        entry: dict[str, Any] = self.profile.header["tables"][self.table]
        return entry

    @property
    def source(self) -> str:
        """Profile and table, for a reader."""
        return f"{self.profile.gpu} {self.profile.engine} {self.profile.version} {self.table}"

    def roof(self, dtype: str) -> Roof:
        """The fitted roof of a dtype, or the default one."""
        fit = self.about["fits"].get(dtype)
        return Roof(*(float(value) for value in fit[:4])) if fit else Roof()


@dataclass(frozen=True)
class MeasuredKernels:
    """Profiles in the order in which they are asked.

    The version asked for comes first, then newer ones upwards, then older ones downwards: a newer
    collection is the better measured one. The first profile that has a query's table and keys
    answers it alone; nothing is pooled. NCCL's own profiles come last. `stand_ins` are the other
    engines' profiles, newest first: asked only where this engine has no table for a query. `own`,
    measured by the user, is the first of `profiles` where there is one.
    """

    gpu: GPU
    engine: str
    version: str
    profiles: tuple[KernelProfile, ...]
    stand_ins: tuple[KernelProfile, ...] = ()
    own: KernelProfile | None = None

    @property
    def shipped(self) -> tuple[KernelProfile, ...]:
        """`profiles` without the user's own."""
        return self.profiles if self.own is None else self.profiles[1:]

    def find_own(self, table: str, **equal: str | int) -> Found | None:
        """Curves that the user measured, if there are any with these keys."""
        return next(_each((self.own,), table, equal), None) if self.own else None

    def find(self, table: str, **equal: str | int) -> Found | None:
        """The first own profile with curves of `table` whose keys equal those given."""
        return next(self.each(table, **equal), None)

    def find_anywhere(self, table: str, **equal: str | int) -> Found | None:
        """`find`, and failing that the same from another engine."""
        found = self.find(table, **equal)
        if found is None:
            foreign = next(_each(self.stand_ins, table, equal), None)
            found = None if foreign is None else replace(foreign, foreign=True)
        return found

    def each(self, table: str, **equal: str | int) -> Iterator[Found]:
        """Every own profile with such curves, in order."""
        return _each(self.profiles, table, equal)

    def each_stand_in(self, table: str, **equal: str | int) -> Iterator[Found]:
        """Every other engine's profile with such curves."""
        return (replace(found, foreign=True) for found in _each(self.stand_ins, table, equal))


def is_measured(gpu: str, engine: str, folder: Path | None = None) -> bool:
    """Whether any profile holds kernels of that GPU and engine."""
    return any(name[:2] == (gpu, engine) for name in profile_names(folder))


def _each(
    profiles: tuple[KernelProfile, ...], table: str, equal: Mapping[str, str | int]
) -> Iterator[Found]:
    for profile in profiles:
        curves = profile.curves(table)
        if curves is not None:
            ids = curves.where(**equal)
            if ids.size:
                yield Found(profile, table, curves, ids)


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Order of versions: numbers as numbers, release candidates before the release."""
    rank = {"rc": -2, "dev": -3, "post": 1}
    parts = re.findall(r"\d+|[a-z]+", version.lower())
    key = [(int(p), "") if p.isdigit() else (rank.get(p, -1), p) for p in parts]
    return (*key, (0, ""))


def load_kernels(
    gpu: str,
    engine: str,
    version: str | None = None,
    folder: Path | None = None,
    own: KernelProfile | None = None,
) -> MeasuredKernels:
    """Measured kernels of a GPU and engine; `version` None means the newest.

    `own` kernels of that GPU are asked before all others. Raises InputError if nothing was measured
    for that GPU and engine.
    """
    place = folder or profiles_folder()
    names = [name for name in profile_names(place) if name[0] == gpu]
    versions = sorted((v for _, e, v in names if e == engine), key=version_key)
    if not versions and own is None:
        known = sorted({f"{g} {e}" for g, e, _ in profile_names(place) if e != "nccl"})
        raise InputError(
            "deployment.profile",
            "must have measured kernels of its GPU and engine",
            f"{gpu} {engine}",
            f"measured: {', '.join(known)}" if known else f"no profile lies in {place}",
        )
    asked = version or (versions[-1] if versions else "")
    newer = [v for v in versions if version_key(v) >= version_key(asked)]
    older = [v for v in reversed(versions) if version_key(v) < version_key(asked)]
    nccl = sorted((v for _, e, v in names if e == "nccl"), key=version_key, reverse=True)
    chain = [(engine, v) for v in (*newer, *older)] + [("nccl", v) for v in nccl]
    others = sorted(
        ((e, v) for _, e, v in names if e not in (engine, "nccl")),
        key=lambda name: version_key(name[1]),
        reverse=True,
    )
    return MeasuredKernels(
        load_gpu(gpu),
        engine,
        asked,
        (*((own,) if own else ()), *(_open(place, gpu, e, v) for e, v in chain)),
        tuple(_open(place, gpu, e, v) for e, v in sorted(others, key=lambda name: name[0])),
        own,
    )


def _open(place: Path, gpu: str, engine: str, version: str) -> KernelProfile:
    path = place / f"{gpu}_{engine}_{version}.safetensors"
    written = path.stat()
    return _opened(path, written.st_mtime_ns, written.st_size)


@functools.lru_cache(maxsize=64)
def _opened(path: Path, written_ns: int, size: int) -> KernelProfile:
    """Studies of many deployments ask for the same few files."""
    return open_profile(path)
