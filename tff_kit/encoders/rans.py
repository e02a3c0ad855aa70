"""Range asymmetric numeral systems (rANS) on thousands of lanes at once, in core TensorFlow operations.

A state x takes up a symbol of frequency f and cumulative frequency c, out of a total of M, as x <- M floor(x / f) + c +
x mod f, which multiplies x by nearly M / f: log2(M / f) bits. The decoder undoes it from x mod M. A group of g symbols goes
in between two shrinkings of x: with M^g <= x < 2 M^g before and after, the only power of two s that leaves F <= floor(x /
s) < 2 F, F being the product of the g frequencies, is known from x, and x mod s is written out in log2(s) bits. The
decoder sees from the size of x how many bits to take in.

All lanes, each with its own state, do this at once and write to one stream in turns. A lane costs nothing where there
are bits that no model makes shorter (signs, say): its 48-bit state is started from them, and they fall out of the
decoder at its end. States are float64, which is exact for integers below 2^53 and the fastest type TensorFlow has.

J. Duda: Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of arithmetic
coding. arXiv 1311.2540. F. Giesen: Interleaved entropy coders. arXiv 1402.3392.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

import tensorflow as tf

from tff_kit.encoders.fields import field_windows, floor_log2, pack_fields, read_fields

_STATE_BITS = 48  # float64 would hold few more.
STATE_BYTES = _STATE_BITS // 8
_MAX_STEPS = 1024

_FLOOR_STATE = 2.0**_STATE_BITS


@dataclasses.dataclass(frozen=True)
class Rans:
    """A coder whose frequencies are out of a total of 2^total_bits. Entries stand for symbols; see `entries`.

    Attributes:
      total_bits: 12 or 16, or another divisor of 48.
    """

    total_bits: int

    @property
    def total(self) -> int:
        """What the frequencies of a table sum up to."""
        return 2**self.total_bits

    @property
    def group(self) -> int:
        """Symbols between two shrinkings of the state."""
        return _STATE_BITS // self.total_bits

    def entries(self, frequencies: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        """Returns what `encode` and `decode` know of symbols, float64: the frequency, and a place from 0 to total - 1."""
        return tf.cast(frequencies * self.total + starts, tf.float64)

    def encode(self, entries: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Codes symbols on as many lanes as there are seeds.

        Args:
          entries: float64 [steps, group, lanes], of the symbols, with the cumulative frequency as place. No frequency may be 0.
          seeds: uint8 [STATE_BYTES * lanes], any bits, which `decode` returns.

        Returns:
          The last states, uint8 [STATE_BYTES * lanes], and the stream of bits, uint8 [bytes].
        """
        steps = tf.shape(entries)[0]

        def step(i, x, bits, scales):
            entry = entries[i]
            f = tf.floor(entry / self.total)
            start, f = tf.unstack(entry - f * self.total), tf.unstack(f)
            scale = _power_of_two_below(x / math.prod(f))
            kept = tf.floor(x / scale)
            bits, scales = bits.write(i, x - kept * scale), scales.write(i, scale)
            for k in reversed(range(self.group)):
                kept += tf.floor(kept / f[k]) * (self.total - f[k]) + start[k]
            return i - 1, kept, bits, scales

        bits, scales = (tf.TensorArray(tf.float64, steps, element_shape=[None]) for _ in range(2))
        _, states, bits, scales = tf.while_loop(lambda i, *_: i >= 0, step, [steps - 1, _states(seeds), bits, scales])
        values, widths = tf.cast(bits.concat(), tf.int64), floor_log2(scales.concat())
        return _state_bytes(states), pack_fields(values, widths)

    def decode(
        self, stream: tf.Tensor, entries: tf.Tensor, states: tf.Tensor, steps: tf.Tensor, tables: Optional[tf.Tensor] = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Undoes `encode`.

        Args:
          stream: uint8 [bytes], the stream and whatever follows it.
          entries: float64 [tables * total], of the symbol that has each slot of each table; the place is here the slot less
            the cumulative frequency.
          states: uint8 [STATE_BYTES * lanes].
          steps: int32, how many groups a lane has.
          tables: int32 [steps, group, lanes], the table of each symbol; None where there is one.

        Returns:
          The symbols' slots, int32 [steps, group, lanes], each an index of `entries`; the seeds, uint8 [STATE_BYTES * lanes]; and
          how many bytes of `stream` were used, int64.
        """
        windows = field_windows(stream)
        x = _states(states)

        def step(i, x, position, slots):
            firsts, taken = None if tables is None else tables[i] * self.total, []
            for k in range(self.group):
                rest = tf.floor(x / self.total)
                slot = tf.cast(x - rest * self.total, tf.int32)
                taken.append(slot if firsts is None else slot + firsts[k])
                entry = tf.gather_nd(entries, taken[k][:, tf.newaxis])
                x = tf.floor(entry / self.total) * (rest - self.total) + entry  # f rest + place
            width = _STATE_BITS - floor_log2(x)
            end = position + tf.cumsum(width)
            x *= tf.cast(tf.bitwise.left_shift(_i64(1), width), tf.float64)
            x += tf.cast(read_fields(windows, end - width, width), tf.float64)
            return i + 1, x, end[-1], slots.write(i, tf.stack(taken))

        slots = tf.TensorArray(tf.int32, steps, element_shape=[self.group, None])
        _, x, position, slots = tf.while_loop(lambda i, *_: i < steps, step, [0, x, _i64(0), slots])
        return slots.stack(), _state_bytes(x), (position + 7) // 8


def start_lanes(bits: tf.Tensor, groups: tf.Tensor, most: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the seeds of as many lanes as these bits, uint8 [bytes], fill, and the bytes that are left.

    Args:
      bits: Any bits that have to travel. Where they fill few lanes, there are more, so that steps don't become too many.
      groups: int32, how many groups of symbols there are to code.
      most: Lanes.
    """
    wanted = tf.maximum(tf.size(bits) // STATE_BYTES, -(-groups // _MAX_STEPS))
    steps = -(-groups // tf.clip_by_value(wanted, 1, most))
    size = STATE_BYTES * -(-groups // steps)
    return tf.pad(bits[:size], [[0, tf.maximum(size - tf.size(bits), 0)]]), bits[size:]


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
