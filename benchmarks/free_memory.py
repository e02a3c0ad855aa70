"""Memory of 20 clients of which five train in a round, each in a process that ends with it: `join --free-memory`.

    python -m benchmarks.free_memory

All clients run on this machine, as processes that share it, and so does the server. Their memory is measured while they wait
and while they train, over 50 rounds.
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import tyro
from rich.progress import Progress

from benchmarks import deployment, results, watched

_SAMPLE_SECONDS = 4.0
_PAUSE_SECONDS = 5.0
_SETTINGS = "--mean uniform:8 --broadcast uniform:8 --eval-every 1000 --timeout 3600"
_POLL_SECONDS = 1.0


def main(rounds: int = 50, nodes: int = 20, sampled: int = 5, quick: bool = False) -> None:
    """Measures and writes results/deploy/free_memory.csv, a line a round.

    Args:
        rounds: To train.
        nodes: That have joined.
        sampled: Of these, in a round.
        quick: Try one round of one node, into logs/results-quick/.
    """
    if quick:
        rounds, nodes, sampled = 1, 1, 1
    # Digits have 14 writers only, and pictures any number of clients.
    task = ["cifar10", "--data", "demo", "--partitions", str(nodes)]
    clients = [f"{i:04d}" for i in range(nodes)]
    settings = ["--clients", str(sampled), "--min-clients", str(sampled), "--rounds", str(rounds), *_SETTINGS.split()]
    with tempfile.TemporaryDirectory() as folder:
        deployed = deployment.Deployment(
            pathlib.Path(folder), clients, deployment.free_address(), task=task, join=["--free-memory"], pause=_PAUSE_SECONDS
        )
        with deployed.joined():
            watch = watched.Watch([process.pid for process in deployed.processes.values()], _SAMPLE_SECONDS)
            with watch.watching():
                rows = _follow(deployed, settings, watch, rounds)
    source = results.Source(
        command=f"python -m benchmarks.free_memory --rounds {rounds} --nodes {nodes} --sampled {sampled}",
        data=f"synthetic pictures, CIFAR-10's Net, {nodes} clients, {sampled} in a round; {_SETTINGS}",
        seeds="0",
        spread=f"none: one run. The smallest and the largest of a round's samples, one every {_SAMPLE_SECONDS:.0f} s",
    )
    results.write("deploy/free_memory", rows, source, quick)


def _follow(deployed: deployment.Deployment, settings: list[str], watch: watched.Watch, rounds: int) -> list[results.Row]:
    """Trains; returns for each round its seconds, and the smallest and largest memory of all clients together in it."""
    rows: list[results.Row] = []
    with deployed.start("run", settings) as server, Progress() as progress:
        task = progress.add_task("rounds", total=rounds)
        while len(rows) < rounds:
            time.sleep(_POLL_SECONDS)
            metrics = deployed.metrics("run")
            if len(metrics) > len(rows) and (samples := watch.take_samples()):
                row = metrics[-1]
                rows.append(
                    {
                        "round": round(row["round"]),
                        "seconds": round(row["seconds"], 1),
                        "smallest_mib": round(min(samples)),
                        "largest_mib": round(max(samples)),
                        "tensorflow_imports": watch.imports,
                        "clients_dropped": round(row["clients_dropped"]),
                        "clients_late": round(row["clients_late"]),
                    }
                )
                progress.update(task, completed=row["round"])
            elif server.poll() is not None and len(metrics) < rounds:
                raise SystemExit(f"error: Expected {rounds} rounds, found {len(metrics)}:\n{deployed.server_log[-2000:]}")
            elif len(metrics) == rounds:
                break
        server.wait(120)
    return rows


if __name__ == "__main__":
    tyro.cli(main)
