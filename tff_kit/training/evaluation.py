"""Evaluates a model on examples that no client trained on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tff_kit.experiment import Training
from tff_kit.training import runs


def compiled(model: tf.keras.Model, training: Training, optimizer: Any = None) -> tf.keras.Model:
    """Returns `model` with the training's loss and metrics."""
    model.compile(
        optimizer or "sgd",
        loss=training.build_loss(),
        metrics=[metric.build() for metric in training.metrics()],
    )
    return model


def evaluate_model(model: tf.keras.Model, batches: tf.data.Dataset, training: Training) -> dict[str, Any]:
    """Returns metrics, loss and the number of examples of a compiled model on batches of `(inputs, labels)`."""
    found = model.evaluate(batches, verbose=0, return_dict=True)
    measured = {metric.name: found[metric.build().name] for metric in training.metrics()}
    examples = sum(len(tf.nest.flatten(labels)[0]) for _, labels in batches)
    return {**measured, "loss": found["loss"], "examples": examples}


def evaluate(training: Training, run: runs.RunDirectory) -> dict[str, Any]:
    """Returns metrics, loss and the number of examples of the final model in `run` on the training's held-out data.

    Args:
      training: The settings, which say what the held-out data is.
      run: The result of `tff_kit.train`, or `tff_kit.training.runs.RunDirectory(path)` of an earlier run.

    Returns:
      A dict of the task's metrics, such as `accuracy`, of `loss` and of `examples`.

    Raises:
      tff_kit.datasets.DataError: If the data is missing or broken.
      tff_kit.training.runs.RunError: If there is no such model, or one that doesn't fit the data.
    """
    data = training.load_data()
    model = training.build_model()
    run.load_weights(model)
    try:
        return evaluate_model(compiled(model, training), data.test, training)
    except tf.errors.OpError as error:
        raise runs.RunError(
            f"The model in {run.path} could not be tested on {data.name}: {runs.first_line(error.message)}."
        ) from error
