"""Several integers at a time: tuples, each coded as one symbol.

A tuple is some neighbours that are all near the offset, the median of a sample of the integers. How often its elements occur is
estimated from a sample and travels; of that both sides make the same codebook (codebook.py). A tuple that is too rare for the
book is escaped: the escape code is coded in its place, and elements.py codes its elements one by one. The tail of the tensor is
coded with them, and the bytes of this code start the lanes of rans.py.

The longer the tuples, the less time an element takes. But a tuple rarer than 1 out of 2^16 has no place in the book, so that
tuples can carry some ten bits on average: ten elements of 0.4 bits, or three of three.

The code, lowest byte first: the header, the elements' frequencies, the lanes' final states, the coder's stream, and what no lane
took of the bytes of the escaped elements.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tff_kit.encoders.checks import checked
from tff_kit.encoders.entropy import elements
from tff_kit.encoders.entropy.codebook import SHAPES, SLOT_BITS, codebook, distances, numbers, of_shape, symbols_by_slot
from tff_kit.encoders.entropy.header import TuplesHeader
from tff_kit.encoders.entropy.rans import STATE_BYTES, Rans
from tff_kit.encoders.entropy.tables import pack_tables, proportional, unpack_tables
from tff_kit.encoders.graphs import built_once

NONE = len(SHAPES)
"""The shape of tensors that do better without tuples."""

_RANS = Rans(SLOT_BITS, max_lanes=2048)
_TAIL = 48  # One part in so many is the tail: of 2^17 elements of 0.43 bits, 150 bytes, the initial states of 25 lanes.
_SAMPLE = 2**14
_FARTHEST = max(s.reach for s in SHAPES) + 1

# Which tuples suit a tensor. A tuple's bits are the sum of its elements', about normal; one normal number in 200 is more than
# 2.6 deviations above the mean, so that one tuple in 200 may be rarer than the book's limit. A tuple of 15.5 bits has 1.4 of
# the 2^16 slots. With fewer, rounding to whole slots costs too much.
_DEVIATIONS = 2.6
_MOST_BITS = SLOT_BITS - 0.5
_LEAST_BITS = 4  # On average; of tuples with fewer, the few that are escaped take too large a part.
_MOST_ESCAPED = 0.01  # For elements out of reach.


def choose_shape(x: tf.Tensor) -> tf.Tensor:
    """Returns the shape, int32, that suits int32 [n], of known n > 0: the longest tuples of which one in a hundred is rare."""
    shares = tf.cast(_sample_counts(x, elements.median(x)), tf.float64)
    shares /= tf.reduce_sum(shares)
    information = -tf.math.log(tf.maximum(shares, 1e-9)) / np.log(2)
    mean = tf.reduce_sum(shares * information)
    deviation = tf.sqrt(tf.reduce_sum(shares * tf.square(information - mean)))
    suits = []
    for s in SHAPES:
        inside = tf.reduce_sum(shares[_FARTHEST - s.reach : _FARTHEST + s.reach + 1])
        most = s.length * mean + _DEVIATIONS * s.length**0.5 * deviation
        suits.append((s.length * (1 - inside) <= _MOST_ESCAPED) & (most <= _MOST_BITS) & (s.length * mean >= _LEAST_BITS))
    return tf.argmax(tf.stack([*suits, True]), output_type=tf.int32)


def encode(x: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n] in tuples of a shape, which must not be NONE."""
    offset, length = elements.median(x), of_shape(shape, "length")
    table = _frequencies(x, offset, shape)
    ends, escape = codebook(table[0, 1:], shape)
    starts = tf.concat([[0.0], ends[:-1]], axis=0)
    entries = tf.where(ends > starts, _RANS.entries(ends - starts, starts), 0)

    count = _count(tf.size(x), length)
    rows = tf.reshape(x[: count * length], [-1, length])
    entry = tf.gather_nd(tf.pad(entries, [[0, 1]]), numbers(rows - offset, shape)[:, tf.newaxis])
    is_rare = tf.equal(entry, 0)
    entry = tf.where(is_rare, _RANS.entries(escape, _RANS.total - escape), entry)
    escaped = tf.gather(rows, tf.where(is_rare)[:, 0])
    encode_elements = built_once(elements.encode, tf.TensorSpec([None], tf.int32))
    body = encode_elements(tf.concat([x[count * length :], tf.reshape(escaped, [-1])], axis=0))

    groups = -(-count // _RANS.group)
    initial, rest = _RANS.start_lanes(body, groups)
    lanes = tf.size(initial) // STATE_BYTES
    filled = _RANS.group * lanes * -(-groups // lanes) - count
    entry = tf.concat([entry, tf.fill([filled], entries[tf.argmax(ends - starts)])], axis=0)
    states, stream = _RANS.encode(tf.reshape(entry, [-1, _RANS.group, lanes]), initial)
    header = TuplesHeader(offset=offset, lanes=lanes, shape=shape)
    return tf.concat([header.pack(), pack_tables(table), states, stream, rest], axis=0)


def decode(body: tf.Tensor, size: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the integers [size], of any dtype that holds them, that `encode` coded.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if `body` is the code of no tensor of this size.
    """
    header, body = TuplesHeader.unpack(body)
    sentence = f"Expected tuples of a shape below {NONE}, found {{}}."
    shape = checked(header.shape, header.shape < NONE, sentence, header.shape)
    length = of_shape(shape, "length")
    table, body = unpack_tables(body, tf.constant(1), of_shape(shape, "digits") + 1)
    ends, escape = codebook(table[0, 1:], shape)
    starts = tf.concat([[0.0], ends[:-1]], axis=0)
    in_book = tf.where(ends > starts)[:, 0]
    symbol_of, *known = symbols_by_slot(tf.concat([tf.gather(starts, in_book), [_RANS.total - escape]], axis=0))

    count = _count(size, length)
    steps, _, states, stream = _RANS.split_states(body, header.lanes, -(-count // _RANS.group))
    slots, bypass = _RANS.decode(stream, _RANS.entries(*known), states, steps)
    symbols = tf.gather_nd(symbol_of, tf.reshape(slots, [-1])[:count, tf.newaxis])
    tuples = tf.cast(tf.pad(distances(in_book, shape) + header.offset, [[0, 1], [0, 0]]), dtype)  # Fewer than the rows.
    rows = tf.gather(tuples, symbols)
    at = tf.where(tf.equal(symbols, tf.size(in_book, tf.int32)))
    tail = size - count * length
    escaped_size = tail + tf.size(at) * length
    escaped = tf.cast(built_once(elements.decode, *elements.CODE)(bypass, escaped_size), dtype)
    rows = tf.tensor_scatter_nd_update(rows, at, tf.reshape(escaped[tail:], [-1, length]))
    return tf.concat([tf.reshape(rows, [-1]), escaped[:tail]], axis=0)


def _count(size: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Returns how many tuples there are; the tail takes what is left."""
    return (size - size // _TAIL) // length


def _frequencies(x: tf.Tensor, offset: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Returns the table, int64 [1, 1 + digits], of a sample's elements: those out of reach, then each distance."""
    near, reach = _sample_counts(x, offset), of_shape(shape, "reach")
    inside = near[_FARTHEST - reach : _FARTHEST + reach + 1]
    counts = tf.concat([[tf.reduce_sum(near) - tf.reduce_sum(inside)], inside], axis=0)
    return proportional(counts[tf.newaxis])


def _sample_counts(x: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Returns how often each distance from the offset, up to _FARTHEST either way, occurs in a sample, int64."""
    near = tf.clip_by_value(x[:: _stride(x.shape[0])] - offset, -_FARTHEST, _FARTHEST)
    return tf.math.bincount(near + _FARTHEST, minlength=2 * _FARTHEST + 1, dtype=tf.int64)


def _stride(size: int) -> int:
    """Returns how far apart the elements of a sample are: a prime, so that they come from all columns of a matrix."""
    stride = -(-size // _SAMPLE)
    while any(stride % k == 0 for k in range(2, math.isqrt(stride) + 1)):
        stride += 1
    return stride
