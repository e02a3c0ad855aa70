"""The base class of all errors that a user can mend, and what is told of other errors."""

from __future__ import annotations

import re
from typing import Any


class UserError(Exception):
    """An error that a user can mend. The message says what was expected, what was found and what to do.

    The command line prints the message, without a traceback, and ends with exit code 2.
    """


def first_line(message: Any) -> str:
    """Returns the first line of a message that tells something, without TensorFlow's operations and a stop at its end."""
    lines = [line.strip() for line in str(message).strip().split("\n") if line.strip() and not line.strip().startswith("[[")]
    if not lines:
        return ""
    # Keras puts the places in the code before what TensorFlow says.
    line = lines[-1 if lines[0].startswith("Graph execution error") else 0]
    return re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", line).rstrip(". ")
