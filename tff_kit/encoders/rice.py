"""Golomb-Rice coding: integers in a few bits each where small ones are frequent, lossless.

A number z >= 0 is the quotient z >> r in unary, zeros and a closing one, and r bits of remainder. For the geometric
distribution of mean m the best r is max(0, 1 + floor(log2(ln(phi - 1) / ln(m / (m + 1))))) with the golden ratio phi, and
the code is then within a few percent of the entropy where that is above one bit; it never takes less than one.

S. W. Golomb: Run-Length Encodings. IEEE Transactions on Information Theory 12, 1966. R. F. Rice: Some Practical Universal
Noiseless Coding Techniques. JPL Publication 79-22, 1979. A. Kiely: Selecting the Golomb Parameter in Rice Coding. IPN
Progress Report 42-159, 2004 (the choice of r).
"""

from __future__ import annotations

import collections
import math

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.checks import checked
from tff_kit.encoders.packing import PLACES, pack, unpack_bits
from tff_kit.encoders.stage import CoderStage

_LN_PHI = math.log((math.sqrt(5) - 1) / 2)
_MOST_BITS = 62  # Of a remainder: numbers are below 2^63.
_MOST_UNARY_BITS = 4  # A number, on average: the best r makes quotients of at most 2.08 on average, and 1 closes each.


@te.core.tf_style_encoding_stage
class RiceCodingStage(CoderStage):
    """Codes a tensor of any shape that holds integers, in a float or an integer dtype, to bytes. Lossless.

    The payload of n numbers is r, one byte; the remainders, ceil(n r / 8) bytes; and the quotients, ceil((n + their sum) / 8)
    bytes, a size that depends on the numbers.

    Args:
      signed: Whether numbers may be below 0: 0, -1, 1, -2, ... are then coded as 0, 1, 2, 3, ...
    """

    PARAMETER_KEY = "parameter"
    REMAINDERS_KEY = "remainders"
    QUOTIENTS_KEY = "quotients"

    def __init__(self, signed: bool = True):
        self._signed = signed

    name = "rice_coding"

    def encode(self, x, encode_params):
        del encode_params
        numbers = tf.cast(tf.reshape(x, [-1]), tf.int64)
        if self._signed:
            numbers = tf.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
        parameter = _parameter(numbers)
        wide = tf.cast(parameter, tf.int64)
        quotients = tf.bitwise.right_shift(numbers, wide)
        remainders = tf.bitwise.right_shift(numbers[:, tf.newaxis], tf.range(wide)) & 1
        ends = tf.cumsum(quotients + 1) - 1  # Where in the stream of bits the closing ones are.
        ones = tf.cast(tf.bitwise.left_shift(tf.ones_like(ends), ends & 7), tf.int32)
        encoded = collections.OrderedDict(
            [
                (self.PARAMETER_KEY, parameter),
                (self.REMAINDERS_KEY, pack(tf.reshape(remainders, [-1]), 1)),
                (self.QUOTIENTS_KEY, tf.cast(tf.math.segment_sum(ones, ends // 8), tf.uint8)),
            ]
        )
        return self.tag(encoded, x.dtype)

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        shape = tf.cast(shape, tf.int32)  # A scalar's [] comes as floats.
        size = tf.reduce_prod(shape)
        parameter = tf.cast(encoded_tensors[self.PARAMETER_KEY], tf.int32)
        parameter = checked(
            parameter, parameter <= _MOST_BITS, f"Expected remainders of at most {_MOST_BITS} bits, found {{}}.", parameter
        )
        quotients = _quotients(encoded_tensors[self.QUOTIENTS_KEY], size)
        remainders = _remainders(encoded_tensors[self.REMAINDERS_KEY], size, parameter)
        numbers = tf.bitwise.left_shift(quotients, tf.cast(parameter, tf.int64)) + remainders
        if self._signed:
            numbers = tf.where(numbers & 1 > 0, -(numbers + 1) // 2, numbers // 2)
        dtype = self.dtype(encoded_tensors)
        return tf.reshape(tf.cast(numbers, dtype), shape)


def _quotients(packed: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the `size` numbers, int64, that uint8 [bytes] holds in unary."""
    most, found = (_MOST_UNARY_BITS * size + 7) // 8, tf.size(packed)
    packed = checked(packed, found <= most, "Expected at most {} bytes of quotients, found {}.", most, found)
    bits = unpack_bits(packed)
    ones = tf.math.count_nonzero(bits, dtype=tf.int32)
    bits = checked(bits, tf.equal(ones, size), "Expected {} quotients, found {}.", size, ones)
    ends = tf.where(bits > 0)[:, 0]
    return ends - tf.concat([tf.fill([tf.minimum(size, 1)], tf.constant(-1, tf.int64)), ends[:-1]], axis=0) - 1


def _remainders(packed: tf.Tensor, size: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns the `size` numbers of `width` bits each, int64, that uint8 [bytes] holds."""
    needed, found = -(-tf.cast(size, tf.int64) * tf.cast(width, tf.int64) // 8), tf.size(packed, tf.int64)
    packed = checked(packed, tf.equal(found, needed), "Expected {} bytes of remainders, found {}.", needed, found)
    bits = tf.reshape(unpack_bits(packed)[: size * width], [size, width])
    # Bits to bytes, and these to numbers: eight times less memory than an int64 a bit.
    eights = tf.reshape(tf.pad(bits, [[0, 0], [0, -width % 8]]), [size, (width + 7) // 8, 8])
    digits = tf.reduce_sum(tf.bitwise.left_shift(eights, PLACES), axis=2)
    places = 8 * tf.range((tf.cast(width, tf.int64) + 7) // 8)
    return tf.reduce_sum(tf.bitwise.left_shift(tf.cast(digits, tf.int64), places), axis=1)


def _parameter(numbers: tf.Tensor) -> tf.Tensor:
    """Returns the best r, uint8, for int64 [n] with a geometric distribution of their mean."""
    mean = tf.math.divide_no_nan(tf.reduce_sum(tf.cast(numbers, tf.float64)), tf.cast(tf.size(numbers), tf.float64))
    ratio = _LN_PHI / tf.math.log(mean / (mean + 1))
    return tf.cast(tf.maximum(1 + tf.floor(tf.math.log(ratio) / math.log(2)), 0), tf.uint8)
