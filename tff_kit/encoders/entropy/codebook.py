"""Tuples of neighbouring integers, their numbers, and the codebook: which of the coder's slots belong to which tuple.

A tuple has `length` elements, each at most `reach` away from the offset. Its digits are its elements' distances to the offset
plus `reach`, from 0 to 2 reach; its number has these digits in base 2 reach + 1, the first element's first. It occurs about as
often as the product of its elements' frequencies says. Both sides make the same codebook of these frequencies, with integers
that float64 holds exactly: 2^36 times a tuple's frequency, rounded down after each factor; those below half a slot have no
place in the book; running sums of the others, scaled to the slots and rounded down, end their slots. All the slots that are
left, at least one, belong to the escape code.
"""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from tff_kit.encoders.entropy.tables import TOTAL, TOTAL_BITS

SLOT_BITS = 16
SLOTS = 2**SLOT_BITS


@dataclasses.dataclass(frozen=True)
class Shape:
    """Tuples of `length` elements, each at most `reach` away from the offset."""

    length: int
    reach: int

    @property
    def digits(self) -> int:
        """How many numbers an element may be."""
        return 2 * self.reach + 1

    @property
    def tuples(self) -> int:
        """How many tuples there are."""
        return self.digits**self.length


# For each length the farthest reach of which all tuples have a slot, digits^length <= 2^16. Two elements could reach 127, but
# their table of 2 * 127 + 1 distances and the escape code would have 256 frequencies, one more than a byte says. Lengths 9 and
# 7 have the reach of 10 and 8 or hardly more. Nothing is in the bytes of this but a shape's place in the list.
SHAPES = (Shape(10, 1), Shape(8, 1), Shape(6, 2), Shape(5, 4), Shape(4, 7), Shape(3, 19), Shape(2, 126))

_PRECISION_BITS = 36  # Of a tuple's frequency: times 2^16 slots, or an element's 2^12, still exact in float64.
_SLOT = 2.0 ** (_PRECISION_BITS - SLOT_BITS)
_OUT = 2.0**22  # Added for an element that is out of reach: more than any tuple's number.


def of_shape(shape: tf.Tensor, name: str) -> tf.Tensor:
    """Returns an attribute, int32, of the shape at this place of SHAPES."""
    return tf.gather(tf.constant([getattr(s, name) for s in SHAPES], tf.int32), shape)


def numbers(rows: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of tuples, int32 [n], from their distances, int32 [n, length]; out of reach, that behind the last."""
    reach = tf.cast(of_shape(shape, "reach"), tf.float32)
    rows = tf.cast(rows, tf.float32)
    rows += _OUT * tf.nn.relu(tf.abs(rows) - reach)  # A choice between two tensors takes longer.
    result = tf.linalg.matvec(rows, tf.cast(_powers(shape), tf.float32))  # Exact below 2^24.
    tuples = tf.cast(of_shape(shape, "tuples"), tf.float32)
    return tf.cast(tf.minimum(result + (tuples - 1) / 2, tuples), tf.int32)


def distances(number: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Undoes `numbers`: returns the distances to the offset, int32 [n, length]."""
    digits = tf.cast(number, tf.int32)[:, tf.newaxis] // _powers(shape) % of_shape(shape, "digits")
    return digits - of_shape(shape, "reach")


def codebook(frequencies: tf.Tensor, shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where each tuple's slots end, float64 [tuples], and how many slots the escape code has, the last ones.

    Args:
      frequencies: int64 [digits], of elements, out of TOTAL.
      shape: int32, the place in SHAPES.
    """
    frequencies = tf.cast(frequencies, tf.float64)

    def products(s: Shape) -> tf.Tensor:
        own = tf.reshape(frequencies, [s.digits])
        product = own * 2.0 ** (_PRECISION_BITS - TOTAL_BITS)
        for _ in range(s.length - 1):
            product = tf.reshape(tf.floor(product[:, tf.newaxis] * (own / TOTAL)), [-1])
        return product

    product = tf.switch_case(shape, [functools.partial(products, s) for s in SHAPES])
    ends = tf.cumsum(tf.where(product >= _SLOT / 2, product, 0))
    escape = tf.maximum(SLOTS - tf.floor(ends[-1] / _SLOT), 1)
    # The product below is at most 2^52; on why the quotient's floor is exact, see rans.py.
    return tf.floor(ends * (SLOTS - escape) / tf.maximum(ends[-1], 1)), escape


def symbols_by_slot(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns each slot's symbol, int32, its frequency and the place in it, float64 [SLOTS]; symbols begin at float64 [n]."""
    begins = tf.math.unsorted_segment_sum(tf.ones_like(starts, tf.int32), tf.cast(starts, tf.int32), SLOTS)
    symbol_of = tf.cumsum(begins) - 1
    ends = tf.concat([starts[1:], [SLOTS]], axis=0)
    return symbol_of, tf.gather(ends - starts, symbol_of), tf.range(SLOTS, dtype=tf.float64) - tf.gather(starts, symbol_of)


def _powers(shape: tf.Tensor) -> tf.Tensor:
    return tf.pow(of_shape(shape, "digits"), tf.range(of_shape(shape, "length") - 1, -1, -1))
