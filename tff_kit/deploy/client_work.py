"""What a client does in a round: it trains the model that it received on its own data. Equal to TFF's client work.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_kit.datasets import FederatedDataset
from tff_kit.deploy.optimizers import build_client_optimizer
from tff_kit.experiment import Experiment
from tff_kit.metrics import build_metrics as build_keras_metrics
from tff_kit.metrics import match_rank

# A client's dataset is small, and made anew in each round: to optimize it takes TensorFlow longer than that saves.
_AS_WRITTEN = tf.data.Options()
_AS_WRITTEN.experimental_optimization.apply_default_optimizations = False
_AS_WRITTEN.autotune.enabled = False


@dataclasses.dataclass(frozen=True)
class Update:
    """What training made of a model.

    Attributes:
      values: Received minus trained weights, float32, one a trainable variable; all zero where one of them is not finite.
      weight: What the client counts in the mean: its examples, or 1; 0 where its update is not finite.
      is_finite: Whether all trained weights were finite.
      measured: The unfinished metrics: variables of the task's metrics, of the mean loss, then examples and batches. All are zero
        where the update is not finite.
    """

    values: list[tf.Tensor]
    weight: float
    is_finite: bool
    measured: list[np.ndarray]


class ClientWork:
    """The training of one client, with its graph built once.

    Args:
      experiment: The settings.
      data: The client's own data.
      client: Its id in `data`.
    """

    def __init__(self, experiment: Experiment, data: FederatedDataset, client: str):
        self._experiment, self._data, self._client = experiment, data, client
        self.model = experiment.build_model()
        self._loss = experiment.build_loss()
        self._optimizer = build_client_optimizer(experiment)
        self.metrics = build_metrics(experiment)
        # Keras looks through a graph for the softmax in front of a loss. TFF's clients hide it in a function of its own.
        self._predict = tf.function(lambda inputs: self.model(inputs, training=True))
        self._train = tf.function(self._train_batches, autograph=True)

    def train(self, weights: Sequence[tf.Tensor], seed: int, numbers: Sequence[tf.Tensor]) -> Update:
        """Trains a model on the client's batches.

        Args:
          weights: Of the model, trainable ones first.
          seed: Draws the order of the client's examples.
          numbers: The optimizer's hyperparameters.
        """
        for variable, value in zip(model_variables(self.model), weights):
            variable.assign(value)
        for metric in self.metrics:
            metric.reset_state()
        batches = self._data.client_dataset(tf.constant(self._client), tf.constant(seed, tf.int64)).with_options(_AS_WRITTEN)
        received = [tf.identity(x) for x in self.model.trainable_variables]
        examples, number = self._train(batches, received, list(numbers))
        values = [before - after for before, after in zip(received, self.model.trainable_variables)]
        finite = all(bool(tf.reduce_all(tf.math.is_finite(x))) for x in values)
        if not finite:
            values = [tf.zeros_like(x) for x in values]
            for metric in self.metrics:
                metric.reset_state()
        counts = [np.asarray(examples if finite else 0, np.int64), np.asarray(number if finite else 0, np.int64)]
        weight = float(examples) if self._experiment.weighted else 1.0
        measured = [x.numpy() for metric in self.metrics for x in metric.variables]
        return Update(values, weight if finite else 0.0, finite, [*measured, *counts])

    def _train_batches(self, batches: tf.data.Dataset, received: list[tf.Tensor], numbers: list[tf.Tensor]):
        variables = self.model.trainable_variables
        state = self._optimizer.initialize([tf.TensorSpec(x.shape, x.dtype) for x in variables])
        examples, number = tf.constant(0, tf.int64), tf.constant(0, tf.int64)
        for inputs, labels in batches:
            state = self._step(numbers, state, inputs, labels, received)
            examples += tf.shape(labels, out_type=tf.int64)[0]
            number += 1
        return examples, number

    @tf.autograph.experimental.do_not_convert
    def _step(self, numbers, state, inputs, labels, received):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            predictions = self._predict(inputs)
            labels = match_rank(labels, predictions.shape.rank)
            batch_loss = self._loss(labels, predictions)
            loss = tf.add_n([batch_loss, *self.model.losses])
        gradients = tape.gradient(loss, variables)
        if self._experiment.proximal:
            gradients = _pulled(gradients, variables, received, self._experiment.proximal)
        state, weights = self._optimizer.next(numbers, state, [tf.convert_to_tensor(x) for x in variables], gradients)
        for variable, value in zip(variables, weights):
            variable.assign(value)
        for metric in self.metrics[:-1]:
            metric.update_state(labels, predictions)
        self.metrics[-1].update_state(batch_loss, tf.shape(predictions)[0])
        return state


def build_metrics(experiment: Experiment) -> list[tf.keras.metrics.Metric]:
    """Returns new metrics as a client measures them: the task's, and last the mean loss."""
    return [*build_keras_metrics(experiment.metrics()), tf.keras.metrics.Mean("loss")]


def model_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns what is broadcast of a model: its trainable variables, then the others."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def _pulled(gradients, variables, received, strength: float):
    """The gradients of the loss plus FedProx's term, as `tff_kit.algorithm.proximal` has it."""
    return [
        None if g is None else tf.convert_to_tensor(g) + strength * (x - x0) for g, x, x0 in zip(gradients, variables, received)
    ]
