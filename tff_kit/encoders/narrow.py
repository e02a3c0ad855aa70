"""Floats narrower than float32 (float16, bfloat16) are encoded as float32.

A float16 holds integers up to 2^11 and squares up to 65504, and a dither of 2^16 parts not at all: the other stages compute
with float32 or float64.
"""

from __future__ import annotations

import collections

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.stage import Stage


@te.core.tf_style_encoding_stage
class NarrowStage(Stage):
    """Widens a tensor of any shape to float32, for the stage that follows, and decodes to its own dtype.

    What was decoded to a number beyond the dtype's range becomes the largest number of that dtype.

    Args:
      dtype: That of the tensor.
    """

    WIDE_KEY = "wide"

    def __init__(self, dtype: tf.DType):
        self._dtype = dtype

    name = "narrow"
    compressible_tensors_keys = [WIDE_KEY]
    decode_needs_input_shape = False

    def encode(self, x, encode_params):
        del encode_params
        return collections.OrderedDict([(self.WIDE_KEY, tf.cast(x, tf.float32))])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands, shape
        return narrowed(encoded_tensors[self.WIDE_KEY], self._dtype)


def narrowed(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns float32 `x` in another float dtype: numbers beyond its range become its largest, what is not finite stays so."""
    if dtype.size >= x.dtype.size:
        return tf.cast(x, dtype)
    largest = float(dtype.max)
    return tf.cast(tf.where(tf.math.is_finite(x), tf.clip_by_value(x, -largest, largest), x), dtype)
