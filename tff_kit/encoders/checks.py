"""Checks of bytes that a stranger may have sent, inside the graph: they hold in eager code, in graphs and in TFF's worker."""

from __future__ import annotations

import tensorflow as tf


def checked(value: tf.Tensor, condition: tf.Tensor, expected: str, *found: tf.Tensor) -> tf.Tensor:
    """Returns `value`, which nothing can use unless `condition` holds.

    Args:
      value: What depends on the condition.
      condition: A scalar bool.
      expected: The sentence of the error, "Expected ..., found {}.", with a {} for each number of `found`.
      *found: Tensors that the sentence shows.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if the condition does not hold.
    """
    sentence = tf.strings.format(expected, found)
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=[sentence], summarize=1)]):
        return tf.identity(value)


def split_bytes(body: tf.Tensor, count: tf.Tensor, what: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first `count` bytes of uint8 [bytes], and those behind them.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if there are fewer; `what` names them in the sentence.
    """
    size = tf.size(body)
    body = checked(body, size >= count, f"Expected {{}} bytes of {what}, found {{}}.", count, size)
    return body[:count], body[count:]
