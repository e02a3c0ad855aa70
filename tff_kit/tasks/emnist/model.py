"""The convolutional network of the original federated averaging paper.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017, arXiv 1602.05629, section 3.
"""

from __future__ import annotations

import functools
from typing import Optional

import tensorflow as tf


def create_original_fedavg_cnn_model(only_digits: bool = True, seed: Optional[int] = None, filters: int = 32) -> tf.keras.Model:
    """Returns the untrained network for float32 images [batch, 28, 28, 1]. Its outputs are probabilities.

    Args:
      only_digits: True for ten classes and 1,663,370 weights; False for 62 classes and 1,690,046 weights.
      seed: Seed of the initial weights, which are equal in every call; `None` for different weights in each call.
      filters: Filters of the first convolution; 32 in the paper. The other layers are in proportion. With half as many, the
        network has about a quarter of the weights.
    """
    initializers = iter(tf.keras.initializers.GlorotUniform(None if seed is None else 4 * seed + layer) for layer in range(4))
    convolution = functools.partial(tf.keras.layers.Conv2D, kernel_size=5, padding="same", activation="relu")
    pooling = functools.partial(tf.keras.layers.MaxPooling2D, pool_size=2, padding="same")
    return tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer(input_shape=(28, 28, 1)),
            convolution(filters=filters, kernel_initializer=next(initializers)),
            pooling(),
            convolution(filters=2 * filters, kernel_initializer=next(initializers)),
            pooling(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(16 * filters, activation="relu", kernel_initializer=next(initializers)),
            tf.keras.layers.Dense(10 if only_digits else 62, kernel_initializer=next(initializers)),
            tf.keras.layers.Softmax(),
        ]
    )
