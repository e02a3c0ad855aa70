"""Round time of federated averaging here against the same training in one plain `tf.function` loop, and memory.

    python benchmarks/round_time.py --data FOLDER_OF_emnist_all.sqlite

Every round trains the same clients once in each way, one after the other in changing order, on one machine; given are
medians, and medians of the ratios round by round, since machines are noisy. Then one way runs on for 200 rounds, and the
memory of this process and its worker is read after 20 and after 200. Writes results/round_time.md.
"""

from __future__ import annotations

import os
import pathlib
import platform
import statistics
import time
from typing import Callable

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff
import tyro
from rich.progress import track

import tff_kit
from tff_kit import processes, runtime, sizing, training

_RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
_CLIENTS = 10
_WARM_UP = 3
Clients = list[tuple[str, int]]


def _loop(experiment: tff_kit.Emnist, data) -> Callable[[Clients], None]:
    """Returns a round of the same training without TFF: TensorFlow's own loop over clients and batches."""
    model = experiment.build_model()
    loss_fn = tf.keras.losses.SparseCategoricalCrossentropy()
    mean = [tf.Variable(tf.zeros_like(w)) for w in model.trainable_variables]
    server = [tf.Variable(w) for w in model.trainable_variables]

    @tf.function
    def train_client(dataset):
        for variable, weights in zip(model.trainable_variables, server):
            variable.assign(weights)
        examples = 0.0
        for images, labels in dataset:
            with tf.GradientTape() as tape:
                loss = loss_fn(labels, model(images, training=True))
            for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
                variable.assign_sub(experiment.client_lr * gradient)
            examples += tf.cast(tf.shape(labels)[0], tf.float32)
        for total, variable, weights in zip(mean, model.trainable_variables, server):
            total.assign_add(examples * (variable - weights))
        return examples

    @tf.function
    def train_round(clients, seeds):
        for total in mean:
            total.assign(tf.zeros_like(total))
        examples = 0.0
        for client, seed in zip(tf.unstack(clients, _CLIENTS), tf.unstack(seeds, _CLIENTS)):
            examples += train_client(data.client_dataset(client, seed))
        for weights, total in zip(server, mean):
            weights.assign_add(total / examples)
        return examples

    return lambda clients: train_round(
        tf.constant([c for c, _ in clients]), tf.constant([s for _, s in clients], tf.int64)
    ).numpy()


def _federated(process, context) -> Callable[[Clients], None]:
    """Returns a round of `process` in `context`; keeps the state."""
    with tff.framework.get_context_stack().install(context):
        state = process.initialize()

    def train_round(clients: Clients) -> None:
        nonlocal state
        with tff.framework.get_context_stack().install(context):
            state = process.next(state, clients).state

    return train_round


def _plain_process(experiment: tff_kit.Emnist, data) -> tff.learning.templates.LearningProcess:
    """Returns federated averaging with nothing encoded and nothing measured."""

    def model_fn():
        return tff.learning.models.from_keras_model(
            experiment.build_model(),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(),
            input_spec=data.element_spec,
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
        )

    @tff.tensorflow.computation(np.str_, np.int64)
    def client_dataset(client, seed):
        return data.client_dataset(client, seed)

    sgd = tff.learning.optimizers.build_sgdm
    process = processes.build_federated_averaging_process(model_fn, sgd(experiment.client_lr), sgd(1.0))
    return tff.simulation.compose_dataset_computation_with_learning_process(client_dataset, process)


def _memory(worker: runtime.Worker) -> tuple[int, int]:
    """Returns the resident bytes of this process and of its worker."""
    return tuple(psutil.Process(pid).memory_info().rss for pid in (os.getpid(), worker.pid))


def main(data: str = "auto", rounds: int = 60, memory_rounds: int = 200) -> None:
    """Measures and writes results/round_time.md.

    Args:
        data: As in `python -m tff_kit train emnist --data`.
        rounds: Rounds that are timed, after three that are not.
        memory_rounds: Rounds at whose end memory is read the second time; the first time is after a tenth of them.
    """
    plain = tff_kit.Emnist(data=data)
    dataset = plain.load_data()
    worker = runtime.Worker()
    unsized = runtime.create_context(runtime.worker_executor_factory(worker))
    sized = runtime.create_context(sizing.sizing_executor_factory(worker))
    fed_avg = _plain_process(plain, dataset)
    encoded = {}
    for spec in ("tensor_encoding:8", "uniform:8"):
        experiment = tff_kit.Emnist(data=data, broadcast=spec, mean=spec)
        encoded[f"{spec} both ways, sized"] = _federated(training.build_process(experiment, dataset), sized)
    ways = {
        "plain tf.function loop": _loop(plain, dataset),  # Last of all that build Keras models; see training.py.
        "federated averaging": _federated(fed_avg, unsized),
        "the same, sized": _federated(fed_avg, sized),
        **encoded,
    }
    sample = tff.simulation.build_uniform_sampling_fn(dataset.client_ids, replace=False, random_seed=0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_num in track(range(rounds + _WARM_UP), description="rounds"):
        clients = [(client, round_num) for client in sample(round_num, _CLIENTS)]
        names = list(ways)
        np.random.default_rng(round_num).shuffle(names)
        for name in names:
            began = time.perf_counter()
            ways[name](clients)
            seconds[name].append(time.perf_counter() - began)
    lines = [
        f"`python benchmarks/round_time.py`, {dataset.name}, {_CLIENTS} clients a round, {rounds} rounds, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| way | seconds a round, median | against the loop, median of pairs | against federated averaging |",
        "|---|---|---|---|",
    ]
    timed = {name: values[_WARM_UP:] for name, values in seconds.items()}
    for name, values in timed.items():
        ratios = [statistics.median(a / b for a, b in zip(values, timed[base])) for base in list(timed)[:2]]
        lines.append(f"| {name} | {statistics.median(values):.3f} | {ratios[0]:.3f} | {ratios[1]:.3f} |")
    readings = []
    for round_num in track(range(memory_rounds), description="memory"):
        ways["uniform:8 both ways, sized"]([(client, round_num) for client in sample(round_num, _CLIENTS)])
        if round_num + 1 in (memory_rounds // 10, memory_rounds):
            readings.append(_memory(worker))
    lines += ["", f"| memory | after {memory_rounds // 10} rounds | after {memory_rounds} rounds | ratio |", "|---|---|---|---|"]
    for name, first, last in zip(("driver", "worker"), *readings):
        lines.append(f"| {name} | {first / 2**20:.0f} MiB | {last / 2**20:.0f} MiB | {last / first:.3f} |")
    text = "\n".join(lines) + "\n"
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / "round_time.md").write_text(text)
    print(text)
    worker.stop()


if __name__ == "__main__":
    tyro.cli(main)
