"""Memory of long runs: returns to the system what finished rounds leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Callable


@contextlib.contextmanager
def given_back() -> Iterator[Callable[[], None]]:
    """Yields a function that frees the memory of finished rounds. Call it every few rounds; it takes milliseconds.

    The results of TFF's rounds, including the model, are held by reference cycles. Python collects cycles once new objects are a
    quarter of all objects. TensorFlow has half a million objects, so hundreds of MiB would wait. Inside this context, Python
    checks only the objects created in it. The C library then returns the freed memory to the system.
    """
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # Only the GNU library has it.

    def give_back() -> None:
        gc.collect()
        trim(0)

    try:
        yield give_back
    finally:
        give_back()
        gc.unfreeze()
