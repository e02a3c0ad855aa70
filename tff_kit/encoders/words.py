"""Several integers at a time: words, each coded as one symbol.

A word is some neighbours that are all near the centre, the median of a sample of the integers. Its frequency is the product
of its elements' frequencies, which a sample tells; these travel, and both sides make the same book of words of them, in
integers that float64 holds exactly. Words that are too rare for the book are spelled: a symbol says so, and elements.py codes
their elements one by one. It also codes the tail of the tensor, and the bytes of all that start the lanes of rans.py.

The longer the words, the less time an element takes. But a word that is rarer than 1 out of 2^16 has no place in the book, so
that words can carry some ten bits on average: ten elements of .4 bits, or three of three.

The code, lowest byte first: the header, the elements' frequencies, the lanes' states, the coder's stream, and what no lane
took of the bytes of what is spelled.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from tff_kit.encoders import elements, frequencies
from tff_kit.encoders.fields import pack_fields, unpack_fields
from tff_kit.encoders.graphs import built_once
from tff_kit.encoders.rans import STATE_BYTES, Rans, start_lanes


@dataclasses.dataclass(frozen=True)
class _Format:
    """Words of `length` elements, each at most `reach` away from the centre."""

    length: int
    reach: int

    @property
    def digits(self) -> int:
        return 2 * self.reach + 1

    @property
    def words(self) -> int:
        return self.digits**self.length


_FORMATS = (_Format(10, 1), _Format(8, 1), _Format(6, 2), _Format(5, 4), _Format(4, 7), _Format(3, 19), _Format(2, 126))
NONE = len(_FORMATS)
"""The format of tensors that do better without words."""

_RANS = Rans(16)
_PRECISION_BITS = 36  # Of a word's frequency, before it is rounded: times an element's twelve bits, float64 holds it exactly.
_SLOT = 2.0 ** (_PRECISION_BITS - 16)
_HEADER_WIDTHS = [32, 16, 8]  # Centre, lanes, format.
_HEADER_LOWEST = [2**31, 0, 0]  # What is added, so that none is below 0.
_HEADER_BYTES = sum(_HEADER_WIDTHS) // 8
_TAIL = 48  # One part in so many is the tail: enough to start some hundred lanes.
_SAMPLE = 2**14
_FARTHEST = max(f.reach for f in _FORMATS) + 1
_LEAST_BITS = 4  # Of a word on average; of words with fewer, the few that are spelled take too large a part.
_MAX_LANES = 2048  # What a step works on should fit a core's cache.
_OUT = 2.0**22  # Added for an element that is out of reach: more than any word's number.


def choose_format(x: tf.Tensor, is_matrix: bool = False) -> tf.Tensor:
    """Returns the format, int32, that suits int32 [n], of known n > 0: the longest words of which about one in a hundred is rare.

    Of a matrix of which most is the centre, rows and columns may differ; that elements.py makes use of, and words don't.
    """
    shares = tf.cast(_sample_counts(x, elements.median(x)), tf.float64)
    shares /= tf.reduce_sum(shares)
    information = -tf.math.log(tf.maximum(shares, 1e-9)) / np.log(2)
    mean = tf.reduce_sum(shares * information)
    deviation = tf.sqrt(tf.reduce_sum(shares * tf.square(information - mean)))
    suits = []
    for f in _FORMATS:
        inside = tf.reduce_sum(shares[_FARTHEST - f.reach : _FARTHEST + f.reach + 1])
        most = f.length * mean + 2.6 * f.length**0.5 * deviation  # Bits of all but some words in a thousand.
        suits.append((f.length * (1 - inside) <= 0.01) & (most <= _RANS.total_bits - 0.5) & (f.length * mean >= _LEAST_BITS))
    if is_matrix:
        suits = [suit & (shares[_FARTHEST] <= 0.5) for suit in suits]
    return tf.argmax(tf.stack([*suits, True]), output_type=tf.int32)


def encode(x: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Returns the code, uint8 [bytes], of int32 [n] in the format `kind`, which must not be NONE."""
    centre, length, reach = elements.median(x), _of(kind, "length"), _of(kind, "reach")
    near = _sample_counts(x, centre)
    inside = near[_FARTHEST - reach : _FARTHEST + reach + 1]
    counts = tf.concat([[tf.reduce_sum(near) - tf.reduce_sum(inside)], inside], axis=0)
    table = frequencies.proportional(counts[tf.newaxis])
    ends, rare = _book(table[0, 1:], kind)
    starts = tf.concat([[0.0], ends[:-1]], axis=0)
    entries = tf.where(ends > starts, _RANS.entries(ends - starts, starts), 0)

    count = _count(tf.size(x), length)
    rows = tf.reshape(x[: count * length], [-1, length])
    entry = tf.gather_nd(tf.pad(entries, [[0, 1]]), _numbers(rows - centre, kind)[:, tf.newaxis])
    is_rare = tf.equal(entry, 0)
    entry = tf.where(is_rare, _RANS.entries(rare, _RANS.total - rare), entry)
    spelled = tf.gather(rows, tf.where(is_rare)[:, 0])
    spell = built_once(elements.encode, tf.TensorSpec([None], tf.int32))
    body = spell(tf.concat([x[count * length :], tf.reshape(spelled, [-1])], axis=0))

    groups = -(-count // _RANS.group)
    seeds, rest = start_lanes(body, groups, _MAX_LANES)
    lanes = tf.size(seeds) // STATE_BYTES
    filled = _RANS.group * lanes * -(-groups // lanes) - count
    entry = tf.concat([entry, tf.fill([filled], entries[tf.argmax(ends - starts)])], axis=0)
    states, stream = _RANS.encode(tf.reshape(entry, [-1, _RANS.group, lanes]), seeds)
    header = tf.stack([tf.cast(number, tf.int64) for number in (centre, lanes, kind)])
    header = pack_fields(tf.add(header, _HEADER_LOWEST), tf.constant(_HEADER_WIDTHS, tf.int64))
    return tf.concat([header, frequencies.pack_tables(table), states, stream, rest], axis=0)


def decode(body: tf.Tensor, size: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the integers [size], of any dtype that holds them, that `encode` coded."""
    header = unpack_fields(body[:_HEADER_BYTES], tf.constant(_HEADER_WIDTHS, tf.int64))
    centre, lanes, kind = tf.unstack(tf.cast(tf.subtract(header, _HEADER_LOWEST), tf.int32))
    length = _of(kind, "length")
    table, body = frequencies.unpack_tables(body[_HEADER_BYTES:], tf.constant(1), _of(kind, "digits") + 1)
    ends, rare = _book(table[0, 1:], kind)
    starts = tf.concat([[0.0], ends[:-1]], axis=0)
    in_book = tf.where(ends > starts)[:, 0]
    word_of, entries = _by_slot(tf.concat([tf.gather(starts, in_book), [_RANS.total - rare]], axis=0))

    count = _count(size, length)
    groups = -(-count // _RANS.group)
    states, stream = body[: lanes * STATE_BYTES], body[lanes * STATE_BYTES :]
    slots, seeds, used = _RANS.decode(stream, entries, states, -(-groups // lanes))
    word = tf.gather_nd(word_of, tf.reshape(slots, [-1])[:count, tf.newaxis])
    spellings = tf.cast(tf.pad(_spellings(in_book, kind) + centre, [[0, 1], [0, 0]]), dtype)  # Fewer than the rows.
    rows = tf.gather(spellings, word)
    at = tf.where(tf.equal(word, tf.size(in_book, tf.int32)))
    spell = built_once(elements.decode, *elements.CODE)
    tail = size - count * length
    spelled = tf.cast(spell(tf.concat([seeds, stream[used:]], axis=0), tail + tf.size(at) * length, size), dtype)
    rows = tf.tensor_scatter_nd_update(rows, at, tf.reshape(spelled[tail:], [-1, length]))
    return tf.concat([tf.reshape(rows, [-1]), spelled[:tail]], axis=0)


def _of(kind: tf.Tensor, name: str) -> tf.Tensor:
    return tf.gather(tf.constant([getattr(f, name) for f in _FORMATS], tf.int32), kind)


def _count(size: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Returns how many words there are; the tail takes what is left."""
    return (size - size // _TAIL) // length


def _sample_counts(x: tf.Tensor, centre: tf.Tensor) -> tf.Tensor:
    """Returns how often each distance from the centre, up to _FARTHEST either way, occurs in a sample, int64."""
    near = tf.clip_by_value(x[:: _stride(x.shape[0])] - centre, -_FARTHEST, _FARTHEST)
    return tf.math.bincount(near + _FARTHEST, minlength=2 * _FARTHEST + 1, dtype=tf.int64)


def _stride(size: int) -> int:
    """Returns how far apart the elements of a sample are: a prime, so that they come from all columns of a matrix."""
    stride = -(-size // _SAMPLE)
    while any(stride % k == 0 for k in range(2, math.isqrt(stride) + 1)):
        stride += 1
    return stride


def _numbers(rows: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of words, int32 [words], from their distances, int32 [words, length]; behind the last what has none."""
    reach = tf.cast(_of(kind, "reach"), tf.float32)
    rows = tf.cast(rows, tf.float32)
    rows += _OUT * tf.nn.relu(tf.abs(rows) - reach)  # A choice between two tensors takes longer.
    numbers = tf.linalg.matvec(rows, tf.cast(_powers(kind), tf.float32))  # Exact below 2^24.
    words = tf.cast(_of(kind, "words"), tf.float32)
    return tf.cast(tf.minimum(numbers + (words - 1) / 2, words), tf.int32)


def _spellings(numbers: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Returns the distances, int32 [words, length], that the words with these numbers stand for."""
    digits = tf.cast(numbers, tf.int32)[:, tf.newaxis] // _powers(kind) % _of(kind, "digits")
    return digits - _of(kind, "reach")


def _powers(kind: tf.Tensor) -> tf.Tensor:
    return tf.pow(_of(kind, "digits"), tf.range(_of(kind, "length") - 1, -1, -1))


def _book(shares: tf.Tensor, kind: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where each word's slots end, float64 [words], given its elements' frequencies; and how many slots are left."""
    shares = tf.cast(shares, tf.float64)

    def of_format(f: _Format) -> tf.Tensor:
        own = tf.reshape(shares, [f.digits])
        product = own * 2.0 ** (_PRECISION_BITS - frequencies.TOTAL_BITS)
        for _ in range(f.length - 1):
            product = tf.reshape(tf.floor(product[:, tf.newaxis] * (own / frequencies.TOTAL)), [-1])
        return product

    product = tf.switch_case(kind, [functools.partial(of_format, f) for f in _FORMATS])
    ends = tf.cumsum(tf.where(product >= _SLOT / 2, product, 0))
    left = tf.maximum(_RANS.total - tf.floor(ends[-1] / _SLOT), 1)
    return tf.floor(ends * (_RANS.total - left) / tf.maximum(ends[-1], 1)), left


def _by_slot(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns for each slot the symbol, int32 [total], and what the coder knows of it; symbols begin at float64 [symbols]."""
    begins = tf.math.unsorted_segment_sum(tf.ones_like(starts, tf.int32), tf.cast(starts, tf.int32), _RANS.total)
    symbol_of = tf.cumsum(begins) - 1
    ends = tf.concat([starts[1:], [_RANS.total]], axis=0)
    known = _RANS.entries(ends - starts, -starts)
    return symbol_of, tf.gather(known, symbol_of) + tf.range(_RANS.total, dtype=tf.float64)
