"""Integers one by one: each by how often its like occurs, with long runs of the most frequent one skipped.

The integers are taken relative to an offset, the median of a sample of them. Where most are the offset, only the others are
coded, the events, each with the run of offsets before it; else every element is (schedule.py). Events, runs and elements
become classes and bypass bits (classes.py). How often each class occurs travels in front (tables.py), and rans.py codes the
classes by that. Signs are bypass bits where both are about equally frequent. Bypass bits start the lanes of the coder.

Events of a matrix whose rows and columns differ in how many they have are coded in the order of line_order.py, each level with
tables of its own. It is done where an estimate says that it saves bits, and gets below the empirical entropy.

The code, lowest byte first: the header, the events of each level (four bytes each), the classes of lines, the tables, the
lanes' final states, the coder's stream, and the bypass bits that no lane took.

Runs: S. W. Golomb: Run-length encodings. IEEE Transactions on Information Theory 12, 1966.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy import classes as number_classes
from tff_kit.encoders.entropy.classes import bypass_fields, class_of, fold, read_numbers, unfold
from tff_kit.encoders.entropy.fields import field_windows, pack_fields
from tff_kit.encoders.entropy.header import ElementsHeader
from tff_kit.encoders.entropy.line_order import (
    CLASSES,
    LEVELS,
    LineOrder,
    line_classes,
    pack_classes,
    packed_size,
    unpack_classes,
)
from tff_kit.encoders.entropy.rans import STATE_BYTES, Rans
from tff_kit.encoders.entropy.schedule import Schedule
from tff_kit.encoders.entropy.tables import TOTAL_BITS, pack_tables, proportional, symbols_by_slot, unpack_tables

# About what an order by lines costs. Of 20 matrices whose rows and columns differ, the classes of lines took 1.5 to 4.1 bits
# each, most near 3, and the tables of 16 levels 1,300 to 3,100 bits: 32 of about 90 bits, for six or seven classes in use.
_LINE_BITS = 3
_LEVELS_BITS = 3000

_SAMPLE = 1023  # Elements, of which the median is the offset: within a few per cent of the middle, at no cost.
_RANS = Rans(TOTAL_BITS, max_lanes=8192)

CODE = (tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32))
"""What `decode` takes."""


def encode(x: tf.Tensor, columns: Optional[int] = None) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n], n > 0: a matrix of so many columns, or just a row."""
    size = tf.size(x) if x.shape[0] is None else x.shape[0]
    offset = median(x)
    at = tf.cast(tf.where(tf.not_equal(x, offset))[:, 0], tf.int32)
    schedule = Schedule(tf.size(at), size)
    signed, plain, counts, lines = tf.cond(
        schedule.dense,
        lambda: _all_elements(x, offset, schedule),
        lambda: _events_and_runs(x, offset, at, size, columns),
    )
    signs_bypass = _are_about_as_frequent(signed)
    numbers = [tf.where(signs_bypass, tf.abs(signed), fold(signed)), plain]
    classes = [class_of(number) for number in numbers]
    parts = [
        bypass_fields(numbers[0], classes[0], signs_bypass, signed),
        bypass_fields(numbers[1], classes[1], tf.constant(False)),
    ]
    bypass = pack_fields(*(tf.concat(fields, axis=0) for fields in zip(*parts)))
    initial, rest = _RANS.start_lanes(bypass, schedule.groups)
    tables, states, stream = _encode_classes(classes, counts, schedule, initial)
    header = ElementsHeader(
        offset=offset,
        lanes=tf.size(initial) // STATE_BYTES,
        signs_bypass=signs_bypass,
        levels=tf.size(counts),
        line_bytes=tf.size(lines),
    )
    counts = tf.reshape(tf.bitcast(counts, tf.uint8), [-1])
    return tf.concat([header.pack(), counts, lines, tables, states, stream, rest], axis=0)


def decode(body: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the int32 [size], a matrix of so many columns or a row, that `encode` coded; `body` may have more at its end.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if `body` is the code of no tensor of this size.
    """
    header, body = _read_header(body, size, columns)
    counts, body = _read_counts(body, header.levels, size)
    schedule = Schedule(tf.reduce_sum(counts), size)
    lines, body = split_bytes(body, header.line_bytes, "classes of lines")
    classes, bypass = _decode_classes(body, counts, schedule, header.lanes)
    windows, end, signs_bypass = field_windows(bypass), 8 * tf.size(bypass, tf.int64), tf.equal(header.signs_bypass, 1)
    signed, stop = read_numbers(classes[0], windows, tf.constant(0, tf.int64), end, signs_bypass)
    plain, _ = read_numbers(classes[1], windows, stop, end, tf.constant(False))
    signed = tf.cond(signs_bypass, lambda: signed, lambda: unfold(signed))

    def all_elements():
        return tf.cast(tf.concat([signed, unfold(plain)], axis=0) + tf.cast(header.offset, tf.float64), tf.int32)

    def events_and_runs():
        at = _places(plain, size)
        at = tf.cond(header.line_bytes > 0, lambda: _line_order(lines, size, columns).positions(at), lambda: at)
        # Differences of two int32 may need one bit more; it comes back as the sum overflows.
        return _scatter(tf.cast(tf.cast(signed, tf.int64), tf.int32), at, size) + header.offset

    return tf.cond(schedule.dense, all_elements, events_and_runs)


def median(x: tf.Tensor) -> tf.Tensor:
    """Returns about the median of int32 [n], n > 0."""
    sample = tf.sort(x[:: -(-tf.size(x) // _SAMPLE)])
    return sample[tf.size(sample) // 2]


def _all_elements(x: tf.Tensor, offset: tf.Tensor, schedule: Schedule) -> tuple[tf.Tensor, ...]:
    """Returns signed and plain numbers of a dense tensor, float64, its size as the one level's count, and no lines."""
    numbers = tf.cast(x, tf.float64) - tf.cast(offset, tf.float64)
    return numbers[: schedule.groups], fold(numbers[schedule.groups :]), tf.size(x)[tf.newaxis], tf.zeros([0], tf.uint8)


def _events_and_runs(
    x: tf.Tensor, offset: tf.Tensor, at: tf.Tensor, size: tf.Tensor, columns: Optional[int]
) -> tuple[tf.Tensor, ...]:
    """Returns the events at int32 [n] and the runs before them, float64 [n], the levels' counts, and the lines' classes."""
    values = tf.cast(_take(x, at), tf.float64) - tf.cast(offset, tf.float64)
    places, order, counts, lines = _by_lines(at, size, columns)
    values = tf.cond(tf.size(lines) > 0, lambda: _take(values, order), lambda: values)
    runs = places - tf.concat([[0], places[:-1] + 1], axis=0)[: tf.size(at)]
    return values, tf.cast(runs, tf.float64), counts, lines


def _places(runs: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns where events stand, int32 [n], before which there are runs of so many offsets, float64 [n]."""
    last = tf.reduce_sum(runs) + tf.cast(tf.size(runs), tf.float64)  # No run is below 0, so that none of the sums is larger.
    runs = checked(runs, last <= tf.cast(size, tf.float64), "Expected events among {} elements, found runs of {}.", size, last)
    return tf.cumsum(tf.cast(runs, tf.int32) + 1) - 1


def _are_about_as_frequent(signed: tf.Tensor) -> tf.Tensor:
    """Returns whether both signs are frequent enough to be bypass bits: with 55 % of one, a sign has 0.993 bits."""
    positive, negative = (tf.math.count_nonzero(side) for side in (signed > 0, signed < 0))
    return 10 * tf.abs(positive - negative) <= positive + negative


def _encode_classes(classes: list[tf.Tensor], counts: tf.Tensor, schedule: Schedule, initial: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the tables, the lanes' final states and the stream that code signed and plain classes, all uint8 [bytes]."""
    table_of = schedule.tables(counts)
    tables = proportional(_histograms(classes, table_of, 2 * tf.size(counts)))
    lanes = tf.size(initial) // STATE_BYTES
    steps = -(-schedule.groups // lanes)
    # What fills up the last steps is what costs least: the first table's most frequent class, and the second's.
    fillers = tf.unstack(tf.argmax(tables[:2], axis=1, output_type=tf.int32), 2)
    symbols = schedule.by_steps(classes, fillers, steps, lanes)
    symbols += number_classes.COUNT * schedule.by_steps(table_of, [0, 1], steps, lanes)
    entries = tf.reshape(_RANS.entries(tables, tf.cumsum(tables, axis=1, exclusive=True)), [-1])
    return pack_tables(tables), *_RANS.encode(tf.gather_nd(entries, symbols[..., tf.newaxis]), initial)


def _decode_classes(
    body: tf.Tensor, counts: tf.Tensor, schedule: Schedule, lanes: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the signed and the plain classes, int32 [n], and the bypass bytes."""
    tables, body = unpack_tables(body, 2 * tf.size(counts), tf.constant(number_classes.COUNT))
    steps, lanes, states, stream = _RANS.split_states(body, lanes, schedule.groups)
    symbol_of, frequencies, places = symbols_by_slot(tables)
    entries = tf.reshape(_RANS.entries(frequencies, places), [-1])
    table_of = schedule.by_steps(schedule.tables(counts), [0, 1], steps, lanes)
    slots, bypass = _RANS.decode(stream, entries, states, steps, table_of)
    return schedule.streams(tf.gather_nd(tf.reshape(symbol_of, [-1]), slots[..., tf.newaxis])), bypass


def _histograms(classes: list[tf.Tensor], table_of: list[tf.Tensor], tables: tf.Tensor) -> tf.Tensor:
    """Returns how often each class occurs among those that each table codes, int64 [tables, classes]."""
    pairs = tf.concat([table * number_classes.COUNT + c for c, table in zip(classes, table_of)], axis=0)
    length = tables * number_classes.COUNT
    counts = tf.math.bincount(pairs, minlength=length, maxlength=length, dtype=tf.int64)
    return tf.reshape(counts, [tables, number_classes.COUNT])


def _read_header(body: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> tuple[ElementsHeader, tf.Tensor]:
    """Returns the header and the bytes behind it, having checked that there are levels only where there are lines."""
    header, body = ElementsHeader.unpack(body)
    has_lines = header.line_bytes > 0
    is_matrix = (columns > 1) & (columns < size)
    fits = tf.equal(header.levels, tf.where(has_lines, LEVELS, 1)) & (is_matrix | ~has_lines)
    sentence = (
        f"Expected one level, or {LEVELS} and the classes of the lines of a matrix; found {{}} levels and {{}} bytes of classes."
    )
    return header, checked(body, fits, sentence, header.levels, header.line_bytes)


def _read_counts(body: tf.Tensor, levels: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how many events there are of each level, int32 [levels], and the bytes behind them."""
    packed, body = split_bytes(body, 4 * levels, "counts of events")
    counts = tf.bitcast(tf.reshape(packed, [-1, 4]), tf.int32)
    events, wide = tf.reduce_sum(tf.cast(counts, tf.int64)), tf.cast(size, tf.int64)
    fits = tf.reduce_all(counts >= 0) & ((events <= wide // 2) | tf.equal(events, wide))
    sentence = "Expected at most half of {} elements, or all, as events; found {}."
    return checked(counts, fits, sentence, size, counts), body


def _by_lines(at: tf.Tensor, size: tf.Tensor, columns: Optional[int]) -> tuple[tf.Tensor, ...]:
    """Orders the events at int32 [n] by how many their rows and columns have, if that makes the payload shorter.

    Returns:
      The events' places in the new order, the events in it, both int32 [n], how many there are of each level, int32
      [levels], and the classes of the lines, coded, uint8 [bytes]: none if the order is still the old one.
    """
    unordered = (at, tf.range(tf.size(at)), tf.size(at)[tf.newaxis], tf.zeros([0], tf.uint8))
    if columns is None or columns in (0, 1) or (not tf.is_tensor(size) and columns == size):
        return unordered
    rows = size // columns
    classes = line_classes(at, rows, columns)
    order = LineOrder(classes[:rows], classes[rows:])
    places = order.places(at)
    counts, sizes = order.level_counts(places)
    gain = _bits(tf.size(at), size) - tf.reduce_sum(_bits(counts, sizes))
    pays = gain > tf.cast(_LINE_BITS * (rows + columns) + _LEVELS_BITS, gain.dtype)
    fits = ElementsHeader.holds("line_bytes", packed_size(tf.math.bincount(classes, minlength=CLASSES, dtype=tf.int64)))

    def ordered():
        number = _scatter(tf.range(1, tf.size(at) + 1), places, size)  # Sorts.
        sorted_places = tf.cast(tf.where(number > 0)[:, 0], tf.int32)
        return sorted_places, _take(number, sorted_places) - 1, counts, pack_classes(classes)

    return tf.cond(pays & fits, ordered, lambda: unordered)


def _line_order(lines: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> LineOrder:
    rows = size // columns
    classes = unpack_classes(lines, rows + columns)
    return LineOrder(classes[:rows], classes[rows:])


def _bits(events: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the bits that tell which of `size` elements are events, element by element."""
    n, k = tf.cast(size, tf.float64), tf.cast(events, tf.float64)
    return (tf.math.xlogy(n, n) - tf.math.xlogy(k, k) - tf.math.xlogy(n - k, n - k)) / np.log(2)


def _take(values: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    return tf.gather_nd(values, at[:, tf.newaxis])  # Faster than tf.gather.


def _scatter(values: tf.Tensor, at: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(values, at, size)  # No place occurs twice. Six times as fast as tf.scatter_nd.
