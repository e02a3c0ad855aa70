"""The program of a client's process: it listens on a Unix socket and answers the server's messages.

It keeps TensorFlow, the data and the graphs in memory. With `--free-memory` it stays small, and starts a process for each message
that ends with its answer: then all memory is free again, a GPU's too.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
from typing import Optional

from tff_kit.deploy import channel, children

START_SECONDS = 180.0
"""How long a client's process may take until it listens. A Raspberry Pi takes half a minute to import TensorFlow."""

SETTINGS = b"\0"
"""What a message begins with that is `messages.Settings`; to import these would import TensorFlow."""


def command(
    task: str, socket: pathlib.Path, data: str, client: Optional[str], watch: int, free_memory: bool = False
) -> list[str]:
    """Returns the command that starts a client's process, which ends with the process `watch`."""
    made = [sys.executable, "-m", "tff_kit.deploy.client_process", task, "--socket", str(socket), "--data", data]
    made += ["--watch", str(watch), *(["--free-memory"] if free_memory else [])]
    return [*made, "--client", client] if client else made


class Fresh:
    """Answers each message in a new process, which first gets the settings, and ends with the answer.

    Args:
      command: That starts the process.
      socket: Where it listens.
    """

    def __init__(self, command: list[str], socket: pathlib.Path):
        self._command, self._socket = command, socket
        self._settings: Optional[bytes] = None

    def answer(self, message: bytes) -> bytes:
        """Returns the answer to a message; raises `ConnectionError` where the process ends before."""
        first = self._settings
        if message.startswith(SETTINGS):
            self._settings, first = message, None
        with children.running(self._command, None) as process:
            if first is not None:
                self._ask(first, process)
            return self._ask(message, process)

    def _ask(self, message: bytes, process: subprocess.Popen) -> bytes:
        return channel.ask(self._socket, message, START_SECONDS, lambda: process.poll() is not None)


def main() -> None:
    """Reads the arguments and answers until the watched process ends."""
    parser = argparse.ArgumentParser(prog="python -m tff_kit.deploy.client_process")
    parser.add_argument("task", help="The task's name.")
    parser.add_argument("--socket", type=pathlib.Path, required=True, help="Where to listen.")
    parser.add_argument("--data", required=True, help="Where the client's data is.")
    parser.add_argument("--client", help="The client's id, where the data is of more than one.")
    parser.add_argument("--watch", type=int, required=True, help="The process to end with.")
    parser.add_argument("--free-memory", action="store_true", help="Answer each message in a process of its own.")
    arguments = parser.parse_args()
    children.end_with(arguments.watch)
    if arguments.free_memory:
        socket = arguments.socket.with_suffix(".fresh")
        fresh = command(arguments.task, socket, arguments.data, arguments.client, os.getpid())
        channel.answer_all(arguments.socket, Fresh(fresh, socket).answer)
    children.import_tensorflow()
    from tff_kit.deploy.node import Node, find_federated_task

    node = Node(find_federated_task(arguments.task), arguments.data, arguments.client)
    channel.answer_all(arguments.socket, node.answer)


if __name__ == "__main__":
    main()
