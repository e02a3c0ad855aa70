"""The program of a client's process: it listens on a Unix socket and answers the server's messages.

It keeps TensorFlow, the data and the graphs in memory. With `--free-memory` it stays small, and starts a process for each model
to train that ends with its answer: then all memory is free again, a GPU's too. A client that is not sampled starts none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Optional

from tff_kit.deploy import channel, children, messages, written

START_SECONDS = 180.0
"""How long a client's process may take until it listens. A Raspberry Pi takes half a minute to import TensorFlow."""


def command(
    task: str, socket: pathlib.Path, data: str, client: Optional[str], watch: int, free_memory: bool = False
) -> list[str]:
    """Returns the command that starts a client's process, which ends with the process `watch`."""
    made = [sys.executable, "-m", "tff_kit.deploy.client_process", task, "--socket", str(socket), "--data", data]
    made += ["--watch", str(watch), *(["--free-memory"] if free_memory else [])]
    return [*made, "--client", client] if client else made


class Fresh:
    """Answers each model in a new process, which first gets the settings, and ends with the answer.

    Settings are answered without one where the client's id is known: its checks are made with the first model then.

    Args:
      command: That starts the process.
      socket: Where it listens.
      task: The task's name.
      client: The client's id; `None` where the process has to find it in the data.
    """

    def __init__(self, command: list[str], socket: pathlib.Path, task: str, client: Optional[str]):
        self._command, self._socket, self._task, self._client = command, socket, task, client
        self._settings: Optional[bytes] = None

    def answer(self, message: bytes) -> bytes:
        """Returns the answer to a message; raises `ConnectionError` where the process ends before."""
        settings = _read_settings(message)
        if settings is None:
            return self._ask_anew(*([self._settings] if self._settings else []), message)
        self._settings = message
        if self._client is None or settings.task != self._task:
            return self._ask_anew(message)
        return messages.Hello(self._client, _versions()).pack()

    def _ask_anew(self, *asked: bytes) -> bytes:
        """Returns a new process's answer to the last of these messages."""
        with children.running(self._command, None) as process:
            return [self._ask(message, process) for message in asked][-1]

    def _ask(self, message: bytes, process: subprocess.Popen) -> bytes:
        return channel.ask(self._socket, message, START_SECONDS, lambda: process.poll() is not None)


def _read_settings(message: bytes) -> Optional[messages.Settings]:
    try:
        found = messages.unpack(message)
    except messages.MessageError:
        return None
    return found if isinstance(found, messages.Settings) else None


def _versions() -> dict[str, str]:
    """Returns what a hello says of the environment, as `Node` does with TensorFlow at hand."""
    return {"python": platform.python_version(), "tensorflow": _tensorflow_version(), "machine": platform.machine()}


def _tensorflow_version() -> str:
    for package in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return "unknown"


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
        client = arguments.client or written.client_of(pathlib.Path(arguments.data))
        channel.answer_all(arguments.socket, Fresh(fresh, socket, arguments.task, client).answer)
    children.import_tensorflow()
    from tff_kit.deploy.node import Node, find_federated_task

    node = Node(find_federated_task(arguments.task), arguments.data, arguments.client)
    channel.answer_all(arguments.socket, node.answer)


if __name__ == "__main__":
    main()
