"""How good a model is on examples that nobody trained on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tff_kit import runs
from tff_kit.experiments import Training


def compiled(model: tf.keras.Model, training: Training, optimizer: Any = None) -> tf.keras.Model:
    """Returns `model` with the training's loss, and accuracy as its metric."""
    model.compile(
        optimizer or "sgd",
        loss=training.build_loss(),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )
    return model


def evaluate_model(model: tf.keras.Model, batches: tf.data.Dataset) -> dict[str, Any]:
    """Returns accuracy, loss and the number of examples of a compiled model on batches of `(inputs, labels)`."""
    found = model.evaluate(batches, verbose=0, return_dict=True)
    examples = sum(len(labels) for _, labels in batches)
    return {"accuracy": found["sparse_categorical_accuracy"], "loss": found["loss"], "examples": examples}


def evaluate(training: Training, run: runs.RunDirectory) -> dict[str, Any]:
    """Returns accuracy, loss and the number of examples of the final model in `run` on the training's held-out data.

    Args:
      training: The settings, which say what the held-out data is.
      run: What `tff_kit.train` returned, or `tff_kit.runs.RunDirectory(path)` of an earlier run.

    Returns:
      A dict of `accuracy`, `loss` and `examples`.

    Raises:
      tff_kit.datasets.DataError: If the data is missing or broken.
      tff_kit.runs.RunError: If there is no such model, or one that doesn't fit the data.
    """
    data = training.load_data()
    expected, found = training.build_model(), run.load_model()
    if (expected.input_shape, expected.output_shape) != (found.input_shape, found.output_shape):
        raise runs.RunError(
            f"Expected a model from {expected.input_shape} to {expected.output_shape} for {training.task}, "
            f"found one from {found.input_shape} to {found.output_shape} in {run.model}."
        )
    return evaluate_model(compiled(found, training), data.test)
