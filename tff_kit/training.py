"""Rounds of federated averaging: sampling, evaluation, checkpoints, logs. The only training loop there is."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any, Callable, Optional, Union

import grpc
import nest_asyncio
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from rich.console import Console

from tff_kit import cluster, encoders, memory, privacy, processes, proximal, report, runs, sizing
from tff_kit.datasets import DataError, FederatedDataset
from tff_kit.evaluation import compiled, evaluate_model
from tff_kit.experiments import Experiment

_OPTIMIZERS = {"sgd": tff.learning.optimizers.build_sgdm, "adam": tff.learning.optimizers.build_adam}
# As in S. J. Reddi et al.: Adaptive Federated Optimization. ICLR 2021, arXiv 2003.00295: momentum .9, and beta_2 .99 and
# epsilon .001, larger than usual, since the clients' mean update is small.
_EPSILON = 1e-3
_SERVER_OPTIMIZERS: dict[str, Callable[[float], tff.learning.optimizers.Optimizer]] = {
    "sgd": tff.learning.optimizers.build_sgdm,
    "sgdm": lambda lr: tff.learning.optimizers.build_sgdm(lr, momentum=0.9),
    "adam": lambda lr: tff.learning.optimizers.build_adam(lr, beta_1=0.9, beta_2=0.99, epsilon=_EPSILON),
    "yogi": lambda lr: tff.learning.optimizers.build_yogi(lr, beta_1=0.9, beta_2=0.99, epsilon=_EPSILON),
    "adagrad": lambda lr: tff.learning.optimizers.build_adagrad(lr, _EPSILON**2, epsilon=_EPSILON),
}
# A client's dataset is small, and made anew in each round: to optimize it takes TensorFlow longer than that saves.
_AS_WRITTEN = tf.data.Options()
_AS_WRITTEN.experimental_optimization.apply_default_optimizations = False
_AS_WRITTEN.autotune.enabled = False
_KEPT_CHECKPOINTS = 2  # The one before the last, should the last turn out to be damaged.


def train(
    experiment: Experiment,
    logdir: Optional[Union[str, pathlib.Path]] = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Optional[Console] = None,
    machines: cluster.Machines = cluster.ONE_MACHINE,
) -> runs.RunDirectory:
    """Trains by federated averaging and writes a run directory. Bit for bit repeatable on one kind of machine.

    Args:
      experiment: The settings.
      logdir: The run directory; by default a new one in `logs/`, named after the settings and the time.
      resume: Go on with a run that was stopped or killed, from its last checkpoint.
      overwrite: Replace a run in `logdir`.
      console: Where to report progress; by default standard output.
      machines: Where to compute; by default on a worker process of this machine that ends with the training.

    Returns:
      The run directory; `tff_kit.runs` says what is in it.

    Raises:
      tff_kit.datasets.DataError: If the data is missing, broken, or has fewer clients than a round samples.
      tff_kit.runs.RunError: If `logdir` can't be used as asked, or a round can't be computed.
      tff_kit.runtime.WorkerError: If a worker can't be started or does not answer.
    """
    console = console or Console()
    data = experiment.load_data()
    if experiment.clients > len(data.client_ids) and not experiment.fewer_clients_will_do:
        raise DataError(
            f"Expected at most {len(data.client_ids)} clients a round, since {data.name} has no more; "
            f"found --clients {experiment.clients}."
        )
    path = runs.default_path(logdir, experiment.task, experiment.broadcast, experiment.mean, f"seed{experiment.seed}")
    with runs.open_run(path, experiment, resume, overwrite) as run:
        run.write_settings(experiment, data.name, data.notes, machines=dataclasses.asdict(machines))
        sampled = _clients_per_round(experiment, data)
        what = f"{experiment.task}, {sampled} clients a round, broadcast {experiment.broadcast}, mean {experiment.mean},"
        report.print_heading(console, what, data, run.path)
        accountant = build_accountant(experiment, data)
        if accountant:
            report.print_note(console, accountant.describe(experiment.rounds))
        with contextlib.ExitStack() as stack:
            note = functools.partial(report.print_note, console)
            context, sizes = stack.enter_context(cluster.open_context(machines, sampled, run.worker_log, note))
            stack.enter_context(tff.framework.get_context_stack().install(context))
            _Training(experiment, data, run, sizes, accountant, console).run()
    return run


def build_process(experiment: Experiment, data: FederatedDataset) -> tff.learning.templates.LearningProcess:
    """Returns the learning process of `experiment`; `next` takes the state and `(client id, seed)` of each client."""
    model_fn = build_model_fn(experiment, data)
    process = processes.build_federated_averaging_process(
        model_fn,
        build_client_optimizer(experiment),
        _SERVER_OPTIMIZERS[experiment.server_optimizer](experiment.server_lr),
        processes.build_encoded_broadcast_process_from_model(
            model_fn,
            encoders.build_broadcast_encoder_fn(experiment.broadcast, experiment.threshold, experiment.seed),
            experiment.broadcast_change,
            experiment.broadcast_feedback,
        ),
        _build_mean_process(experiment, data, model_fn),
        experiment.weighted,
        tff.learning.metrics.secure_sum_then_finalize if experiment.secure else None,
    )
    return read_by_client_id(data, process)


def _build_mean_process(
    experiment: Experiment, data: FederatedDataset, model_fn: processes.ModelFn
) -> tff.aggregators.WeightedAggregationFactory:
    if experiment.noise_multiplier:
        sampled = _clients_per_round(experiment, data)
        return privacy.build_private_mean_process(experiment.noise_multiplier, sampled, experiment.secure)
    if experiment.secure:
        return privacy.build_secure_mean_process()
    encoder_fn = encoders.build_mean_encoder_fn(experiment.mean, experiment.threshold, experiment.seed)
    return processes.build_encoded_mean_process_from_model(model_fn, encoder_fn)


def build_accountant(experiment: Experiment, data: FederatedDataset) -> Optional[privacy.Accountant]:
    """Returns what computes the privacy of the experiment's training, `None` where it adds no noise."""
    if not experiment.noise_multiplier:
        return None
    return privacy.Accountant(experiment.noise_multiplier, _clients_per_round(experiment, data), len(data.client_ids))


def _clients_per_round(experiment: Experiment, data: FederatedDataset) -> int:
    return min(experiment.clients, len(data.client_ids))


def build_model_fn(experiment: Experiment, data: FederatedDataset) -> processes.ModelFn:
    """Returns a function that returns the experiment's model as TFF trains it, a new one with each call."""

    def model_fn() -> tff.learning.models.VariableModel:
        return tff.learning.models.from_keras_model(
            experiment.build_model(),
            loss=experiment.build_loss(),
            input_spec=data.element_spec,
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
        )

    return model_fn


def build_client_optimizer(experiment: Experiment) -> tff.learning.optimizers.Optimizer:
    """Returns what the experiment's clients train with."""
    optimizer = _OPTIMIZERS[experiment.client_optimizer](experiment.client_lr)
    return proximal.ProximalOptimizer(optimizer, experiment.proximal) if experiment.proximal else optimizer


def read_by_client_id(
    data: FederatedDataset, process: tff.learning.templates.LearningProcess
) -> tff.learning.templates.LearningProcess:
    """Returns `process` with the worker reading the clients' data: `next` takes `(client id, seed)` of each client."""

    @tff.tensorflow.computation(np.str_, np.int64)
    def client_dataset(client, seed):
        return data.client_dataset(client, seed).with_options(_AS_WRITTEN)

    return tff.simulation.compose_dataset_computation_with_learning_process(client_dataset, process)


def _draw_missing(experiment: Experiment, round_num: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of a round's clients drop out and which others are late, bool [clients] each; one is always neither.

    Late ones are others in each round, as in T. Li et al.: Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """
    dropped = np.random.default_rng([experiment.seed, round_num, 1]).random(clients) < experiment.dropout
    dropped[0] &= not dropped.all()
    times = np.random.default_rng([experiment.seed, round_num, 2]).lognormal(sigma=experiment.straggling, size=clients)
    times[dropped] = np.inf
    return dropped, ~dropped & (times > max(experiment.deadline, times.min()))


class _Training:
    """One run: the process, its state, and where it reports to."""

    def __init__(
        self,
        experiment: Experiment,
        data: FederatedDataset,
        run: runs.RunDirectory,
        sizes: sizing.SizingExecutorFactory,
        accountant: Optional[privacy.Accountant],
        console: Console,
    ):
        nest_asyncio.apply()  # TFF's managers are asynchronous; inside Jupyter there is a loop already.
        self._experiment, self._data, self._run, self._sizes, self._console = experiment, data, run, sizes, console
        self._process = build_process(experiment, data)
        self._accountant = accountant
        # After the process: while Keras builds models in TFF's graphs it turns its classes into those of TensorFlow 1.
        self._model = compiled(experiment.build_model(), experiment)
        self._sample = tff.simulation.build_uniform_sampling_fn(data.client_ids, replace=False, random_seed=experiment.seed)
        self._checkpoints = tff.program.FileProgramStateManager(
            run.checkpoints, prefix="round_", keep_total=_KEPT_CHECKPOINTS, keep_first=False
        )
        self._logs = report.Logs(run, experiment, data)

    def run(self) -> None:
        state, first, spent = self._start()
        with report.Progress(self._console, self._experiment, done=first) as progress, memory.given_back() as give_back:
            for round_num in range(first + 1, self._experiment.rounds + 1):
                state, row = self._round(state, round_num, spent)
                self._logs.write(row)
                if row["test_accuracy"] is not None:
                    self._save(state, round_num, row)
                    give_back()
                progress.show(row)
        self._put_weights(state)
        self._model.save(self._run.model)
        report.print_table(self._console, self._experiment, self._data, self._run)

    def _start(self) -> tuple[Any, int, np.ndarray]:
        """Returns the state to go on from, the number of rounds done, and the bits spent in them, down and up."""
        state = self._process.initialize()
        weights = tff.learning.models.ModelWeights.from_model(self._model)
        state = self._process.set_model_weights(state, tf.nest.map_structure(lambda variable: variable.numpy(), weights))
        spent = np.zeros(2, np.int64)
        versions = asyncio.run(self._checkpoints.get_versions())
        if not versions:
            self._logs.clear()
            return state, 0, spent
        # Kept as a flat list: TensorFlow's SavedModel takes tuples and dicts for its own, and gives others back.
        leaves = [*tf.nest.flatten(state), spent]
        try:
            saved = asyncio.run(self._checkpoints.load(versions[-1], leaves))
            same = [np.shape(leaf) for leaf in leaves] == [np.shape(leaf) for leaf in saved]
        except ValueError:  # Another number of tensors.
            same = False
        if not same:
            raise runs.RunError(
                f"Expected a checkpoint of {self._experiment.task}'s model and encoders in "
                f"{self._run.checkpoints}, found one with other tensors. Use another --logdir."
            )
        return tf.nest.pack_sequence_as(state, saved[:-1]), versions[-1], saved[-1]

    def _round(self, state: Any, round_num: int, spent: np.ndarray) -> tuple[Any, dict[str, Any]]:
        experiment = self._experiment
        clients = self._sample(round_num, _clients_per_round(experiment, self._data))
        seeds = np.random.default_rng([experiment.seed, round_num]).integers(2**31, size=len(clients))
        dropped, late = _draw_missing(experiment, round_num, len(clients))
        heard = ~dropped & ~late
        began = time.monotonic()
        try:
            state, metrics = self._process.next(state, [x for x, is_heard in zip(zip(clients, seeds), heard) if is_heard])
        except cluster.LostError as error:
            advice = f"The run goes on with --resume --logdir {self._run.path}"
            raise runs.RunError(f"Round {round_num} failed. {error} {advice} and --workers that answer.") from error
        except grpc.RpcError as error:
            why = error.details() if isinstance(error, grpc.Call) else error
            log = f" See also {self._run.worker_log}." if self._run.worker_log.exists() else ""
            raise runs.RunError(f"Round {round_num} failed on TFF's worker: {why}{log}") from error
        seconds = time.monotonic() - began
        self._sizes.add_receivers(int(late.sum()))
        sizes = self._sizes.get_size_info()
        train, mean = metrics["client_work"]["train"], metrics["aggregator"]["mean_value"]
        row = {
            "round": round_num,
            "train_loss": train["loss"],
            "train_accuracy": train["sparse_categorical_accuracy"],
            "test_loss": None,
            "test_accuracy": None,
            "broadcast_bits": int(spent[0]) + sizes.broadcast_bits[-1],
            "aggregate_bits": int(spent[1]) + sizes.aggregate_bits[-1],
            "seconds": seconds,
            "broadcast_distortion": metrics["distributor"]["distortion"],
            "aggregate_distortion": mean.get("distortion"),  # None where nothing is encoded: of secure sums and noisy ones.
            "clients_dropped": int(dropped.sum()),
            "clients_late": int(late.sum()),
            "clients_left_out": metrics["aggregator"]["mean_weight"]["left_out"],
            "clipping_norm": mean.get("clipping_norm"),
            "epsilon": self._accountant and self._accountant.epsilon(round_num),
        }
        if round_num % experiment.eval_every == 0 or round_num == experiment.rounds:
            self._put_weights(state)
            tested = evaluate_model(self._model, self._data.test)
            row.update(test_loss=tested["loss"], test_accuracy=tested["accuracy"])
        return state, row

    def _put_weights(self, state: Any) -> None:
        self._process.get_model_weights(state).assign_weights_to(self._model)

    def _save(self, state: Any, round_num: int, row: dict[str, Any]) -> None:
        spent = np.array([row["broadcast_bits"], row["aggregate_bits"]], np.int64)
        asyncio.run(self._checkpoints.save([*tf.nest.flatten(state), spent], version=round_num))
