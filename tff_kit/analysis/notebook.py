"""The common parts of the notebooks: their size, the machine and data they ran on, and the project's measured results.

The environment variable TFF_KIT_NOTEBOOKS is `small` for the reduced size that tests run, else `full` or not set.
"""

from __future__ import annotations

import csv
import datetime
import os
import pathlib
import platform
import time
from typing import Any, TypeVar

import tensorflow as tf
from rich.console import Console

from tff_kit.datasets import FederatedDataset
from tff_kit.training import runs, table

T = TypeVar("T")
RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"
_SIZES = ("full", "small")
_began = time.monotonic()


def choose(full: T, small: T) -> T:
    """Returns `full`, or `small` where the notebook runs at reduced size; raises ValueError for a size that is neither."""
    size = os.environ.get("TFF_KIT_NOTEBOOKS") or "full"
    if size not in _SIZES:
        raise ValueError(f"Expected TFF_KIT_NOTEBOOKS to be {' or '.join(_SIZES)}, found {size!r}.")
    return full if size == "full" else small


def print_heading(*data: FederatedDataset) -> None:
    """Prints when, at which size, on which data and on which machine the notebook runs. Turns TensorFlow's INFO messages off."""
    tf.get_logger().setLevel("WARNING")  # It would tell of every checkpoint.
    print(f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {choose('full size', 'reduced size, for tests')}, on")
    for dataset in data:
        print(f"  {dataset.name}, {len(dataset.client_ids)} clients")
        for note in dataset.notes:
            print(f"    {note}")
    print(f"  {os.cpu_count()} cores of {processor()}")
    versions = runs.versions()
    print(
        f"  Python {versions['python']}, TensorFlow {versions['tensorflow']}, "
        f"TensorFlow Federated {versions['tensorflow_federated']}"
    )


def print_duration() -> None:
    """Prints how long the notebook ran, to stand in its last cell."""
    print(f"All claims hold. The notebook took {time.monotonic() - _began:.0f} s.")


def text_console(quiet: bool = False) -> Console:
    """Returns a console whose lines become one block of plain text under a notebook's cell; if `quiet`, none."""
    return Console(force_jupyter=False, force_terminal=False, width=100, quiet=quiet)


def read_results(name: str) -> list[dict[str, Any]]:
    """Returns the rows of results/`name`, a CSV file that `benchmarks/` has measured, with its numbers as numbers.

    Raises:
      FileNotFoundError: If there is none, as where the package stands without the repository.
    """
    try:
        with open(RESULTS / name, newline="") as file:
            return [{key: _parsed(text) for key, text in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected results/{name} beside the package, found none. Results come with the repository: run the notebook "
            "with the tff_kit of a clone."
        ) from None


def _parsed(text: str) -> Any:
    try:
        return table.read_number(text)
    except ValueError:
        return text


def processor() -> str:
    """Returns the processor's model, or its architecture where the system does not tell the model."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
