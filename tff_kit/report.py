"""What a training tells: lines and a table in the terminal, metrics.csv, TensorBoard."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from tensorboard.plugins.hparams import api as hp

from tff_kit import runs
from tff_kit.datasets import FederatedDataset
from tff_kit.experiments import Experiment, Training
from tff_kit.units import format_size

_MEBIBYTE = 8 * 2**20  # In bits.
_LONG_TABLE = 30

METRICS = (
    "round",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "broadcast_bits",
    "aggregate_bits",
    "seconds",
    "broadcast_distortion",
    "aggregate_distortion",
    "clients_left_out",
    "clients_dropped",
    "clients_late",
    "clipping_norm",
    "epsilon",
)
"""The columns of metrics.csv. Bits are running totals over all clients; a test value stands where there was a test, the clipping
norm of the next round and epsilon so far where there is differential privacy, and without it and secure sums the distortion of
what was aggregated."""

_SOMETIMES = ("aggregate_distortion", "clipping_norm", "epsilon")
_TELLING = ("broadcast", "mean", "client_lr", "seed", "rounds")
_COMPARED = ("test_accuracy", "test_loss", "cumulative_broadcasted_bits", "cumulative_aggregated_bits")


class Logs:
    """Writes each round to metrics.csv and to TensorBoard."""

    def __init__(self, run: runs.RunDirectory, experiment: Experiment, data: FederatedDataset):
        self._metrics = run.metrics
        if not run.metrics.exists():
            self.clear()
        # Rewritten whole with each round: a run that is killed leaves no half line.
        self._csv = tff.program.CSVFileReleaseManager(run.metrics, tff.program.CSVSaveMode.WRITE, key_fieldname="round")
        # One file for curves and hyperparameters, hence not TFF's manager: TensorBoard follows only the last file of a run.
        self._tensorboard = tf.summary.create_file_writer(str(run.path))
        with self._tensorboard.as_default():
            shown = settings(experiment, data)
            hp.hparams_config([hp.HParam(name) for name in shown], [hp.Metric(name) for name in _COMPARED])
            hp.hparams(shown, trial_id=run.path.name)

    def clear(self) -> None:
        """Leaves nothing in metrics.csv but its columns' names, which TFF's manager then keeps in this order."""
        self._metrics.write_text(",".join(METRICS) + "\n")

    def write(self, row: dict[str, Any]) -> None:
        """Writes one round; replaces it and drops all later ones, where the run went on from before."""
        values = {name: value for name, value in row.items() if name != "round"}
        asyncio.run(self._csv.release(values, key=row["round"]))
        scalars = {
            "loss": row["train_loss"],
            "sparse_categorical_accuracy": row["train_accuracy"],
            "cumulative_broadcasted_bits": float(row["broadcast_bits"]),
            "cumulative_aggregated_bits": float(row["aggregate_bits"]),
            "broadcast_distortion": row["broadcast_distortion"],
            "clients_dropped": row["clients_dropped"],
            "clients_late": row["clients_late"],
        }
        scalars.update({name: row[name] for name in _SOMETIMES if row[name] is not None})
        by_mebibytes = {}
        if row["test_accuracy"] is not None:
            scalars.update(test_loss=row["test_loss"], test_accuracy=row["test_accuracy"])
            by_mebibytes["test_accuracy_by_total_MiB"] = row["test_accuracy"]
        mebibytes = (row["broadcast_bits"] + row["aggregate_bits"]) // _MEBIBYTE
        with self._tensorboard.as_default():
            for step, curves in ((row["round"], scalars), (mebibytes, by_mebibytes)):
                for name, value in curves.items():
                    tf.summary.scalar(name, value, step)
            self._tensorboard.flush()


def settings(training: Training, data: FederatedDataset) -> dict[str, Any]:
    """Returns what TensorBoard's table of hyperparameters shows of a run: its settings, the telling ones first, and its data."""
    found = {**vars(training), "task": training.task, "data": data.name}
    names = [name for name in _TELLING if name in found]
    names += [name for name in found if name not in names]
    return {name: found[name] if isinstance(found[name], (int, float)) else str(found[name]) for name in names}


class _WithBar:
    """A context in which the progress bar `_bar` is on the terminal."""

    _bar: rich_progress.Progress

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()


class Progress(_WithBar):
    """A progress bar over the rounds, and a line for each."""

    def __init__(self, console: Console, experiment: Experiment, done: int):
        self._bar = _progress_bar(console)
        self._console = console
        self._task = self._bar.add_task("rounds", total=experiment.rounds, completed=done)

    def show(self, row: dict[str, Any]) -> None:
        """Shows a finished round."""
        tested = "" if row["test_accuracy"] is None else f", test accuracy {row['test_accuracy']:.4f}"
        left_out = f", {row['clients_left_out']} clients left out: update not finite" if row["clients_left_out"] else ""
        self._console.print(
            f"round {row['round']:3d}: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}{tested}, "
            f"broadcast {format_size(row['broadcast_bits'])}, aggregated {format_size(row['aggregate_bits'])}, "
            f"{row['seconds']:.2f} s{left_out}",
            highlight=False,
            soft_wrap=True,
        )
        self._bar.advance(self._task)


class EpochProgress(_WithBar, tf.keras.callbacks.Callback):
    """A progress bar over the batches of each epoch, and a line for each epoch with its validation."""

    def __init__(self, console: Console, epochs: int):
        super().__init__()
        self._bar = _progress_bar(console)
        self._console = console
        self._epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the epoch's bar."""
        self._task = self._bar.add_task(f"epoch {epoch + 1} of {self._epochs}", total=self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar on."""
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts a line in the bar's place."""
        self._bar.remove_task(self._task)
        self._console.print(
            f"epoch {epoch + 1}: loss {logs['loss']:.4f}, accuracy {logs['sparse_categorical_accuracy']:.4f}; validation loss "
            f"{logs['val_loss']:.4f}, accuracy {logs['val_sparse_categorical_accuracy']:.4f}",
            highlight=False,
            soft_wrap=True,
        )


def _progress_bar(console: Console) -> rich_progress.Progress:
    columns = (
        "{task.description}",
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        "left",
        rich_progress.TimeRemainingColumn(),
    )
    return rich_progress.Progress(*columns, console=console, transient=True)


def print_heading(console: Console, what: str, data: FederatedDataset, path: pathlib.Path) -> None:
    """Prints what is about to run, and what a reader should know of the data."""
    console.print(f"Training {what} on {data.name}, {len(data.client_ids)} clients; into {path}", highlight=False, soft_wrap=True)
    for note in data.notes:
        print_note(console, note)


def print_note(console: Console, note: str) -> None:
    """Prints a sentence that a user should read."""
    console.print(f"Note: {note}", style="yellow", highlight=False, soft_wrap=True)


def print_table(console: Console, experiment: Experiment, data: FederatedDataset, run: runs.RunDirectory) -> None:
    """Prints a table of the run's rounds; of a long run, those that were evaluated."""
    rows = run.read_metrics()
    if len(rows) > _LONG_TABLE:
        rows = [row for row in rows if row["test_accuracy"]]
    table = Table(
        title=f"{experiment.task} on {data.name}: broadcast {experiment.broadcast}, mean {experiment.mean}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # Fits a terminal of 80 columns.
        pad_edge=False,
    )
    for name in ("round", "train\nloss", "train\naccuracy", "test\nloss", "test\naccuracy", "broadcast", "aggregated", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["round"]),
            *("" if row[name] is None else f"{row[name]:.4f}" for name in METRICS[1:5]),
            *(format_size(row[name]) for name in METRICS[5:7]),
            f"{row['seconds']:.2f}",
        )
    console.print(table)
    console.print(
        "Bits are running totals over all clients of a round, everything counted that crosses.", highlight=False, soft_wrap=True
    )
    console.print(f"TensorBoard: tensorboard --logdir {run.path.parent}", highlight=False, soft_wrap=True)
