"""Seconds of a round here and elsewhere, side by side: the same clients, examples, model, optimizer and initial weights.

    make bench-peers DATA=mnist-by-writer STORE=FOLDER_OF_EMBEDDINGS

Peers are Flower's simulation, FedJAX, TensorFlow Federated as its documentation writes it, and plain loops in TensorFlow and
PyTorch. Each is a process of its own, those without TensorFlow in an environment of their own, pinned in the .txt files
here, which the Makefile makes. A round is trained in all ways, in changing order, before the next begins; ratios are medians of
the ratios round by round. In the end this project's evaluation tests every way's weights, so that who left out work shows.
Writes results/speed/peers.csv.
"""

# Annotations here are evaluated at once: tyro reads them.

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Optional

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro

import tff_kit
from benchmarks import results, round_time
from tff_kit.algorithm import assembly
from tff_kit.datasets import DataError, FederatedDataset
from tff_kit.embeddings import store
from tff_kit.runtime import cluster
from tff_kit.tasks.keywords import embed
from tff_kit.training import evaluation

_ROOT = results.ROOT
_LOOP = "plain tf.function loop"
_FLOWER = "Flower's simulation"
_PEERS = {  # The environment, None for the project's own, and the module.
    "TFF as documented": (None, "tff_documented"),
    _FLOWER: ("flower", "flower_simulation"),
    "FedJAX": ("fedjax", "fedjax_simulation"),
    "plain PyTorch loop": ("flower", "torch_loop"),
}
_SPEC = "uniform:8"
_PATIENCE_SECONDS = 900.0
_END_SECONDS = 30.0


class _PeerError(RuntimeError):
    """A peer that could not be started, or failed."""


class _Peer:
    """A process that trains when it is told to; `benchmarks.peers.rounds` says what is spoken."""

    def __init__(self, name: str, python: str, module: str, folder: pathlib.Path, log: IO[bytes]):
        self._name, self._log, self._folder = name, log, folder
        self._process = psutil.Popen(
            [python, "-m", f"benchmarks.peers.{module}", str(folder)],
            cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip

    def version(self) -> str:
        """Waits until it is ready; returns what it is. To be called once, before anything else."""
        return self._answer()

    def train(self, clients: round_time.Clients) -> None:
        """Trains a round."""
        self._ask({"clients": clients})

    def weights(self) -> list[np.ndarray]:
        """Returns the model's weights, as Keras has them."""
        path = self._folder / f"{self._process.pid}.npz"
        self._ask({"save": str(path)})
        with np.load(path) as arrays:
            return [arrays[name] for name in arrays.files]

    def end(self) -> None:
        """Ends it and what it started, which its own session tells also when it has ended itself."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self._process.pid:
                    process.kill()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        with contextlib.suppress(BrokenPipeError):  # Then there is no answer either.
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(_PATIENCE_SECONDS) else ""
        if not line:
            self._log.seek(0)
            output = self._log.read().decode(errors="replace")[-3000:]
            raise _PeerError(f"Expected an answer of {self._name}, found none. Its last output:\n{output}")
        return json.loads(line)


def _python(environment: Optional[str]) -> str:
    """Returns the Python of an environment."""
    if environment is None:
        return sys.executable
    python = _ROOT / ".peers" / environment / "bin" / "python"
    if not python.exists():
        raise _PeerError(f"Expected an environment at {python}, found none. Tip: make bench-peers makes it.")
    return str(python)


@contextlib.contextmanager
def _peers(folder: pathlib.Path, names: Sequence[str]) -> Iterator[dict[str, _Peer]]:
    """The peers of these names on the task in `folder`; they end with the context."""
    with contextlib.ExitStack() as stack:
        peers = {}
        for name in names:
            environment, module = _PEERS[name]
            log = stack.enter_context(open(folder / f"{module}.log", "wb+"))
            peers[name] = _Peer(name, _python(environment), module, folder, log)
            stack.callback(peers[name].end)
        yield peers


def _write_task(
    folder: pathlib.Path, experiment: tff_kit.Experiment, data: FederatedDataset, plan: list[list[str]], initial: list[np.ndarray]
) -> None:
    """Writes what `benchmarks.peers.rounds` reads; `plan` has the clients of every round."""
    described = {
        "task": experiment.task,
        "settings": dataclasses.asdict(experiment),
        "clients": len(plan[0]),
        "rounds": len(plan),
    }
    (folder / "task.json").write_text(json.dumps(described))
    np.savez(folder / "initial.npz", *initial)
    if experiment.task == "emnist":
        for client in {client for clients in plan for client in clients}:
            inputs, labels = zip(*data.client_dataset(tf.constant(client), tf.constant(0, tf.int64)))
            np.savez(folder / f"{client}.npz", inputs=np.concatenate(inputs), labels=np.concatenate(labels))


def _measure(experiment: tff_kit.Experiment, rounds: int, names: Sequence[str]) -> tuple[str, list[results.Row]]:
    """Returns what was trained, and a row for each way on one task; `names` are the peers beside the ways of this project."""
    data = experiment.load_data()
    clients = min(experiment.clients, len(data.client_ids))
    sample = tff.simulation.build_uniform_sampling_fn(data.client_ids, replace=False, random_seed=0)
    encoded = dataclasses.replace(experiment, broadcast=_SPEC, mean=_SPEC)
    processes = {"tff_kit": experiment, f"tff_kit, {_SPEC} both ways": encoded}
    with contextlib.ExitStack() as stack:
        context, _ = stack.enter_context(cluster.open_context(cluster.ONE_MACHINE, clients))
        own = {name: round_time.federated(assembly.build_process(x, data), context) for name, x in processes.items()}
        # Last of all that build Keras models; see training.py.
        own[_LOOP] = round_time.tf_function_loop(experiment, data, clients)
        model = evaluation.compiled(experiment.build_model(), experiment)
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = [list(sample(round_num, clients)) for round_num in range(rounds + round_time.WARM_UP)]
        _write_task(folder, experiment, data, plan, model.get_weights())
        peers = stack.enter_context(_peers(folder, names))
        versions = dict.fromkeys(own, f"tensorflow {tf.__version__}")
        versions.update({name: peer.version() for name, peer in peers.items()})
        ways = {**own, **{name: round_time.Way(peer.train, peer.weights) for name, peer in peers.items()}}
        timed = round_time.time_rounds(ways, sample, clients, rounds)
        tests = {}
        for name, way in ways.items():
            model.set_weights(way.weights())
            tests[name] = evaluation.evaluate_model(model, data.test, experiment)
    described = (
        f"{data.name}, {clients} clients a round, {experiment.client_optimizer} {experiment.client_lr}, batches of "
        f"{experiment.batch_size}, {model.count_params():,} weights, {rounds} rounds after {round_time.WARM_UP} untimed"
    )
    return described, [
        {
            "task": experiment.task,
            "way": name,
            "version": versions[name],
            "seconds_a_round": round(statistics.median(values), 4),
            "against_flower": round(round_time.paired_ratio(values, timed[_FLOWER]), 4) if _FLOWER in timed else None,
            "against_loop": round(round_time.paired_ratio(values, timed[_LOOP]), 4),
            "test_loss": round(tests[name]["loss"], 4),
            "test_accuracy": round(tests[name]["accuracy"], 5),
        }
        for name, values in timed.items()
    ]


def main(emnist: Optional[str] = None, kws: Optional[str] = None, rounds: int = 20, quick: bool = False) -> None:
    """Measures and writes results/speed/peers.csv.

    Args:
        emnist: As in `python -m tff_kit train emnist --data`; without it, digits are left out.
        kws: Folder of embeddings, float16, or demo for synthetic ones; without it, keyword spotting is left out.
        rounds: Rounds of each task that are timed.
        quick: Try it beside TFF on scikit-learn's digits, since the other peers need environments, into logs/results-quick/.
    """
    names = list(_PEERS)
    if quick:
        rounds, names = 1, ["TFF as documented"]
    elif not (emnist or kws):
        sys.exit("error: Expected --emnist or --kws with the data to train on, found neither.")
    try:
        for name in names:
            _python(_PEERS[name][0])  # Before anything long.
        tried: list[tff_kit.Experiment] = [tff_kit.Emnist(data="digits", filters=4, clients=2)]
        experiments = tried if quick else _experiments(emnist, kws)
        measured = [_measure(experiment, rounds, names) for experiment in experiments]
    except (DataError, _PeerError) as error:
        sys.exit(f"error: {error}")
    source = results.Source(
        command=" ".join(["python -m benchmarks.peers", *(f"--{x.task} FOLDER" for x in experiments), f"--rounds {rounds}"]),
        data="; ".join(described for described, _ in measured),
        seeds="0",
        spread="none: medians of the rounds, ratios as medians of pairs",
    )
    results.write("speed/peers", [row for _, rows in measured for row in rows], source, quick)


def _experiments(emnist: Optional[str], kws: Optional[str]) -> list[tff_kit.Experiment]:
    """Returns what is trained; raises `DataError` for embeddings that not every peer can read."""
    experiments: list[tff_kit.Experiment] = []
    if emnist:
        experiments.append(tff_kit.Emnist(data=emnist, client_lr=0.1))
    if kws:
        opened = embed.demo() if kws == "demo" else store.open_store(pathlib.Path(kws).resolve())
        if opened.dtype != "float16":
            raise DataError(f"Expected embeddings of float16, which every peer can read, in {kws}, found {opened.dtype}.")
        experiments.append(tff_kit.KeywordSpotting(data=str(opened.folder), window="1s" if opened.window == "1s" else "30s"))
    return experiments


if __name__ == "__main__":
    tyro.cli(main)
