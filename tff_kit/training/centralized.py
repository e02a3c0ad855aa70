"""Training without federation: all clients' examples in one place, by Keras. What federated averaging is compared with.

A run directory has what a federated one has; its metrics.csv has a line an epoch, and test.json the final test.
"""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any, Optional, Union

import tensorflow as tf
from rich.console import Console
from tensorboard.plugins.hparams import api as hp

from tff_kit.datasets import batches
from tff_kit.experiment import CentralizedTraining
from tff_kit.metrics import keras_names
from tff_kit.training import logs, report, runs, sources
from tff_kit.training.evaluation import compiled, evaluate_model

_SEEDS_APART = 2**20  # More epochs than anyone trains; epochs of different seeds draw differently.


def train(
    training: CentralizedTraining,
    logdir: Optional[Union[str, pathlib.Path]] = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Optional[Console] = None,
) -> runs.RunDirectory:
    """Trains with Adam, keeps the model that was best on the validation examples, and tests it in the end.

    Args:
      training: The settings.
      logdir: The run directory; by default a new one in `logs/`, named after the settings and the time.
      resume: Go on with a run that was stopped or killed, after its last whole epoch; more epochs are allowed.
      overwrite: Replace a run in `logdir`.
      console: The console that reports progress. The default is standard output.

    Returns:
      The run directory; `tff_kit.runs` says what is in it.

    Raises:
      tff_kit.datasets.DataError: If the data is missing or broken.
      tff_kit.training.runs.RunError: If `logdir` cannot be used as asked, or `training.checkpoint` cannot be loaded.
    """
    console = console or Console()
    data = training.load_data()
    batches.check_held_out(data)
    path = runs.run_path(logdir, resume, training.task, f"seed{training.seed}")
    metric = training.metrics()[0]
    measure, better = f"val_{keras_names(training.metrics())[metric.name]}", "max" if metric.higher_is_better else "min"
    model = _start_model(training)
    learned_from = {"clients": sources.describe_clients(data), "loss": sources.describe_loss(training.build_loss())}
    with runs.open_run(path, training, resume, overwrite, learned_from) as run, runs.told(run):
        run.write_settings(training, data.name, data.notes, sources=learned_from)
        report.print_heading(console, f"{training.task}, all clients' examples together,", data, run.path)
        last = tf.train.latest_checkpoint(run.checkpoints)
        done = int(last.rsplit("_", 1)[1]) if last else 0
        if last:
            model.load_weights(last)
        best = run.checkpoints / "best.weights.h5"
        before = [float(row[measure]) for row in _keep_epochs(run, done)]
        best_so_far = {"max": max, "min": min}[better](before, default=None)
        run.checkpoints.mkdir(exist_ok=True)
        seeds = tf.data.Dataset.range(done, training.epochs).map(lambda epoch: epoch + training.seed * _SEEDS_APART)
        with report.EpochProgress(console, training, training.epochs) as progress:
            model.fit(
                seeds.flat_map(data.all_clients),
                initial_epoch=done,
                epochs=training.epochs,
                steps_per_epoch=data.all_batches,
                validation_data=data.validation,
                verbose=0,
                callbacks=[
                    progress,
                    tf.keras.callbacks.ModelCheckpoint(
                        str(best),
                        measure,
                        save_best_only=True,
                        save_weights_only=True,
                        mode=better,
                        initial_value_threshold=best_so_far,
                    ),
                    tf.keras.callbacks.CSVLogger(str(run.metrics), append=True),
                    tf.keras.callbacks.TensorBoard(str(run.path), write_graph=False),
                    hp.KerasCallback(str(run.path), logs.settings(training, data), trial_id=run.path.name),
                    # Last of all: what a killed run goes on from is an epoch of which everything else is written.
                    tf.keras.callbacks.ModelCheckpoint(str(run.checkpoints / "epoch_{epoch:03d}"), save_weights_only=True),
                ],
            )
        model.load_weights(best)
        model.save(run.model)
        tested = evaluate_model(model, data.test, training)
        (run.path / "test.json").write_text(json.dumps(tested) + "\n")
        training.export(model, run.path)
    measured = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in tested.items() if name != "examples")
    console.print(
        f"test: {measured} on {tested['examples']:,} examples, by the epoch that was best on the validation data; "
        f"model in {run.model}",
        highlight=False,
        soft_wrap=True,
    )
    return run


def _start_model(training: CentralizedTraining) -> tf.keras.Model:
    model = training.build_model()
    if training.checkpoint:
        path = pathlib.Path(training.checkpoint)
        try:
            training.load_weights(model, path)
        except (OSError, ValueError) as error:
            raise runs.RunError(f"Expected weights of {training.task}'s model in --checkpoint {path}, found: {error}") from error
    return compiled(model, training, tf.keras.optimizers.Adam(training.learning_rate))


def _keep_epochs(run: runs.RunDirectory, done: int) -> list[dict[str, Any]]:
    """Leaves the first `done` epochs in metrics.csv and returns them."""
    rows: list[dict[str, Any]] = []
    if done:
        read = run.read_metrics(unfinished=True) if run.metrics.exists() else []
        run.check_done([row for row in read if row.get("epoch", 0) < done], "epoch", range(done))
    if run.metrics.exists():
        with open(run.metrics, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))[:done]
        run.metrics.unlink()
    if rows:
        with open(run.metrics, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return rows
