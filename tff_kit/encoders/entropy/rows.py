"""A matrix of integers, each coded by how large its column is and how large those before it in its row were.

In a trained layer some inputs and some units change far more than others; so do rows and columns of a matrix's factors. A
column's scale, about the mean magnitude of its integers, travels in front. A row's scale is learnt on the way: its magnitudes so
far over what its columns' scales let expect. The product of both is the magnitude to expect of the next integer, and tells which
table codes it, one for each half octave. A matrix whose rows change their kind from top to bottom, such as two factors one above
the other, is divided into sections, each with column scales of its own.

Integers are taken relative to an offset: 0, or where that is rarer, the median of a sample of them. Magnitudes become classes
and bypass bits (classes.py). Signs are bypass bits too, save in columns where one sign is more frequent: there the tables are of
signed classes, turned round where negative ones are the more frequent. Columns that hold nothing but the offset are not coded,
save some that fill up the coder's groups. Bypass bits start the lanes of rans.py, each of which codes some neighbouring rows; so
rows are decoded side by side.

Sums are of whole numbers below 2^53, which float64 holds exactly; the quotient and the product of them are each rounded once, as
IEEE 754 says. So all machines expect the same and choose the same tables.

The code, lowest byte first: the header, the columns, the tables, the lanes' final states, the coder's stream, and the bypass
bits that no lane took.

Contexts of what was coded before: G. G. Langdon, J. Rissanen: Compression of black-white images with arithmetic coding. IEEE
Transactions on Communications 29, 1981.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy import elements
from tff_kit.encoders.entropy.classes import bypass_fields, class_of, first_number, read_numbers
from tff_kit.encoders.entropy.fields import field_windows, leading_bits, pack_fields
from tff_kit.encoders.entropy.header import RowsHeader
from tff_kit.encoders.entropy.rans import STATE_BYTES, Context, Rans, initial_states
from tff_kit.encoders.entropy.tables import TOTAL, TOTAL_BITS, pack_tables, proportional, symbols_by_slot, unpack_tables
from tff_kit.encoders.graphs import built_once

OTHER = 0
"""The number of sections of tensors that do better with another coder."""

_COLUMNS = (4, 2**13)  # With fewer, what fills up the coder's groups would be too much.
_MOST_ELEMENTS = 2**30  # Twice as many symbols, of which some fill up groups, still have numbers in int32.
_RANS = Rans(TOTAL_BITS, max_lanes=2**13)
_MOST_SYMBOLS = 4096  # Of a lane, unless there is no other way.
_SYMBOLS = 255  # Of a table.

_UNSIGNED, _SIGNED, _MIRRORED = 0, 1, 2  # How a column's signs travel: as bypass bits, in symbols, or turned round in symbols.
_SKEW = 0.4  # With 70 % of one kind a sign has 0.88 bits.

# Magnitudes are expected in parts of 1/1024. What a row begins with weighs as much as a magnitude of 2.
_UNIT = 2.0**10
_PRIOR = 2 * _UNIT
_LARGEST = 2.0**18 * _UNIT  # What counts of a magnitude, so that the sum of a row stays below 2^53.
_LARGEST_LABEL = 44
_LEVELS = 24  # Tables of a kind: magnitudes from the largest expected ones down to a 4,096th of that.
_BELOW_ONE = 2 * 1023  # In a float64, what the exponent and the first bit behind it are of 1.0.

_SAMPLE = 2**15  # Elements by which a coder is chosen.
_SECTIONS = 8
_SECTIONED_COLUMNS = 64  # With more columns their scales cost too much.
_GAIN = 0.98  # What sections have to leave of the bits without them, and rows of those of other coders.
_TABLE_BITS = 8  # About what each symbol of a table costs.

CODE = (tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32))
"""What `decode` takes."""


def choose_sections(x: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns into how many sections to divide int32 [n], a matrix of so many columns, or OTHER. A sample of its rows tells."""
    can_be_rows = (columns >= _COLUMNS[0]) & (columns <= _COLUMNS[1]) & (tf.size(x) <= _MOST_ELEMENTS)
    return tf.cond(can_be_rows, lambda: _choose_sections(x, columns), lambda: OTHER)


def _choose_sections(x: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    matrix = tf.reshape(x, [-1, columns]) - _offset(x)
    most = tf.where(columns <= _SECTIONED_COLUMNS, _SECTIONS, 1)
    sums = _Sums.of(_Lanes.of_count(most, matrix).of_rows(tf.cast(matrix, tf.float64)), most)
    sample = tf.ensure_shape(matrix[:: -(-tf.size(x) // _SAMPLE)], [None, None])  # Steps forget the rank.
    part = tf.cast(tf.size(x), tf.float64) / tf.cast(tf.size(sample), tf.float64)

    def bits(profile: _Profile) -> tf.Tensor:
        arguments = (sample, part, profile.labels, profile.modes, profile.own, profile.width)
        return built_once(_sample_bits, *(tf.TensorSpec([None] * len(x.shape), x.dtype) for x in arguments))(*arguments)

    costs = [bits(_Profile.of(sums.merged())), bits(_Profile.of(sums)) / _GAIN]
    near = tf.clip_by_value(tf.reshape(sample, [-1]), -_SYMBOLS, _SYMBOLS) + _SYMBOLS
    plain = _GAIN * part * _entropy(tf.math.bincount(near)[tf.newaxis])
    return tf.gather(tf.stack([OTHER, 1, most]), tf.argmin([plain, *costs]))


def encode(x: tf.Tensor, columns: tf.Tensor, sections: tf.Tensor) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n], a matrix of so many columns, which has an element off its offset."""
    offset = _offset(x)
    numbers = tf.cast(tf.reshape(x, [-1, columns]), tf.float64) - tf.cast(offset, tf.float64)
    lanes = _Lanes.for_matrix(numbers)
    numbers = lanes.of_rows(numbers)
    matrix = _Matrix.of(numbers, _Profile.of(_Sums.of(numbers, sections)))
    bypass = pack_fields(*matrix.bypass_fields())
    levels = matrix.levels()
    highest = tf.reduce_max(levels)
    count = tf.minimum(highest - tf.reduce_min(levels) + 1, _LEVELS)
    lowest = highest - count + 1
    kinds = matrix.profile.kinds(count)
    pairs = (kinds.first_of(matrix.modes) + tf.maximum(levels - lowest, 0)) * _SYMBOLS + matrix.symbols()
    size = kinds.tables * _SYMBOLS
    counts = tf.math.bincount(tf.reshape(pairs, [-1]), minlength=size, maxlength=size, dtype=tf.int64)
    tables = proportional(tf.reshape(counts, [kinds.tables, _SYMBOLS]))
    entries = tf.reshape(_RANS.entries(tables, tf.cumsum(tables, axis=1, exclusive=True)), [-1])
    initial, rest = initial_states(bypass, lanes.count)
    states, stream = _RANS.encode(tf.gather_nd(entries, lanes.by_steps(pairs)[..., tf.newaxis]), initial)
    header = RowsHeader(offset=offset, lanes=lanes.count, sections=sections, first_level=lowest, levels=count)
    return tf.concat([header.pack(), matrix.profile.pack(), pack_tables(tables), states, stream, rest], axis=0)


def _offset(x: tf.Tensor) -> tf.Tensor:
    """Returns 0, or the median where that is more frequent: columns of one sign move it away from what is most frequent."""
    sample = elements.sorted_sample(x)
    median = sample[tf.size(sample) // 2]
    zeros, medians = (tf.math.count_nonzero(tf.equal(sample, what)) for what in (0, median))
    return tf.where(zeros >= medians, 0, median)


def decode(body: tf.Tensor, size: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the int32 [size], a matrix of so many columns, that `encode` coded; `body` may have more at its end.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if `body` is the code of no tensor of this size.
    """
    fits = (columns >= _COLUMNS[0]) & (columns <= _COLUMNS[1]) & (columns < size) & (size <= _MOST_ELEMENTS)
    sentence = "Expected a matrix of {} to {} columns and {} elements at most, found {} columns of {} elements."
    columns = checked(columns, fits, sentence, *map(tf.constant, (*_COLUMNS, _MOST_ELEMENTS)), columns, size)
    rows = size // columns
    header, body = RowsHeader.unpack(body)
    profile, body = _Profile.unpack(body, header.sections, columns)
    sentence = f"Expected at most {_LEVELS} levels, found {{}}."  # More would take more memory than most tensors.
    kinds = profile.kinds(checked(header.levels, header.levels <= _LEVELS, sentence, header.levels))
    tables, body = unpack_tables(body, kinds.tables, tf.constant(_SYMBOLS))
    lanes = _Lanes.checked(header.lanes, rows, profile.width)
    states, stream = split_bytes(body, lanes.count * STATE_BYTES, "final states")
    symbol_of, frequencies, places = symbols_by_slot(tables)
    classes_of = kinds.classes(symbol_of)
    context = _RowsSoFar(profile, kinds, lanes, header, tf.reshape(_magnitudes(classes_of), [-1]))
    entries = tf.reshape(_RANS.entries(frequencies, places), [-1])
    slots, bypass = _RANS.decode(stream, entries, states, lanes.steps, context)
    slots = lanes.from_steps(slots)[..., tf.newaxis]
    symbols, classes = (tf.gather_nd(tf.reshape(what, [-1]), slots) for what in (symbol_of, classes_of))
    modes = tf.broadcast_to(profile.by_lane(profile.coded_modes(), lanes.count), tf.shape(symbols))
    windows, end = field_windows(bypass), 8 * tf.size(bypass, tf.int64)
    has_sign = tf.reshape(tf.equal(modes, _UNSIGNED), [-1])
    numbers, _ = read_numbers(tf.reshape(classes, [-1]), windows, tf.constant(0, tf.int64), end, has_sign)
    numbers *= tf.reshape(_signs(symbols, modes), [-1])
    coded = tf.reshape(numbers, [-1, profile.width])[:rows]
    full = tf.gather(tf.pad(coded, [[0, 0], [0, 1]]), profile.places(), axis=1)
    # Differences of two int32 may need one bit more; it comes back as the sum overflows.
    return tf.reshape(tf.cast(tf.cast(full, tf.int64), tf.int32), [size]) + header.offset


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums over the rows of each section, float64 [sections, columns].

    Attributes:
      rows: How many there are, [sections, 1].
      magnitudes: Of the elements, in units.
      positive: How many elements are above the offset.
      negative: How many are below.
      largest: The largest magnitude of all, a scalar.
    """

    rows: tf.Tensor
    magnitudes: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor
    largest: tf.Tensor

    @classmethod
    def of(cls, numbers: tf.Tensor, sections: tf.Tensor) -> _Sums:
        """Returns those of a matrix less its offset, float64 [lanes, depth, columns]."""
        lanes, depth = tf.shape(numbers)[0], tf.shape(numbers)[1]
        section = _sections_of(lanes, sections)

        def total(what: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(tf.reduce_sum(tf.cast(what, tf.float64), axis=1), section, sections)

        rows = total(tf.ones([lanes, depth, 1]))
        magnitudes = total(tf.minimum(_UNIT * tf.abs(numbers), _LARGEST))
        return cls(rows, magnitudes, total(numbers > 0), total(numbers < 0), tf.reduce_max(tf.abs(numbers)))

    def merged(self) -> _Sums:
        """Returns the sums of all sections as one."""
        sums = [tf.reduce_sum(x, axis=0, keepdims=True) for x in (self.rows, self.magnitudes, self.positive, self.negative)]
        return _Sums(sums[0], sums[1], sums[2], sums[3], self.largest)


@dataclasses.dataclass(frozen=True)
class _Profile:
    """The columns of each section.

    Attributes:
      labels: int32 [sections, columns], 0 for offsets only, else the scale is (2 + label mod 2) 2^(label div 2).
      modes: int32 [sections, columns], how signs travel.
      own: int32 [coded columns], the columns that have a label in some section.
      width: int32, how many columns are coded with those that fill up a group: they have a label of 0 and the last one's mode.
    """

    labels: tf.Tensor
    modes: tf.Tensor
    own: tf.Tensor
    width: tf.Tensor

    @classmethod
    def of(cls, sums: _Sums) -> _Profile:
        """Returns the profile that suits a matrix."""
        mean = tf.math.divide_no_nan(sums.magnitudes, sums.rows)
        can_be_signed = 2 * class_of(sums.largest) < _SYMBOLS
        side = tf.where(sums.positive > sums.negative, _SIGNED, _MIRRORED)
        modes = tf.where(_are_skewed(sums.positive, sums.negative) & can_be_signed, side, _UNSIGNED)
        # From a mean of 4 units on, this label's scale is the mean, rounded down to a half octave.
        return cls._with_coded(tf.where(mean > 0, tf.clip_by_value(_levels(mean) - 2, 1, _LARGEST_LABEL), 0), modes)

    @classmethod
    def _with_coded(cls, labels: tf.Tensor, modes: tf.Tensor) -> _Profile:
        own = tf.cast(tf.where(tf.reduce_any(labels > 0, axis=0))[:, 0], tf.int32)
        return cls(labels, modes, own, _filled_up(tf.size(own)))

    @classmethod
    def unpack(cls, body: tf.Tensor, sections: tf.Tensor, columns: tf.Tensor) -> tuple[_Profile, tf.Tensor]:
        """Returns the profile at the start of uint8 [bytes], and the bytes behind it."""
        sections = checked(sections, sections >= 1, "Expected at least one section, found {}.", sections)
        packed, body = split_bytes(body, sections * columns, "columns")
        codes = tf.reshape(tf.cast(packed, tf.int32), [sections, columns])
        labels, modes = codes % 64, codes // 64
        fits = tf.reduce_all((modes <= _MIRRORED) & (labels <= _LARGEST_LABEL)) & tf.reduce_any(labels > 0)
        sentence = f"Expected columns with labels up to {_LARGEST_LABEL} and modes up to {_MIRRORED}, not all 0; found {{}}."
        return cls._with_coded(checked(labels, fits, sentence, codes), modes), body

    def pack(self) -> tf.Tensor:
        """Returns what `unpack` reads: for each section a byte for each column."""
        return tf.reshape(tf.cast(self.labels + 64 * self.modes, tf.uint8), [-1])

    def coded(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns those of the coded columns, [..., width], of [..., columns]; zeros for those that fill up a group."""
        own = tf.gather(numbers, self.own, axis=-1)
        return tf.pad(own, [[0, 0]] * (len(numbers.shape) - 1) + [[0, self.width - tf.size(self.own)]])

    def coded_modes(self) -> tf.Tensor:
        """Returns the modes of the coded columns, int32 [sections, width]."""
        number = tf.minimum(tf.range(self.width), tf.size(self.own) - 1)
        return tf.gather(self.modes, tf.gather(self.own, number), axis=1)

    def ratios(self) -> tf.Tensor:
        """Returns the scale of each coded column over the sum of those before and the prior: float64 [sections, width]."""
        label = self.coded(self.labels)
        scale = tf.cast(tf.where(label > 0, tf.bitwise.left_shift(2 + label % 2, label // 2), 0), tf.float64)
        return scale / (tf.cumsum(scale, axis=1, exclusive=True) + _PRIOR)

    def by_lane(self, of_columns: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
        """Returns [lanes, 1, width] of [sections, width]."""
        return tf.gather(of_columns, _sections_of(lanes, tf.shape(self.labels)[0]))[:, tf.newaxis]

    def places(self) -> tf.Tensor:
        """Returns where each column stands among the coded ones, int32 [columns]; `width` if it is not coded."""
        nowhere = tf.fill([tf.shape(self.labels)[1]], self.width)
        return tf.tensor_scatter_nd_update(nowhere, self.own[:, tf.newaxis], tf.range(tf.size(self.own)))

    def kinds(self, levels: tf.Tensor) -> _Kinds:
        """Returns the kinds of tables, with so many levels of each."""
        modes = self.coded_modes()
        without, with_signs = tf.reduce_any(tf.equal(modes, _UNSIGNED)), tf.reduce_any(modes > _UNSIGNED)
        signed = tf.where(without, levels, 0)
        return _Kinds(levels, signed, signed + tf.where(with_signs, levels, 0))


@dataclasses.dataclass(frozen=True)
class _Kinds:
    """Tables of classes and tables of signed classes, as many of each as there are levels; or only those of one kind.

    Attributes:
      levels: int32.
      signed: int32, the first table of signed classes.
      tables: int32, how many there are.
    """

    levels: tf.Tensor
    signed: tf.Tensor
    tables: tf.Tensor

    def first_of(self, modes: tf.Tensor) -> tf.Tensor:
        """Returns the first table for columns of these modes."""
        return tf.where(tf.equal(modes, _UNSIGNED), 0, self.signed)

    def classes(self, symbols: tf.Tensor) -> tf.Tensor:
        """Returns the classes that symbols, int32 [tables, n], stand for."""
        return tf.where(tf.range(self.tables)[:, tf.newaxis] < self.signed, symbols, (symbols + 1) // 2)


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """The coded columns of a matrix less its offset.

    Attributes:
      numbers: float64 [lanes, depth, width].
      classes: int32, theirs.
      profile: The columns.
      modes: int32 [lanes, 1, width], how signs travel.
    """

    numbers: tf.Tensor
    classes: tf.Tensor
    profile: _Profile
    modes: tf.Tensor

    @classmethod
    def of(cls, numbers: tf.Tensor, profile: _Profile) -> _Matrix:
        """Returns that of float64 [lanes, depth, columns]."""
        numbers = profile.coded(numbers)
        modes = profile.by_lane(profile.coded_modes(), tf.shape(numbers)[0])
        return cls(numbers, class_of(tf.abs(numbers)), profile, modes)

    def levels(self) -> tf.Tensor:
        """Returns the half octave of the magnitude to expect of each number, int32."""
        ratios = self.profile.by_lane(self.profile.ratios(), tf.shape(self.numbers)[0])
        return _levels(ratios * (tf.cumsum(_magnitudes(self.classes), axis=2, exclusive=True) + _PRIOR))

    def symbols(self) -> tf.Tensor:
        """Returns the symbols, int32: classes, or for signed ones 0, -1, 1, -2, ..."""
        is_odd = tf.where(tf.equal(self.modes, _MIRRORED), self.numbers > 0, self.numbers < 0)
        return tf.where(tf.equal(self.modes, _UNSIGNED), self.classes, 2 * self.classes - tf.cast(is_odd, tf.int32))

    def bypass_fields(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the symbols leave open: values and widths of fields, int64 [m]."""
        has_sign = tf.broadcast_to(tf.equal(self.modes, _UNSIGNED), tf.shape(self.numbers))
        numbers, classes, has_sign = (tf.reshape(x, [-1]) for x in (self.numbers, self.classes, has_sign))
        return bypass_fields(tf.abs(numbers), classes, has_sign, numbers)


def _signs(symbols: tf.Tensor, modes: tf.Tensor) -> tf.Tensor:
    """Returns the signs that symbols tell, float64, 1 or -1; 1 where they tell none."""
    negative = tf.equal(symbols % 2, tf.where(tf.equal(modes, _MIRRORED), 0, 1)) & (modes > _UNSIGNED)
    return 1 - 2 * tf.cast(negative, tf.float64)


def _are_skewed(positive: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    return tf.abs(positive - negative) > _SKEW * (positive + negative)


def _sections_of(lanes: tf.Tensor, sections: tf.Tensor) -> tf.Tensor:
    """Returns the section of each lane, int32 [lanes]."""
    return tf.range(lanes) * sections // lanes


def _magnitudes(classes: tf.Tensor) -> tf.Tensor:
    """Returns what classes count for in the sum of a row, float64, in units: their first numbers."""
    return tf.minimum(_UNIT * tf.cast(first_number(classes), tf.float64), _LARGEST)


def _levels(expected: tf.Tensor) -> tf.Tensor:
    """Returns the half octaves, int32, of float64: 0 below 1.5, then 2 for each octave, and one more for its upper half."""
    return tf.maximum(tf.cast(leading_bits(expected, 1), tf.int32) - _BELOW_ONE, 0)


def _filled_up(columns: tf.Tensor) -> tf.Tensor:
    """Returns a number of columns that whole groups of symbols code."""
    return -(-columns // _RANS.group) * _RANS.group


@dataclasses.dataclass(frozen=True)
class _Lanes:
    """The coder's lanes: lane l codes the rows from l depth on, the last lane rows of offsets behind them.

    Attributes:
      count: int32, how many there are.
      depth: int32, the rows of each.
      width: int32, the columns that are coded, whole groups.
    """

    count: tf.Tensor
    depth: tf.Tensor
    width: tf.Tensor

    @classmethod
    def for_matrix(cls, numbers: tf.Tensor) -> _Lanes:
        """Returns as many lanes as bypass bits fill, about, and more where these would take too many steps."""
        rows = tf.shape(numbers)[0]
        positive, negative = (tf.math.count_nonzero(side, axis=0, dtype=tf.float64) for side in (numbers > 0, numbers < 0))
        is_open = tf.cast(~_are_skewed(positive, negative), tf.float64)
        signs = tf.cast(tf.reduce_sum(is_open * (positive + negative)), tf.int32)
        wanted = tf.clip_by_value(signs // (8 * STATE_BYTES), 1, tf.minimum(rows, _RANS.max_lanes))
        width = _filled_up(tf.math.count_nonzero(positive + negative, dtype=tf.int32))
        depth = tf.minimum(-(-rows // wanted), cls._deepest(rows, width))
        return dataclasses.replace(cls.of_count(-(-rows // depth), numbers), width=width)

    @classmethod
    def of_count(cls, count: tf.Tensor, matrix: tf.Tensor) -> _Lanes:
        """Returns so many lanes for all columns of [rows, columns]."""
        rows, columns = tf.unstack(tf.shape(matrix))
        return cls(count, -(-rows // count), columns)

    @classmethod
    def checked(cls, count: tf.Tensor, rows: tf.Tensor, width: tf.Tensor) -> _Lanes:
        """Returns so many lanes, if an encoder could have chosen them."""
        depth, deepest = -(-rows // tf.maximum(count, 1)), cls._deepest(rows, width)
        most = tf.minimum(rows, _RANS.max_lanes)
        expected = "Expected 1 to {} lanes of at most {} rows, found {} lanes of {}."
        count = checked(count, (count >= 1) & (count <= most) & (depth <= deepest), expected, most, deepest, count, depth)
        return cls(count, depth, width)

    @staticmethod
    def _deepest(rows: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return tf.maximum(tf.maximum(_MOST_SYMBOLS // width, 1), -(-rows // _RANS.max_lanes))

    @property
    def steps(self) -> tf.Tensor:
        """How many groups of symbols a lane has."""
        return self.depth * self.width // _RANS.group

    def of_rows(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns [rows, columns] as [count, depth, columns], with zeros at the end."""
        filled = tf.pad(rows, [[0, self.count * self.depth - tf.shape(rows)[0]], [0, 0]])
        return tf.reshape(filled, [self.count, self.depth, tf.shape(rows)[1]])

    def by_steps(self, lanes: tf.Tensor) -> tf.Tensor:
        """Returns [count, depth, width] as the coder takes it, [steps, group, count]."""
        return tf.reshape(tf.transpose(tf.reshape(lanes, [self.count, -1])), [self.steps, _RANS.group, self.count])

    def from_steps(self, steps: tf.Tensor) -> tf.Tensor:
        """Undoes `by_steps`."""
        return tf.reshape(tf.transpose(tf.reshape(steps, [-1, self.count])), [self.count, self.depth, self.width])


class _RowsSoFar(Context):
    """Keeps the sum of each row's magnitudes so far, and the prior, float64 [lanes], and the column that comes next."""

    def __init__(self, profile: _Profile, kinds: _Kinds, lanes: _Lanes, header: RowsHeader, magnitudes: tf.Tensor):
        self._lanes, self._magnitudes = lanes, magnitudes
        self._lowest = tf.cast(header.first_level + _BELOW_ONE, tf.float64)
        self._highest = self._lowest + tf.cast(kinds.levels - 1, tf.float64)
        first = TOTAL * (tf.cast(kinds.first_of(profile.coded_modes()), tf.float64) - self._lowest)
        by_lane = [profile.by_lane(x, lanes.count)[:, 0] for x in (profile.ratios(), first)]
        self._columns = tf.transpose(tf.stack(by_lane), [2, 0, 1])  # [width, 2, lanes]

    def begin(self):
        return tf.fill([self._lanes.count], tf.constant(_PRIOR, tf.float64)), tf.constant(0)

    def first_slots(self, k, seen):
        total, column = seen
        ratio, first = tf.unstack(self._columns[column])
        return TOTAL * tf.clip_by_value(tf.cast(leading_bits(ratio * total, 1), tf.float64), self._lowest, self._highest) + first

    def after(self, seen, slots):
        total, column = seen
        column = (column + 1) % self._lanes.width
        total = tf.where(tf.equal(column, 0), tf.constant(_PRIOR, tf.float64), total + tf.gather_nd(self._magnitudes, slots))
        return total, column


def _sample_bits(sample: tf.Tensor, part: tf.Tensor, *of_profile: tf.Tensor) -> tf.Tensor:
    """Returns about the bits of a matrix of this profile, less its offset, of which int32 [rows, columns] is one in `part`."""
    profile = _Profile(*of_profile)
    matrix = _Matrix.of(tf.cast(sample, tf.float64)[:, tf.newaxis], profile)
    levels = matrix.levels()
    levels -= tf.reduce_min(levels)
    kind = tf.reduce_max(levels) + 1  # So many tables without, and as many with signs.
    size = 2 * kind * 2 * _SYMBOLS
    pairs = (levels + tf.where(tf.equal(matrix.modes, _UNSIGNED), 0, kind)) * 2 * _SYMBOLS + matrix.symbols()
    counts = tf.math.bincount(tf.reshape(pairs, [-1]), minlength=size, maxlength=size)
    _, widths = matrix.bypass_fields()
    bits = _entropy(tf.reshape(counts, [-1, 2 * _SYMBOLS])) + tf.cast(tf.reduce_sum(widths), tf.float64)
    in_front = _TABLE_BITS * tf.math.count_nonzero(counts, dtype=tf.float64) + 8 * tf.cast(tf.size(profile.labels), tf.float64)
    return part * bits + in_front


def _entropy(counts: tf.Tensor) -> tf.Tensor:
    """Returns the bits of symbols that occur int32 [tables, symbols] times, by tables of their own."""
    counts = tf.cast(counts, tf.float64)
    total = tf.reduce_sum(counts, axis=1)
    return (tf.reduce_sum(tf.math.xlogy(total, total)) - tf.reduce_sum(tf.math.xlogy(counts, counts))) / np.log(2)
