"""Checks for TensorFlow Federated, which simulates a federation."""

from __future__ import annotations

import importlib.util
import platform


def require_tff() -> None:
    """Raises `ImportError`, in one sentence that says what to do, where TensorFlow Federated is not installed."""
    if importlib.util.find_spec("tensorflow_federated") is None:
        raise ImportError(
            "Expected TensorFlow Federated 0.87, which simulates the clients, found none. It exists for Python 3.9 to 3.11 "
            f"on Linux x86-64 only, and this is Python {platform.python_version()} on {platform.system()} {platform.machine()}. "
            "Install it with `make setup` in a clone of tff_kit, or as docs/install.md says. Encoders, tasks and settings work "
            "without it."
        )
