"""Range asymmetric numeral systems (rANS) on thousands of lanes at once, in core TensorFlow operations.

A lane is a coder with a state of its own. A state x takes up a symbol of frequency f and cumulative frequency c, out of a
total of M, as x <- M floor(x / f) + c + x mod f. This multiplies x by nearly M / f: log2(M / f) bits. The decoder undoes it
from x mod M, which lies among the f slots of the symbol, from c on.

A group of g symbols goes in between two shrinkings of x, with M^g = 2^48 <= x < 2^49 before and after. Let F be the product
of the group's frequencies. Only one power of two s leaves F <= floor(x / s) < 2 F, and it follows from x: the encoder writes
x mod s in log2(s) bits and goes on with floor(x / s). The decoder, once it has undone the group, sees from the size of x how
many bits to take in.

All lanes do this at once and write to one stream in turns. A lane's 48-bit initial state is made of bypass bits, bits that no
model makes shorter (signs, say). They fall out of the decoder at its end, so a lane costs nothing while such bits last.

States are float64, the fastest type that TensorFlow has for this. Their arithmetic is exact:

* Sums and products are of integers below 2^53.
* floor(x / f), for integers with x + f < 2^53, is that of the rounded quotient. Let m = floor(x / f) + 1. The exact quotient
  lies at least 1 / f below m, and is rounded up to m only if it lies at most m 2^-53 below it, half of a float64's spacing
  there. But m f <= x + f < 2^53, so 1 / f is more.
* The exponent of x / F is that of the rounded quotient: the exact one, if it is below a power of two P, is below it by at least
  1 / F = P / (P F), and P F <= 2 x < 2^50, so the distance is at least P 2^-50, and rounding moves it by at most P 2^-54.

J. Duda: Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of arithmetic
coding. arXiv 1311.2540. F. Giesen: Interleaved entropy coders. arXiv 1402.3392.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional, Union

import tensorflow as tf

from tff_kit.encoders.checks import checked, split_bytes
from tff_kit.encoders.entropy.fields import field_windows, floor_log2, pack_fields, read_fields

_STATE_BITS = 48  # The most that 12 and 16 divide and whose states, below 2^49, leave float64 room for exact products.
STATE_BYTES = _STATE_BITS // 8
_MAX_STEPS = 1024  # A step is a pass of TensorFlow's loop: some 0.1 ms, whatever the number of lanes.

_FLOOR_STATE = 2.0**_STATE_BITS


class Context:
    """Tells the decoder which table codes each symbol. This one knows one table; others may tell by what was decoded before.

    `k` is the number of the symbol in its group. `seen` is what the context keeps, tensors of fixed shapes.
    """

    def begin(self) -> tuple[tf.Tensor, ...]:
        """Returns what is kept before the first symbol."""
        return ()

    def first_slots(self, k: int, seen: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """Returns where the tables of one symbol of all lanes begin among all tables' slots, float64 [lanes] or a scalar."""
        del k, seen
        return tf.constant(0, tf.float64)

    def after(self, seen: tuple[tf.Tensor, ...], slots: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns what is kept once the symbols are known, by their slots among those of all tables, int32 [lanes, 1]."""
        del slots
        return seen


@dataclasses.dataclass(frozen=True)
class Rans:
    """A coder of symbols.

    Attributes:
      total_bits: The frequencies of a table sum up to 2^total_bits; 12 or 16, or another divisor of 48.
      max_lanes: The most lanes; what a step works on should fit a core's cache.
    """

    total_bits: int
    max_lanes: int

    @property
    def total(self) -> int:
        """What the frequencies of a table sum up to."""
        return 2**self.total_bits

    @property
    def group(self) -> int:
        """Symbols between two shrinkings of the state."""
        return _STATE_BITS // self.total_bits

    def entries(self, frequencies: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Returns what `encode` and `decode` look up of symbols, float64: frequency * total + place, 0 <= place < total."""
        return tf.cast(frequencies * self.total + places, tf.float64)

    def start_lanes(self, bypass: tf.Tensor, groups: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the initial states of as many lanes as these bits, uint8 [bytes], fill; and the bytes that are left.

        Args:
          bypass: Any bits that have to travel. Where they fill few lanes, there are more, so that steps don't become too many.
          groups: int32, how many groups of symbols there are to code, at least 1.
        """
        wanted = tf.maximum(tf.size(bypass) // STATE_BYTES, _ceil_divide(groups, _MAX_STEPS))
        steps = _ceil_divide(groups, tf.clip_by_value(wanted, 1, self.max_lanes))
        return initial_states(bypass, _ceil_divide(groups, steps))

    def encode(self, entries: tf.Tensor, initial: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Codes symbols on as many lanes as there are initial states.

        Args:
          entries: float64 [steps, group, lanes], of the symbols, with the cumulative frequency as place. No frequency may be 0.
          initial: uint8 [STATE_BYTES * lanes], any bits, which `decode` returns.

        Returns:
          The final states, uint8 [STATE_BYTES * lanes], and the stream of bits, uint8 [bytes].
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
        _, states, bits, scales = tf.while_loop(lambda i, *_: i >= 0, step, [steps - 1, _states(initial), bits, scales])
        values, widths = tf.cast(bits.concat(), tf.int64), floor_log2(scales.concat())
        return _state_bytes(states), pack_fields(values, widths)

    def split_states(self, body: tf.Tensor, lanes: tf.Tensor, groups: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns the steps of `lanes` lanes, int32; `lanes`; their final states; and the bytes behind these in uint8 [bytes].

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs, if no encoder had so many lanes for so many groups, or too few
            bytes are there. Every number of steps that `start_lanes` chooses passes.
        """
        steps = _ceil_divide(groups, tf.maximum(lanes, 1))
        most = tf.minimum(groups, self.max_lanes)
        few_steps = steps <= tf.maximum(_ceil_divide(groups, self.max_lanes), _MAX_STEPS)
        expected = f"Expected 1 to {{}} lanes of at most {_MAX_STEPS} steps, found {{}} lanes of {{}}."
        lanes = checked(lanes, (lanes >= 1) & (lanes <= most) & few_steps, expected, most, lanes, steps)
        states, stream = split_bytes(body, lanes * STATE_BYTES, "final states")
        return steps, lanes, states, stream

    def decode(
        self, stream: tf.Tensor, entries: tf.Tensor, states: tf.Tensor, steps: tf.Tensor, context: Optional[Context] = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Undoes `encode`. Whatever the bytes hold, it returns slots that exist: a state stays from 2^48 to 2^49 - 1.

        Args:
          stream: uint8 [bytes], the stream and whatever follows it.
          entries: float64 [tables * total], of the symbol that has each slot of each table; the place is here the slot less
            the cumulative frequency.
          states: uint8 [STATE_BYTES * lanes].
          steps: int32, how many groups a lane has.
          context: Tells the table of each symbol; by default there is one table.

        Returns:
          The symbols' slots, int32 [steps, group, lanes], each an index of `entries`; and the bypass bytes, uint8 [bytes]: the
          initial states, and what followed the stream.

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs, if the stream ends too early.
        """
        x = _states(states)
        end_of_stream = 8 * tf.size(stream, tf.int64)
        # A step may read beyond the end, of which the loop's condition and the check behind it then tell.
        windows = field_windows(stream[: tf.cast(tf.size(states), tf.int64) * tf.cast(steps, tf.int64)], spare=tf.size(states))

        context = context or Context()

        def step(i, x, position, slots, seen):
            taken = []
            for k in range(self.group):
                rest = tf.floor(x / self.total)
                slot = tf.cast(x - rest * self.total + context.first_slots(k, seen), tf.int32)
                taken.append(slot)
                slot = slot[:, tf.newaxis]
                entry = tf.gather_nd(entries, slot)
                x = tf.floor(entry / self.total) * (rest - self.total) + entry  # f rest + place
                seen = context.after(seen, slot)
            width = _STATE_BITS - floor_log2(x)
            end = position + tf.cumsum(width)
            x *= tf.cast(tf.bitwise.left_shift(_i64(1), width), tf.float64)
            x += tf.cast(read_fields(windows, end - width, width), tf.float64)
            return i + 1, x, end[-1], slots.write(i, tf.stack(taken)), seen

        def goes_on(i, x, position, slots, seen):
            del x, slots, seen
            return (i < steps) & (position <= end_of_stream)

        slots = tf.TensorArray(tf.int32, steps, element_shape=[self.group, None])
        _, x, position, slots, _ = tf.while_loop(goes_on, step, [0, x, _i64(0), slots, context.begin()])
        sentence = "Expected a stream of at least {} bits, found {}."
        position = checked(position, position <= end_of_stream, sentence, position, end_of_stream)
        with tf.control_dependencies([position]):
            slots = slots.stack()
        return slots, tf.concat([_state_bytes(x), stream[(position + 7) // 8 :]], axis=0)


def initial_states(bypass: tf.Tensor, lanes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the initial states of so many lanes, of bypass bytes and, where these are too few, zeros; and what is left."""
    size = STATE_BYTES * lanes
    return tf.pad(bypass[:size], [[0, tf.maximum(size - tf.size(bypass), 0)]]), bypass[size:]


def _ceil_divide(a: tf.Tensor, b: Union[int, tf.Tensor]) -> tf.Tensor:
    return -(-a // b)


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
