"""How many nodes a server can have: seconds a round, memory and processor of its programs with whole nodes and with light ones.

    python -m benchmarks.many_nodes

Whole nodes are `join` processes. Light nodes (`benchmarks.light_nodes`) are threads of a few processes. Each has its own key and
its own TLS connection, and speaks to the server by the client code of Flower's SuperNode. Server and nodes share this machine.

A training goes on until all nodes have said hello, and for --rounds more. The round in which the last node comes does not count.
After --minutes a training is given up; its row then has what there is.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import tyro

from benchmarks import deployment, results
from tff_kit.deploy import children

_SETTINGS = "--filters 2 --broadcast uniform:8,nearest --mean uniform:8,nearest --threshold 1000 --eval-every 1000000"
_RUN = "run"
_POLL_SECONDS = 0.5
_END_SECONDS = 60.0
_PAUSE_SECONDS = 8.0  # Between the starts of whole nodes; each imports TensorFlow.
_A_PROCESS = 250  # Light nodes in one process.
_SECONDS = ("seconds_a_round", "seconds_a_round_min", "seconds_a_round_max")
# The server's programs, by a word of their command lines.
_PROGRAMS = {"server_app": "flwr-serverapp", "superlink": "flower-superlink", "serve": "tff_kit serve"}


def main(
    whole: int = 10,
    light: tuple[int, ...] = (100, 1000),
    sampled: int = 10,
    rounds: int = 3,
    minutes: float = 20.0,
    quick: bool = False,
) -> None:
    """Measures and writes results/deploy/many_nodes.csv.

    Args:
        whole: Whole nodes, at most 14; each takes up to 1 GB. 0 for none.
        light: Numbers of light nodes.
        sampled: Clients of a round. Rounds of all nodes are measured too.
        rounds: Of each training, that count.
        minutes: Until a training is given up.
        quick: Try three light nodes, into logs/results-quick/.
    """
    if quick:
        whole, light, sampled, rounds = 0, (3,), 3, 2
    _allow_open_files()
    cases = [("whole", whole, min(whole, sampled))] if whole else []
    cases += [("light", nodes, clients) for nodes in light for clients in sorted({min(sampled, nodes), nodes})]
    command = f"python -m benchmarks.many_nodes --whole {whole} --light {' '.join(map(str, light))} --sampled {sampled}"
    source = results.Source(
        command=f"{command} --rounds {rounds} --minutes {minutes:g}",
        data=f"the digits of scikit-learn; TLS and node authentication on, loopback; {_SETTINGS}. All light nodes of a process "
        "send the update that one of them trained",
        seeds="0",
        spread="shortest and longest round. MiB: the largest resident memory of each program. CPU percent: of one core, in the "
        "rounds that count, or all the while where there was none; nodes and server share the machine",
    )
    rows = []
    with children.ended_by_sigterm():
        for kind, nodes, clients in cases:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_measure(pathlib.Path(folder), kind, nodes, clients, rounds, minutes))
            results.write("deploy/many_nodes", rows, source, quick)  # Each time, since a row can take long.


def _measure(folder: pathlib.Path, kind: str, nodes: int, clients: int, rounds: int, minutes: float) -> results.Row:
    names = [f"{'form' if kind == 'whole' else 'light'}{i:02d}" for i in range(nodes)]
    address = deployment.free_address()
    deployed = deployment.Deployment(folder, names, address, pause=_PAUSE_SECONDS)
    with contextlib.ExitStack() as stack:
        if kind == "whole":
            stack.enter_context(deployed.joined())
        else:
            deployed.prepare(["form00"])
        training = stack.enter_context(_Training(folder, deployed, clients, minutes))
        processes = list(deployed.processes.values())
        if kind == "light":
            training.wait(training.is_ready)  # Until then it does not know its nodes' keys, and refuses them.
            processes = stack.enter_context(_light_nodes(folder, address, names))
        measured = training.measure(nodes, rounds, processes)
    return {"nodes": nodes, "kind": kind, "sampled": clients, **measured}


@contextlib.contextmanager
def _light_nodes(folder: pathlib.Path, address: str, names: Sequence[str]) -> Iterator[list[subprocess.Popen]]:
    """Runs light nodes while the context lasts, in processes that are started one after another."""
    where = [address, "--keys", str(folder / "keys"), "--data", str(folder / "data" / "form00")]
    with contextlib.ExitStack() as stack:
        processes = []
        for first in range(0, len(names), _A_PROCESS):
            time.sleep(_PAUSE_SECONDS if first else 0)
            program = [str(deployment.PYTHON), "-m", "benchmarks.light_nodes", *where]
            command = [*program, "--nodes", *names[first : first + _A_PROCESS]]
            processes.append(stack.enter_context(children.running(command, folder / "light.log", deployment.environment())))
        yield processes


class _Training:
    """A training that goes on while its context lasts, and what its programs take."""

    def __init__(self, folder: pathlib.Path, deployed: deployment.Deployment, clients: int, minutes: float):
        self._folder, self._deployed, self._clients = folder, deployed, clients
        self._settings = ["--clients", str(clients), "--rounds", "10000", *_SETTINGS.split()]
        self._until = time.monotonic() + 60 * minutes
        self._peaks: dict[str, float] = dict.fromkeys(_PROGRAMS, 0.0)  # In MiB.

    def __enter__(self) -> _Training:
        self._server = self._deployed.start(_RUN, self._settings)
        return self

    def __exit__(self, *exception) -> None:
        self._server.terminate()
        self._server.wait(_END_SECONDS)

    def is_ready(self) -> bool:
        """Returns whether the server app waits for nodes, or goes on already."""
        return "Round 1 waits" in self._log() or bool(self._here())

    def wait(self, until: Callable[[], bool]) -> bool:
        """Waits until something is so; returns False where the time is up before."""
        while not until():
            if self._server.poll() is not None:
                raise SystemExit(f"error: Expected the server to stay, found that it ended:\n{self._log()[-2000:]}")
            if time.monotonic() > self._until:
                return False
            for program, process in self._programs():
                self._peaks[program] = max(self._peaks[program], _peak_mib(process))
            time.sleep(_POLL_SECONDS)
        return True

    def measure(self, nodes: int, rounds: int, processes: Sequence[subprocess.Popen]) -> results.Row:
        """Returns the figures of the rounds after all nodes have come."""
        began = since = time.monotonic()
        used = self._cpu_seconds(processes)
        psutil.cpu_percent()  # From here on.
        complete = self.wait(lambda: len(self._here()) >= nodes)
        arrived = time.monotonic() - began if complete else None
        first = self._rounds() + 1
        if self.wait(lambda: self._rounds() >= first):
            since, used = time.monotonic(), self._cpu_seconds(processes)
            psutil.cpu_percent()
        self.wait(lambda: self._rounds() >= first + rounds)
        busy, seconds, now = psutil.cpu_percent(), time.monotonic() - since, self._cpu_seconds(processes)
        metrics = self._deployed.metrics(_RUN)[first - 1 : first + rounds]
        measured = [row["seconds"] for row in metrics[1:]]
        lost = {name: round(sum(row[f"clients_{name}"] for row in metrics[1:])) for name in ("late", "dropped", "left_out")}
        bits = metrics[-1]["aggregate_bits"] - metrics[0]["aggregate_bits"] if measured else 0.0
        return {
            "here": len(self._here()),
            "seconds_until_here": round(arrived) if arrived is not None else None,
            "rounds": len(measured),
            **(results.spread("seconds_a_round", measured) if measured else dict.fromkeys(_SECONDS)),
            **lost,
            "update_bytes": round(bits / 8 / max(1, self._clients * len(measured) - sum(lost.values()))) if measured else None,
            **{f"{program}_mib": round(self._peaks[program]) for program in _PROGRAMS},
            **{f"{program}_cpu_percent": round(100 * (now[program] - used[program]) / seconds) for program in now},
            "machine_cpu_percent": round(busy * (psutil.cpu_count() or 1)),
        }

    def _log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def _here(self) -> set[str]:
        """Returns the clients that have said hello and not left."""
        here: set[str] = set()
        for client, what in re.findall(r"Client (\S+) (is here,|has left)", self._log()):
            (here.discard if what == "has left" else here.add)(client)
        return here

    def _rounds(self) -> int:
        return len(self._deployed.metrics(_RUN))

    def _programs(self) -> Iterator[tuple[str, psutil.Process]]:
        """Yields the server's programs that run, each by its name."""
        for process in _with_children(self._server.pid):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                yield from ((name, process) for name, word in _PROGRAMS.items() if word in line)

    def _cpu_seconds(self, nodes: Sequence[subprocess.Popen]) -> dict[str, float]:
        """Returns the processor time of the server's programs and of all nodes so far."""
        used: dict[str, float] = dict.fromkeys(_PROGRAMS, 0.0)
        used.update({name: _cpu_seconds(process) for name, process in self._programs()})
        used["nodes"] = sum(_cpu_seconds(process) for node in nodes for process in _with_children(node.pid))
        return used


def _with_children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()  # With the children that have ended, such as Flower's app processes.
        return times.user + times.system + times.children_user + times.children_system
    return 0.0


def _peak_mib(process: psutil.Process) -> float:
    """Returns the largest resident memory that a process has had."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def _allow_open_files() -> None:
    """Allows this process and its children as many open files as it may: each node is two of the server's relay."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    tyro.cli(main)
