"""The classifier on top of a frozen Whisper encoder that clients train to spot keywords.

It is the head of Flower's Whisper example, in PyTorch `Sequential(Conv1d(positions, 128, 1), ReLU(), Flatten(1),
Linear(128 * width, 12))`: the encoder's positions are the channels of a convolution of size 1. Weights go both ways
between the two, under PyTorch's names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Optional

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

POSITIONS = 1500
WIDTH = 384
FILTERS = 128
CLASSES = 12
_NAMES = ("0.weight", "0.bias", "3.weight", "3.bias")


@tf.keras.utils.register_keras_serializable(package="tff_kit")
class MixPositions(tf.keras.layers.Layer):
    """A convolution of size 1 whose channels are the positions: float32 [batch, positions, width] -> [batch, filters, width].

    `Conv1D` would have to turn the embeddings, by far the largest tensor of a step, on their side and its result back. One
    matrix product with the kernel on the left leaves them as they are.
    """

    def __init__(self, filters: int, seeds: Sequence[Optional[int]] = (None, None), **kwargs):
        super().__init__(**kwargs)
        self._filters = filters
        self._seeds = seeds

    def build(self, input_shape):
        positions = input_shape[1]
        self.kernel = self.add_weight("kernel", [self._filters, positions], initializer=_uniform(positions, self._seeds[0]))
        self.bias = self.add_weight("bias", [self._filters], initializer=_uniform(positions, self._seeds[1]))
        super().build(input_shape)

    def call(self, inputs):
        return tf.matmul(self.kernel, inputs) + self.bias[:, tf.newaxis]

    def get_config(self):
        return {**super().get_config(), "filters": self._filters}


def create_kws_head(
    positions: int = POSITIONS, width: int = WIDTH, filters: int = FILTERS, seed: Optional[int] = None
) -> tf.keras.Model:
    """Returns the untrained head for float32 embeddings [batch, positions, width]. Its outputs are logits, as PyTorch's are.

    Initial weights are distributed as PyTorch's are.

    Args:
      positions: 1500 for Whisper's window of 30 s, 781,964 weights; 50 for 1 s, 596,364 weights.
      width: Number of elements of an embedding; 384 for Whisper tiny.
      filters: Filters of the convolution; 128 in Flower's example. Nearly all weights are in proportion.
      seed: Seed of the initial weights, which are equal in every call; `None` for different weights in each call.
    """
    flat = filters * width
    seeds = [None if seed is None else 4 * seed + i for i in range(4)]
    return tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer(input_shape=(positions, width)),
            MixPositions(filters, seeds[:2]),
            tf.keras.layers.ReLU(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(
                CLASSES, kernel_initializer=_uniform(flat, seeds[2]), bias_initializer=_uniform(flat, seeds[3])
            ),
        ]
    )


def save_safetensors(head: tf.keras.Model, path: os.PathLike) -> None:
    """Writes the head's weights under the names and in the shapes of the PyTorch module's `state_dict`."""
    kernel, bias, dense, dense_bias = head.get_weights()
    tensors = (kernel[:, :, np.newaxis], bias, dense.T, dense_bias)
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in zip(_NAMES, tensors)}, os.fspath(path))


def load_safetensors(head: tf.keras.Model, path: os.PathLike) -> None:
    """Sets the head's weights to those in `path`, saved by `save_safetensors` or from the PyTorch module's `state_dict`.

    Raises:
      ValueError: If the file is not safetensors or its tensors don't fit the head. The head then stays as it was.
    """
    try:
        tensors = safetensors.numpy.load_file(os.fspath(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"Expected a head's weights as safetensors at {path}, found: {error}.") from error
    filters, positions = head.weights[0].shape
    flat, classes = head.weights[2].shape
    expected = dict(zip(_NAMES, [(filters, positions, 1), (filters,), (classes, flat), (classes,)]))
    found = {name: x.shape for name, x in tensors.items()}
    if found != expected:
        raise ValueError(
            f"Expected the tensors {expected} in {path}, found {found}. Tip: the first tensor's middle number is the encoder's "
            "positions, 1500 for a window of 30 s and 50 for 1 s."
        )
    kernel, bias, dense, dense_bias = (tensors[name].astype(np.float32) for name in _NAMES)
    head.set_weights([kernel[:, :, 0], bias, dense.T, dense_bias])


def _uniform(fan_in: int, seed: Optional[int]) -> tf.keras.initializers.Initializer:
    limit = fan_in**-0.5
    return tf.keras.initializers.RandomUniform(-limit, limit, seed)
