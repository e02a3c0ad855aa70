"""Memory of long runs: what a round leaves behind goes back to the system before the next ones pile up on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Callable


@contextlib.contextmanager
def given_back() -> Iterator[Callable[[], None]]:
    """Yields a function to call every few rounds, a matter of milliseconds.

    The results of TFF's rounds, model and all, hang in reference cycles. Python looks for such when new objects are a quarter
    of all, and with TensorFlow there are half a million: hundreds of MiB would wait. So it only looks at what is made in here.
    And what was freed the C library keeps in its pools, unless told.
    """
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # The GNU library has it.

    def give_back() -> None:
        gc.collect()
        trim(0)

    try:
        yield give_back
    finally:
        give_back()
        gc.unfreeze()
