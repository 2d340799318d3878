"""Public recordings of real routing, fetched by name: checked against a hash, kept in a cache.

The list is presets/traces.yaml. pooch downloads to a temporary file and moves it only once its
SHA-256 is right; here sizes are limited and errors become one line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from moesim.compiled import cache_root
from moesim.errors import InputError
from moesim.plain_yaml import read_yaml
from moesim.presets import read_preset
from moesim.routing.formats.base import Recording
from moesim.routing.importers import about_model, import_recording
from moesim.spec import Spec

TIMEOUT_S = 30.0
CHUNK_BYTES = 65_536

Progress = Callable[[int, int], None]


class PublicFile(Spec):
    """One file of a recording: what its bytes have to be."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=1, le=2**31)


class PublicTrace(Spec):
    """A recording that anybody may download, and what its files do not say about it."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$")
    about: str
    model: str
    experts: int | None = None
    phase: Literal["prefill", "decode"]
    domain: str
    format: str
    licence: str
    licence_url: str
    base_url: str = Field(pattern="^https?://.*/$")
    files: dict[str, PublicFile]

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@functools.cache
def public_traces() -> tuple[PublicTrace, ...]:
    """Every recording of the shipped list, in its order."""
    entries: dict[str, Any] = read_yaml(read_preset("traces.yaml"), "presets/traces.yaml")
    return tuple(
        PublicTrace.parse({"name": name, **entry}, f"presets/traces.yaml: {name}")
        for name, entry in entries.items()
    )


def find_public_trace(name: str) -> PublicTrace:
    """The recording of this name; InputError for another one."""
    for found in public_traces():
        if found.name == name:
            return found
    known = ", ".join(each.name for each in public_traces())
    raise InputError("name", f"must be one of {known}", name)


def download(
    trace: PublicTrace, folder: Path | None = None, progress: Progress | None = None
) -> tuple[Path, ...]:
    """The files of a recording, downloaded into the cache (or `folder`) if they are not there.

    Raises InputError where a file cannot be had, is larger than it should be, or has other content
    than the list says; nothing is left of such a file.
    """
    try:
        import pooch
        import requests
    except ImportError:
        hint = "pip install 'moesim[download]'"
        raise InputError("trace fetch", "needs the package pooch", None, hint) from None
    pooch.get_logger().setLevel("WARNING")
    keeper = pooch.create(
        path=folder or cache_root() / "public-traces" / trace.name,
        base_url=trace.base_url,
        registry={name: f"sha256:{file.sha256}" for name, file in trace.files.items()},
    )
    found = []
    for done, (name, file) in enumerate(trace.files.items()):
        if progress is not None:
            progress(done, len(trace.files))
        url = trace.base_url + name
        try:
            found.append(Path(keeper.fetch(name, downloader=_limited(file.bytes))))
        except (requests.exceptions.RequestException, OSError) as error:
            raise InputError(url, f"cannot be downloaded: {_reason(error)}") from None
        except ValueError:
            rule = f"must be the {file.bytes} bytes of SHA-256 {file.sha256}; it was thrown away"
            raise InputError(url, rule) from None
    return tuple(found)


def fetch_trace(
    trace: PublicTrace, folder: Path | None = None, progress: Progress | None = None
) -> Recording:
    """Download a recording and import it; InputError as `download` and the importers raise it."""
    files = download(trace, folder, progress)
    about = about_model(
        trace.model,
        experts=trace.experts,
        phase=trace.phase,
        domains=(trace.domain,),
        provenance={
            "source": trace.base_url,
            "licence": f"{trace.licence} ({trace.licence_url})",
            "about": trace.about,
        },
    )
    made, _ = import_recording(files, about, trace.format)
    return made


def _limited(most_bytes: int) -> Callable[[str, str, object], None]:
    """A downloader for pooch that stops after `most_bytes`, however much the server sends."""

    def save(url: str, target: str, _: object) -> None:
        import requests

        with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
            response.raise_for_status()
            with open(target, "wb") as file:
                _copy(response, file, most_bytes)

    return save


def _copy(response: Any, file: IO[bytes], most_bytes: int) -> None:
    written = 0
    for chunk in response.iter_content(CHUNK_BYTES):
        written += len(chunk)
        if written > most_bytes:
            raise ValueError(f"it is larger than {most_bytes} bytes")
        file.write(chunk)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    text = str(error)
    return type(error).__name__ if len(text) > 160 or not text else text
