"""Numbers of different widths, one behind another in a stream of bits, lowest bits first."""

from __future__ import annotations

from typing import Union

import tensorflow as tf


def pack_fields(values: tf.Tensor, widths: tf.Tensor) -> tf.Tensor:
    """Writes numbers one behind another.

    Args:
      values: int64 [n], from 0 to 2^widths - 1.
      widths: int64 [n], in bits, 0 to 48.

    Returns:
      uint8 [ceil(sum of widths / 8)], lowest bits first.
    """
    end = tf.cumsum(widths)
    start = end - widths
    size = tf.reduce_sum(widths)
    # A field and the up to 15 bits before it fit into 64 bits. For every 16th bit of the stream, the fields that start in
    # the 16 bits from there on are added up as one such number, which overlaps with the next three.
    words = tf.math.unsorted_segment_sum(
        tf.bitwise.left_shift(values, start & 15), tf.bitwise.right_shift(start, _i64(4)), size // 16 + 1
    )
    quarters = tf.unstack(tf.cast(tf.bitcast(words, tf.uint16), tf.int32), 4, axis=1)
    joined = sum(tf.pad(quarter, [[k, 0]])[: tf.size(quarter)] for k, quarter in enumerate(quarters))
    return tf.reshape(tf.bitcast(tf.cast(joined, tf.uint16), tf.uint8), [-1])[: (size + 7) // 8]


def field_windows(packed: tf.Tensor, spare: Union[int, tf.Tensor] = 0) -> tf.Tensor:
    """Returns what `read_fields` reads, int64 [n]: the 64 bits from every 16th bit on of uint8 [bytes].

    Args:
      packed: The bytes.
      spare: How many zero bytes may be read behind them.
    """
    count = (tf.size(packed) + spare) // 8 + 1  # Of 64 bits each, from each of the first four places on.
    padded = tf.pad(packed, [[0, 8 * count + 6 - tf.size(packed)]])
    windows = [tf.bitcast(tf.reshape(padded[k : k + 8 * count], [-1, 8]), tf.int64) for k in (0, 2, 4, 6)]
    return tf.reshape(tf.stack(windows, axis=1), [-1])


def read_fields(windows: tf.Tensor, start: tf.Tensor, widths: tf.Tensor) -> tf.Tensor:
    """Returns the numbers, int64 [n], of `widths` bits (int64 [n], 0 to 48) that begin at the bits `start` (int64 [n])."""
    window = tf.gather_nd(windows, tf.bitwise.right_shift(start, _i64(4))[:, tf.newaxis])
    mask = tf.bitwise.left_shift(_i64(1), widths) - 1
    return tf.bitwise.right_shift(window, start & 15) & mask


def unpack_fields(packed: tf.Tensor, widths: tf.Tensor) -> tf.Tensor:
    """Undoes `pack_fields`: returns the numbers, int64 [n], of these widths, int64 [n], with which uint8 [bytes] begins."""
    return read_fields(field_windows(packed), tf.cumsum(widths, exclusive=True), widths)


def floor_log2(x: tf.Tensor) -> tf.Tensor:
    """Returns floor(log2(x)), int64, for positive float64 of any shape: what stands in its exponent."""
    return leading_bits(x, 0) - 1023


def leading_bits(x: tf.Tensor, fraction_bits: int) -> tf.Tensor:
    """Returns the exponent and so many bits of the fraction behind it as one number, int64, of float64 of 0 or more."""
    return tf.bitwise.right_shift(tf.bitcast(x, tf.int64), _i64(52 - fraction_bits))


def _i64(value) -> tf.Tensor:
    return tf.constant(value, tf.int64)
