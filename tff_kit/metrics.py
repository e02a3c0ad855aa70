"""The metrics of a task besides its loss, and the usual metrics of a loss."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Callable

import tensorflow as tf

from tff_kit.errors import UserError

_TAKEN = ("loss", "examples", "num_examples", "num_batches")  # By what is measured beside a task's metrics.


class MetricError(UserError, ValueError):
    """A metric that can't be measured here. The message says why."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of batches of predictions.

    Attributes:
      name: Its name in tables, files and plots. `train_<name>` and `test_<name>` are its columns in metrics.csv.
      build: Returns a new Keras metric with each call. Its variables have to be sums over examples, since those of all clients
        are added up.
      higher_is_better: Whether a higher value is a better one.
    """

    name: str
    build: Callable[[], tf.keras.metrics.Metric]
    higher_is_better: bool = True


MEAN_ABSOLUTE_ERROR = Metric("mean_absolute_error", tf.keras.metrics.MeanAbsoluteError, higher_is_better=False)


def build_metrics(metrics: Sequence[Metric]) -> list[tf.keras.metrics.Metric]:
    """Returns new Keras metrics, in order. Each has a name of its own, the same in every call.

    It is the name that Keras gives the metric; or that of the `Metric`, where Keras numbers its names, or gives one twice.

    Raises:
      MetricError: If two metrics have one name, or one has a name that is taken.
    """
    names = [metric.name for metric in metrics]
    for name in names:
        if name in _TAKEN or names.count(name) > 1:
            why = "which is that of another measure" if name in _TAKEN else "twice"
            raise MetricError(f"Expected metrics with names of their own, found {name!r}, {why}. Give it another name.")
    built = [metric.build() for metric in metrics]
    again = [metric.build().name for metric in metrics]
    times = collections.Counter(keras_metric.name for keras_metric in built)
    for metric, keras_metric, name in zip(metrics, built, again):
        if keras_metric.name != name or times[name] > 1 or name in _TAKEN:
            keras_metric._name = metric.name
    return built


def keras_names(metrics: Sequence[Metric]) -> dict[str, str]:
    """Returns the names of the Keras metrics that `build_metrics` returns, by those of `metrics`."""
    return {metric.name: keras_metric.name for metric, keras_metric in zip(metrics, build_metrics(metrics))}


def match_rank(labels: Any, rank: int) -> Any:
    """Returns `labels` as Keras gives them to losses and metrics: of shape [n, 1] where predictions have two dimensions.

    Args:
      labels: A tensor, or a structure of tensors.
      rank: Of the predictions.
    """
    return tf.nest.map_structure(lambda x: x[:, tf.newaxis] if rank == 2 and x.shape.rank == 1 else x, labels)


def metrics_of_loss(loss: tf.keras.losses.Loss) -> Sequence[Metric]:
    """Returns the usual metrics of a model that is trained with `loss`; empty if none follow from it."""
    keras = tf.keras
    # A model whose output are logits calls a class from 0 on, one whose output are probabilities from 0.5 on.
    threshold = 0.0 if isinstance(loss, tf.keras.losses.Loss) and loss.get_config().get("from_logits") else 0.5
    known = (
        (keras.losses.SparseCategoricalCrossentropy, Metric("accuracy", keras.metrics.SparseCategoricalAccuracy)),
        (keras.losses.CategoricalCrossentropy, Metric("accuracy", keras.metrics.CategoricalAccuracy)),
        (keras.losses.BinaryCrossentropy, Metric("accuracy", lambda: keras.metrics.BinaryAccuracy(threshold=threshold))),
        ((keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.Huber), MEAN_ABSOLUTE_ERROR),
    )
    return [metric for kind, metric in known if isinstance(loss, kind)]
