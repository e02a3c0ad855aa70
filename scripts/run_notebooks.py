"""Executes notebooks and keeps their outputs, without what belongs to one machine.

    python scripts/run_notebooks.py notebooks/*.ipynb

A notebook that fails is not written. Cells tagged `skip-execution`, those that need a browser, are left as they are.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Optional

import jupyter_client
import nbclient
import nbformat

_CELL_SECONDS = 1800


class NotebookError(Exception):
    """A notebook that did not run, or whose outputs can't be kept. The message says where and why."""


def execute(source: pathlib.Path, kernel: Optional[jupyter_client.KernelManager] = None) -> nbformat.NotebookNode:
    """Returns the notebook in `source`, executed in `kernel`, by default in one of its own that runs in the notebook's folder.

    Raises:
      NotebookError: If a cell fails, or an output names a folder of this machine.
    """
    notebook = nbformat.read(source, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        km=kernel,
        timeout=_CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        raise NotebookError(f"{source.name} failed: {error}") from error
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        found = [place for place in _places() if place in str(cell.get("outputs", ""))]
        if found:
            raise NotebookError(
                f"Expected outputs without folders of this machine in {source.name}, found {found} in cell {number}."
            )
    return notebook


def _places() -> set[str]:
    """Returns the beginnings of paths that mean something on this machine only."""
    places = {str(pathlib.Path(folder).resolve()) for folder in (pathlib.Path.home(), pathlib.Path.cwd(), sys.prefix)}
    places |= {value for name, value in os.environ.items() if name.startswith("TFF_KIT_") and value.startswith("/")}
    return places - {"/"}


def main(paths: list[str]) -> int:
    """Executes the notebooks in place and returns the exit code."""
    for path in map(pathlib.Path, paths):
        print(f"{path} ...", flush=True)
        try:
            notebook = execute(path)
        except (NotebookError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        part = path.with_suffix(".part")
        nbformat.write(notebook, part)
        part.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
