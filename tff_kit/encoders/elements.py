"""Integers one by one: each by how often its like occurs, with long runs of the most frequent one skipped.

The integers are taken relative to a centre, the median of a sample of them. Where most are the centre, what is coded are
the others, the events, each with the run of centres before it; else every element is. A number v >= 0 becomes one of
eight classes an octave of v + 8 and, in classes of more than one number, its place there as raw bits: a float of three
mantissa bits. How often each class occurs travels in front; rans.py codes the classes. Signs are raw bits where both are
about equally frequent; they start the lanes of the coder.

Events of a matrix whose rows and columns differ in how many they have are coded in the order of line_order.py, each level
with tables of its own. It is done where a bound says that it pays, and gets below the empirical entropy.

Runs: S. W. Golomb: Run-length encodings. IEEE Transactions on Information Theory 12, 1966. Classes are a finer version of
the gamma code of P. Elias: Universal codeword sets and representations of the integers. IEEE Transactions on Information
Theory 21, 1975.

The code, lowest byte first: the header, the events of each level (four bytes each), the classes of lines, the tables, the
lanes' states, the coder's stream, and the raw bits that no lane took.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import tensorflow as tf

from tff_kit.encoders import frequencies
from tff_kit.encoders.fields import field_windows, pack_fields, read_fields, unpack_fields
from tff_kit.encoders.line_order import LineOrder, line_classes, pack_classes, unpack_classes
from tff_kit.encoders.rans import STATE_BYTES, Rans, start_lanes

_HEADER_WIDTHS = [32, 16, 1, 5, 24]  # Centre, lanes, whether signs are raw, levels, bytes of the lines' classes.
_HEADER_BYTES = -(-sum(_HEADER_WIDTHS) // 8)

_FINENESS_BITS = 3
_FINENESS = 2**_FINENESS_BITS  # Classes an octave.
_CLASSES = _FINENESS * (34 - _FINENESS_BITS)  # For numbers up to 2^33.

_LINE_BITS, _LEVELS_BITS = 3, 3000  # About what the classes of lines cost each, and the levels' tables.
_SAMPLE = 1023
_MAX_LANES = 8192  # What a step works on should fit a core's cache.
_RANS = Rans(frequencies.TOTAL_BITS)

CODE = (tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32))
"""What `decode` takes."""


def encode(x: tf.Tensor, columns: Optional[int] = None) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n], n > 0: a matrix of so many columns, or just a row."""
    size = tf.size(x) if x.shape[0] is None else x.shape[0]
    centre = median(x)
    at = tf.cast(tf.where(tf.not_equal(x, centre))[:, 0], tf.int32)
    dense, groups = _plan(tf.size(at), size)

    def all_elements():
        numbers = tf.cast(x, tf.float64) - tf.cast(centre, tf.float64)
        return numbers[:groups], _fold(numbers[groups:]), tf.fill([1], size), tf.zeros([0], tf.uint8)

    def events_and_runs():
        values = tf.cast(_take(x, at), tf.float64) - tf.cast(centre, tf.float64)
        places, order, counts, lines = _by_lines(at, size, columns)
        values = tf.cond(tf.size(lines) > 0, lambda: _take(values, order), lambda: values)
        runs = places - tf.concat([[0], places[:-1] + 1], axis=0)[: tf.size(at)]
        return values, tf.cast(runs, tf.float64), counts, lines

    signed, plain, counts, lines = tf.cond(dense, all_elements, events_and_runs)
    positive, negative = (tf.math.count_nonzero(side) for side in (signed > 0, signed < 0))
    raw_signs = 10 * tf.abs(positive - negative) <= positive + negative  # 55 % of one sign carry .993 bits.

    numbers = [tf.where(raw_signs, tf.abs(signed), _fold(signed)), plain]
    classes = [_class_of(number) for number in numbers]
    contexts = _contexts(counts, [tf.size(number) for number in numbers], dense)
    tables = frequencies.proportional(_histograms(classes, contexts, 2 * tf.size(counts)))
    fields = [_places(numbers[0], classes[0], raw_signs, signed), _places(numbers[1], classes[1], False)]
    raw = pack_fields(*(tf.concat(parts, axis=0) for parts in zip(*fields)))

    seeds, rest = start_lanes(raw, groups, _MAX_LANES)
    lanes = tf.size(seeds) // STATE_BYTES
    steps = -(-groups // lanes)
    symbols = _by_steps(classes, tf.unstack(tf.argmax(tables[:2], axis=1, output_type=tf.int32), 2), dense, steps, lanes)
    symbols += _CLASSES * _by_steps(contexts, [0, 1], dense, steps, lanes)
    starts = tf.cumsum(tables, axis=1, exclusive=True)
    entries = tf.reshape(_RANS.entries(tables, starts), [-1])
    states, stream = _RANS.encode(tf.gather_nd(entries, symbols[..., tf.newaxis]), seeds)
    header = [tf.cast(centre, tf.int64) + 2**31, lanes, raw_signs, tf.size(counts), tf.size(lines)]
    header = pack_fields(tf.stack([tf.cast(number, tf.int64) for number in header]), tf.constant(_HEADER_WIDTHS, tf.int64))
    counts = tf.reshape(tf.bitcast(counts, tf.uint8), [-1])
    return tf.concat([header, counts, lines, frequencies.pack_tables(tables), states, stream, rest], axis=0)


def decode(body: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the int32 [size], a matrix of so many columns, that `encode` coded; `body` may have more bytes at its end."""
    header = tf.unstack(unpack_fields(body[:_HEADER_BYTES], tf.constant(_HEADER_WIDTHS, tf.int64)))
    centre, raw_signs = tf.cast(header[0] - 2**31, tf.int32), tf.equal(header[2], 1)
    lanes, levels, line_bytes = (tf.cast(header[k], tf.int32) for k in (1, 3, 4))
    body = body[_HEADER_BYTES:]
    counts, body = tf.bitcast(tf.reshape(body[: 4 * levels], [levels, 4]), tf.int32), body[4 * levels :]
    lines, body = body[:line_bytes], body[line_bytes:]
    tables, body = frequencies.unpack_tables(body, 2 * levels, _CLASSES)
    events = tf.reduce_sum(counts)
    dense, groups = _plan(events, size)
    sizes = tf.unstack(tf.where(dense, [tf.minimum(groups, size), tf.maximum(size - groups, 0)], [events, events]))
    contexts = _contexts(counts, sizes, dense)

    states, stream = body[: lanes * STATE_BYTES], body[lanes * STATE_BYTES :]
    steps = -(-groups // lanes)
    symbol_of, entries = _by_slot(tables)
    contexts = _by_steps(contexts, [0, 1], dense, steps, lanes)
    slots, seeds, used = _RANS.decode(stream, entries, states, steps, contexts)
    rows = tf.transpose(tf.gather_nd(symbol_of, slots[..., tf.newaxis]), [1, 0, 2])
    signed_rows = _row_counts(dense)[0]
    classes = [tf.reshape(part, [-1])[:count] for part, count in zip((rows[:signed_rows], rows[signed_rows:]), sizes)]
    windows = field_windows(tf.concat([seeds, stream[used:]], axis=0))
    signed, start = _numbers(classes[0], windows, tf.constant(0, tf.int64), raw_signs)
    plain, _ = _numbers(classes[1], windows, start, False)
    signed = tf.cond(raw_signs, lambda: signed, lambda: _unfold(signed))

    def all_elements():
        return tf.cast(tf.concat([signed, _unfold(plain)], axis=0) + tf.cast(centre, tf.float64), tf.int32)

    def events_and_runs():
        at = tf.cumsum(tf.cast(plain, tf.int32) + 1) - 1
        at = tf.cond(line_bytes > 0, lambda: _line_order(lines, size, columns).positions(at), lambda: at)
        # Differences of two int32 may need one bit more; it comes back as the sum overflows.
        return _scatter(tf.cast(tf.cast(signed, tf.int64), tf.int32), at, size) + centre

    return tf.cond(dense, all_elements, events_and_runs)


def median(x: tf.Tensor) -> tf.Tensor:
    """Returns about the median of int32 [n], n > 0."""
    sample = tf.sort(x[:: -(-tf.size(x) // _SAMPLE)])
    return sample[tf.size(sample) // 2]


def _by_slot(tables: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns for each slot of each table the symbol, int32 [tables * total], and what the coder knows of it, float64."""
    ends = tf.cumsum(tables, axis=1)
    slots = tf.tile(tf.range(_RANS.total, dtype=tf.int64)[tf.newaxis], [tf.shape(tables)[0], 1])
    symbol_of = tf.searchsorted(ends, slots, side="right")
    f, end = tf.gather(tables, symbol_of, batch_dims=1), tf.gather(ends, symbol_of, batch_dims=1)
    return tf.reshape(symbol_of, [-1]), tf.reshape(_RANS.entries(f, slots - (end - f)), [-1])


def _by_lines(at: tf.Tensor, size: tf.Tensor, columns: Optional[int]) -> tuple[tf.Tensor, ...]:
    """Orders the events at int32 [n] by how many their rows and columns have, if that makes the payload shorter.

    Returns:
      The events' places in the new order, the events in it, both int32 [n], how many there are of each level, int32
      [levels], and the classes of the lines, coded, uint8 [bytes]: none if the order is still the old one.
    """
    unordered = (at, tf.range(tf.size(at)), tf.size(at)[tf.newaxis], tf.zeros([0], tf.uint8))
    if columns is None or columns in (0, 1, size):
        return unordered
    rows = size // columns
    classes = line_classes(at, rows, columns)
    order = LineOrder(classes[:rows], classes[rows:])
    places = order.places(at)
    counts, sizes = order.level_counts(places)
    gain = _bits(tf.size(at), size) - tf.reduce_sum(_bits(counts, sizes))

    def ordered():
        number = _scatter(tf.range(1, tf.size(at) + 1), places, size)  # Sorts.
        sorted_places = tf.cast(tf.where(number > 0)[:, 0], tf.int32)
        return sorted_places, _take(number, sorted_places) - 1, counts, pack_classes(classes)

    return tf.cond(gain > _LINE_BITS * (rows + columns) + _LEVELS_BITS, ordered, lambda: unordered)


def _line_order(lines: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> LineOrder:
    rows = size // columns
    classes = unpack_classes(lines, rows + columns)
    return LineOrder(classes[:rows], classes[rows:])


def _bits(events: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the bits that tell which of `size` elements are events, element by element."""
    n, k = tf.cast(size, tf.float64), tf.cast(events, tf.float64)
    return (tf.math.xlogy(n, n) - tf.math.xlogy(k, k) - tf.math.xlogy(n - k, n - k)) / np.log(2)


def _contexts(counts: tf.Tensor, sizes: list[tf.Tensor], dense: tf.Tensor) -> list[tf.Tensor]:
    """Returns the tables that code the signed and the plain numbers: two for each level."""

    def of_levels():
        levels = tf.repeat(2 * tf.range(tf.size(counts)), counts)
        return levels, levels + 1

    return list(tf.cond(dense, lambda: (tf.zeros([sizes[0]], tf.int32), tf.ones([sizes[1]], tf.int32)), of_levels))


def _histograms(classes: list[tf.Tensor], contexts: list[tf.Tensor], tables: tf.Tensor) -> tf.Tensor:
    pairs = tf.concat([context * _CLASSES + c for c, context in zip(classes, contexts)], axis=0)
    counts = tf.math.bincount(pairs, minlength=tables * _CLASSES, maxlength=tables * _CLASSES, dtype=tf.int64)
    return tf.reshape(counts, [tables, _CLASSES])


def _plan(events: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether all elements are coded, not only those off the centre, and how many groups of symbols that makes.

    A group is one element whose sign may be raw and three others, or else two events, each with its run.
    """
    dense = 2 * events > size
    return dense, tf.maximum(tf.where(dense, (size + 3) // 4, (events + 1) // 2), 1)


def _row_counts(dense: tf.Tensor) -> list[tf.Tensor]:
    signed = tf.where(dense, 1, 2)
    return [signed, _RANS.group - signed]


def _by_steps(streams: list[tf.Tensor], fillers: list, dense: tf.Tensor, steps: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
    """Returns the signed and the plain stream, filled up, as the coder takes them, [steps, _RANS.group, lanes]."""
    length = steps * lanes
    rows = [
        tf.pad(stream, [[0, count * length - tf.size(stream)]], constant_values=filler)
        for stream, filler, count in zip(streams, fillers, _row_counts(dense))
    ]
    return tf.transpose(tf.reshape(tf.concat(rows, axis=0), [_RANS.group, steps, lanes]), [1, 0, 2])


def _take(values: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    return tf.gather_nd(values, at[:, tf.newaxis])  # Faster than tf.gather.


def _scatter(values: tf.Tensor, at: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(values, at, size)  # No place occurs twice. Six times as fast as tf.scatter_nd.


def _fold(x: tf.Tensor) -> tf.Tensor:
    """Maps the integers 0, -1, 1, -2, ... in float64 to 0, 1, 2, 3, ..."""
    return tf.maximum(2 * x, -2 * x - 1)


def _unfold(v: tf.Tensor) -> tf.Tensor:
    half = tf.floor(v / 2)
    return tf.where(tf.equal(v, 2 * half), half, -half - 1)


def _class_of(v: tf.Tensor) -> tf.Tensor:
    """Returns the classes, int32 [n], of numbers v >= 0, float64 [n]: the exponent and first mantissa bits of v + 8."""
    top = tf.bitwise.right_shift(tf.bitcast(v + _FINENESS, tf.int64), tf.constant(52 - _FINENESS_BITS, tf.int64))
    return tf.cast(top, tf.int32) - (1023 + _FINENESS_BITS) * _FINENESS


def _wide(classes: tf.Tensor, has_sign: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns which of the classes leave something to say, all int64 [m]: their places, first numbers and octaves."""
    at = tf.where(classes >= tf.where(has_sign, 1, _FINENESS))
    wide = tf.cast(tf.gather_nd(classes, at), tf.int64)
    octave = wide // _FINENESS
    return at[:, 0], tf.bitwise.left_shift(wide % _FINENESS + _FINENESS, octave) - _FINENESS, octave


def _places(numbers: tf.Tensor, classes: tf.Tensor, has_sign, signed: Optional[tf.Tensor] = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what the classes leave unsaid as fields, values and widths: a number's place in its class, and a sign."""
    at, first, octave = _wide(classes, has_sign)
    place = tf.cast(tf.gather_nd(numbers, at[:, tf.newaxis]), tf.int64) - first
    if signed is None:
        return place, octave
    negative = tf.cast((tf.gather_nd(signed, at[:, tf.newaxis]) < 0) & has_sign, tf.int64)
    return place + tf.bitwise.left_shift(negative, octave), octave + tf.cast(has_sign, tf.int64)


def _numbers(classes: tf.Tensor, windows: tf.Tensor, start: tf.Tensor, has_sign) -> tuple[tf.Tensor, tf.Tensor]:
    """Undoes `_class_of` and `_places`: returns the numbers, float64 [n], with their signs, and where their fields end."""
    at, first, octave = _wide(classes, has_sign)
    widths = octave + tf.cast(has_sign, tf.int64)
    ends = start + tf.cumsum(widths)
    field = read_fields(windows, ends - widths, widths)
    negative = tf.bitwise.right_shift(field, octave)
    numbers = (first + field - tf.bitwise.left_shift(negative, octave)) * (1 - 2 * negative)
    unsaid = tf.cast(numbers - tf.cast(tf.gather(classes, at), tf.int64), tf.float64)
    return tf.cast(classes, tf.float64) + _scatter(unsaid, at, tf.size(classes)), start + tf.reduce_sum(widths)
