"""Range asymmetric numeral systems (rANS) on thousands of lanes at once, in core TensorFlow operations.

A state x takes up a symbol of frequency f and cumulative frequency c, out of a total of M, as x <- M floor(x / f) + c +
x mod f, which multiplies x by nearly M / f: log2(M / f) bits. The decoder undoes it from x mod M. Four symbols go in
between two shrinkings of x: with M^4 <= x < 2 M^4 before and after, the only power of two s that leaves F <= floor(x /
s) < 2 F, F being the product of the four frequencies, is known from x, and x mod s is written out in log2(s) bits. The
decoder sees from the size of x how many bits to take in.

All lanes, each with its own state, do this at once and write to one stream in turns. A lane costs nothing where there
are bits that no model makes shorter (signs, say): its 48-bit state is started from them, and they fall out of the
decoder at its end. States are float64, which is exact for integers below 2^53 and the fastest type TensorFlow has.

J. Duda: Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of arithmetic
coding. arXiv 1311.2540. F. Giesen: Interleaved entropy coders. arXiv 1402.3392.
"""

from __future__ import annotations

import tensorflow as tf

from tff_kit.encoders.fields import field_windows, floor_log2, pack_fields, read_fields

GROUP = 4  # Symbols between two shrinkings of the state.
TOTAL_BITS = 12  # GROUP times this are the 48 bits of a state; float64 would hold no more.
TOTAL = 2**TOTAL_BITS  # M
STATE_BYTES = GROUP * TOTAL_BITS // 8

_FLOOR_STATE = float(TOTAL**GROUP)


def frequencies(counts: tf.Tensor) -> tf.Tensor:
    """Returns frequencies that sum to TOTAL and are proportional to `counts`, at least 1 where a count is not 0.

    Args:
      counts: int64 [symbols], at most TOTAL / 4 of them. If all are 0, the first symbol gets everything.
    """
    counts += tf.one_hot(
        0, tf.size(counts), tf.cast(tf.equal(tf.reduce_sum(counts), 0), tf.int64), dtype=tf.int64, off_value=_i64(0)
    )
    total = tf.reduce_sum(counts)
    rare = tf.math.count_nonzero((counts > 0) & (counts * TOTAL < 2 * total))  # May be rounded up to 1.
    result = tf.where(counts > 0, tf.maximum(counts * (TOTAL - rare) // total, 1), 0)
    # What rounding down left over goes where it changes least.
    return result + tf.one_hot(
        tf.argmax(counts), tf.size(counts), TOTAL - tf.reduce_sum(result), dtype=tf.int64, off_value=_i64(0)
    )


def encode(symbols: tf.Tensor, tables: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes symbols on as many lanes as there are seeds.

    Args:
      symbols: int32 [GROUP, steps * lanes]; lanes follow one another.
      tables: int64 [GROUP, alphabet], the frequencies by which each row of symbols is coded; none may be 0 that occurs.
      seeds: uint8 [STATE_BYTES * lanes], any bits, which `decode` returns.

    Returns:
      The last states, uint8 [STATE_BYTES * lanes], and the stream of bits, uint8 [bytes].
    """
    alphabet = tf.shape(tables)[1]
    starts = tf.cumsum(tables, axis=1, exclusive=True)
    entries = tf.cast(tf.reshape(tables * TOTAL + starts, [-1]), tf.float64)
    symbols += alphabet * tf.range(GROUP)[:, tf.newaxis]
    states = _states(seeds)
    lanes = tf.size(states)
    symbols = tf.reshape(symbols, [GROUP, -1, lanes])
    steps = tf.shape(symbols)[1]

    def step(i, x, bits, scales):
        entry = tf.gather_nd(entries, symbols[:, i, :, tf.newaxis])
        f = tf.floor(entry / TOTAL)
        start, f = tf.unstack(entry - f * TOTAL), tf.unstack(f)
        scale = _power_of_two_below(x / (f[0] * f[1] * f[2] * f[3]))
        kept = tf.floor(x / scale)
        bits, scales = bits.write(i, x - kept * scale), scales.write(i, scale)
        for k in reversed(range(GROUP)):
            kept += tf.floor(kept / f[k]) * (TOTAL - f[k]) + start[k]
        return i - 1, kept, bits, scales

    bits, scales = (tf.TensorArray(tf.float64, steps, element_shape=[None]) for _ in range(2))
    _, states, bits, scales = tf.while_loop(lambda i, *_: i >= 0, step, [steps - 1, states, bits, scales])
    values, widths = tf.cast(bits.concat(), tf.int64), floor_log2(scales.concat())
    return _state_bytes(states), pack_fields(values, widths)


def decode(stream: tf.Tensor, tables: tf.Tensor, states: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Undoes `encode`.

    Args:
      stream: uint8 [bytes], the stream and whatever follows it.
      tables: As for `encode`.
      states: uint8 [STATE_BYTES * lanes].
      steps: How many, int32.

    Returns:
      The symbols, int32 [GROUP, steps * lanes], the seeds, uint8 [STATE_BYTES * lanes], and how many bytes of `stream`
      were used, int64.
    """
    windows = field_windows(stream)
    x = _states(states)
    ends = tf.cumsum(tables, axis=1)
    slots = tf.tile(tf.range(TOTAL, dtype=tf.int64)[tf.newaxis], [GROUP, 1])
    symbol_of = tf.searchsorted(ends, slots, side="right")  # int32 [GROUP, TOTAL]
    f, end = tf.gather(tables, symbol_of, batch_dims=1), tf.gather(ends, symbol_of, batch_dims=1)
    entries = tf.unstack(tf.cast(f * TOTAL + slots - (end - f), tf.float64))  # Frequencies, and places in symbols' ranges.

    def step(i, x, position, slots):
        taken = []
        for k in range(GROUP):
            rest = tf.floor(x / TOTAL)
            taken.append(tf.cast(x - rest * TOTAL, tf.int32))
            entry = tf.gather_nd(entries[k], taken[k][:, tf.newaxis])
            x = tf.floor(entry / TOTAL) * (rest - TOTAL) + entry  # f rest + bias
        width = GROUP * TOTAL_BITS - floor_log2(x)
        end = position + tf.cumsum(width)
        x *= tf.cast(tf.bitwise.left_shift(_i64(1), width), tf.float64)
        x += tf.cast(read_fields(windows, end - width, width), tf.float64)
        return i + 1, x, end[-1], slots.write(i, tf.stack(taken))

    slots = tf.TensorArray(tf.int32, steps, element_shape=[GROUP, None])
    _, x, position, slots = tf.while_loop(lambda i, *_: i < steps, step, [0, x, _i64(0), slots])
    rows = tf.unstack(tf.reshape(tf.transpose(slots.stack(), [1, 0, 2]), [GROUP, -1]))
    symbols = [tf.gather_nd(own, row[:, tf.newaxis]) for own, row in zip(tf.unstack(symbol_of), rows)]
    return tf.stack(symbols), _state_bytes(x), (position + 7) // 8


def _power_of_two_below(x: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.bitcast(x, tf.int64) & _i64(0x7FF << 52), tf.float64)


def _states(packed: tf.Tensor) -> tf.Tensor:
    numbers = tf.bitcast(tf.pad(tf.reshape(packed, [-1, STATE_BYTES]), [[0, 0], [0, 8 - STATE_BYTES]]), tf.int64)
    return tf.cast(numbers, tf.float64) + _FLOOR_STATE


def _state_bytes(states: tf.Tensor) -> tf.Tensor:
    numbers = tf.cast(states - _FLOOR_STATE, tf.int64)
    return tf.reshape(tf.bitcast(numbers, tf.uint8)[:, :STATE_BYTES], [-1])


def _i64(value) -> tf.Tensor:
    return tf.constant(value, tf.int64)
