"""What a measurement says of where it ran: the processor and the versions of what computes."""

from __future__ import annotations

import pathlib
import platform
from importlib import metadata
from typing import Optional


def processor() -> str:
    """Returns the processor's model, or its architecture where the system does not tell the model."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, Optional[str]]:
    """Returns the versions of Python, TensorFlow and TensorFlow Federated; `None` for a package that is not installed."""
    found: dict[str, Optional[str]] = {"python": platform.python_version()}
    for package in ("tensorflow", "tensorflow_federated"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
