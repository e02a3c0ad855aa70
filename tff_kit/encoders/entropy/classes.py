"""Classes of numbers: about how large a number is gets coded, the rest is bypass bits.

A number v >= 0 belongs to one of eight classes an octave of v + 8: its class is the exponent and the first three mantissa bits
of v + 8 as a float, counted from that of 8. Numbers up to 8 have a class each. Class c has 2^(c // 8) numbers, from
(c mod 8 + 8) 2^(c // 8) - 8 on, and a number's distance to the first is written out. Within a class all numbers then cost the
same, which loses little where a distribution is smooth over an eighth of an octave.

Classes are a finer version of the gamma code of P. Elias: Universal codeword sets and representations of the integers. IEEE
Transactions on Information Theory 21, 1975.
"""

from __future__ import annotations

from typing import Optional

import tensorflow as tf

from tff_kit.encoders.checks import checked
from tff_kit.encoders.entropy.fields import leading_bits, read_fields

_MANTISSA_BITS = 3
_AN_OCTAVE = 2**_MANTISSA_BITS
COUNT = _AN_OCTAVE * (34 - _MANTISSA_BITS)
"""Classes, for numbers up to 2^33: two int32 differ by less than 2^32, and `fold` doubles that."""


def fold(x: tf.Tensor) -> tf.Tensor:
    """Maps the integers 0, -1, 1, -2, ... in float64 to 0, 1, 2, 3, ..."""
    return tf.maximum(2 * x, -2 * x - 1)


def unfold(v: tf.Tensor) -> tf.Tensor:
    """Undoes `fold`."""
    half = tf.floor(v / 2)
    return tf.where(tf.equal(v, 2 * half), half, -half - 1)


def class_of(v: tf.Tensor) -> tf.Tensor:
    """Returns the classes, int32 [n], of numbers v >= 0, float64 [n]."""
    return tf.cast(leading_bits(v + _AN_OCTAVE, _MANTISSA_BITS), tf.int32) - (1023 + _MANTISSA_BITS) * _AN_OCTAVE


def first_number(classes: tf.Tensor) -> tf.Tensor:
    """Returns the first number of each class, int64."""
    wide = tf.cast(classes, tf.int64)
    return tf.bitwise.left_shift(wide % _AN_OCTAVE + _AN_OCTAVE, wide // _AN_OCTAVE) - _AN_OCTAVE


def bypass_fields(
    numbers: tf.Tensor, classes: tf.Tensor, has_sign: tf.Tensor, signed: Optional[tf.Tensor] = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what classes leave open, in order: values and widths of fields, int64 [m].

    Args:
      numbers: float64 [n], at least 0.
      classes: int32 [n], theirs.
      has_sign: Whether fields of numbers other than 0 end with a sign, 1 below 0: a bool, or bool [n].
      signed: float64 [n], the numbers with their signs; not needed where `has_sign` is false.
    """
    at, first, octave, sign = _open_classes(classes, has_sign)
    distance = tf.cast(tf.gather_nd(numbers, at[:, tf.newaxis]), tf.int64) - first
    if signed is None:
        return distance, octave
    negative = tf.cast(tf.gather_nd(signed, at[:, tf.newaxis]) < 0, tf.int64) * sign
    return distance + tf.bitwise.left_shift(negative, octave), octave + sign


def read_numbers(
    classes: tf.Tensor, windows: tf.Tensor, start: tf.Tensor, end: tf.Tensor, has_sign: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Undoes `class_of` and `bypass_fields`.

    Args:
      classes: int32 [n].
      windows: The bypass bits, as `fields.field_windows` returns them.
      start: int64, the first bit of the fields.
      end: int64, the number of bits that there are.
      has_sign: As in `bypass_fields`.

    Returns:
      The numbers, float64 [n], with their signs, and the bit behind their fields.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if the fields end behind `end`.
    """
    at, first, octave, sign = _open_classes(classes, has_sign)
    widths = octave + sign
    stop = start + tf.reduce_sum(widths)
    stop = checked(stop, stop <= end, "Expected at least {} bypass bits, found {}.", stop, end)
    with tf.control_dependencies([stop]):
        ends = start + tf.cumsum(widths)
    field = read_fields(windows, ends - widths, widths)
    negative = tf.bitwise.right_shift(field, octave)
    numbers = (first + field - tf.bitwise.left_shift(negative, octave)) * (1 - 2 * negative)
    # A class of one number without a sign is that number; what the others add to that is added there.
    added = tf.cast(numbers - tf.cast(tf.gather(classes, at), tf.int64), tf.float64)
    return tf.cast(classes, tf.float64) + tf.math.unsorted_segment_sum(added, at, tf.size(classes)), stop


def _open_classes(classes: tf.Tensor, has_sign: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns which classes leave something open, all int64: where, [m], their first numbers, octaves, and bits for the sign."""
    at = tf.where(classes >= tf.where(has_sign, 1, _AN_OCTAVE))
    open_classes = tf.gather_nd(classes, at)
    sign = tf.cast(has_sign if has_sign.shape.rank == 0 else tf.gather_nd(has_sign, at), tf.int64)
    return at[:, 0], first_number(open_classes), tf.cast(open_classes, tf.int64) // _AN_OCTAVE, sign
