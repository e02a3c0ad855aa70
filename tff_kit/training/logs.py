"""Writes each round of a federated training to metrics.csv and to TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from tff_kit.datasets import FederatedDataset
from tff_kit.experiment import Experiment, Training
from tff_kit.metrics import Metric, keras_names
from tff_kit.training import runs

_MEBIBYTE = 8 * 2**20  # In bits.
_TELLING = ("broadcast", "mean", "client_lr", "seed", "rounds")


WIRE = ("wire_bytes_down", "wire_bytes_up")
"""Columns that a deployment adds: running totals of the bytes that the sockets carried to the clients and from them."""

_SOMETIMES = ("aggregate_distortion", "clipping_norm", "epsilon", *WIRE)


def columns(metrics: Sequence[Metric], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the columns of metrics.csv, `more` ones last.

    Bits are running totals over all clients. `clients_left_out` had an update that is not finite, `clients_empty` no examples;
    where these were all clients of a round, nothing was measured, and the training's values are empty. A test value stands where
    there was a test, the clipping norm of the next round and epsilon so far where there is differential privacy, the distortion
    of what was aggregated where it can be measured, and `clients_empty` where clients are weighted by their examples.
    """
    names = ["loss", *(metric.name for metric in metrics)]
    return (
        "round",
        *(f"train_{name}" for name in names),
        *(f"test_{name}" for name in names),
        "broadcast_bits",
        "aggregate_bits",
        "seconds",
        "broadcast_distortion",
        "aggregate_distortion",
        "clients_left_out",
        "clients_empty",
        "clients_dropped",
        "clients_late",
        "clipping_norm",
        "epsilon",
        *more,
    )


class Logs:
    """Writes each round to metrics.csv and to TensorBoard. A value that is `None` was not measured, and is left out."""

    def __init__(self, run: runs.RunDirectory, experiment: Experiment, data: FederatedDataset, more: Sequence[str] = ()):
        self._run = run
        self._metrics = experiment.metrics()
        self._keras_names = keras_names(self._metrics)
        self._columns = columns(self._metrics, more)
        self._rows = run.read_metrics() if run.metrics.exists() else []
        self._check_columns()
        # Curves and hyperparameters are in one file: TensorBoard follows only the last file of a run.
        self._tensorboard = tf.summary.create_file_writer(str(run.path))
        compared = (f"test_{self._metrics[0].name}", "test_loss", "cumulative_broadcasted_bits", "cumulative_aggregated_bits")
        with self._tensorboard.as_default():
            shown = settings(experiment, data)
            hp.hparams_config([hp.HParam(name) for name in shown], [hp.Metric(name) for name in compared])
            hp.hparams(shown, trial_id=run.path.name)

    def clear(self) -> None:
        """Leaves nothing in metrics.csv but its columns' names."""
        self._rows = []
        self._write_rows()

    def go_on_after(self, rounds: int) -> None:
        """Forgets the rows of later rounds than the first `rounds`; raises `RunError` if the others are not there once each."""
        self._rows = [row for row in self._rows if row["round"] <= rounds]
        self._run.check_done(self._rows, "round", range(1, rounds + 1))

    def write(self, row: dict[str, Any]) -> None:
        """Writes one round; replaces it and drops all later ones, where the run went on from before."""
        self._rows = [earlier for earlier in self._rows if earlier["round"] < row["round"]] + [row]
        self._write_rows()
        scalars = {
            "loss": row["train_loss"],
            **{keras_name: row[f"train_{name}"] for name, keras_name in self._keras_names.items()},
            "cumulative_broadcasted_bits": float(row["broadcast_bits"]),
            "cumulative_aggregated_bits": float(row["aggregate_bits"]),
            "broadcast_distortion": row["broadcast_distortion"],
            "clients_dropped": row["clients_dropped"],
            "clients_late": row["clients_late"],
            **{name: row[name] for name in _SOMETIMES if name in row},
            **{name: value for name, value in row.items() if name.startswith("test_")},
        }
        shown = f"test_{self._metrics[0].name}"
        mebibytes = (row["broadcast_bits"] + row["aggregate_bits"]) // _MEBIBYTE
        with self._tensorboard.as_default():
            for step, curves in ((row["round"], scalars), (mebibytes, {f"{shown}_by_total_MiB": row[shown]})):
                for name, value in curves.items():
                    if value is not None:
                        tf.summary.scalar(name, value, step)
            self._tensorboard.flush()

    def _check_columns(self) -> None:
        """Raises `RunError` if the rows lack a column that every version of this package writes."""
        always = self._columns[: self._columns.index("seconds") + 1]
        if missing := [name for name in always if self._rows and name not in self._rows[0]]:
            raise runs.RunError(
                f"Expected a column {missing[0]} in {self._run.metrics}, found none. Mend the file, or train in a new --logdir."
            )

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in self._rows)
        runs.write_whole(self._run.metrics, text.getvalue())  # A run that is killed leaves no half line.


def _plain(value: Any) -> Any:
    """Returns a number of NumPy as one of Python, which prints the same in every version."""
    return value.item() if hasattr(value, "item") else value


def settings(training: Training, data: FederatedDataset) -> dict[str, Any]:
    """Returns what TensorBoard's table of hyperparameters shows of a run: its settings, the telling ones first, and its data."""
    found = {**vars(training), "task": training.task, "data": data.name}
    names = [name for name in _TELLING if name in found]
    names += [name for name in found if name not in names]
    return {name: found[name] if isinstance(found[name], (int, float)) else str(found[name]) for name in names}
