"""Randomness that a killed run can repeat.

TensorFlow's stateful random operations draw differently in every process, and clients that share a worker would draw in
the order in which they happen to run. Here a draw depends on nothing but a seed and the tensor to be encoded, so it is
the same after a restart and on any worker, and different for clients and rounds because their tensors differ. Nothing
has to be sent for it. Two clients with bit-for-bit equal tensors draw alike.
"""

from __future__ import annotations

import tensorflow as tf


def tensor_seed(x: tf.Tensor, seed: int) -> tf.Tensor:
    """Returns a seed for TensorFlow's stateless random operations, int32 [2], made of `x`'s contents and `seed`.

    Args:
      x: The tensor to be encoded, of any shape, dtype float32 or another of fixed size.
      seed: Chosen by the caller; other seeds make independent draws for the same tensor.
    """
    digest = tf.fingerprint(tf.reshape(x, [1, -1]))  # uint8 [1, 8]
    own = tf.bitcast(tf.reshape(digest, [2, 4]), tf.int32)
    return tf.random.stateless_uniform([2], own, minval=None, maxval=None, dtype=tf.int32, alg="philox") + tf.constant(
        [seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF], tf.int32
    )
