"""An order of a matrix's elements in which those that are about equally likely to be events stand together.

In a trained layer some inputs and some units change far more than others. A line is a row or a column. Its class is the bit
length of the number of its events: an octave of how likely its elements are events. A row's class a and a column's class b make
the level (a + b) // 2 of the elements where they cross, so that a level spans two octaves of likelihood. All elements of one
pair of classes are a block: its rows and its columns, each in their old order, cross in a rectangle. Blocks stand in order of
level, then of a, then of b; blocks without any event at the end. The place of an element in this order, and the element of a
place, follow from tables of the lines and of the 256 blocks.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy.fields import floor_log2
from tff_kit.encoders.packing import pack

LEVELS = 16
CLASSES = 16
"""0 for no events, else the bit length of their number, at most 15."""

_A, _B = np.divmod(np.arange(CLASSES**2), CLASSES)  # The classes of each pair, by its number CLASSES * a + b.
_LEVEL = np.where((_A == 0) | (_B == 0), LEVELS, (_A + _B) // 2)  # Without events: behind all levels.
_BLOCKS = np.argsort(_LEVEL, kind="stable")  # The pairs in order of their blocks.
_BLOCK_OF = np.argsort(_BLOCKS, kind="stable")  # The place of each pair among the blocks.


def line_classes(at: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Returns the classes of rows, then columns, int32 [rows + columns], of a matrix with events at int32 [n]."""
    row, column = tf.math.bincount(at // columns, minlength=rows), tf.math.bincount(at % columns, minlength=columns)
    counts = tf.cast(tf.concat([row, column], axis=0), tf.float64)
    return tf.minimum(tf.cast(tf.where(counts > 0, floor_log2(counts) + 1, 0), tf.int32), CLASSES - 1)


def pack_classes(classes: tf.Tensor) -> tf.Tensor:
    """Writes classes, int32 [n], as uint8 [bytes]: all 16 by frequency, then each line's rank among these in unary."""
    by_frequency = tf.argsort(-tf.math.bincount(classes, minlength=CLASSES), stable=True)
    lengths = 1 + tf.gather(tf.math.invert_permutation(by_frequency), classes)
    ends = tf.cumsum(lengths) - 1
    bits = tf.math.unsorted_segment_sum(tf.ones_like(ends, tf.int64), ends, tf.reduce_sum(lengths))
    return tf.concat([tf.cast(by_frequency, tf.uint8), pack(bits, 1)], axis=0)


def packed_size(counts: tf.Tensor) -> tf.Tensor:
    """Returns how many bytes `pack_classes` makes, int64, of classes that occur int64 [CLASSES] times each."""
    bits = tf.reduce_sum(tf.sort(counts, direction="DESCENDING") * tf.range(1, CLASSES + 1, dtype=tf.int64))
    return CLASSES + (bits + 7) // 8


def unpack_classes(packed: tf.Tensor, lines: tf.Tensor) -> tf.Tensor:
    """Returns the classes of so many lines, int32 [lines], that `pack_classes` packed.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if they were not packed so.
    """
    by_frequency, packed = split_bytes(packed, tf.constant(CLASSES), "classes by frequency")
    by_frequency = tf.cast(by_frequency, tf.int32)
    are_all = tf.reduce_all(tf.equal(tf.sort(by_frequency), tf.range(CLASSES)))
    by_frequency = checked(by_frequency, are_all, f"Expected the {CLASSES} classes of lines, found {{}}.", by_frequency)
    size = tf.size(packed)
    # A rank takes 16 bits at most, so that more bytes, which would only cost memory, are none.
    packed = checked(packed, size <= 2 * lines, "Expected ranks of {} lines, found {} bytes.", lines, size)
    bits = tf.reshape(tf.bitwise.right_shift(packed[:, tf.newaxis], tf.constant(list(range(8)), tf.uint8)) & 1, [-1])
    ones = tf.math.count_nonzero(bits, dtype=tf.int32)
    ends = tf.where(checked(bits, tf.equal(ones, lines), "Expected ranks of {} lines, found {}.", lines, ones))[:, 0]
    ranks = tf.cast(ends - tf.concat([[-1], ends[:-1]], axis=0) - 1, tf.int32)
    largest = tf.reduce_max(ranks)
    ranks = checked(ranks, largest < CLASSES, f"Expected ranks of lines below {CLASSES}, found {{}}.", largest)
    return tf.gather(by_frequency, ranks)


class LineOrder:
    """The order that belongs to the classes of a matrix's rows and columns, int32 [rows] and [columns]."""

    def __init__(self, row_classes: tf.Tensor, column_classes: tf.Tensor):
        self._row_classes, self._column_classes = row_classes, column_classes
        self._columns = tf.size(column_classes)
        self._row_order, self._row_starts, self._row_ranks, heights = _sorted(row_classes)
        self._column_order, self._column_starts, self._column_ranks, self._widths = _sorted(column_classes)
        self._sizes = tf.gather(heights, _A[_BLOCKS]) * tf.gather(self._widths, _B[_BLOCKS])  # Of blocks.
        self._starts = tf.cumsum(self._sizes, exclusive=True)

    def places(self, at: tf.Tensor) -> tf.Tensor:
        """Returns the places in this order, int32 [n], of what stands at int32 [n] of the flat matrix."""
        row, column = (at // self._columns)[:, tf.newaxis], (at % self._columns)[:, tf.newaxis]
        a, b = tf.gather_nd(self._row_classes, row), tf.gather_nd(self._column_classes, column)
        starts = tf.gather(self._starts, _BLOCK_OF)  # By pair of classes.
        start, width = _take(starts, a * CLASSES + b), _take(self._widths, b)
        return start + tf.gather_nd(self._row_ranks, row) * width + tf.gather_nd(self._column_ranks, column)

    def positions(self, places: tf.Tensor) -> tf.Tensor:
        """Undoes `places`: returns where in the flat matrix, int32 [n], the elements at these places stand."""
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
    counts = tf.math.bincount(classes, minlength=CLASSES)
    starts = tf.cumsum(counts, exclusive=True)
    return order, starts, tf.math.invert_permutation(order) - tf.gather(starts, classes), counts


def _take(values: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    return tf.gather_nd(values, at[:, tf.newaxis])  # Faster than tf.gather.
