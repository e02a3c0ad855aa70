"""Many rounds on two workers of which one is killed, stopped or cut off every few rounds: does every client count once?

Each client sends its own number and the sum is known, so a client that is missing or counts twice shows.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import socket
import statistics
import subprocess
import threading
import time
from typing import Any, Callable

import numpy as np
import psutil
import tensorflow_federated as tff
import tyro
from rich.progress import track

from benchmarks import results
from tff_kit.runtime import cluster, sizing
from tff_kit.runtime.worker import worker_command, worker_environment

_CLIENTS = 20
_WEIGHTS = 100_000
_FAULTS = ("kill -9", "SIGSTOP", "cut off")


class _Started:
    """A worker of this machine, at an address that it keeps when it is started again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            command = worker_command(listening, os.getpid(), insecure=True)
            quiet: dict[str, Any] = {
                "stdout": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
                "env": worker_environment(),
            }
            self.process = psutil.Popen(command, pass_fds=[listening.fileno()], **quiet)

    def fail(self, fault: str, seconds: float) -> None:
        """Fails for some time."""
        if fault == "kill -9":
            self.process.kill()  # Started again by who drives, since a worker ends with the thread that started it.
            self.process.wait()
            return
        stopped = self.process if fault == "SIGSTOP" else self.process.children()[0]  # To the driver, a dead link is silent.
        stopped.suspend()
        time.sleep(seconds)
        stopped.resume()


def main(rounds: int = 200, every: int = 5, worker_timeout: float = 3.0, quick: bool = False) -> None:
    """Measures and writes results/cluster/faults.csv.

    Args:
        rounds: How many.
        every: Rounds between faults.
        worker_timeout: As in `python -m tff_kit train`.
        quick: Try it on a few rounds, into logs/results-quick/.
    """
    if quick:
        rounds, every, worker_timeout = 6, 3, 1.0
    started = [_Started(), _Started()]
    workers = [cluster.RemoteWorker(f"127.0.0.1:{worker.port}", timeout=worker_timeout) for worker in started]
    for worker in workers:
        worker.wait_until_ready(60)
    sizes = sizing.sizing_executor_factory()
    context = cluster.ClusterContext(workers, sizes.for_worker, sizes.one_call, patience=60)
    try:
        with tff.framework.get_context_stack().install(context):
            measured = _rounds(started, rounds, every, 2 * worker_timeout)
    finally:
        context.close()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):  # It may be that the last fault killed it.
                process.process.kill()
    expected = rounds * _CLIENTS * 32 * _WEIGHTS
    info = sizes.get_size_info()
    exact = info.broadcast_bits[-1] == info.aggregate_bits[-1] == expected and len(info.broadcast_bits) == rounds
    row = {"rounds": rounds, **measured, "bits_exact": "yes" if exact else "no"}
    source = results.Source(
        command=f"python -m benchmarks.faults --worker-timeout {worker_timeout:g}",
        data=f"two workers on one machine, {_CLIENTS} clients a round that send {_WEIGHTS:,} numbers each",
        seeds="0, of which worker fails when",
        spread="none: one run; the median and the slowest of its rounds",
    )
    results.write("cluster/faults", [row], source, quick)


def _federated_sum() -> Callable[[np.ndarray, list[np.float32]], np.ndarray]:
    """Returns a computation that sends weights to the clients and sums what each makes of them with its own number."""

    @tff.tensorflow.computation(np.float32, tff.TensorType(np.float32, [_WEIGHTS]))
    def update(number, weights):
        return number * weights

    @tff.federated_computation(
        tff.FederatedType(tff.TensorType(np.float32, [_WEIGHTS]), tff.SERVER), tff.FederatedType(np.float32, tff.CLIENTS)
    )
    def federated_sum(weights, numbers):
        return tff.federated_sum(tff.federated_map(update, (numbers, tff.federated_broadcast(weights))))

    return federated_sum


def _rounds(started: list[_Started], rounds: int, every: int, fault_seconds: float) -> results.Row:
    """Sums in each round while workers fail; returns how many sums were right, how long rounds took, and memory."""
    federated_sum, draw = _federated_sum(), random.Random(0)
    right, seconds, memory = 0, [], []
    faults: collections.Counter[str] = collections.Counter()
    numbers = [np.float32(2**i) for i in range(_CLIENTS)]  # Whoever is missing or double shows in the sum.
    for round_num in track(range(1, rounds + 1), description="rounds"):
        fault = None
        for worker in started:
            if worker.process.poll() is not None and draw.random() < 1 / every:
                worker.start()
        if round_num % every == 0:
            kind = _FAULTS[round_num // every % len(_FAULTS)]
            faults[kind] += 1
            alive = [worker for worker in started if worker.process.poll() is None]
            fault = threading.Timer(draw.uniform(0, 0.05), draw.choice(alive).fail, (kind, fault_seconds))
            fault.start()
        began = time.perf_counter()
        total = federated_sum(np.ones(_WEIGHTS, np.float32), numbers)
        seconds.append(time.perf_counter() - began)
        right += bool((total == 2**_CLIENTS - 1).all())
        if fault is not None and round_num % (2 * every) == 0:
            fault.join()  # Every second fault is over before the next round, the others last for some rounds.
        if round_num in (max(1, rounds // 10), rounds):
            memory.append(round(psutil.Process().memory_info().rss / 2**20))
    return {
        "faults": ", ".join(f"{count} x {name}" for name, count in faults.items()),
        "right_sums": right,
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_max": round(max(seconds), 2),
        "driver_mib_after_a_tenth": memory[0],
        "driver_mib_at_the_end": memory[-1],
    }


if __name__ == "__main__":
    tyro.cli(main)
