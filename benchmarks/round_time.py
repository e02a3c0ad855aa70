"""Round time of federated averaging here against the same training in one plain `tf.function` loop, and memory.

    python -m benchmarks.round_time emnist --data mnist-by-writer
    python -m benchmarks.round_time kws --data FOLDER_OF_EMBEDDINGS --window 1s

Every round trains the same clients once in each way, one after the other in changing order, on one machine; given are
medians, and medians of the ratios round by round, since machines are noisy. The fewest bits are FEWEST_BITS of
bits_to_accuracy.py. Then trainings of 500 rounds, as a user starts them, whose memory is read all the time. Writes
results/speed/rounds_emnist.csv and memory_emnist.csv, and for keyword spotting rounds_kws_WINDOW.csv and
memory_kws_WINDOW.csv. With --rounds 0 memory alone is measured, with --memory-rounds 0 time alone.
"""

# Annotations here are evaluated at once: tyro reads them.

import contextlib
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro
from rich.progress import track
from typing_extensions import Literal

import tff_kit
from benchmarks import results
from benchmarks.bits_to_accuracy import FEWEST_BITS
from benchmarks.many_clients import ends_with_this_process, worker_of
from tff_kit import runtime
from tff_kit.algorithm import assembly, processes
from tff_kit.datasets import FederatedDataset
from tff_kit.runtime import sizing
from tff_kit.training import runs

WARM_UP = 3
"""Rounds that `time_rounds` leaves out."""
_MEMORY_MARKS = (0.1, 0.2, 0.4, 0.6, 0.8, 1)  # Of the rounds; memory is looked at in a tenth of them before each.
Clients = list[tuple[str, int]]
Sample = Callable[[int, int], list[str]]


class Way(NamedTuple):
    """One way to train: a round on clients' ids and seeds, and the model's weights after the rounds so far, as Keras has them."""

    train: Callable[[Clients], Any]
    weights: Callable[[], list[np.ndarray]]


def _sgd(rate: float, variables: list[tf.Variable]) -> tuple[Callable, Callable]:
    """Returns functions that begin a client's training, and that take one step."""

    def step(gradients):
        for variable, gradient in zip(variables, gradients):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)

    return lambda: None, step


def _adam(rate: float, variables: list[tf.Variable]) -> tuple[Callable, Callable]:
    """As `_sgd`, by TensorFlow's one operation a variable; a client starts with no moments."""
    moments = [(tf.Variable(tf.zeros_like(x)), tf.Variable(tf.zeros_like(x))) for x in variables]
    powers = [tf.Variable(0.9), tf.Variable(0.999)]

    def begin():
        for m, v in moments:
            m.assign(tf.zeros_like(m))
            v.assign(tf.zeros_like(v))
        powers[0].assign(0.9)
        powers[1].assign(0.999)

    def step(gradients):
        for variable, (m, v), gradient in zip(variables, moments, gradients):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=m.handle, v=v.handle, beta1_power=powers[0], beta2_power=powers[1], lr=rate,
                beta1=0.9, beta2=0.999, epsilon=1e-7, grad=gradient,
            )  # fmt: skip
        powers[0].assign(powers[0] * 0.9)
        powers[1].assign(powers[1] * 0.999)

    return begin, step


def tf_function_loop(experiment: tff_kit.Experiment, data: FederatedDataset, clients_a_round: int) -> Way:
    """Returns the same training without TFF: TensorFlow's own loop over clients and batches."""
    model = experiment.build_model()
    loss_fn = experiment.build_loss()
    mean = [tf.Variable(tf.zeros_like(w)) for w in model.trainable_variables]
    server = [tf.Variable(w) for w in model.trainable_variables]
    optimizer = {"sgd": _sgd, "adam": _adam}[experiment.client_optimizer]
    begin, step = optimizer(experiment.client_lr, model.trainable_variables)

    @tf.function
    def train_client(dataset):
        for variable, weights in zip(model.trainable_variables, server):
            variable.assign(weights)
        begin()
        examples = 0.0
        for images, labels in dataset:
            with tf.GradientTape() as tape:
                loss = loss_fn(labels, model(images, training=True))
            step(tape.gradient(loss, model.trainable_variables))
            examples += tf.cast(tf.shape(labels)[0], tf.float32)
        for total, variable, weights in zip(mean, model.trainable_variables, server):
            total.assign_add(examples * (variable - weights))
        return examples

    @tf.function
    def train_round(clients, seeds):
        for total in mean:
            total.assign(tf.zeros_like(total))
        examples = 0.0
        for client, seed in zip(tf.unstack(clients, clients_a_round), tf.unstack(seeds, clients_a_round)):
            examples += train_client(data.client_dataset(client, seed))
        for weights, total in zip(server, mean):
            weights.assign_add(total / examples)
        return examples

    def train(clients: Clients) -> None:
        train_round(tf.constant([c for c, _ in clients]), tf.constant([s for _, s in clients], tf.int64)).numpy()

    return Way(train, lambda: [weights.numpy() for weights in server])


def federated(process: tff.learning.templates.LearningProcess, context: tff.framework.SyncContext) -> Way:
    """Returns training by `process` in `context`; keeps the state."""
    with tff.framework.get_context_stack().install(context):
        state = process.initialize()

    def train_round(clients: Clients) -> None:
        nonlocal state
        with tff.framework.get_context_stack().install(context):
            state = process.next(state, clients).state

    return Way(train_round, lambda: list(process.get_model_weights(state).trainable))


def _plain_process(experiment: tff_kit.Experiment, data: FederatedDataset) -> tff.learning.templates.LearningProcess:
    """Returns federated averaging with nothing encoded and nothing measured."""
    process = processes.build_federated_averaging_process(
        assembly.build_model_fn(experiment, data),
        assembly.build_client_optimizer(experiment),
        tff.learning.optimizers.build_sgdm(experiment.server_lr),
    )
    return assembly.read_by_client_id(data, process)


def time_rounds(ways: dict[str, Way], sample: Sample, clients_a_round: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way's rounds. Every round is trained in all ways, in changing order; the first are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_num in track(range(rounds + WARM_UP), description="rounds"):
        clients = [(client, round_num) for client in sample(round_num, clients_a_round)]
        names = list(ways)
        np.random.default_rng(round_num).shuffle(names)
        for name in names:
            began = time.perf_counter()
            ways[name].train(clients)
            seconds[name].append(time.perf_counter() - began)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def paired_ratio(values: list[float], base: list[float]) -> float:
    """Returns the median of the ratios round by round, which noise of the machine moves less than the ratio of medians."""
    return statistics.median(a / b for a, b in zip(values, base))


def _encoded_ways(plain: tff_kit.Experiment, quick: bool) -> dict[str, dict[str, Any]]:
    """Returns the settings of each way to encode; just one of them for a smoke test."""
    ways: dict[str, dict[str, Any]] = {
        f"{spec} both ways": {"broadcast": spec, "mean": spec} for spec in ("tensor_encoding:8", "uniform:8")
    }
    return {"uniform:8 both ways": ways["uniform:8 both ways"]} if quick else {**ways, "the fewest bits": FEWEST_BITS[plain.task]}


def _measure_memory(plain: tff_kit.Experiment, rounds: int, quick: bool) -> list[results.Row]:
    """Returns a row for each way, process and mark: the mean and the peak of the resident MiB up to that round."""
    marks = [round(share * rounds) for share in _MEMORY_MARKS]
    rows = []
    for way, settings in list(_encoded_ways(plain, quick).items())[-2:]:
        experiment = dataclasses.replace(plain, rounds=rounds, **settings)
        for process, samples in zip(("driver", "worker"), _memory(experiment, marks)):
            for mark, of_mark in zip(marks, samples):
                row: results.Row = {"way": way, "process": process, "round": mark, "mean_mib": None, "peak_mib": None}
                if of_mark:  # Rounds may be faster than memory is read.
                    row.update(mean_mib=round(statistics.mean(of_mark) / 2**20), peak_mib=round(max(of_mark) / 2**20))
                rows.append(row)
    return rows


def _memory(experiment: tff_kit.Experiment, marks: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Trains in a process of its own; returns its and its worker's resident bytes, all that were read before each mark."""
    driver: list[list[int]] = [[] for _ in marks]
    worker: list[list[int]] = [[] for _ in marks]
    with tempfile.TemporaryDirectory() as folder:
        run = runs.RunDirectory(pathlib.Path(folder) / "run")
        program = f"{ends_with_this_process()}; import tff_kit; tff_kit.train(tff_kit.{experiment!r}, {str(run.path)!r})"
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL) as started:
            while started.poll() is None:
                time.sleep(0.05)
                with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):  # Before the first round, after the last.
                    done = len(run.metrics.read_text().splitlines()) - 1
                    resident = [psutil.Process(started.pid).memory_info().rss, worker_of(started.pid).memory_info().rss]
                    for i, mark in enumerate(marks):
                        if mark - marks[0] <= done < mark:
                            driver[i].append(resident[0])
                            worker[i].append(resident[1])
        if started.returncode:
            raise SystemExit(f"error: Expected a training of {marks[-1]} rounds, but it ended with code {started.returncode}.")
    return driver, worker


def _measure_time(plain: tff_kit.Experiment, rounds: int, quick: bool) -> list[results.Row]:
    """Returns a row for each way to train: the median of its seconds, and the ratios to the loop and to federated averaging."""
    dataset = plain.load_data()
    clients_a_round = min(plain.clients, len(dataset.client_ids))
    worker = runtime.Worker()
    unsized = runtime.create_context(runtime.worker_executor_factory(worker))
    sized = runtime.create_context(sizing.sizing_executor_factory(worker))
    fed_avg = _plain_process(plain, dataset)
    encoded = {}
    for name, settings in _encoded_ways(plain, quick).items():
        process = assembly.build_process(dataclasses.replace(plain, **settings), dataset)
        encoded[f"{name}, sized"] = federated(process, sized)
    ways = {
        # Last of all that build Keras models; see training.py.
        "plain tf.function loop": tf_function_loop(plain, dataset, clients_a_round),
        "federated averaging": federated(fed_avg, unsized),
        "the same, sized": federated(fed_avg, sized),
        **encoded,
    }
    sample = tff.simulation.build_uniform_sampling_fn(dataset.client_ids, replace=False, random_seed=0)
    timed = time_rounds(ways, sample, clients_a_round, rounds)
    worker.stop()
    rows = []
    for name, values in timed.items():
        ratios = [round(paired_ratio(values, timed[base]), 4) for base in list(timed)[:2]]
        seconds = round(statistics.median(values), 4)
        rows.append({"way": name, "seconds_a_round": seconds, "against_loop": ratios[0], "against_fed_avg": ratios[1]})
    return rows


def main(
    task: tyro.conf.Positional[Literal["emnist", "kws"]] = "emnist",
    data: Optional[str] = None,
    window: Literal["30s", "1s"] = "30s",
    rounds: int = 60,
    memory_rounds: int = 500,
    clients: Optional[int] = None,
    quick: bool = False,
) -> None:
    """Measures and writes files in results/speed/.

    Args:
        task: As in `python -m tff_kit train`.
        data: Likewise.
        window: Likewise, of keyword spotting.
        rounds: Rounds that are timed, after three that are not.
        memory_rounds: Rounds of the trainings whose memory is read.
        clients: Clients a round; by default as many as in `python -m tff_kit train`.
        quick: Try it on scikit-learn's digits, into logs/results-quick/.
    """
    if quick:
        task, data, rounds, memory_rounds, clients = "emnist", "digits", 1, 20, 2
    settings: dict[str, Any] = {name: value for name, value in (("data", data), ("clients", clients)) if value is not None}
    experiment: tff_kit.Experiment = tff_kit.Emnist(**settings, filters=4 if quick else 32)
    command, of_data = "emnist --data FOLDER", "emnist"
    if task == "kws":
        experiment = tff_kit.KeywordSpotting(window=window, **settings)
        command, of_data = f"kws --data FOLDER --window {window}", f"kws_{window}"
    command = f"python -m benchmarks.round_time {command}" + ("" if clients is None else f" --clients {clients}")
    name = f"{experiment.load_data().name}, {experiment.clients} clients a round"
    if rounds:
        source = results.Source(
            command=f"{command} --rounds {rounds} --memory-rounds 0",
            data=f"{name}, {rounds} rounds after {WARM_UP} untimed",
            seeds="0",
            spread="none: medians of the rounds, ratios as medians of pairs",
        )
        results.write(f"speed/rounds_{of_data}", _measure_time(experiment, rounds, quick), source, quick)
    if memory_rounds:
        allocator = f"MALLOC_ARENA_MAX={arenas} " if (arenas := os.environ.get("MALLOC_ARENA_MAX")) else ""
        source = results.Source(
            command=f"{allocator}{command} --rounds 0 --memory-rounds {memory_rounds}",
            data=f"{name}; resident MiB of the {round(_MEMORY_MARKS[0] * memory_rounds)} rounds up to each",
            seeds="0",
            spread="none: one run; mean and peak of what was read every 0.05 s",
        )
        results.write(f"speed/memory_{of_data}", _measure_memory(experiment, memory_rounds, quick), source, quick)


if __name__ == "__main__":
    tyro.cli(main)
