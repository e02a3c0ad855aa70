"""An order of a matrix's elements in which those that are about equally likely to be nonzero stand together.

In a trained layer some inputs and some units change far more than others. Every row and every column gets a class, the
bit length of the number of its nonzero elements, and a row's and a column's class make a level, (a + b) // 2, from two
octaves of likelihood. Elements are ordered by level, within a level by the two classes, and so on: rectangles, of which
any element's place follows from a few small tables.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_kit.encoders.fields import floor_log2
from tff_kit.encoders.packing import pack, unpack

LEVELS = 16
_CLASSES = 16  # 0 for all zeros, and bit lengths up to 15.

_A, _B = np.divmod(np.arange(_CLASSES**2), _CLASSES)
_LEVEL = np.where((_A == 0) | (_B == 0), LEVELS, (_A + _B) // 2)  # Where nothing is, nobody has to look.
_BLOCKS = np.argsort(_LEVEL, kind="stable")  # All pairs of classes, in order.
_BLOCK_OF = np.argsort(_BLOCKS, kind="stable")


def line_classes(at: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Returns the classes of rows, then columns, int32 [rows + columns], of a matrix that is nonzero at int32 [n]."""
    row, column = tf.math.bincount(at // columns, minlength=rows), tf.math.bincount(at % columns, minlength=columns)
    counts = tf.cast(tf.concat([row, column], axis=0), tf.float64)
    return tf.minimum(tf.cast(tf.where(counts > 0, floor_log2(counts) + 1, 0), tf.int32), _CLASSES - 1)


def pack_classes(classes: tf.Tensor) -> tf.Tensor:
    """Writes classes, int32 [n], as uint8 [bytes]: all 16 by frequency, then each one's rank among these in unary."""
    by_frequency = tf.argsort(-tf.math.bincount(classes, minlength=_CLASSES), stable=True)
    lengths = 1 + tf.gather(tf.math.invert_permutation(by_frequency), classes)
    ends = tf.cumsum(lengths) - 1
    bits = tf.math.unsorted_segment_sum(tf.ones_like(ends, tf.int64), ends, tf.reduce_sum(lengths))
    return tf.concat([tf.cast(by_frequency, tf.uint8), pack(bits, 1)], axis=0)


def unpack_classes(packed: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the `size` classes, int32 [size], that `pack_classes` packed."""
    by_frequency, packed = tf.cast(packed[:_CLASSES], tf.int32), packed[_CLASSES:]
    ends = tf.where(tf.equal(unpack(packed, 1, 8 * tf.size(packed)), 1))[:size, 0]
    return tf.gather(by_frequency, ends - tf.concat([[-1], ends[:-1]], axis=0)[: tf.size(ends)] - 1)


class LineOrder:
    """The order that belongs to the classes of a matrix's rows and columns, int32 [rows] and [columns]."""

    def __init__(self, row_classes: tf.Tensor, column_classes: tf.Tensor):
        self._row, self._column = row_classes, column_classes
        self._columns = tf.size(column_classes)
        self._row_order, self._row_starts, self._row_places, row_counts = _sorted(row_classes)
        self._column_order, self._column_starts, self._column_places, self._widths = _sorted(column_classes)
        self._sizes = tf.gather(row_counts, _A[_BLOCKS]) * tf.gather(self._widths, _B[_BLOCKS])
        self._starts = tf.cumsum(self._sizes, exclusive=True)

    def places(self, at: tf.Tensor) -> tf.Tensor:
        """Returns the places in this order, int32 [n], of what stands at int32 [n] of the flat matrix."""
        row, column = (at // self._columns)[:, tf.newaxis], (at % self._columns)[:, tf.newaxis]
        a, b = tf.gather_nd(self._row, row), tf.gather_nd(self._column, column)
        starts = tf.gather(self._starts, _BLOCK_OF)  # By pair of classes.
        start, width = _take(starts, a * _CLASSES + b), _take(self._widths, b)
        return start + tf.gather_nd(self._row_places, row) * width + tf.gather_nd(self._column_places, column)

    def positions(self, places: tf.Tensor) -> tf.Tensor:
        """Undoes `places`."""
        block = self._block(places)
        a, b = _take(tf.constant(_A[_BLOCKS], tf.int32), block), _take(tf.constant(_B[_BLOCKS], tf.int32), block)
        place, width = places - _take(self._starts, block), _take(self._widths, b)
        row = _take(self._row_order, _take(self._row_starts, a) + place // width)
        column = _take(self._column_order, _take(self._column_starts, b) + place % width)
        return row * self._columns + column

    def level_counts(self, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how many of the places are of each level, and how many elements are, both int32 [LEVELS]."""
        level = tf.constant(_LEVEL[_BLOCKS], tf.int32)
        sizes = tf.math.unsorted_segment_sum(self._sizes, level, LEVELS + 1)
        return tf.math.bincount(_take(level, self._block(places)), minlength=LEVELS)[:LEVELS], sizes[:LEVELS]

    def _block(self, places: tf.Tensor) -> tf.Tensor:
        return tf.searchsorted(self._starts + self._sizes, places, side="right")


def _sorted(classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the lines in order of class, where each class starts, each line's place in its class, the classes' sizes."""
    order = tf.argsort(classes, stable=True)
    counts = tf.math.bincount(classes, minlength=_CLASSES)
    starts = tf.cumsum(counts, exclusive=True)
    return order, starts, tf.math.invert_permutation(order) - tf.gather(starts, classes), counts


def _take(values: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    return tf.gather_nd(values, at[:, tf.newaxis])  # Faster than tf.gather.
