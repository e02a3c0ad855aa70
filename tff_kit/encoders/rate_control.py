"""A rate instead of a step: the step follows what earlier rounds took.

A fixed step's bit rate cannot be known in advance: it depends on the distribution, which changes during training. Here the bits
are given, and the step is state on the server. The step begins where normal numbers have that entropy. After each round,
log2(step) moves by the surplus of bits, divided by the bits that a normal number loses when its step doubles. That is one bit at
high rates, and less below.

The rate is the empirical entropy of the multiples, which an ideal coder without contexts would take, averaged over the clients.
The step goes down to the clients, and their rates come up. Both are counted like everything else.
"""

from __future__ import annotations

import collections
import functools
import math

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.quantization import StepQuantizationStage

_MOST_PER_ROUND = 1.0  # log2: the step at most doubles or halves.
_LARGEST = 127  # Multiples beyond are counted as this one.


@te.core.tf_style_adaptive_encoding_stage
class RateControlStage(te.core.AdaptiveEncodingStageInterface):
    """Rounds to the nearest multiples of a step, as `StepQuantizationStage`, that take so many bits an element.

    The state is log2 of the step in units of the root mean square, float32. A client whose tensor is zero or not finite has
    no say in it.

    Args:
      bits: An element shall take, 0.01 to 8.
      price: See `StepQuantizationStage`.
      centroids: See `StepQuantizationStage`.
      unbiased: See `StepQuantizationStage`.

    Raises:
      ValueError: If an argument is not as above.
    """

    LEVELS_KEY = StepQuantizationStage.LEVELS_KEY

    def __init__(
        self,
        bits: float,
        price: float = 0.0,
        centroids: bool = False,
        unbiased: bool = False,
    ):
        if not 0.01 <= bits <= 8:
            raise ValueError(f"Expected bits an element to be from 0.01 to 8, found {bits}.")
        self._bits = bits
        self._first_step, self._slope = _normal_step(bits)
        self._quantizer = StepQuantizationStage(self._first_step, price=price, centroids=centroids, unbiased=unbiased)

    name = "rate_control"
    compressible_tensors_keys = [LEVELS_KEY]
    commutes_with_sum = False
    decode_needs_input_shape = False
    state_update_aggregation_modes = {"bits": te.core.StateAggregationMode.SUM, "clients": te.core.StateAggregationMode.SUM}

    def initial_state(self):
        return collections.OrderedDict(log2_step=tf.constant(math.log2(self._first_step), tf.float32))

    def update_state(self, state, state_update_tensors):
        too_many = state_update_tensors["bits"] - self._bits * state_update_tensors["clients"]
        change = tf.math.divide_no_nan(too_many, state_update_tensors["clients"]) / self._slope
        change = tf.clip_by_value(change, -_MOST_PER_ROUND, _MOST_PER_ROUND)
        log2_step = tf.maximum(state["log2_step"] + change, math.log2(0.001))  # The least that a float32 resolves.
        return collections.OrderedDict(log2_step=log2_step)

    def get_params(self, state):
        return collections.OrderedDict(step=tf.pow(2.0, state["log2_step"])), collections.OrderedDict()

    def encode(self, x, encode_params):
        encoded = self._quantizer.to_multiples(x, tf.cast(encode_params["step"], x.dtype))
        step = encoded[StepQuantizationStage.STEP_KEY]
        counts = tf.cast(tf.math.is_finite(step) & (step > 0), tf.float32)
        state_update = collections.OrderedDict(bits=counts * _entropy(encoded[self.LEVELS_KEY]), clients=counts)
        return encoded, state_update

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        return self._quantizer.decode(encoded_tensors, decode_params, num_summands, shape)


@functools.cache
def _normal_step(bits: float) -> tuple[float, float]:
    """Returns the step at which normal numbers, rounded, have that entropy, and how fast it falls with log2(step) there."""
    steps = np.geomspace(0.005, 12, 200)
    entropies, _ = rounded_normal(tuple(steps))
    step = float(np.interp(-bits, -entropies, steps))
    slope = float(np.interp(step, steps, -np.gradient(entropies, np.log2(steps))))
    return step, slope


@functools.cache
def rounded_normal(steps: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns entropy in bits and squared error of standard normal numbers, rounded to multiples of each of the steps."""
    x = np.linspace(-12, 12, 50_001)
    density = np.exp(-np.square(x) / 2) / np.sum(np.exp(-np.square(x) / 2))
    points = []
    for step in steps:
        levels = np.round(x / step).astype(int)
        shares = np.bincount(levels - levels.min(), density)
        shares = shares[shares > 0]
        points.append((-np.sum(shares * np.log2(shares)), np.sum(np.square(x - levels * step) * density)))
    entropies, errors = np.transpose(points)
    return entropies, errors


def _entropy(levels: tf.Tensor) -> tf.Tensor:
    """Returns the empirical entropy of integers in bits an element, float32."""
    symbols = tf.cast(tf.clip_by_value(tf.reshape(levels, [-1]), -_LARGEST, _LARGEST), tf.int32) + _LARGEST
    counts = tf.math.bincount(symbols, minlength=2 * _LARGEST + 1, maxlength=2 * _LARGEST + 1, dtype=tf.float32)
    shares = counts / tf.cast(tf.size(levels), tf.float32)
    return -tf.reduce_sum(tf.math.xlogy(shares, shares)) / math.log(2)
