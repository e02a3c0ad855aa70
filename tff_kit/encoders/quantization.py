"""Uniform quantization with unbiased stochastic rounding.

Between the smallest and the largest element of a tensor lie 2^bits equidistant levels; each element is rounded up or
down to a neighbouring level with the probability that makes its expectation exact. With n elements x and step
s = (max - min) / (2^bits - 1) the expected squared error is the sum of f (1 - f) s^2 over the elements, where f is an
element's place between its levels, and so at most n s^2 / 4.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic: QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding. NIPS 2017, arXiv 1610.02132. A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan: Distributed Mean Estimation with
Limited Communication. ICML 2017, arXiv 1611.00429, whose "stochastic k-level quantization" this is.
"""

from __future__ import annotations

import collections

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.seeds import tensor_seed


@te.core.tf_style_encoding_stage
class UniformQuantizationStage(te.core.EncodingStageInterface):
    """Rounds a float tensor of any shape to 2^bits levels between its extremes.

    `encode` returns the levels' numbers, 0 to 2^bits - 1, in the input's dtype and shape, and the two extremes. A tensor
    with an element that is not finite decodes to elements none of which is finite.

    Args:
      bits: Bits an element, 1 to 16. A float32 does not resolve the place between finer levels.
      seed: Rounding is a function of this and the tensor's contents, so that a run can be repeated bit for bit.

    Raises:
      ValueError: If `bits` is not an integer from 1 to 16.
    """

    LEVELS_KEY = "levels"
    EXTREMES_KEY = "min_max"

    def __init__(self, bits: int, seed: int = 0):
        if bits not in range(1, 17):
            raise ValueError(f"Expected bits to be an integer from 1 to 16, found {bits}.")
        self._largest_level = 2**bits - 1
        self._seed = seed

    name = "uniform_quantization"
    compressible_tensors_keys = [LEVELS_KEY]
    commutes_with_sum = False
    decode_needs_input_shape = False

    def get_params(self):
        return collections.OrderedDict(), collections.OrderedDict()

    def encode(self, x, encode_params):
        del encode_params
        low, high = tf.reduce_min(x), tf.reduce_max(x)
        # A constant tensor has only level 0, which decodes to the constant.
        place = tf.math.divide_no_nan(x - low, high - low) * self._largest_level
        level = tf.floor(place)
        draw = tf.random.stateless_uniform(tf.shape(x), tensor_seed(x, self._seed), dtype=x.dtype)
        level += tf.cast(draw < place - level, x.dtype)
        return collections.OrderedDict([(self.LEVELS_KEY, level), (self.EXTREMES_KEY, tf.stack([low, high]))])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands, shape
        level = encoded_tensors[self.LEVELS_KEY]
        low, high = tf.unstack(encoded_tensors[self.EXTREMES_KEY])
        return low + level * ((high - low) / self._largest_level)
