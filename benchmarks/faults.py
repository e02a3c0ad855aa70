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

import numpy as np
import psutil
import tensorflow_federated as tff
import tyro
from rich.progress import track

from benchmarks.results import machine, write_table
from tff_kit import runtime
from tff_kit.runtime import cluster, sizing

_CLIENTS = 20
_WEIGHTS = 100_000
_FAULTS = ("kill -9", "SIGSTOP", "cut off")


class _Started:
    """A worker of this machine, at an address that it keeps when it is started again."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            command = runtime.worker_command(listening, os.getpid(), insecure=True)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": runtime.worker_environment()}
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


def main(rounds: int = 200, every: int = 5, worker_timeout: float = 3.0) -> None:
    """Measures and writes results/faults.md.

    Args:
        rounds: How many.
        every: Rounds between faults.
        worker_timeout: As in `python -m tff_kit train`.
    """

    @tff.tensorflow.computation(np.float32, tff.TensorType(np.float32, [_WEIGHTS]))
    def update(number, weights):
        return number * weights

    @tff.federated_computation(
        tff.FederatedType(tff.TensorType(np.float32, [_WEIGHTS]), tff.SERVER), tff.FederatedType(np.float32, tff.CLIENTS)
    )
    def federated_sum(weights, numbers):
        return tff.federated_sum(tff.federated_map(update, (numbers, tff.federated_broadcast(weights))))

    draw = random.Random(0)
    started = [_Started(), _Started()]
    workers = [cluster.RemoteWorker(f"127.0.0.1:{worker.port}", timeout=worker_timeout) for worker in started]
    for worker in workers:
        worker.wait_until_ready(60)
    sizes = sizing.sizing_executor_factory()
    context = cluster.ClusterContext(workers, sizes.for_worker, sizes.one_call, patience=60)
    right, seconds, faults, memory = 0, [], collections.Counter(), []
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
            fault = threading.Timer(draw.uniform(0, 0.05), draw.choice(alive).fail, (kind, 2 * worker_timeout))
            fault.start()
        began = time.perf_counter()
        with tff.framework.get_context_stack().install(context):
            total = federated_sum(np.ones(_WEIGHTS, np.float32), numbers)
        seconds.append(time.perf_counter() - began)
        right += bool((total == 2**_CLIENTS - 1).all())
        if fault is not None and round_num % (2 * every) == 0:
            fault.join()  # Every second fault is over before the next round, the others last for some rounds.
        if round_num in (rounds // 10, rounds):
            memory.append(psutil.Process().memory_info().rss / 2**20)
    expected = rounds * _CLIENTS * 32 * _WEIGHTS
    info = sizes.get_size_info()
    exact = info.broadcast_bits[-1] == info.aggregate_bits[-1] == expected and len(info.broadcast_bits) == rounds
    context.close()
    for worker in started:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may be that the last fault killed it.
            worker.process.kill()
    lines = [
        f"`python -m benchmarks.faults`, two workers on one machine, {_CLIENTS} clients a round, "
        f"--worker-timeout {worker_timeout:g}, {machine()}.",
        "",
        "| rounds | faults | right sums | bits exact | median s | slowest s | driver MiB after a tenth | at the end |",
        "|---|---|---|---|---|---|---|---|",
        f"| {rounds} | {', '.join(f'{n} x {name}' for name, n in faults.items())} | {right} | {'yes' if exact else 'no'} | "
        f"{statistics.median(seconds):.2f} | {max(seconds):.1f} | {memory[0]:.0f} | {memory[1]:.0f} |",
    ]
    write_table("faults.md", lines)


if __name__ == "__main__":
    tyro.cli(main)
