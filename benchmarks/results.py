"""What a benchmark leaves behind: NAME.csv with the numbers and NAME.json that says where they come from.

The JSON file has the command, the data, the seeds, what the spread is, the commit and whether files differed from it, date,
processor, cores, versions, and the SHA-256 of the CSV file. `benchmarks.tables` writes the documents' tables from these files.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
QUICK_RESULTS = ROOT / "logs" / "results-quick"
"""Where `--quick` writes, so that a smoke test never replaces a measurement."""

# A result is of today's code if nothing of this has changed since.
_MEASURED = ("tff_kit", "benchmarks", "requirements.txt", ":!benchmarks/__main__.py", ":!benchmarks/tables.py")
Row = dict[str, Any]


class ResultsError(ValueError):
    """A results file that is missing, incomplete or changed by hand."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What a benchmark knows of its own numbers.

    Attributes:
      command: The command that measures them, with FOLDER for a user's own folder.
      data: What was trained on, or which numbers were drawn.
      seeds: Which random seeds, in words.
      spread: What the spread or the error in the columns is, or that there is none.
    """

    command: str
    data: str
    seeds: str
    spread: str


def path(name: str, suffix: str, quick: bool = False) -> pathlib.Path:
    """Returns where the file of a result is, and makes its folder; `name` is TOPIC/NAME."""
    file = (QUICK_RESULTS if quick else RESULTS) / f"{name}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def runs_folder(name: str, quick: bool = False) -> pathlib.Path:
    """Returns where the runs of a benchmark are kept: for each commit a folder of its own, so that no run of other code counts.

    A smoke test starts from an empty folder.
    """
    if quick:
        folder = QUICK_RESULTS / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder
    return ROOT / "logs" / "results" / (_git("rev-parse", "--short=12", "HEAD") or "no-commit") / name


def write(name: str, rows: Sequence[Row], source: Source, quick: bool = False) -> None:
    """Writes `rows` to TOPIC/NAME.csv and where they come from to TOPIC/NAME.json, and prints them.

    Args:
      name: TOPIC/NAME, in results/ or, if `quick`, in logs/results-quick/.
      rows: The numbers by column; every row has the same columns, `None` for a cell that stays empty.
      source: Where they come from.
      quick: Whether this was a smoke test.
    """
    file = path(name, ".csv", quick)
    part = file.with_suffix(".part")
    with open(part, "w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(file)
    described = {**dataclasses.asdict(source), **_circumstances(), "sha256": sha256(file)}
    file.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    _print(file, rows)


def read(file: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of a results file as text; raises `ResultsError` where there is no such file."""
    try:
        with open(file, newline="") as opened:
            return list(csv.DictReader(opened))
    except OSError as error:
        raise ResultsError(f"Expected a results file at {file}, found none: {error.strerror}.") from error


def describe(file: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON file beside a results file; raises `ResultsError` where it is missing or is of other numbers."""
    try:
        described = json.loads(file.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"Expected the source of {file} in the .json file beside it, found: {error}.") from error
    if described.get("sha256") != sha256(file):
        raise ResultsError(f"Expected {file} as its benchmark wrote it, found it changed since; measure it again.")
    return described


def is_current(name: str) -> bool:
    """Returns whether results/`name` was measured with the code as it is now, at a commit that had all of it."""
    try:
        described = describe(RESULTS / f"{name}.csv")
    except (ResultsError, OSError):
        return False
    if described["changed"] is not False:
        return False
    return _git("diff", "--stat", described["commit"], "--", *_MEASURED) == ""


def sha256(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def spread(column: str, values: Sequence[float]) -> Row:
    """Returns three cells: the mean of `values` in `column`, the smallest in `column`_min, the largest in `column`_max."""
    mean = round(statistics.mean(values), 7)
    return {column: mean, f"{column}_min": min(values), f"{column}_max": max(values)}


def in_words(seeds: Iterable[int]) -> str:
    """Returns seeds in words: `0 to 2`."""
    ordered = sorted(seeds)
    first, last = ordered[0], ordered[-1]
    return str(first) if first == last else f"{first} to {last}"


def _circumstances() -> Row:
    from tff_kit.analysis import notebook  # Only here: `benchmarks.tables` needs no TensorFlow.
    from tff_kit.training import runs

    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "changed": _git("status", "--porcelain", "--", *_MEASURED) != "" if commit else None,
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "processor": notebook.processor(),
        "cores": os.cpu_count(),
        "versions": runs.versions(),
    }


def _git(*arguments: str) -> Optional[str]:
    """Returns what git answers, `None` where there is no git, no repository or no such commit."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _print(file: pathlib.Path, rows: Sequence[Row]) -> None:
    table = Table(title=str(file.relative_to(ROOT)), title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    Console(width=20 * len(rows[0])).print(table)  # A narrower one would break numbers where there are many columns.
