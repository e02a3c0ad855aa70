"""What a benchmark leaves behind: tables and figures in results/, and what they say of the machine."""

from __future__ import annotations

import csv
import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def machine() -> str:
    """Returns what a table says of where it was measured."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def spread(values: Sequence[float]) -> str:
    """Returns the mean with the smallest and the largest, as tables show them."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def write_table(name: str, lines: Sequence[str]) -> None:
    """Writes a table to results/`name` and prints it."""
    text = "\n".join(lines).rstrip() + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text)
    print(text)


def write_csv(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `rows` to results/`name`."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / name, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
