"""Whether real clients train as simulated ones do: the same settings, seeds and data, three rounds of three clients.

    python -m benchmarks.deploy_equality

Trains each task with each encoder twice: in the simulation, and with a server and three nodes that exchange the bytes of a
deployment in one process. Compares the payload bits and the weights. The two sides run different builds of TensorFlow, whose last
digits differ; an encoder that draws from an update's contents, or codes it by its frequencies, then sends other bits.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from typing import Any, Callable, Optional

import numpy as np
import tyro
from rich.console import Console

from benchmarks import results
from benchmarks.bits_to_accuracy import LOW_RANK
from tff_kit.deploy import rounds as deployed
from tff_kit.deploy.node import Node
from tff_kit.experiment import Experiment
from tff_kit.tasks import find_task
from tff_kit.training import rounds as simulated
from tff_kit.training import runs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import local_link

_TASKS: dict[str, dict[str, Any]] = {
    "emnist": {"data": "digits"},
    "kws": {"data": "demo", "window": "1s"},
    "cifar10": {"data": "demo", "partitions": 3},
}
_ENCODERS: dict[str, dict[str, Any]] = {
    "nothing encoded": {},
    "uniform:8,nearest": {"broadcast": "uniform:8,nearest", "mean": "uniform:8,nearest"},
    "uniform:8": {"broadcast": "uniform:8", "mean": "uniform:8"},
    "fewest bits": LOW_RANK,
}
_CLIENTS = 3


def main(rounds: int = 3, quick: bool = False) -> None:
    """Measures and writes results/deploy/equality.csv.

    Args:
        rounds: Of each training.
        quick: Try the first task with nothing encoded for one round, into logs/results-quick/.
    """
    tasks, encoders = list(_TASKS), list(_ENCODERS)
    if quick:
        tasks, encoders, rounds = tasks[:1], encoders[:1], 1
    rows = [_compare(task, name, rounds) for task in tasks for name in encoders]
    source = results.Source(
        command="python -m benchmarks.deploy_equality",
        data=f"the digits of scikit-learn, synthetic embeddings and synthetic pictures; {_CLIENTS} clients, {rounds} rounds",
        seeds="0",
        spread="none: one run each",
    )
    results.write("deploy/equality", rows, source, quick)


def _compare(task: str, name: str, rounds: int) -> results.Row:
    settings = {**_TASKS[task], **_ENCODERS[name], "clients": _CLIENTS, "rounds": rounds}
    kind: Any = find_task(task)
    clients = kind(**settings).load_data().client_ids[:_CLIENTS]
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        nodes = local_link.LocalLink([Node(kind, settings["data"], client).answer for client in clients])
        patient = deployed.Attendance(min_clients=_CLIENTS)
        ours = deployed.train(kind(**settings), nodes, patient, pathlib.Path(folder) / "deployed", console=quiet)
        theirs = simulated.train(_of_clients(kind, clients)(**settings), pathlib.Path(folder) / "simulated", console=quiet)
        return {"task": task, "encoders": name, **_differences(ours, theirs)}


def _of_clients(kind: type[Experiment], clients: tuple[str, ...]) -> Callable[..., Experiment]:
    """Returns the task with no clients but these."""
    load_data = kind.load_data
    return type(kind.__name__, (kind,), {"load_data": lambda self: dataclasses.replace(load_data(self), client_ids=clients)})


def _differences(ours: runs.RunDirectory, theirs: runs.RunDirectory) -> results.Row:
    pairs = list(zip(ours.load_model().get_weights(), theirs.load_model().get_weights()))
    a, b = ours.read_metrics()[-1], theirs.read_metrics()[-1]
    row: dict[str, Optional[float]] = {}
    for direction, column in (("down", "broadcast_bits"), ("up", "aggregate_bits")):
        row[f"bits_{direction}"] = a[column]
        row[f"bits_{direction}_differ_by_percent"] = round(100 * (a[column] - b[column]) / b[column], 4)
    row["weights_differ_by"] = float(f"{max(np.abs(x - y).max() for x, y in pairs):.2g}")
    row["largest_weight"] = float(f"{max(np.abs(y).max() for _, y in pairs):.3g}")
    return row


if __name__ == "__main__":
    tyro.cli(main)
