"""Which symbols the coder of `elements` takes at the same time. Encoder and decoder find the same schedule.

There are two streams of numbers: signed ones, whose signs may be bypass bits, and plain ones. If most integers are off the
offset, the tensor is dense: the first quarter of its elements are the signed numbers, the others, folded, the plain ones. Else
the events, integers off the offset, are the signed numbers, and the runs of offsets before them the plain ones.

A group is four symbols: one signed and three plain numbers of a dense tensor, or two events and two runs. A quarter of a dense
tensor's signs is enough bypass bits to start the lanes.
"""

from __future__ import annotations

import tensorflow as tf

_GROUP = 4


class Schedule:
    """The schedule of a tensor.

    Attributes:
      dense: A bool, whether all elements are coded, not only events.
      groups: int32, the groups of symbols, at least one.
      sizes: int32, how many signed and how many plain numbers there are.
      signed_rows: int32, how many symbols of a group are signed numbers; they come first.
    """

    def __init__(self, events: tf.Tensor, size: tf.Tensor):
        """Makes the schedule of a tensor of `size` elements, int32, of which so many are events; or all, if it is dense."""
        self.dense = events > size // 2
        self.groups = tf.maximum(tf.where(self.dense, -(-size // _GROUP), -(-events // 2)), 1)
        all_elements = [tf.minimum(self.groups, size), tf.maximum(size - self.groups, 0)]
        self.sizes = tf.unstack(tf.where(self.dense, all_elements, [events, events]))
        self.signed_rows = tf.where(self.dense, 1, 2)
        self._rows = [self.signed_rows, _GROUP - self.signed_rows]

    def by_steps(self, streams: list[tf.Tensor], fillers: list, steps: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
        """Returns the signed and the plain stream, each filled up with its filler, as the coder takes them, [steps, 4, lanes]."""
        length = steps * lanes
        rows = [
            tf.pad(stream, [[0, count * length - tf.size(stream)]], constant_values=filler)
            for stream, filler, count in zip(streams, fillers, self._rows)
        ]
        return tf.transpose(tf.reshape(tf.concat(rows, axis=0), [_GROUP, steps, lanes]), [1, 0, 2])

    def streams(self, symbols: tf.Tensor) -> list[tf.Tensor]:
        """Undoes `by_steps`: returns the signed and the plain stream of [steps, 4, lanes] symbols, without fillers."""
        rows = tf.transpose(symbols, [1, 0, 2])
        parts = rows[: self._rows[0]], rows[self._rows[0] :]
        return [tf.reshape(part, [-1])[:count] for part, count in zip(parts, self.sizes)]
