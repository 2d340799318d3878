"""Where the measured tables lie: the installed aiconfigurator-core package, or a folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from moesim.errors import InputError

PACKAGE = "aiconfigurator-core"
VERSION = "0.12.0"
INSTALL = f"pip install {PACKAGE}=={VERSION}"


def find_systems(path: str | Path | None = None) -> Path:
    """The `systems` folder of the package, given or installed; it is not imported.

    `path` may name that folder or the package that holds it. Raises InputError with the line that
    installs the package.
    """
    if path is not None:
        for folder in (Path(path), Path(path) / "systems"):
            if (folder / "data").is_dir():
                return folder
        raise InputError("systems", "must be a folder that holds data/", str(path), INSTALL)
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "systems"
        if (folder / "data").is_dir():
            return folder
    raise InputError("systems", f"need the measured tables of {PACKAGE}", hint=INSTALL)
