"""Rounds of federated averaging: sampling, evaluation, checkpoints, logs. The only training loop there is."""

from __future__ import annotations

from tff_kit.requirements import require_tff

require_tff()

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import grpc
import nest_asyncio
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from rich.console import Console

from tff_kit.algorithm import assembly, privacy
from tff_kit.datasets import FederatedDataset, batches
from tff_kit.errors import UserError, first_line
from tff_kit.experiment import Experiment, SettingsError
from tff_kit.metrics import keras_names
from tff_kit.runtime import cluster, sizing
from tff_kit.training import checkpoints, initial, logs, memory, participation, report, runs, sources
from tff_kit.training.evaluation import check_measures, compiled, evaluate_model

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

    Exceptions are differential privacy, initial weights that are drawn without a seed, and a model that draws gamma or Poisson
    numbers, or asks a `tf.random.Generator`; dropout and Keras's other random layers are repeatable.

    Args:
      experiment: The settings.
      logdir: The run directory; by default a new one in `logs/`, named after the settings and the time.
      resume: Go on with a run that was stopped or killed, from its last checkpoint.
      overwrite: Replace a run in `logdir`.
      console: The console that reports progress. The default is standard output.
      machines: The machines to train on. The default is a worker process of this machine that ends with the training.

    Returns:
      The run directory; `tff_kit.training.runs` says what is in it.

    Raises:
      tff_kit.datasets.DataError: If the data is missing, broken, no batches of pairs, or has fewer clients than a round samples.
      tff_kit.experiment.SettingsError: If the model cannot be trained here, or a setting cannot be kept in settings.json.
      tff_kit.training.runs.RunError: If `logdir` cannot be used as asked, or a round cannot be computed.
      tff_kit.runtime.WorkerError: If a worker cannot start or does not answer.
    """
    console = console or Console()
    data = experiment.load_data()
    sampled = experiment.clients_per_round(data)
    batches.check_held_out(data)
    batches.check_clients(data)
    notes = assembly.check_model(experiment)
    check_measures(experiment, data)
    path = runs.run_path(logdir, resume, experiment.task, experiment.broadcast, experiment.mean, f"seed{experiment.seed}")
    learned_from = {"clients": sources.describe_clients(data), "loss": sources.describe_loss(experiment.build_loss())}
    with runs.open_run(path, experiment, resume, overwrite, learned_from) as run, runs.told(run):
        run.write_settings(experiment, data.name, data.notes, machines=dataclasses.asdict(machines), sources=learned_from)
        what = f"{experiment.task}, {sampled} clients a round, broadcast {experiment.broadcast}, mean {experiment.mean},"
        report.print_heading(console, what, data, run.path)
        accountant = assembly.build_accountant(experiment, data)
        for sentence in [*notes, *([accountant.describe(experiment.rounds)] if accountant else [])]:
            report.print_note(console, sentence)
        with contextlib.ExitStack() as stack:
            note = functools.partial(report.print_note, console)
            context, sizes = stack.enter_context(cluster.open_context(machines, sampled, run.worker_log, note))
            stack.enter_context(tff.framework.get_context_stack().install(context))
            _Training(experiment, data, run, sizes, accountant, console).run()
    return run


@contextlib.contextmanager
def _traced(experiment: Experiment) -> Iterator[None]:
    """Makes a `SettingsError` of what a task's own code, or Keras, raises in TFF's graph."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise SettingsError(
            f"Expected model, loss, metrics and data of {type(experiment).__name__} to work in a TensorFlow graph, where TFF "
            f"trains; found {type(error).__name__}: {first_line(error)}."
        ) from error


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
        self._accountant = accountant
        self._initial = initial.InitialWeights(experiment, data, run)
        with _traced(experiment):
            self._process = assembly.build_process(experiment, data, self._initial.weights)
        # After the process: while Keras builds models in TFF's graphs it turns its classes into those of TensorFlow 1.
        self._model = compiled(experiment.build_model(), experiment)
        if self._initial.weights is not None:
            report.print_note(console, self._initial.describe())
            self._initial.weights.assign_weights_to(self._model)
        self._metrics = keras_names(experiment.metrics()).items()
        self._checkpoints = checkpoints.Checkpoints(run.checkpoints, prefix="round_", kept=_KEPT_CHECKPOINTS)
        self._logs = logs.Logs(run, experiment, data)

    def run(self) -> None:
        state, first, spent = self._start()
        with report.Progress(self._console, self._experiment, done=first) as progress, memory.given_back() as give_back:
            for round_num in range(first + 1, self._experiment.rounds + 1):
                state, row = self._round(state, round_num, spent)
                self._logs.write(row)
                if row["test_loss"] is not None:
                    self._save(state, round_num, row)
                    give_back()
                progress.show(row)
        self._put_weights(state)
        self._model.save(self._run.model)
        report.print_table(self._console, self._experiment, self._data, self._run)

    def _start(self) -> tuple[Any, int, np.ndarray]:
        """Returns the state to go on from, the number of rounds done, and the bits spent in them, down and up."""
        weights = tff.learning.models.ModelWeights.from_model(self._model)
        with self._told("The start"):
            state = self._process.initialize()
            state = self._process.set_model_weights(state, tf.nest.map_structure(lambda variable: variable.numpy(), weights))
        spent = np.zeros(2, np.int64)
        found = self._last_checkpoint([*tf.nest.flatten(state), spent])
        if found is None:
            self._logs.clear()
            return state, 0, spent
        round_num, (*leaves, spent) = found
        self._logs.go_on_after(round_num)
        self._initial.go_on_after(round_num)
        return tf.nest.pack_sequence_as(state, leaves), round_num, spent

    def _last_checkpoint(self, expected: list[Any]) -> Optional[tuple[int, list[Any]]]:
        """Returns the round and the arrays of the last checkpoint that is not damaged; `None` where there is no checkpoint."""
        versions = self._checkpoints.versions()
        for version in versions:
            try:
                saved = self._checkpoints.load(version, expected)
            except checkpoints.DamagedError as error:
                report.print_note(self._console, str(error))
                continue
            if saved is None:
                raise runs.RunError(
                    f"Expected a checkpoint of {self._experiment.task}'s model and encoders in "
                    f"{self._checkpoints.path(version)}, found one with other tensors. Use another --logdir."
                )
            report.print_note(self._console, f"The run goes on after round {version}.")
            return version, saved
        if versions:
            raise runs.RunError(
                f"Expected a checkpoint to go on from in {self._run.checkpoints}, found damaged ones only. "
                "Use --overwrite to train anew, or another --logdir."
            )
        return None

    def _round(self, state: Any, round_num: int, spent: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """Returns the state after a round, and its row of metrics.csv; `spent` are the bits of earlier rounds, down and up."""
        experiment = self._experiment
        count = experiment.clients_per_round(self._data)
        clients = participation.sample_clients(self._data.client_ids, count, round_num, experiment.seed)
        seeds = participation.client_seeds(count, round_num, experiment.seed)
        dropped, late = participation.draw_missing(experiment, round_num, count)
        heard = [(client.encode(), seed) for client, seed, missing in zip(clients, seeds, dropped | late) if not missing]
        began = time.monotonic()
        with self._told(f"Round {round_num}"):
            state, metrics = self._process.next(state, heard)
        seconds = time.monotonic() - began
        self._sizes.add_receivers(int(late.sum()))
        self._initial.count(self._sizes, [client for client, is_dropped in zip(clients, dropped) if not is_dropped])
        sizes = self._sizes.get_size_info()
        row = {
            "round": round_num,
            **self._trained(metrics, heard),
            **self._tested(state, round_num),
            "broadcast_bits": int(spent[0]) + sizes.broadcast_bits[-1],
            "aggregate_bits": int(spent[1]) + sizes.aggregate_bits[-1],
            "seconds": seconds,
            "clients_dropped": int(dropped.sum()),
            "clients_late": int(late.sum()),
            "epsilon": self._accountant and self._accountant.epsilon(round_num),
        }
        return state, row

    def _trained(self, metrics: Any, clients: Sequence[tuple[bytes, int]]) -> dict[str, Any]:
        """Returns what a round's clients and its encoders measured; `None` for what was not measured."""
        # Where all clients were left out, sums are zero.
        train = metrics["client_work"]["train"] if metrics["client_work"]["train"]["num_examples"] else {}
        # An aggregation of one's own measures what it likes.
        aggregator = metrics["aggregator"] if isinstance(metrics["aggregator"], Mapping) else {}
        mean, weight = aggregator.get("mean_value") or {}, aggregator.get("mean_weight") or {}
        return {
            "train_loss": train.get("loss"),
            **{f"train_{name}": train.get(keras_name) for name, keras_name in self._metrics},
            "broadcast_distortion": metrics["distributor"]["distortion"],
            "aggregate_distortion": mean.get("distortion") if train else None,  # Secure sums and noisy ones encode nothing.
            "clipping_norm": mean.get("clipping_norm"),
            **self._left_out(weight.get("left_out"), clients),
        }

    def _tested(self, state: Any, round_num: int) -> dict[str, Optional[float]]:
        """Returns loss and metrics on the held-out data; `None` in a round without a test."""
        experiment = self._experiment
        if round_num % experiment.eval_every and round_num != experiment.rounds:
            return {"test_loss": None, **{f"test_{name}": None for name, _ in self._metrics}}
        self._put_weights(state)
        tested = evaluate_model(self._model, self._data.test, experiment)
        return {f"test_{name}": value for name, value in tested.items() if name != "examples"}

    def _left_out(self, count: Optional[int], clients: Sequence[tuple[bytes, int]]) -> dict[str, Optional[int]]:
        """Returns how many clients were left out because their update was not finite, and how many because they have no examples.

        A weight of zero means either; only where there is one are clients' data looked at here.
        """
        if count is None or not self._experiment.weighted:
            return {"clients_left_out": count, "clients_empty": None}
        datasets = [self._data.client_dataset(tf.constant(client), tf.constant(seed)) for client, seed in clients if count]
        empty = sum(next(iter(of_client.take(1)), None) is None for of_client in datasets)
        return {"clients_left_out": count - empty, "clients_empty": empty}

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Makes a `RunError` of what a worker can't compute, and of a worker that is lost."""
        try:
            yield
        except cluster.LostError as error:
            advice = f"The run goes on with --resume --logdir {self._run.path}"
            raise runs.RunError(f"{what} failed. {error} {advice} and --workers that answer.") from error
        except grpc.RpcError as error:
            why = first_line(error.details() if isinstance(error, grpc.Call) else error)
            log = f" See also {self._run.worker_log}." if self._run.worker_log.exists() else ""
            raise runs.RunError(f"{what} failed on TFF's worker: {why}.{log}") from error

    def _put_weights(self, state: Any) -> None:
        self._process.get_model_weights(state).assign_weights_to(self._model)

    def _save(self, state: Any, round_num: int, row: dict[str, Any]) -> None:
        spent = np.array([row["broadcast_bits"], row["aggregate_bits"]], np.int64)
        self._checkpoints.save([*tf.nest.flatten(state), spent], version=round_num)
