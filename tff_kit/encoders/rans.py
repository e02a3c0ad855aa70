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


def encode(symbols: tf.Tensor, contexts: tf.Tensor, tables: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes symbols on as many lanes as there are seeds.

    Args:
      symbols: int32 [GROUP, steps * lanes]; lanes follow one another.
      contexts: int32 [GROUP, steps * lanes], the table by which each symbol is coded.
      tables: int64 [tables, alphabet], frequencies; none may be 0 that occurs.
      seeds: uint8 [STATE_BYTES * lanes], any bits, which `decode` returns.

    Returns:
      The last states, uint8 [STATE_BYTES * lanes], and the stream of bits, uint8 [bytes].
    """
    starts = tf.cumsum(tables, axis=1, exclusive=True)
    entries = tf.cast(tf.reshape(tables * TOTAL + starts, [-1]), tf.float64)
    states = _states(seeds)
    symbols = tf.reshape(symbols + contexts * tf.shape(tables)[1], [GROUP, -1, tf.size(states)])
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


def decode(
    stream: tf.Tensor, contexts: tf.Tensor, tables: tf.Tensor, states: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Undoes `encode`.

    Args:
      stream: uint8 [bytes], the stream and whatever follows it.
      contexts: As for `encode`.
      tables: As for `encode`.
      states: uint8 [STATE_BYTES * lanes].

    Returns:
      The symbols, int32 [GROUP, steps * lanes], the seeds, uint8 [STATE_BYTES * lanes], and how many bytes of `stream`
      were used, int64.
    """
    windows = field_windows(stream)
    x = _states(states)
    contexts = tf.reshape(contexts * TOTAL, [GROUP, -1, tf.size(x)])
    steps = tf.shape(contexts)[1]
    ends = tf.cumsum(tables, axis=1)
    slots = tf.tile(tf.range(TOTAL, dtype=tf.int64)[tf.newaxis], [tf.shape(tables)[0], 1])
    symbol_of = tf.searchsorted(ends, slots, side="right")  # int32 [tables, TOTAL]
    f, end = tf.gather(tables, symbol_of, batch_dims=1), tf.gather(ends, symbol_of, batch_dims=1)
    # A frequency, and the place in its symbol's range.
    entries = tf.cast(tf.reshape(f * TOTAL + slots - (end - f), [-1]), tf.float64)

    def step(i, x, position, slots):
        context, taken = tf.unstack(contexts[:, i]), []
        for k in range(GROUP):
            rest = tf.floor(x / TOTAL)
            taken.append(tf.cast(x - rest * TOTAL, tf.int32) + context[k])
            entry = tf.gather_nd(entries, taken[k][:, tf.newaxis])
            x = tf.floor(entry / TOTAL) * (rest - TOTAL) + entry  # f rest + place
        width = GROUP * TOTAL_BITS - floor_log2(x)
        end = position + tf.cumsum(width)
        x *= tf.cast(tf.bitwise.left_shift(_i64(1), width), tf.float64)
        x += tf.cast(read_fields(windows, end - width, width), tf.float64)
        return i + 1, x, end[-1], slots.write(i, tf.stack(taken))

    slots = tf.TensorArray(tf.int32, steps, element_shape=[GROUP, None])
    _, x, position, slots = tf.while_loop(lambda i, *_: i < steps, step, [0, x, _i64(0), slots])
    slots = tf.reshape(tf.transpose(slots.stack(), [1, 0, 2]), [GROUP, -1])
    symbols = tf.gather_nd(tf.reshape(symbol_of, [-1]), slots[:, :, tf.newaxis])
    return symbols, _state_bytes(x), (position + 7) // 8


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
