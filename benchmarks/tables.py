"""Writes the tables in README.md and docs/ from the files in results/, so that no number in a table is typed.

    python -m benchmarks.tables            writes them
    python -m benchmarks.tables --check    fails if a table differs from its file, or a file from what its benchmark wrote

A table stands between two comments. The first one names the file and has the header row, the row of every line with Python's
format fields for the columns, and which rows are shown:

    <!-- table results/emnist/accuracy.csv
    | both ways | test accuracy | broadcast |
    | `{encoder}` | {test_accuracy:.4f} | {broadcast_bits:bits} |
    where client_lr = 0.1; 0.02
    -->
    <!-- end -->

The format `bits` writes a number of bits as `1.43 Gibit`. A cell is empty where one of its columns is. `source no` leaves out the
line below the table that says when, where and by which command it was measured.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import string
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tff_kit
from benchmarks.results import ROOT, ResultsError, describe, read

_TABLE = re.compile(r"^<!-- table (\S+)\n(.*?)^-->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
_OPENING = re.compile(r"^<!-- table\b", re.MULTILINE)
_LABELS = {"python": "Python", "tensorflow": "TensorFlow", "tensorflow_federated": "TensorFlow Federated"}
_WHERE = re.compile(r"where (\w+) = (.+)")


class _Marker(NamedTuple):
    """What the comment above a table asks for."""

    header: str
    row: str
    where: list[tuple[str, list[str]]]
    with_source: bool


class _Cell(string.Formatter):
    """Formats one cell from the text of a row's columns."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "bits":
            return tff_kit.format_size(float(value))
        return super().format_field(float(value), format_spec) if format_spec else str(value)

    def fill(self, template: str, row: dict[str, str]) -> str:
        """Returns the cell; raises `ResultsError` for a column that is not there or is no number where one is needed."""
        columns = [name for _, name, _, _ in self.parse(template) if name is not None]
        for name in columns:
            if name not in row:
                raise ResultsError(f"Expected one of the columns {', '.join(row)}; found {name!r}.")
        if any(row[name] == "" for name in columns):
            return ""
        try:
            return self.vformat(template, (), row)
        except ValueError as error:
            raise ResultsError(f"Expected a format that fits {template.strip()}, found: {error}.") from error


def write_tables(text: str, root: pathlib.Path) -> str:
    """Returns a Markdown document with all its tables written anew; raises `ResultsError` for one that can't be.

    Args:
      text: The document.
      root: The folder that the tables' paths start from.
    """
    markers, tables = len(_OPENING.findall(text)), len(_TABLE.findall(text))
    if markers != tables:
        raise ResultsError(f"Expected `-->` and `<!-- end -->` on lines of their own after {markers} tables, found {tables}.")
    return _TABLE.sub(lambda match: _written(match, root), text)


def _written(match: re.Match[str], root: pathlib.Path) -> str:
    name, comment, _ = match.groups()
    try:
        marker = _parse(comment)
        lines = _table(marker, read(root / name))
        source = describe(root / name)
    except ResultsError as error:
        raise ResultsError(f"table {name}: {error}") from error
    if marker.with_source:
        lines += ["", _source_line(name, source)]
    return "\n".join([f"<!-- table {name}", f"{comment}-->", "", *lines, "", "<!-- end -->"])


def _parse(comment: str) -> _Marker:
    rows, where, with_source = [], [], True
    for line in comment.splitlines():
        condition = _WHERE.fullmatch(line.strip())
        if line.startswith("|"):
            rows.append(line.strip())
        elif condition:
            where.append((condition[1], [value.strip() for value in condition[2].split(";")]))
        elif line.strip() == "source no":
            with_source = False
        else:
            raise ResultsError(
                f"Expected a row that begins with |, `where COLUMN = VALUE; VALUE` or `source no`; found {line!r}."
            )
    if len(rows) != 2 or len(_cells(rows[0])) != len(_cells(rows[1])):
        raise ResultsError(f"Expected a header row and a row of as many cells, found {len(rows)} rows.")
    return _Marker(rows[0], rows[1], where, with_source)


def _table(marker: _Marker, rows: Sequence[dict[str, str]]) -> list[str]:
    for column, values in marker.where:
        if rows and column not in rows[0]:
            raise ResultsError(f"Expected one of the columns {', '.join(rows[0])}; found {column!r}.")
        missing = set(values) - {row[column] for row in rows}
        if missing:
            raise ResultsError(f"Expected rows with {column} = {'; '.join(sorted(missing))}, found none.")
        rows = [row for row in rows if row[column] in values]
    if not rows:
        raise ResultsError("Expected rows to show, found none.")
    templates = _cells(marker.row)
    lines = [[_Cell().fill(template, row) for template in templates] for row in rows]
    return [marker.header, "|---" * len(templates) + "|", *("| " + " | ".join(line) + " |" for line in lines)]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _source_line(name: str, source: dict[str, Any]) -> str:
    """Returns when, where and by which command the numbers were measured, as far as that was recorded."""
    commit = (source["commit"] or "unknown")[:7]
    when = f"Measured {source['date']} at commit {commit}{' with changes' * bool(source['changed'])}"
    if source["changed"] is None:  # Of before results files named their source.
        when = f"Measured before commit {commit} of {source['date']}"
    where = f"{source['cores']} cores of {source['processor'] or 'a processor that was not recorded'}"
    versions = ", ".join(f"{label} {version}" for key, label in _LABELS.items() if (version := source["versions"].get(key)))
    return f"{when}, on {where}, {versions}: `{source['command']}`. Numbers: `{name}`."


def main(arguments: Sequence[str]) -> int:
    """Writes or checks all documents; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Writes the documents' tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table differs from its file")
    check = parser.parse_args(arguments).check
    wrong = []
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = document.read_text()
        try:
            written = write_tables(text, ROOT)
        except ResultsError as error:
            wrong.append(f"{document.relative_to(ROOT)}, {error}")
            continue
        if written != text and check:
            wrong.append(f"{document.relative_to(ROOT)}: Expected its tables as `make tables` writes them, found others.")
        elif written != text:
            document.write_text(written)
            print(f"wrote the tables of {document.relative_to(ROOT)}")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
