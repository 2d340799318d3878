"""Run the notebooks of docs/notebooks and put their outputs into them.

    python docs/notebooks/make.py                 all of them
    python docs/notebooks/make.py NAME.ipynb      one or some

Charts become PNG, as GitHub draws no Vega; times, process ids and the machine's name do not stay.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from moesim.files import replace_atomically

HERE = Path(__file__).resolve().parent
TIME_LIMIT_S = 600
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def executed(path: Path, folder: Path, more: str = "") -> Any:
    """The notebook after a run in `folder`, with a cell `more` at its end.

    Raises nbclient's CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a debugger's warning
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=TIME_LIMIT_S, resources=resources).execute()
    return notebook


def settled(notebook: Any) -> Any:
    """Without what differs from run to run."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            kept = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in kept:
                output.pop("metadata", None)
                if output.output_type in ("display_data", "execute_result"):
                    output.metadata = {}
            cell.outputs = kept
    return notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the notebooks of docs/notebooks.")
    parser.add_argument("notebooks", nargs="*", help="names; none: all")
    asked = parser.parse_args(arguments)
    for name in asked.notebooks or sorted(path.name for path in HERE.glob("*.ipynb")):
        notebook = settled(executed(HERE / name, HERE))
        with replace_atomically(HERE / name) as temporary:
            temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
