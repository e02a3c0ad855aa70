"""Seconds and peak memory of a round with few and with many clients, taken all at once or some at a time.

Each line is a training process and a worker of their own, encoded both ways and sized, one line at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import tyro

import tff_kit
from benchmarks import results
from tff_kit.algorithm import assembly
from tff_kit.runtime import cluster
from tff_kit.tasks.emnist.data import database_of

_SPEC = "uniform:8"


def _peak_mebibytes(pid: int) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) // 1024


def worker_of(pid: int) -> psutil.Process:
    """Returns TFF's worker of a training process; raises `ValueError` where it has none."""
    (worker,) = [process for process in psutil.Process(pid).children() if "worker_binary" in " ".join(process.cmdline())]
    return worker


def ends_with_this_process() -> str:
    """Returns the first statements of a Python program that shall not outlive the process that starts it."""
    return f"from tff_kit.runtime import launcher; launcher.die_with_parent({os.getpid()}, {int(signal.SIGTERM)})"


@contextlib.contextmanager
def _halves(data: str) -> Iterator[str]:
    """Makes a folder of the data in `data` in which each writer is two clients, who have every other of its digits."""
    with tempfile.TemporaryDirectory() as folder:
        tff_kit.Emnist(data=data).load_data()  # Makes the database where it is not there yet.
        path = shutil.copy(database_of(data), folder)
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE examples SET client_id = client_id || '-' || (rowid % 2)")
            database.execute("DELETE FROM client_metadata")
            counts = "SELECT client_id, split_name, COUNT(*) FROM examples GROUP BY client_id, split_name"
            database.execute(f"INSERT INTO client_metadata (client_id, split_name, num_examples) {counts}")
        yield folder


def _measure(data: str, clients: int, at_a_time: int, rounds: int) -> None:
    """Prints the median of a round's seconds, and the peak memory of this process and of its worker, as JSON."""
    import tensorflow_federated as tff

    experiment = tff_kit.Emnist(data=data, clients=clients, broadcast=_SPEC, mean=_SPEC)
    dataset = experiment.load_data()
    clients = min(clients, len(dataset.client_ids))
    machines = tff_kit.Machines(clients_at_a_time=at_a_time)
    sample = tff.simulation.build_uniform_sampling_fn(dataset.client_ids, replace=False, random_seed=0)
    process = assembly.build_process(experiment, dataset)
    seconds = []
    with cluster.open_context(machines, clients) as (context, _), tff.framework.get_context_stack().install(context):
        state = process.next(process.initialize(), [(dataset.client_ids[0], 0)]).state  # Compiles.
        for round_num in range(rounds):
            began = time.perf_counter()
            state = process.next(state, [(client, round_num) for client in sample(round_num, clients)]).state
            seconds.append(time.perf_counter() - began)
        pids = {"driver": os.getpid(), "worker": worker_of(os.getpid()).pid}
        memory = {name: _peak_mebibytes(pid) for name, pid in pids.items()}
    found = {"data": dataset.name, "in_data": len(dataset.client_ids), "clients": clients}
    print(json.dumps({**found, "seconds": statistics.median(seconds), **memory}))


def main(
    data: str = "auto",
    clients: tuple[int, ...] = (10, 100, 1000),
    at_a_time: tuple[int, ...] = (50,),
    halves: bool = False,
    quick: bool = False,
) -> None:
    """Measures and writes results/cluster/many_clients.csv.

    Args:
        data: As in `python -m tff_kit train emnist`.
        clients: Clients a round; all where the data has fewer.
        at_a_time: Values of --clients-at-a-time.
        halves: Make two clients of each writer, with half of its digits each, to have more of them; needs --data FOLDER.
        quick: Try it on scikit-learn's digits, into logs/results-quick/.
    """
    if quick:
        data, clients, at_a_time, halves = "digits", (4,), (2,), False
    with _halves(data) if halves else contextlib.nullcontext(data) as folder:
        name, in_data, rows = _measure_all(folder, clients, at_a_time)
    if halves:
        name = f"{in_data // 2} writers in {database_of(data).parent.name}, each as two clients with half of its digits"
    source = results.Source(
        command="python -m benchmarks.many_clients --data FOLDER" + " --halves" * halves,
        data=f"{name}; {_SPEC} both ways, sized",
        seeds="0",
        spread="none: medians of up to five rounds",
    )
    results.write("cluster/many_clients", rows, source, quick)


def _measure_all(data: str, clients: tuple[int, ...], at_a_time: tuple[int, ...]) -> tuple[str, int, list[results.Row]]:
    """Returns the name of the data, how many clients it has, and a row for each number of clients and of clients at a time."""
    rows = []
    for limit, count in itertools.product(at_a_time, clients):
        rounds = max(1, min(5, 200 // count))
        measure = f"from benchmarks import many_clients as m; m._measure({data!r}, {count}, {limit}, {rounds})"
        command = f"{ends_with_this_process()}; {measure}"
        run = subprocess.run([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        rows.append(
            {
                "clients": found["clients"],
                "at_a_time": limit,
                "seconds_a_round": round(found["seconds"], 3),
                "ms_a_client": round(1000 * found["seconds"] / found["clients"], 1),
                "driver_peak_mib": found["driver"],
                "worker_peak_mib": found["worker"],
            }
        )
    return found["data"], found["in_data"], rows


if __name__ == "__main__":
    tyro.cli(main)
