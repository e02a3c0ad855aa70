"""Messages between two processes of one machine and user, through a Unix socket. Imports nothing slow.

What connects asks once and is answered once. Where the socket is, decides who may connect: its folder is the user's alone.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import NoReturn

_RETRY_SECONDS = 0.2


def ask(socket: pathlib.Path, message: bytes, start_seconds: float, has_ended: Callable[[], bool] = lambda: False) -> bytes:
    """Returns the answer of the process that listens on `socket`, or will within `start_seconds`.

    Args:
      socket: Where.
      message: What to ask.
      start_seconds: How long the process may take until it listens.
      has_ended: Whether the process has ended, so that it never will.

    Raises:
      ConnectionError: If none listens, or it ended before it answered.
    """
    until = time.monotonic() + start_seconds
    while True:
        try:
            link = connection.Client(str(socket), "AF_UNIX")
            break
        except OSError as error:
            if has_ended() or time.monotonic() > until:
                raise ConnectionError(f"Expected a process that listens on {socket}, found none: {error}.") from error
            time.sleep(_RETRY_SECONDS)
    with link:
        try:
            link.send_bytes(message)
            return link.recv_bytes()
        except (EOFError, OSError):
            raise ConnectionError("Expected an answer of the client's process, found that it ended.") from None


def answer_all(socket: pathlib.Path, answer: Callable[[bytes], bytes]) -> NoReturn:
    """Answers whoever connects to `socket`, one after another, for ever."""
    with contextlib.suppress(FileNotFoundError):
        socket.unlink()
    mask = os.umask(0o177)
    try:
        listener = connection.Listener(str(socket), "AF_UNIX")
    finally:
        os.umask(mask)
    while True:
        with contextlib.suppress(EOFError, OSError), listener.accept() as link:
            link.send_bytes(answer(link.recv_bytes()))
