"""From an experiment's settings to the learning process that trains it."""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_kit import encoders
from tff_kit.algorithm import comparison, privacy, processes, proximal, randomness
from tff_kit.datasets import FederatedDataset
from tff_kit.errors import first_line
from tff_kit.experiment import Experiment, SettingsError
from tff_kit.metrics import build_metrics, match_rank

_OPTIMIZERS: dict[str, Callable[[float], tff.learning.optimizers.Optimizer]] = {
    "sgd": tff.learning.optimizers.build_sgdm,
    "adam": tff.learning.optimizers.build_adam,
}
# As in S. J. Reddi et al.: Adaptive Federated Optimization. ICLR 2021, arXiv 2003.00295: momentum 0.9, and beta_2 0.99 and
# epsilon 0.001, larger than usual, since the clients' mean update is small.
_EPSILON = 1e-3
_SERVER_OPTIMIZERS: dict[str, Callable[[float], tff.learning.optimizers.Optimizer]] = {
    "sgd": tff.learning.optimizers.build_sgdm,
    "sgdm": lambda lr: tff.learning.optimizers.build_sgdm(lr, momentum=0.9),
    "adam": lambda lr: tff.learning.optimizers.build_adam(lr, beta_1=0.9, beta_2=0.99, epsilon=_EPSILON),
    "yogi": lambda lr: tff.learning.optimizers.build_yogi(lr, beta_1=0.9, beta_2=0.99, epsilon=_EPSILON),
    "adagrad": lambda lr: tff.learning.optimizers.build_adagrad(lr, _EPSILON**2, epsilon=_EPSILON),
}
# A client's dataset is small, and made anew in each round: to optimize it takes TensorFlow longer than that saves.
_AS_WRITTEN = tf.data.Options()
_AS_WRITTEN.experimental_optimization.apply_default_optimizations = False
_AS_WRITTEN.autotune.enabled = False


def build_process(
    experiment: Experiment, data: FederatedDataset, initial_weights: Optional[tff.learning.models.ModelWeights] = None
) -> tff.learning.templates.LearningProcess:
    """Returns the learning process of `experiment`; `next` takes the state and `(id in UTF-8, seed)` of each client.

    Args:
      experiment: The settings.
      data: What `next` reads of each client.
      initial_weights: The weights that all clients have, where changes of weights are broadcast and clients can't draw the
        initial ones from the seed.
    """
    model_fn = build_model_fn(experiment, data)
    process = processes.build_federated_averaging_process(
        model_fn,
        build_client_optimizer(experiment),
        build_server_optimizer(experiment),
        processes.build_encoded_broadcast_process_from_model(
            model_fn,
            encoders.build_broadcast_encoder_fn(experiment.broadcast, experiment.threshold, experiment.seed),
            experiment.broadcast_change,
            experiment.broadcast_feedback,
            initial_weights,
        ),
        _build_mean_process(experiment, data, model_fn),
        experiment.weighted,
        tff.learning.metrics.secure_sum_then_finalize if experiment.secure else None,
    )
    return read_by_client_id(data, process)


def _build_mean_process(
    experiment: Experiment, data: FederatedDataset, model_fn: processes.ModelFn
) -> tff.aggregators.WeightedAggregationFactory:
    own = experiment.build_aggregation_process(model_fn)
    if own is not None:
        _check_alone(experiment)
        unweighted = isinstance(own, tff.aggregators.UnweightedAggregationFactory)
        return tff.aggregators.as_weighted_aggregator(own) if unweighted else own
    if experiment.noise_multiplier:
        sampled = experiment.clients_per_round(data)
        return privacy.build_private_mean_process(experiment.noise_multiplier, sampled, experiment.secure)
    if experiment.secure:
        return privacy.build_secure_mean_process()
    encoder_fn = encoders.build_mean_encoder_fn(experiment.mean, experiment.threshold, experiment.seed)
    return processes.build_encoded_mean_process_from_model(model_fn, encoder_fn)


def _check_alone(experiment: Experiment) -> None:
    """Raises `SettingsError` for settings that an aggregation of one's own would leave without effect."""
    ignored = [
        flag
        for flag, is_set in (
            (f"--mean {experiment.mean}", experiment.mean != "identity"),
            (f"--noise-multiplier {experiment.noise_multiplier}", experiment.noise_multiplier),
            ("--secure", experiment.secure),
        )
        if is_set
    ]
    if ignored:
        raise SettingsError(
            f"Expected updates to be aggregated by build_aggregation_process alone, found {' and '.join(ignored)} as well. "
            "Leave these settings at their defaults."
        )


def build_accountant(experiment: Experiment, data: FederatedDataset) -> Optional[privacy.Accountant]:
    """Returns what computes the privacy of the experiment's training, `None` where it adds no noise."""
    if not experiment.noise_multiplier:
        return None
    return privacy.Accountant(experiment.noise_multiplier, experiment.clients_per_round(data), len(data.client_ids))


def build_model_fn(experiment: Experiment, data: FederatedDataset) -> processes.ModelFn:
    """Returns a function that returns the experiment's model as TFF trains it, a new one with each call.

    Raises:
      SettingsError: By that function, if the model can't be built in TFF's graph, or is none that can be trained here.
    """

    def model_fn() -> tff.learning.models.VariableModel:
        keras_model = _build_in_graph(experiment)
        model = tff.learning.models.from_keras_model(
            keras_model,
            loss=experiment.build_loss(),
            input_spec=data.element_spec,
            metrics=build_metrics(experiment.metrics()),
        )
        preprocessing = [layer for layer in keras_model._flatten_layers() if hasattr(layer, "finalize_state")]
        forward_pass, rank = model.forward_pass, _output_rank(keras_model, data)

        def prepared_forward_pass(batch, training=True):
            for layer in preprocessing:  # They keep tensors made of their variables, from before TFF sets the variables.
                layer.finalize_state()
            inputs, labels = batch
            return forward_pass((inputs, match_rank(labels, rank)), training=training)

        model.forward_pass = prepared_forward_pass
        return randomness.draw_from_examples(comparison.compare_by_element(model), experiment.seed)

    return model_fn


def check_model(experiment: Experiment) -> list[str]:
    """Returns sentences that a user should read about the experiment's model.

    Raises:
      SettingsError: If it can't be built in TFF's graph, or can't be trained here.
    """
    with tf.Graph().as_default():
        layers = _build_in_graph(experiment)._flatten_layers()
    notes = []
    if any(isinstance(layer, tf.keras.layers.BatchNormalization) for layer in layers):
        notes.append(
            "The moving averages of batch normalization stay at their initial values, which tests use: clients do not send "
            "them. GroupNormalization needs none."
        )
    if experiment.secure:
        notes.append(
            "Secure sums cut what is beyond their bounds: a client's loss and metrics, summed over its examples, at 1,048,575, "
            "and coordinates of updates at twice the usual largest one."
        )
    return notes


def _build_in_graph(experiment: Experiment) -> tf.keras.Model:
    name = f"{type(experiment).__name__}.build_model()"
    try:
        with comparison.by_element():
            model = experiment.build_model()
    except Exception as error:  # Whatever Keras and the task's own code raise there.
        raise SettingsError(
            f"Expected {name} to build its model also in a TensorFlow graph, where TFF trains it; found {type(error).__name__}: "
            f"{first_line(error)}. Adapt layers and load weights outside of it, and pass it the values."
        ) from error
    if not model.built:
        raise SettingsError(f"Expected {name} to return a model that has its weights, found one without. Give it an input shape.")
    outputs = len(tf.nest.flatten(getattr(model, "output", None)))
    if outputs > 1:
        raise SettingsError(
            f"Expected {name} to return a model of one output, which loss and metrics are of; found {outputs}. Concatenate them."
        )
    return model


def _output_rank(model: tf.keras.Model, data: FederatedDataset) -> int:
    """Returns how many dimensions a batch of the model's predictions has."""
    output = getattr(model, "output", None)
    if output is None:  # Subclassed models have none before they are called.
        inputs, _ = data.element_spec
        output = tf.function(lambda x: model(x, training=False)).get_concrete_function(inputs).structured_outputs
    return tf.nest.flatten(output)[0].shape.rank


def build_server_optimizer(experiment: Experiment) -> tff.learning.optimizers.Optimizer:
    """Returns what the experiment's server makes of the mean update."""
    return experiment.build_server_optimizer() or _SERVER_OPTIMIZERS[experiment.server_optimizer](experiment.server_lr)


def build_client_optimizer(experiment: Experiment) -> tff.learning.optimizers.Optimizer:
    """Returns what the experiment's clients train with."""
    optimizer = _OPTIMIZERS[experiment.client_optimizer](experiment.client_lr)
    return proximal.ProximalOptimizer(optimizer, experiment.proximal) if experiment.proximal else optimizer


def read_by_client_id(
    data: FederatedDataset, process: tff.learning.templates.LearningProcess
) -> tff.learning.templates.LearningProcess:
    """Returns `process` with the worker reading the clients' data: `next` takes `(id in UTF-8, seed)` of each client."""

    @tff.tensorflow.computation(np.str_, np.int64)
    def client_dataset(client, seed):
        with comparison.by_element():
            return data.client_dataset(client, seed).with_options(_AS_WRITTEN)

    return tff.simulation.compose_dataset_computation_with_learning_process(client_dataset, process)
