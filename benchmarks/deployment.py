"""Runs a server and its clients as processes of .venv-deploy, for the benchmarks of real clients."""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Callable

from benchmarks import results

PYTHON = results.ROOT / ".venv-deploy" / "bin" / "python"
_TASK, _DATA = "emnist", "digits"
_END_SECONDS = 60.0


class Deployment:
    """Clients that have joined a server's address, each with its own data and credential.

    Args:
      folder: Of credentials, data, logs and runs.
      clients: Their ids in scikit-learn's digits.
      address: Of the server, HOST:PORT.
      prefix: Returns what stands before a client's command, such as a network namespace to run it in.
      pause: Seconds between the starts of two clients, where so many at once would be too much for the machine.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        clients: Sequence[str],
        address: str,
        prefix: Callable[[str], Sequence[str]] = lambda client: (),
        pause: float = 0.0,
    ):
        if not PYTHON.exists():
            raise SystemExit("error: Expected the environment .venv-deploy, found none. Make it with: make setup-deploy")
        self._folder, self._clients, self._address, self._prefix, self._pause = folder, clients, address, prefix, pause
        self.processes: dict[str, subprocess.Popen] = {}  # Of the clients that have joined.

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Keeps the clients at the address while the context lasts."""
        self.prepare(self._clients)
        with contextlib.ExitStack() as stack:
            for client in self._clients:
                own = ("--data", self._folder / "data" / client, "--credential", self._folder / "keys" / client)
                log = stack.enter_context(open(self._folder / f"{client}.log", "w"))
                command = [*self._prefix(client), *_command("join", self._address, _TASK, *own)]
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
                self.processes[client] = process
                stack.callback(process.wait, _END_SECONDS)
                stack.callback(process.terminate)
                time.sleep(self._pause)
            yield

    def prepare(self, of: Sequence[str]) -> None:
        """Makes the clients' credentials in keys/, and in data/ the data of the clients `of`."""
        host = self._address.rpartition(":")[0]
        self._run("credential", self._folder / "keys", "--hosts", host, "--nodes", *self._clients)
        self._run("partition", _TASK, "--data", _DATA, "--only", *of, "--out", self._folder / "data")

    def train(self, name: str, settings: Sequence[str]) -> list[dict[str, float]]:
        """Trains with the clients into the folder `name`; returns its metrics, a row a round.

        Args:
          name: Of the run.
          settings: As on the command line of `serve`.
        """
        self._run(*self._serve(name, settings))
        return self.metrics(name)

    def start(self, name: str, settings: Sequence[str]) -> subprocess.Popen:
        """Starts a training as `train` does, and returns the server's process."""
        with open(self._folder / "server.log", "a") as log:
            command = _command(*self._serve(name, settings))
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Returns the metrics of a run, a row a round."""
        path = self._folder / name / "metrics.csv"
        if not path.exists():
            return []
        with open(path, newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def _serve(self, name: str, settings: Sequence[str]) -> list[object]:
        where = ["--address", self._address, "--credential", self._folder / "keys" / "server", "--logdir", self._folder / name]
        return ["serve", _TASK, "--data", _DATA, "--clients", len(self._clients), *settings, *where]

    def _run(self, *arguments: object) -> None:
        with open(self._folder / "server.log", "a") as log:
            done = subprocess.run(_command(*arguments), stdout=log, stderr=subprocess.STDOUT, env=environment(), check=False)
        if done.returncode:
            last = (self._folder / "server.log").read_text()[-2000:]
            raise SystemExit(f"error: Expected tff_kit {arguments[0]} to end well, found exit code {done.returncode}:\n{last}")


def _command(*arguments: object) -> list[str]:
    return [str(PYTHON), "-m", "tff_kit", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Returns the environment of these processes. Flower's would else import the installed tff_kit, of whichever checkout."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(results.ROOT)}


def free_address() -> str:
    """Returns an address on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        return f"127.0.0.1:{any_server.getsockname()[1]}"
