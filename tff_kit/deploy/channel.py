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

_RETRY_SECONDS = 0.2


def ask(socket: pathlib.Path, message: bytes, start_seconds: float) -> bytes:
    """Returns the answer of the process that listens on `socket`, or will within `start_seconds`.

    Raises:
      ConnectionError: If none listens, or it ended before it answered.
    """
    until = time.monotonic() + start_seconds
    while True:
        try:
            link = connection.Client(str(socket), "AF_UNIX")
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(f"Expected a process that listens on {socket}, found none: {error}.") from error
            time.sleep(_RETRY_SECONDS)
    with link:
        link.send_bytes(message)
        try:
            return link.recv_bytes()
        except EOFError:
            raise ConnectionError("Expected an answer of the client's process, found that it ended.") from None


def answer_all(socket: pathlib.Path, answer: Callable[[bytes], bytes]) -> None:
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
