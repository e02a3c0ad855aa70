"""Tensors cut into rows of equal size, of which the last may be short: it is filled up to compute, never to send."""

from __future__ import annotations

from typing import Optional

import numpy as np
import tensorflow as tf


def to_rows(x: tf.Tensor, block: Optional[int], fill: Optional[float] = None) -> tf.Tensor:
    """Cuts `x` of any shape and n elements into rows [ceil(n / block), block], in its own dtype.

    Args:
      x: The tensor.
      block: Elements a row; None makes one row of all.
      fill: What a short last row is filled up with; None repeats its last element, which changes no extremes.
    """
    flat = tf.reshape(x, [-1])
    if block is None:
        return flat[tf.newaxis]
    size = flat.shape.num_elements()
    missing = -(tf.size(flat) if size is None else size) % block
    if isinstance(missing, int) and missing == 0:
        return tf.reshape(flat, [-1, block])
    return tf.reshape(tf.pad(flat, [[0, missing]], constant_values=flat[-1] if fill is None else fill), [-1, block])


def from_rows(rows: tf.Tensor, shape) -> tf.Tensor:
    """Puts the elements of `rows` that `to_rows` did not fill in back into `shape`."""
    shape = tf.cast(shape, tf.int32)  # A scalar's [] comes as floats.
    return tf.reshape(tf.reshape(rows, [-1])[: tf.reduce_prod(shape)], shape)


def static_size(shape) -> int:
    """Returns the number of elements of `shape`, which has to be known before the graph runs.

    Raises:
      ValueError: If it is not.
    """
    known = not isinstance(shape, tf.TensorShape) or shape.is_fully_defined()
    dimensions = tf.get_static_value(tf.convert_to_tensor(shape)) if known else None
    if dimensions is None:
        raise ValueError(f"Expected a tensor of fully known shape, found {shape}. Encoders are made for one shape.")
    return int(np.prod(dimensions, dtype=np.int64))


def spoil(numbers: tf.Tensor, witness: tf.Tensor) -> tf.Tensor:
    """Returns `numbers`, or NaN in place of all of them where an element of `witness` is not finite.

    One block of a tensor that is not finite must not leave numbers in others.
    """
    # A product with 0 would do, but graphs are simplified, and 0 x becomes 0 there whatever x is.
    return tf.where(tf.math.is_finite(tf.reduce_max(tf.abs(witness))), numbers, tf.constant(np.nan, numbers.dtype))
