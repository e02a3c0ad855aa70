"""The metrics of a task besides its loss, and the usual metrics of a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of batches of predictions.

    Attributes:
      name: Its name in tables, files and plots. `train_<name>` and `test_<name>` are its columns in metrics.csv.
      build: Returns a new Keras metric with each call.
      higher_is_better: Whether a higher value is a better one.
    """

    name: str
    build: Callable[[], tf.keras.metrics.Metric]
    higher_is_better: bool = True


MEAN_ABSOLUTE_ERROR = Metric("mean_absolute_error", tf.keras.metrics.MeanAbsoluteError, higher_is_better=False)


def metrics_of_loss(loss: tf.keras.losses.Loss) -> Sequence[Metric]:
    """Returns the usual metrics of a model that is trained with `loss`; empty if none follow from it."""
    keras = tf.keras
    # A model whose output are logits calls a class from 0 on, one whose output are probabilities from 0.5 on.
    threshold = 0.0 if loss.get_config().get("from_logits") else 0.5
    known = (
        (keras.losses.SparseCategoricalCrossentropy, Metric("accuracy", keras.metrics.SparseCategoricalAccuracy)),
        (keras.losses.CategoricalCrossentropy, Metric("accuracy", keras.metrics.CategoricalAccuracy)),
        (keras.losses.BinaryCrossentropy, Metric("accuracy", lambda: keras.metrics.BinaryAccuracy(threshold=threshold))),
        ((keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.Huber), MEAN_ABSOLUTE_ERROR),
    )
    return [metric for kind, metric in known if isinstance(loss, kind)]
