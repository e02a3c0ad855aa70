"""An experiment's encoders as codecs, the same on the server and on a node."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tff_kit.deploy.client_work import model_variables
from tff_kit.encoders import BroadcastCodec, MeanCodec
from tff_kit.experiment import Experiment


def build_broadcast_codec(experiment: Experiment, model: tf.keras.Model) -> BroadcastCodec:
    """Returns what takes the model's weights to the clients."""
    return BroadcastCodec(
        _specs(model_variables(model)),
        experiment.broadcast,
        experiment.threshold,
        experiment.seed,
        experiment.broadcast_feedback,
    )


def build_mean_codec(experiment: Experiment, model: tf.keras.Model) -> MeanCodec:
    """Returns what takes the clients' updates to the server."""
    return MeanCodec(_specs(model.trainable_variables), experiment.mean, experiment.threshold, experiment.seed)


def _specs(variables: Sequence[tf.Variable]) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(x.shape, x.dtype) for x in variables]
