"""Reports a training in the terminal: a progress bar, a line for each round or epoch, and a table."""

from __future__ import annotations

import pathlib
from typing import Any

import tensorflow as tf
from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from tff_kit.datasets import FederatedDataset
from tff_kit.encoders.size import format_size
from tff_kit.experiment import Experiment, Training
from tff_kit.metrics import keras_names
from tff_kit.training import runs

_LONG_TABLE = 30


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
        self._names = [metric.name for metric in experiment.metrics()]
        self._task = self._bar.add_task("rounds", total=experiment.rounds, completed=done)

    def show(self, row: dict[str, Any]) -> None:
        """Shows a finished round."""
        values = [(name, row[f"train_{name}"]) for name in ("loss", *self._names)]
        values.append((f"test {self._names[0]}", row[f"test_{self._names[0]}"]))
        measured = "".join(f"{name.replace('_', ' ')} {value:.4f}, " for name, value in values if value is not None)
        reasons = {"update not finite": row["clients_left_out"], "no examples": row["clients_empty"]}
        left_out = "".join(
            f", {count} client{'s' if count > 1 else ''} left out: {why}" for why, count in reasons.items() if count
        )
        self._console.print(
            f"round {row['round']:3d}: {measured}"
            f"broadcast {format_size(row['broadcast_bits'])}, aggregated {format_size(row['aggregate_bits'])}, "
            f"{row['seconds']:.2f} s{left_out}",
            highlight=False,
            soft_wrap=True,
        )
        self._bar.advance(self._task)


class EpochProgress(_WithBar, tf.keras.callbacks.Callback):
    """A progress bar over the batches of each epoch, and a line for each epoch with its validation."""

    def __init__(self, console: Console, training: Training, epochs: int):
        super().__init__()
        self._bar = _progress_bar(console)
        self._console = console
        self._epochs = epochs
        self._keras_names = {"loss": "loss", **keras_names(training.metrics())}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the epoch's bar."""
        self._task = self._bar.add_task(f"epoch {epoch + 1} of {self._epochs}", total=self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar on."""
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts a line in the bar's place."""
        self._bar.remove_task(self._task)
        names = [(name.replace("_", " "), keras_name) for name, keras_name in self._keras_names.items()]
        trained, validated = (", ".join(f"{name} {logs[prefix + key]:.4f}" for name, key in names) for prefix in ("", "val_"))
        self._console.print(f"epoch {epoch + 1}: {trained}; validation {validated}", highlight=False, soft_wrap=True)


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
    shown = experiment.metrics()[0].name
    if len(rows) > _LONG_TABLE:
        rows = [row for row in rows if row[f"test_{shown}"] is not None]
    table = Table(
        title=f"{experiment.task} on {data.name}: broadcast {experiment.broadcast}, mean {experiment.mean}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # Fits a terminal of 80 columns.
        pad_edge=False,
    )
    measured = [f"{split}_{name}" for split in ("train", "test") for name in ("loss", shown)]
    headings = [name.replace("_", "\n", 1).replace("_", " ") for name in measured]
    for heading in ("round", *headings, "broadcast", "aggregated", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["round"]),
            *("" if row[name] is None else f"{row[name]:.4f}" for name in measured),
            *(format_size(row[name]) for name in ("broadcast_bits", "aggregate_bits")),
            f"{row['seconds']:.2f}",
        )
    console.print(table)
    console.print(
        "Bits are running totals over all clients of a round, everything counted that crosses.", highlight=False, soft_wrap=True
    )
    console.print(f"TensorBoard: tensorboard --logdir {run.path.parent}", highlight=False, soft_wrap=True)
