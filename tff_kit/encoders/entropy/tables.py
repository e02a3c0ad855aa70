"""Tables of frequencies: made of counts, and written in few bits."""

from __future__ import annotations

import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy.fields import floor_log2, pack_fields, unpack_fields

TOTAL_BITS = 12
TOTAL = 2**TOTAL_BITS
"""What a table sums up to."""

_LENGTH_BITS = 4  # Of the number of bits of a frequency, 0 to 13.


def proportional(counts: tf.Tensor) -> tf.Tensor:
    """Returns tables whose rows sum to TOTAL and are proportional to those of `counts`, and not 0 where a count is not.

    Args:
      counts: int64 [tables, symbols], at most TOTAL / 4 symbols. In a row of zeros, the first symbol gets everything.
    """
    symbols = tf.shape(counts)[1]
    total = tf.reduce_sum(counts, axis=1, keepdims=True)
    rare = tf.cast(tf.reduce_sum(tf.cast((counts > 0) & (counts * TOTAL < 2 * total), tf.int32), axis=1, keepdims=True), tf.int64)
    # The rare ones may be rounded up to 1.
    result = tf.where(counts > 0, tf.maximum(counts * (TOTAL - rare) // tf.maximum(total, 1), 1), 0)
    # What rounding down left over goes where it changes least.
    left_over = TOTAL - tf.reduce_sum(result, axis=1, keepdims=True)
    return result + left_over * tf.one_hot(tf.argmax(counts, axis=1), symbols, dtype=tf.int64)


def pack_tables(tables: tf.Tensor) -> tf.Tensor:
    """Writes tables, int64 [tables, symbols], of at most 255 symbols, as uint8 [bytes].

    How many symbols each table has up to the last that occurs, how many bits each frequency has, then those below the first.
    """
    symbols = tf.shape(tables)[1]
    used = tf.reduce_max(tf.where(tables > 0, tf.range(1, symbols + 1), 0), axis=1)
    table = tf.boolean_mask(tables, tf.sequence_mask(used, symbols))
    lengths = tf.where(table > 0, floor_log2(tf.cast(table, tf.float64)) + 1, 0)
    below, first = _below(lengths)
    nibbles = pack_fields(lengths, tf.fill(tf.shape(lengths), tf.constant(_LENGTH_BITS, tf.int64)))
    return tf.concat([tf.cast(used, tf.uint8), nibbles, pack_fields(table - first, below)], axis=0)


def unpack_tables(body: tf.Tensor, count: tf.Tensor, symbols: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the `count` tables of `symbols` symbols that `pack_tables` wrote at the start of `body`, and what follows them.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if they don't sum to TOTAL or have more symbols, or bytes are missing.
    """
    packed, body = split_bytes(body, count, "sizes of tables")
    used = tf.cast(packed, tf.int32)
    kept = tf.sequence_mask(used, symbols)
    at = tf.where(tf.reshape(kept, [-1]))[:, 0]
    packed, body = split_bytes(body, (tf.size(at) * _LENGTH_BITS + 7) // 8, "lengths of frequencies")
    below, first = _below(unpack_fields(packed, tf.fill(tf.shape(at), tf.constant(_LENGTH_BITS, tf.int64))))
    packed, body = split_bytes(body, (tf.cast(tf.reduce_sum(below), tf.int32) + 7) // 8, "frequencies")
    table = first + unpack_fields(packed, below)
    tables = tf.reshape(tf.math.unsorted_segment_sum(table, at, count * symbols), [count, symbols])
    sums = tf.reduce_sum(tables, axis=1)
    fits = tf.reduce_all(tf.equal(sums, TOTAL)) & (tf.reduce_max(used) <= symbols)
    expected = f"Expected tables of at most {{}} frequencies that sum to {TOTAL}, found {{}} that sum to {{}}."
    return checked(tables, fits, expected, symbols, used, sums), body


def symbols_by_slot(tables: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the symbol, int32, frequency and place in it, int64, of each slot of tables that sum to TOTAL: [tables, TOTAL]."""
    ends = tf.cumsum(tables, axis=1)
    slots = tf.tile(tf.range(TOTAL, dtype=tf.int64)[tf.newaxis], [tf.shape(tables)[0], 1])
    symbol_of = tf.searchsorted(ends, slots, side="right")
    frequency, end = tf.gather(tables, symbol_of, batch_dims=1), tf.gather(ends, symbol_of, batch_dims=1)
    return symbol_of, frequency, slots - (end - frequency)


def _below(lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how many bits numbers of so many bits have below their first, and its value."""
    below = tf.maximum(lengths - 1, 0)
    return below, tf.bitwise.left_shift(tf.minimum(lengths, 1), below)
