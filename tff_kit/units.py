"""Sizes as people read them."""

from __future__ import annotations


def format_size(bits: float) -> str:
    """Returns a readable size: `format_size(532278400)` is `'507.62 Mibit'`."""
    for unit in ("bit", "Kibit", "Mibit", "Gibit"):
        if bits < 1024:
            return f"{bits:.2f} {unit}"
        bits /= 1024
    return f"{bits:.2f} Tibit"
