"""Bit packing without waste: n numbers of b bits in ceil(n b / 8) bytes.

`tensor_encoding`'s own packing fills 28 of each int32's 32 bits, so that its "8 bits" are 64/7 = 9.14 bits.
"""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.checks import checked
from tff_kit.encoders.stage import CoderStage

PLACES = np.arange(8, dtype=np.uint8)  # Of a byte's bits.
_GROUP = 8  # Eight numbers of b bits fill b bytes.


@te.core.tf_style_encoding_stage
class BitpackingStage(CoderStage):
    """Packs a float tensor of any shape that holds integers from 0 to 2^bits - 1 into bytes. Lossless.

    The payload is uint8 [ceil(n bits / 8)], rounded up once more for the bits above the eighth: their low bytes come
    first, one a number, then what is above them, lowest bit first.

    Args:
      bits: Bits an element, 1 to 16.

    Raises:
      ValueError: If `bits` is not an integer from 1 to 16.
    """

    PACKED_KEY = "packed"

    def __init__(self, bits: int):
        if bits not in range(1, 17):
            raise ValueError(f"Expected bits to be an integer from 1 to 16, found {bits}.")
        self._bits = bits

    name = "bitpacking"

    def encode(self, x, encode_params):
        del encode_params
        encoded = collections.OrderedDict([(self.PACKED_KEY, pack(tf.reshape(x, [-1]), self._bits))])
        return self.tag(encoded, x.dtype)

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        shape = tf.cast(shape, tf.int32)  # A scalar's [] comes as floats.
        packed, size = encoded_tensors[self.PACKED_KEY], tf.reduce_prod(shape)
        needed, found = packed_size(self._bits, size), tf.size(packed)
        packed = checked(packed, tf.equal(found, needed), "Expected {} bytes of packed numbers, found {}.", needed, found)
        numbers = unpack(packed, self._bits, size)
        dtype = self.dtype(encoded_tensors)
        return tf.reshape(tf.cast(numbers, dtype), shape)


def pack(numbers: tf.Tensor, bits: int) -> tf.Tensor:
    """Packs [n] numbers from 0 to 2^bits - 1 of any dtype, bits from 1 to 16, into uint8 [ceil(n bits / 8)]."""
    if bits == 8:
        return tf.cast(numbers, tf.uint8)
    numbers = tf.cast(numbers, tf.int64)
    if bits > 8:
        high = pack(tf.bitwise.right_shift(numbers, _int64(8)), bits - 8)
        return tf.concat([tf.cast(numbers & 0xFF, tf.uint8), high], axis=0)
    size = numbers.shape.num_elements()
    size = tf.size(numbers) if size is None else size
    groups = tf.reshape(tf.pad(numbers, [[0, -size % _GROUP]]), [-1, _GROUP])
    words = tf.reduce_sum(tf.bitwise.left_shift(groups, _int64([i * bits for i in range(_GROUP)])), axis=1)
    return tf.reshape(tf.bitcast(words, tf.uint8)[:, :bits], [-1])[: -(-size * bits // 8)]


def packed_size(bits: int, size: tf.Tensor) -> tf.Tensor:
    """Returns how many bytes `pack` makes of `size` numbers."""
    if bits > 8:
        return size + packed_size(bits - 8, size)
    return -(-size * bits // 8)


def unpack(packed: tf.Tensor, bits: int, size: tf.Tensor) -> tf.Tensor:
    """Returns the `size` numbers, [size] of int64, or uint8 where they are bytes, that `pack` packed into `packed`."""
    if bits == 8:
        return packed[:size]
    if bits > 8:
        high = tf.cast(unpack(packed[size:], bits - 8, size), tf.int64)
        return tf.cast(packed[:size], tf.int64) + tf.bitwise.left_shift(high, _int64(8))
    groups = tf.reshape(tf.pad(packed, [[0, -tf.size(packed) % bits]]), [-1, bits])
    words = tf.bitcast(tf.pad(groups, [[0, 0], [0, 8 - bits]]), tf.int64)
    numbers = tf.bitwise.right_shift(words[:, tf.newaxis], _int64([i * bits for i in range(_GROUP)]))
    return tf.reshape(numbers & (2**bits - 1), [-1])[:size]


def unpack_bits(packed: tf.Tensor) -> tf.Tensor:
    """Returns the bits of uint8 [k], lowest first: uint8 [8 k], a byte each."""
    return tf.reshape(tf.bitwise.right_shift(packed[:, tf.newaxis], PLACES) & 1, [-1])


def _int64(value) -> tf.Tensor:
    return tf.constant(value, tf.int64)
