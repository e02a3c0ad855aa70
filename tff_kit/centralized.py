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

from tff_kit import report, runs
from tff_kit.evaluation import compiled, evaluate_model
from tff_kit.experiments import CentralizedKeywordSpotting
from tff_kit.models import kws_head

_MEASURE = "val_sparse_categorical_accuracy"
_SEEDS_APART = 2**20  # More epochs than anyone trains; epochs of different seeds draw differently.


def train(
    training: CentralizedKeywordSpotting,
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
      console: Where to report progress; by default standard output.

    Returns:
      The run directory; `tff_kit.runs` says what is in it.

    Raises:
      tff_kit.datasets.DataError: If the data is missing or broken.
      tff_kit.runs.RunError: If `logdir` can't be used as asked, or `training.checkpoint` can't be started from.
    """
    console = console or Console()
    data = training.load_data()
    path = runs.default_path(logdir, training.task, training.window, f"seed{training.seed}")
    model = _start_model(training)
    with runs.open_run(path, training, resume, overwrite) as run:
        run.write_settings(training, data.name, data.notes)
        report.print_heading(console, f"{training.task}, all clients' clips together,", data, run.path)
        last = tf.train.latest_checkpoint(run.checkpoints)
        done = int(last.rsplit("_", 1)[1]) if last else 0
        if last:
            model.load_weights(last)
        best, best_so_far = run.checkpoints / "best.weights.h5", _keep_epochs(run, done)
        run.checkpoints.mkdir(exist_ok=True)
        seeds = tf.data.Dataset.range(done, training.epochs).map(lambda epoch: epoch + training.seed * _SEEDS_APART)
        with report.EpochProgress(console, training.epochs) as progress:
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
                        str(best), _MEASURE, save_best_only=True, save_weights_only=True, initial_value_threshold=best_so_far
                    ),
                    tf.keras.callbacks.CSVLogger(str(run.metrics), append=True),
                    tf.keras.callbacks.TensorBoard(str(run.path), write_graph=False),
                    hp.KerasCallback(str(run.path), report.settings(training, data), trial_id=run.path.name),
                    # Last of all: what a killed run goes on from is an epoch of which everything else is written.
                    tf.keras.callbacks.ModelCheckpoint(str(run.checkpoints / "epoch_{epoch:03d}"), save_weights_only=True),
                ],
            )
        model.load_weights(best)
        model.save(run.model)
        tested = evaluate_model(model, data.test)
        (run.path / "test.json").write_text(json.dumps(tested) + "\n")
        kws_head.save_safetensors(model, run.path / "model.safetensors")
    console.print(
        f"test: loss {tested['loss']:.4f}, accuracy {tested['accuracy']:.4f} on {tested['examples']:,} clips, by the epoch "
        f"that was best on the validation speakers; model in {run.model}",
        highlight=False,
        soft_wrap=True,
    )
    return run


def _start_model(training: CentralizedKeywordSpotting) -> tf.keras.Model:
    model = training.build_model()
    if training.checkpoint:
        path = pathlib.Path(training.checkpoint)
        try:
            if path.suffix == ".safetensors":
                kws_head.load_safetensors(model, path)
            else:
                model.set_weights(tf.keras.models.load_model(path, compile=False).get_weights())
        except (OSError, ValueError) as error:
            raise runs.RunError(
                f"Expected a head for {training.window} embeddings to start from in --checkpoint {path}, a .keras or "
                f".safetensors file; found: {error}"
            ) from error
    return compiled(model, training, tf.keras.optimizers.Adam(training.learning_rate))


def _keep_epochs(run: runs.RunDirectory, done: int) -> Optional[float]:
    """Leaves the first `done` epochs in metrics.csv and returns the best of them."""
    rows: list[dict[str, Any]] = []
    if run.metrics.exists():
        with open(run.metrics, newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < done]
        run.metrics.unlink()
    if rows:
        with open(run.metrics, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return max((float(row[_MEASURE]) for row in rows), default=None)
