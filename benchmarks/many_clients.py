"""Seconds and peak memory of a round with few and with many clients, and with a limit to how many compute at a time.

Each line is a training process and a worker of their own, encoded both ways and sized, one line at a time.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

import tyro

import tff_kit
from tff_kit import runtime, sizing, training

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
_SPEC = "uniform:8"


def _peak_mebibytes(pid: int) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) // 1024


def _measure(data: str, clients: int, max_concurrent: int, rounds: int) -> None:
    """Prints the median of a round's seconds, and the peak memory of this process and of its worker, as JSON."""
    import tensorflow_federated as tff

    experiment = tff_kit.Emnist(data=data, clients=clients, broadcast=_SPEC, mean=_SPEC)
    dataset = experiment.load_data()
    clients = min(clients, len(dataset.client_ids))
    worker = runtime.Worker(max_concurrent=max_concurrent)
    sample = tff.simulation.build_uniform_sampling_fn(dataset.client_ids, replace=False, random_seed=0)
    process = training.build_process(experiment, dataset)
    seconds = []
    with tff.framework.get_context_stack().install(runtime.create_context(sizing.sizing_executor_factory(worker))):
        state = process.next(process.initialize(), [(dataset.client_ids[0], 0)]).state  # Compiles.
        for round_num in range(rounds):
            began = time.perf_counter()
            state = process.next(state, [(client, round_num) for client in sample(round_num, clients)]).state
            seconds.append(time.perf_counter() - began)
    memory = {name: _peak_mebibytes(pid) for name, pid in (("driver", os.getpid()), ("worker", worker.pid))}
    worker.stop()
    print(json.dumps({"data": dataset.name, "clients": clients, "seconds": statistics.median(seconds), **memory}))


def main(data: str = "auto", clients: tuple[int, ...] = (10, 100, 1000), limits: tuple[int, ...] = (0, 2)) -> None:
    """Measures and writes results/many_clients.md.

    Args:
        data: As in `python -m tff_kit train emnist`.
        clients: Clients a round; all where the data has fewer.
        limits: Values of --max-concurrent; 0 for no limit.
    """
    lines = []
    for limit in limits:
        for count in clients:
            rounds = max(1, min(5, 200 // count))
            command = f"from benchmarks import many_clients as m; m._measure({data!r}, {count}, {limit}, {rounds})"
            run = subprocess.run([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            lines.append(
                f"| {found['clients']} | {limit or 'no limit'} | {found['seconds']:.2f} | "
                f"{1000 * found['seconds'] / found['clients']:.0f} | {found['driver']} | {found['worker']} |"
            )
            print(lines[-1], flush=True)
    heading = [
        f"`python -m benchmarks.many_clients --data FOLDER`, {found['data']}, {_SPEC} both ways, sized, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; medians of up to five rounds.",
        "",
        "| clients a round | at a time | seconds a round | ms a client | driver, peak MiB | worker, peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_clients.md").write_text("\n".join([*heading, *lines]) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
