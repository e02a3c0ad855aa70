"""The program of a client's long-lived process: it listens on a Unix socket and answers by `node.Node`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Optional

from tff_kit.deploy import channel
from tff_kit.deploy.children import end_with, import_quietly


def command(task: str, socket: pathlib.Path, data: str, client: Optional[str], watch: int) -> list[str]:
    """Returns the command that starts a client's process, which ends with the process `watch`."""
    made = [sys.executable, "-m", "tff_kit.deploy.client_process", task, "--socket", str(socket), "--data", data]
    made += ["--watch", str(watch)]
    return [*made, "--client", client] if client else made


def main() -> None:
    """Reads the arguments and answers until the watched process ends."""
    parser = argparse.ArgumentParser(prog="python -m tff_kit.deploy.client_process")
    parser.add_argument("task", help="The task's name.")
    parser.add_argument("--socket", type=pathlib.Path, required=True, help="Where to listen.")
    parser.add_argument("--data", required=True, help="Where the client's data is.")
    parser.add_argument("--client", help="The client's id, where the data is of more than one.")
    parser.add_argument("--watch", type=int, required=True, help="The process to end with.")
    arguments = parser.parse_args()
    end_with(arguments.watch)
    import_quietly("tensorflow")
    from tff_kit.deploy.node import Node, find_federated_task

    node = Node(find_federated_task(arguments.task), arguments.data, arguments.client)
    channel.answer_all(arguments.socket, node.answer)


if __name__ == "__main__":
    main()
