"""Evaluates a model on examples that no client trained on."""

from __future__ import annotations

import pathlib
from typing import Any, Union

import numpy as np
import tensorflow as tf

from tff_kit.datasets import FederatedDataset
from tff_kit.errors import UserError, first_line
from tff_kit.experiment import SettingsError, Training
from tff_kit.metrics import MetricError, build_metrics, keras_names, match_rank
from tff_kit.training import runs

_CHECKED = 8  # Examples that are measured before a training.


def compiled(model: tf.keras.Model, training: Training, optimizer: Any = None) -> tf.keras.Model:
    """Returns `model` with the training's loss and metrics."""
    model.compile(
        optimizer or "sgd",
        loss=training.build_loss(),
        metrics=build_metrics(training.metrics()),
    )
    return model


def check_measures(training: Training, data: FederatedDataset) -> None:
    """Measures a few held-out examples, to find before the training what could not be measured, or would be measured wrongly.

    Raises:
      tff_kit.metrics.MetricError: If a metric has variables that are no sums over examples.
      tff_kit.experiment.SettingsError: If the loss is none, or is no single number, or does not fit model and data; or if Keras
        would do something with the model that federated training does not.
    """
    name, loss = type(training).__name__, training.build_loss()
    if not isinstance(loss, tf.keras.losses.Loss):
        raise SettingsError(
            f"Expected {name}.build_loss() to return a loss of tf.keras.losses, such as MeanSquaredError(); found {loss!r}."
        )
    model = training.build_model()
    _check_trained_as_said(training, model)
    try:
        for inputs, labels in data.test.unbatch().batch(_CHECKED).take(1):
            predictions = model(inputs, training=False)
            matched = match_rank(labels, predictions.shape.rank)
            shape = tuple(loss(matched, predictions).shape)
            if shape:
                raise SettingsError(
                    f"Expected {name}.build_loss() to return a loss of one number a batch, found one of shape {shape}. Leave "
                    "its reduction at the default."
                )
            _check_sums(training, np.asarray(predictions), matched)
    except UserError:
        raise
    except Exception as error:  # Whatever Keras and the task's own code raise.
        raise SettingsError(
            f"Expected model, loss and metrics of {name} to fit {data.name}, found {type(error).__name__}: {first_line(error)}."
        ) from error


def _check_trained_as_said(training: Training, model: tf.keras.Model) -> None:
    """Raises `SettingsError` for what Keras would do with the model, and federated training leaves out in silence."""
    constrained = [x.name for x in model.trainable_variables if getattr(x, "constraint", None) is not None]
    masked = getattr(getattr(model, "output", None), "_keras_mask", None) is not None
    active = [layer.name for layer in model._flatten_layers() if getattr(layer, "activity_regularizer", None) is not None]
    for found, which, instead in (
        (constrained, f"constraints on {', '.join(constrained)}", "Use a regularizer, or normalize the weights in a layer."),
        (masked, "an output with a mask, as mask_zero=True makes it", "Leave out padding in the loss, by its ignore_class."),
        (active, f"an activity regularizer in {', '.join(active)}", "Regularize the weights, or add the term to the loss."),
    ):
        if found:
            raise SettingsError(
                f"Expected {type(training).__name__}.build_model() to return a model that is trained as Keras does; found "
                f"{which}, which federated training leaves out. {instead}"
            )


def _check_sums(training: Training, predictions: np.ndarray, labels: Any) -> None:
    """Raises `MetricError` for a metric whose state of two batches is not the sum of their states."""
    half = len(predictions) // 2
    parts = [slice(None), slice(half), slice(half, None)]
    built = [build_metrics(training.metrics()) for _ in parts]
    for metric, of_parts in zip(training.metrics(), zip(*built)):
        for part, keras_metric in zip(parts, of_parts):
            keras_metric.update_state(tf.nest.map_structure(lambda x, part=part: x[part], labels), predictions[part])
        for whole, first, second in zip(*(keras_metric.variables for keras_metric in of_parts)):
            if not np.allclose(whole, first.numpy() + second.numpy(), rtol=1e-3, equal_nan=True):
                raise MetricError(
                    f"Expected the variables of the metric {metric.name} to be sums over examples, since those of all clients "
                    f"are added up; found {whole.name}, which is none. Keep a total and a count, and divide them in result()."
                )


def evaluate_model(model: tf.keras.Model, batches: tf.data.Dataset, training: Training) -> dict[str, Any]:
    """Returns metrics, loss and the number of examples of a compiled model on batches of `(inputs, labels)`."""
    found = model.evaluate(batches, verbose=0, return_dict=True)
    measured = {name: found[keras_name] for name, keras_name in keras_names(training.metrics()).items()}
    examples = sum(len(tf.nest.flatten(labels)[0]) for _, labels in batches)
    return {**measured, "loss": found["loss"], "examples": examples}


def evaluate(training: Training, run: Union[runs.RunDirectory, str, pathlib.Path]) -> dict[str, Any]:
    """Returns metrics, loss and the number of examples of the final model in `run` on the training's held-out data.

    Args:
      training: The settings, which say what the held-out data is.
      run: The result of `tff_kit.train`, or the path of an earlier run.

    Returns:
      A dict of the task's metrics, such as `accuracy`, of `loss` and of `examples`.

    Raises:
      tff_kit.datasets.DataError: If the data is missing or broken.
      tff_kit.training.runs.RunError: If there is no such model, or one that doesn't fit the data.
    """
    run = run if isinstance(run, runs.RunDirectory) else runs.RunDirectory(pathlib.Path(run))
    data = training.load_data()
    model = training.build_model()
    run.load_weights(model)
    try:
        return evaluate_model(compiled(model, training), data.test, training)
    except tf.errors.OpError as error:
        raise runs.RunError(
            f"The model in {run.path} could not be tested on {data.name}: {first_line(error.message)}."
        ) from error
