"""Whose data a folder of `partition` holds, read without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Optional

DESCRIPTION = "client.json"
"""The file in a client's folder that says whose it is."""


def client_of(folder: pathlib.Path) -> Optional[str]:
    """Returns the id of the client whose data is in `folder`, `None` where that is not said."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / DESCRIPTION).read_text())["client"])
    return None
