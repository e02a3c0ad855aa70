"""Reads metrics.csv: rows of numbers, each of them whole."""

from __future__ import annotations

import csv
import io
import re
import reprlib
from typing import Any, Union

_WHOLE = ("round", "epoch", "broadcast_bits", "aggregate_bits")  # Numbers that no row lacks.


def parse(text: str) -> list[dict[str, Any]]:
    """Returns the rows as numbers, with `None` for empty cells; raises `ValueError` that tells in a few words what is damaged."""
    try:
        names, *rows = [cells for cells in csv.reader(io.StringIO(text, newline="")) if cells] or [[]]
    except csv.Error as error:
        raise ValueError(f"no table: {error}") from error
    if not {"round", "epoch"}.intersection(names):
        raise ValueError("no names of its columns in the first line")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the column {twice[0]} twice")
    parsed = [_parse_row(f"row {place}", names, cells) for place, cells in enumerate(rows, 1)]
    if not text.endswith(("\n", "\r")):  # The last number may be half of one.
        raise ValueError("no end of its last line")
    return parsed


def _parse_row(which: str, names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} instead of {len(names)} cells in {which}")
    row = {}
    for name, cell in zip(names, cells):
        try:
            row[name] = read_number(cell)
            if name in _WHOLE and not isinstance(row[name], int):
                raise ValueError
        except ValueError:
            raise ValueError(f"{reprlib.repr(cell)} as {name} in {which}") from None
    return row


def read_number(text: str) -> Union[int, float, None]:
    """Returns the number in a cell of a CSV file, `None` for an empty one; raises `ValueError` for what is none."""
    if not text:
        return None
    return int(text) if re.fullmatch("[0-9]+", text) else float(text)
