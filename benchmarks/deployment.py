"""Runs a server and its clients as processes of .venv-deploy, for the benchmarks of real clients. They end with the benchmark."""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable, Optional

from benchmarks import results
from tff_kit.deploy import children
from tff_kit.deploy.addresses import free_port

ENVIRONMENT = results.ROOT / ".venv-deploy"
PYTHON = ENVIRONMENT / "bin" / "python"
_DIGITS = ("emnist", "--data", "digits")
_END_SECONDS = 60.0


class Deployment:
    """Clients that have joined a server's address, each with its own data and credential.

    Args:
      folder: Of credentials, data, logs and runs.
      clients: Their ids in the data.
      address: Of the server, HOST:PORT.
      prefix: Returns what stands before a client's command, such as a network namespace to run it in.
      task: Its name and the settings of its data; by default scikit-learn's digits.
      join: More flags of `join`.
      pythons: The Python of clients that do not use .venv-deploy's, by client.
      pause: Seconds between the starts of two clients, so that many do not take the machine from others.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        clients: Sequence[str],
        address: str,
        prefix: Callable[[str], Sequence[str]] = lambda client: (),
        task: Sequence[str] = _DIGITS,
        join: Sequence[str] = (),
        pythons: Optional[Mapping[str, str]] = None,
        pause: float = 0.0,
    ):
        if not PYTHON.exists():
            raise SystemExit("error: Expected the environment .venv-deploy, found none. Make it with: make setup-deploy")
        self._folder, self._clients, self._address, self._prefix = folder, clients, address, prefix
        self._task, self._join, self._pythons, self._pause = task, join, pythons or {}, pause
        self.processes: dict[str, subprocess.Popen] = {}  # Of the clients that have joined.

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Keeps the clients at the address while the context lasts."""
        self.prepare(self._clients)
        with contextlib.ExitStack() as stack:
            for client in self._clients:
                own = ("--data", self._folder / "data" / client, "--credential", self._folder / "keys" / client)
                log = stack.enter_context(open(self._folder / f"{client}.log", "w"))
                join = _command("join", self._address, self._task[0], *own, *self._join, python=self._pythons.get(client))
                command = children.bound([*self._prefix(client), *join])
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
        self._run("partition", *self._task, "--only", *of, "--out", self._folder / "data")

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
            command = children.bound(_command(*self._serve(name, settings)))
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Returns the metrics of a run, a row a round."""
        path = self._folder / name / "metrics.csv"
        if not path.exists():
            return []
        with open(path, newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    @property
    def server_log(self) -> str:
        """What the server has said."""
        return (self._folder / "server.log").read_text()

    def _serve(self, name: str, settings: Sequence[str]) -> list[object]:
        where = ["--address", self._address, "--credential", self._folder / "keys" / "server", "--logdir", self._folder / name]
        return ["serve", *self._task, "--clients", len(self._clients), *settings, *where]

    def _run(self, *arguments: object) -> None:
        with open(self._folder / "server.log", "a") as log:
            command = children.bound(_command(*arguments))
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), check=False)
        if done.returncode:
            last = self.server_log[-2000:]
            raise SystemExit(f"error: Expected tff_kit {arguments[0]} to end well, found exit code {done.returncode}:\n{last}")


def _command(*arguments: object, python: Optional[str] = None) -> list[str]:
    return [python or str(PYTHON), "-m", "tff_kit", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Returns the environment of these processes. Flower's would else import the installed tff_kit, of whichever checkout."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(results.ROOT)}


def installed_megabytes(environment: pathlib.Path) -> int:
    """Returns the size of an environment and of the package, with what Python compiled."""
    files = [file for folder in (environment.resolve(), results.ROOT / "tff_kit") for file in folder.rglob("*")]
    return round(sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6)


def free_address() -> str:
    """Returns an address on loopback that nobody listens on."""
    return f"127.0.0.1:{free_port()}"
