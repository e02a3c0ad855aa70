"""What stands in the tensors of messages: a client optimizer's numbers and a client's report; and the settings as a message."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_kit.deploy.messages import Settings
from tff_kit.deploy.optimizers import Optimizer
from tff_kit.encoders.message import Layout
from tff_kit.experiment import Experiment
from tff_kit.training import settings


def numbers_layout(optimizer: Optimizer) -> Layout:
    """Returns the container of a client optimizer's hyperparameters."""
    return Layout([tf.TensorSpec([], tf.float32)] * len(optimizer.hyperparameters), "client optimizer's numbers")


def scalars_layout(metrics: Sequence[tf.keras.metrics.Metric]) -> Layout:
    """Returns the container of what a client reports beside its update.

    That is its weight, 1 where its update was not finite, and as the simulation counts them its unfinished metrics, examples and
    batches.
    """
    measured = [tf.TensorSpec(x.shape, x.dtype) for metric in metrics for x in metric.variables]
    counts = [tf.TensorSpec([], tf.int64)] * 2
    return Layout([tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32), *measured, *counts], "client's report")


def weights_digest(weights: Sequence[np.ndarray]) -> str:
    """Returns the SHA-256 of `weights`."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def settings_of(experiment: Experiment, initial: Sequence[np.ndarray]) -> Settings:
    """Returns what the nodes of `experiment` are told; `initial` are the server's initial weights."""
    digest = weights_digest(initial) if experiment.broadcast_change else ""
    return Settings(experiment.task, settings.as_plain(experiment), digest)
