"""The size of an encoded tensor, and how sizes are printed."""

from __future__ import annotations

from typing import Any, Union

import tensorflow as tf


def payload_bits(encoded: Any) -> Union[int, tf.Tensor]:
    """Returns the bits of all tensors in `encoded`, a nested structure: what travels, side information included.

    A number takes the bits of its dtype (8 for a bool), a string its bytes times 8.

    Returns:
      An int where all shapes are known statically, else a scalar int64 tensor.
    """
    return sum((_tensor_bits(tensor) for tensor in tf.nest.flatten(encoded)), 0)


def format_size(bits: float) -> str:
    """Returns a readable size: `format_size(532278400)` is `'507.62 Mibit'`."""
    for unit in ("bit", "Kibit", "Mibit", "Gibit"):
        if bits < 1024:
            return f"{bits:.2f} {unit}"
        bits /= 1024
    return f"{bits:.2f} Tibit"


def _tensor_bits(tensor: tf.Tensor) -> Union[int, tf.Tensor]:
    if tensor.dtype == tf.string:
        return 8 * tf.reduce_sum(tf.cast(tf.strings.length(tensor, unit="BYTE"), tf.int64))
    size = tensor.shape.num_elements()
    return (tf.size(tensor, out_type=tf.int64) if size is None else size) * tensor.dtype.size * 8
