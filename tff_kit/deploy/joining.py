"""A real client: Flower's SuperNode and the process that trains, started again where they end. It imports no TensorFlow."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Optional

from tff_kit.deploy import children, client_process
from tff_kit.deploy.addresses import free_port
from tff_kit.errors import UserError

_POLL_SECONDS = 0.2
_AT_ONCE_SECONDS = 5.0  # A client's process that ends before did not start.
_AGAIN_SECONDS = 5.0  # Until a SuperNode that ended is started again; its old lease lasts up to 60 s.


def join(server: str, task: str, data: str, client: Optional[str], credential: Any, free_memory: bool) -> None:
    """Takes part in the trainings of a server until this process is ended.

    Args:
      server: Where the server is, HOST:PORT.
      task: The task to take part in.
      data: Where this client's data is.
      client: This client's id; `None` where the data is of one client.
      credential: This node's, a `NodeCredential`; `None` connects unencrypted.
      free_memory: Whether the process that trains ends with each round.

    Raises:
      tff_kit.errors.UserError: If the client's process can't start, or another project's app asks for this node.
    """
    from tff_kit.deploy import engine  # Flower, which only a deployment's environment has.

    with children.ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="tff_kit-") as name:
        folder = pathlib.Path(name)
        command = client_process.command(task, folder / "node", data, client, os.getpid(), free_memory)
        print(f"Taking part in {task} on {server} with the data {data}, until Ctrl-C.", flush=True)
        with _ClientProcess(command) as process:
            while True:
                with engine.supernode(server, folder, credential, folder / "node", free_port()) as node:
                    while node.poll() is None:
                        process.keep()
                        time.sleep(_POLL_SECONDS)
                if node.returncode == engine.FOREIGN_APP_CODE:
                    raise engine.EngineError(engine.FOREIGN_APP)
                print(
                    f"Note: The link to {server} ended; it is opened again. {children.last_line(folder / 'supernode.log')}",
                    flush=True,
                )
                time.sleep(_AGAIN_SECONDS)


class _ClientProcess:
    """A client's process, which is started again where it ends."""

    def __init__(self, command: Sequence[str]):
        self._command, self._stack = command, contextlib.ExitStack()

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def keep(self) -> None:
        """Starts the process again if it has ended; raises `UserError` if it did so at once."""
        if self._process.poll() is None:
            return
        if time.monotonic() - self._started < _AT_ONCE_SECONDS:
            raise UserError("Expected the client's process to start, found that it ended at once; it says why above.")
        print("Note: The client's process ended; it is started again.", flush=True)
        self._stack.close()
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = self._stack.enter_context(children.running(self._command, None))
