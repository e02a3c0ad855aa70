"""Two networks for pictures of 32 x 32: the small one of the text on embedded devices, and a ResNet-18 for federated use.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition. CVPR 2016, arXiv 1512.03385. Batch normalization
mixes up clients' statistics, so each normalization is by groups, two of them, as in S. J. Reddi et al.: Adaptive Federated
Optimization. ICLR 2021, arXiv 2003.00295.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Optional

import tensorflow as tf

CLASSES = 10
SHAPE = (32, 32, 3)
_GROUPS = 2
_MOST_LAYERS = 64  # Layers with weights in any of the networks; keeps the seeds of different trainings apart.


def create_net(seed: Optional[int] = None) -> tf.keras.Model:
    """Returns the text's `Net`, untrained: 62,006 weights, for float32 [batch, 32, 32, 3]; it puts out logits [batch, 10].

    Args:
      seed: Seed of the initial weights, which are equal in every call; `None` for different weights in each call.
    """
    layers, drawn = tf.keras.layers, _initializers(seed)
    return tf.keras.Sequential(
        [
            layers.InputLayer(input_shape=SHAPE),
            layers.Conv2D(6, 5, activation="relu", kernel_initializer=next(drawn)),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu", kernel_initializer=next(drawn)),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu", kernel_initializer=next(drawn)),
            layers.Dense(84, activation="relu", kernel_initializer=next(drawn)),
            layers.Dense(CLASSES, kernel_initializer=next(drawn)),
        ]
    )


def create_resnet18(seed: Optional[int] = None) -> tf.keras.Model:
    """Returns a ResNet-18 for 32 x 32 with group normalization, untrained: 11,173,962 weights; it puts out logits [batch, 10].

    Args:
      seed: Seed of the initial weights, which are equal in every call; `None` for different weights in each call.
    """
    drawn = _initializers(seed)
    inputs = tf.keras.Input(SHAPE)
    x = tf.keras.layers.ReLU()(_normalized_convolution(inputs, 64, 3, 1, drawn))
    for filters, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        x = _residual_block(x, filters, strides, drawn)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(CLASSES, kernel_initializer=next(drawn))(x))


def _residual_block(x: Any, filters: int, strides: int, drawn: Iterator[tf.keras.initializers.Initializer]) -> Any:
    shortcut = x if strides == 1 and x.shape[-1] == filters else _normalized_convolution(x, filters, 1, strides, drawn)
    x = tf.keras.layers.ReLU()(_normalized_convolution(x, filters, 3, strides, drawn))
    x = _normalized_convolution(x, filters, 3, 1, drawn)
    return tf.keras.layers.ReLU()(tf.keras.layers.Add()([x, shortcut]))


def _normalized_convolution(
    x: Any, filters: int, size: int, strides: int, drawn: Iterator[tf.keras.initializers.Initializer]
) -> Any:
    convolution = tf.keras.layers.Conv2D(filters, size, strides, padding="same", use_bias=False, kernel_initializer=next(drawn))
    return tf.keras.layers.GroupNormalization(_GROUPS)(convolution(x))


def _initializers(seed: Optional[int]) -> Iterator[tf.keras.initializers.Initializer]:
    for layer in itertools.count():
        yield tf.keras.initializers.GlorotUniform(None if seed is None else _MOST_LAYERS * seed + layer)
