"""Integers one by one: each by how often its like occurs, with long runs of the most frequent one skipped.

The integers are taken relative to an offset, the median of a sample of them. Where most are the offset, only the others are
coded, the events, each with the run of offsets before it; else every element is (schedule.py). Events, runs and elements
become classes and bypass bits (classes.py). How often each class occurs travels in front (tables.py), and rans.py codes the
classes by that. Signs are bypass bits where both are about equally frequent. Bypass bits start the lanes of the coder.

The code, lowest byte first: the header, the tables, the lanes' final states, the coder's stream, and the bypass bits that no lane
took.

Runs: S. W. Golomb: Run-length encodings. IEEE Transactions on Information Theory 12, 1966.
"""

from __future__ import annotations

import tensorflow as tf

from tff_kit.encoders.checks import checked
from tff_kit.encoders.entropy import classes as number_classes
from tff_kit.encoders.entropy.classes import bypass_fields, class_of, fold, read_numbers, unfold
from tff_kit.encoders.entropy.fields import field_windows, pack_fields
from tff_kit.encoders.entropy.header import ElementsHeader
from tff_kit.encoders.entropy.rans import STATE_BYTES, Context, Rans
from tff_kit.encoders.entropy.schedule import Schedule
from tff_kit.encoders.entropy.tables import TOTAL, TOTAL_BITS, pack_tables, proportional, symbols_by_slot, unpack_tables

_SAMPLE = 1023  # Elements, of which the median is the offset: within a few per cent of the middle, at no cost.
_RANS = Rans(TOTAL_BITS, max_lanes=8192)

CODE = (tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32))
"""What `decode` takes."""


def encode(x: tf.Tensor) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n], n > 0."""
    size = tf.size(x) if x.shape[0] is None else x.shape[0]
    offset = median(x)
    at = tf.cast(tf.where(tf.not_equal(x, offset))[:, 0], tf.int32)
    schedule = Schedule(tf.size(at), size)
    signed, plain = tf.cond(schedule.dense, lambda: _all_elements(x, offset, schedule), lambda: _events_and_runs(x, offset, at))
    signs_bypass = _are_about_as_frequent(signed)
    numbers = [tf.where(signs_bypass, tf.abs(signed), fold(signed)), plain]
    classes = [class_of(number) for number in numbers]
    parts = [
        bypass_fields(numbers[0], classes[0], signs_bypass, signed),
        bypass_fields(numbers[1], classes[1], tf.constant(False)),
    ]
    bypass = pack_fields(*(tf.concat(fields, axis=0) for fields in zip(*parts)))
    initial, rest = _RANS.start_lanes(bypass, schedule.groups)
    tables, states, stream = _encode_classes(classes, schedule, initial)
    events = tf.where(schedule.dense, size, tf.size(at))
    header = ElementsHeader(offset=offset, lanes=tf.size(initial) // STATE_BYTES, signs_bypass=signs_bypass, events=events)
    return tf.concat([header.pack(), tables, states, stream, rest], axis=0)


def decode(body: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the int32 [size] that `encode` coded; `body` may have more at its end.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if `body` is the code of no tensor of this size.
    """
    header, body = ElementsHeader.unpack(body)
    fits = (header.events <= size // 2) | tf.equal(header.events, size)
    sentence = "Expected at most half of {} elements, or all, as events; found {}."
    schedule = Schedule(checked(header.events, fits, sentence, size, header.events), size)
    classes, bypass = _decode_classes(body, schedule, header.lanes)
    windows, end, signs_bypass = field_windows(bypass), 8 * tf.size(bypass, tf.int64), tf.equal(header.signs_bypass, 1)
    signed, stop = read_numbers(classes[0], windows, tf.constant(0, tf.int64), end, signs_bypass)
    plain, _ = read_numbers(classes[1], windows, stop, end, tf.constant(False))
    signed = tf.cond(signs_bypass, lambda: signed, lambda: unfold(signed))

    def all_elements():
        return tf.cast(tf.concat([signed, unfold(plain)], axis=0) + tf.cast(header.offset, tf.float64), tf.int32)

    def events_and_runs():
        # Differences of two int32 may need one bit more; it comes back as the sum overflows.
        return _scatter(tf.cast(tf.cast(signed, tf.int64), tf.int32), _places(plain, size), size) + header.offset

    return tf.cond(schedule.dense, all_elements, events_and_runs)


def median(x: tf.Tensor) -> tf.Tensor:
    """Returns about the median of int32 [n], n > 0."""
    sample = sorted_sample(x)
    return sample[tf.size(sample) // 2]


def sorted_sample(x: tf.Tensor) -> tf.Tensor:
    """Returns about a thousand of int32 [n], n > 0, sorted; all if there are fewer. They are of all columns of a matrix."""
    size = tf.size(x, tf.int64)
    count = tf.minimum(size, _SAMPLE)
    return tf.sort(tf.gather(x, tf.range(count) * size // count))


def _all_elements(x: tf.Tensor, offset: tf.Tensor, schedule: Schedule) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns signed and plain numbers of a dense tensor, float64."""
    numbers = tf.cast(x, tf.float64) - tf.cast(offset, tf.float64)
    return numbers[: schedule.groups], fold(numbers[schedule.groups :])


def _events_and_runs(x: tf.Tensor, offset: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the events at int32 [n] and the runs before them, float64 [n]."""
    values = tf.cast(tf.gather_nd(x, at[:, tf.newaxis]), tf.float64) - tf.cast(offset, tf.float64)  # Faster than tf.gather.
    return values, tf.cast(at - tf.concat([[0], at[:-1] + 1], axis=0)[: tf.size(at)], tf.float64)


def _places(runs: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns where events stand, int32 [n], before which there are runs of so many offsets, float64 [n]."""
    last = tf.reduce_sum(runs) + tf.cast(tf.size(runs), tf.float64)  # No run is below 0, so that none of the sums is larger.
    runs = checked(runs, last <= tf.cast(size, tf.float64), "Expected events among {} elements, found runs of {}.", size, last)
    return tf.cumsum(tf.cast(runs, tf.int32) + 1) - 1


def _are_about_as_frequent(signed: tf.Tensor) -> tf.Tensor:
    """Returns whether both signs are frequent enough to be bypass bits: with 55 % of one, a sign has 0.993 bits."""
    positive, negative = (tf.math.count_nonzero(side) for side in (signed > 0, signed < 0))
    return 10 * tf.abs(positive - negative) <= positive + negative


def _encode_classes(classes: list[tf.Tensor], schedule: Schedule, initial: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the tables, the lanes' final states and the stream that code signed and plain classes, all uint8 [bytes]."""
    tables = proportional(tf.stack([_histogram(stream) for stream in classes]))
    lanes = tf.size(initial) // STATE_BYTES
    steps = -(-schedule.groups // lanes)
    # What fills up the last steps is what costs least: each table's most frequent class.
    fillers = tf.unstack(tf.argmax(tables, axis=1, output_type=tf.int32) + tf.constant([0, number_classes.COUNT]), 2)
    symbols = schedule.by_steps([classes[0], classes[1] + number_classes.COUNT], fillers, steps, lanes)
    entries = tf.reshape(_RANS.entries(tables, tf.cumsum(tables, axis=1, exclusive=True)), [-1])
    return pack_tables(tables), *_RANS.encode(tf.gather_nd(entries, symbols[..., tf.newaxis]), initial)


def _decode_classes(body: tf.Tensor, schedule: Schedule, lanes: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the signed and the plain classes, int32 [n], and the bypass bytes."""
    tables, body = unpack_tables(body, tf.constant(2), tf.constant(number_classes.COUNT))
    steps, lanes, states, stream = _RANS.split_states(body, lanes, schedule.groups)
    symbol_of, frequencies, places = symbols_by_slot(tables)
    entries = tf.reshape(_RANS.entries(frequencies, places), [-1])
    slots, bypass = _RANS.decode(stream, entries, states, steps, _SignedFirst(schedule.signed_rows))
    return schedule.streams(tf.gather_nd(tf.reshape(symbol_of, [-1]), slots[..., tf.newaxis])), bypass


class _SignedFirst(Context):
    """Of the symbols of a group, the signed numbers have the first table, the plain ones the second."""

    def __init__(self, signed_rows: tf.Tensor):
        self._signed_rows = signed_rows

    def first_slots(self, k, seen):
        return tf.where(k < self._signed_rows, tf.constant(0.0, tf.float64), float(TOTAL))


def _histogram(classes: tf.Tensor) -> tf.Tensor:
    return tf.math.bincount(classes, minlength=number_classes.COUNT, maxlength=number_classes.COUNT, dtype=tf.int64)


def _scatter(values: tf.Tensor, at: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.math.unsorted_segment_sum(values, at, size)  # No place occurs twice. Six times as fast as tf.scatter_nd.
