"""Memory and installed size of a client: the peak while it trains, what it keeps in between, and how often it imports TensorFlow.

    python -m benchmarks.client_memory
    sudo .venv/bin/python -m benchmarks.client_memory --root FOLDER

Each line is a server and one client on this machine, of one task, over TLS. With --root, the client runs in the root of an arm64
system, emulated by qemu; docs/raspberry_pi.md says how to make one. Its memory then has the emulator's own in it.
"""

from __future__ import annotations

import pathlib
import platform
import tempfile
import time
from typing import Optional

import tyro
from rich.progress import track

from benchmarks import deployment, other_root, results, watched

_TASKS = {
    "digits": (("emnist", "--data", "digits"), "form00", "32 filters"),
    "keywords, 1 s": (("kws", "--data", "demo", "--window", "1s"), "0000", "synthetic embeddings"),
    "CIFAR-10, Net": (("cifar10", "--data", "demo", "--partitions", "3"), "0000", "synthetic pictures"),
}
_SETTINGS = "--mean uniform:8 --broadcast uniform:8 --timeout 1800 --eval-every 100"
_WAIT_SECONDS = 5.0


def main(rounds: int = 3, root: Optional[pathlib.Path] = None, only: str = "", quick: bool = False) -> None:
    """Measures and writes results/deploy/client_memory.csv, or client_memory_MACHINE.csv for another machine.

    Args:
        rounds: Of each training.
        root: The root of a system of another machine, for the client.
        only: Tasks with this in their names; by default all.
        quick: Try the first task for two rounds, into logs/results-quick/.
    """
    measured = [*((task, False) for task in _TASKS), (next(iter(_TASKS)), True)]
    measured = [one for one in measured if only in one[0]]
    if quick:
        measured, rounds = measured[:1], 2
    rows = [_measure(task, free_memory, rounds, root) for task, free_memory in track(measured, "tasks")]
    machine = other_root.machine(root) if root else platform.machine()
    source = results.Source(
        command=f"python -m benchmarks.client_memory --rounds {rounds}" + " --root FOLDER" * bool(root),
        data=f"{rounds} rounds of one client on {machine}{', emulated by qemu' if root else ''}, {_SETTINGS}",
        seeds="0",
        spread="none: one run each. Memory is of a client's processes together, a page that they share counted once",
    )
    results.write("deploy/client_memory" + f"_{machine}" * bool(root), rows, source, quick)


def _measure(task: str, free_memory: bool, rounds: int, root: Optional[pathlib.Path]) -> results.Row:
    """Returns what a client of a task takes over some rounds."""
    dataset, client, what = _TASKS[task]
    environment = other_root.environment(root) if root else deployment.ENVIRONMENT
    with tempfile.TemporaryDirectory() as name:
        deployed = deployment.Deployment(
            pathlib.Path(name),
            [client],
            deployment.free_address(),
            task=dataset,
            join=["--free-memory"] * free_memory,
            **(other_root.of_clients(root, [client]) if root else {}),
        )
        with deployed.joined():
            watch = watched.Watch([deployed.processes[client].pid])
            with watch.watching():
                metrics = deployed.train("run", ["--rounds", str(rounds), *_SETTINGS.split()])
                peak = max(watch.take_samples())
                time.sleep(_WAIT_SECONDS)
                kept = min(watch.take_samples())
        seconds = [row["seconds"] for row in metrics]
    return {
        "machine": other_root.machine(root) if root else platform.machine(),
        "task": task,
        "data": what,
        "free_memory": "yes" if free_memory else "no",
        "installed_mb": deployment.installed_megabytes(environment),
        "peak_mib": round(peak),
        "between_rounds_mib": round(kept),
        "rounds": rounds,
        "tensorflow_imports": watch.imports,
        "seconds_first_round": round(seconds[0], 1),
        "seconds_a_round": round(sum(seconds[1:]) / len(seconds[1:]), 1),
    }


if __name__ == "__main__":
    tyro.cli(main)
