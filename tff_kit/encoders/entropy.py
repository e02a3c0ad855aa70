"""Entropy coding of integers: as few bits as they carry information, plus at most about one in a hundred.

With n integers of empirical entropy H, of a distribution that is smooth (beyond its eight most central numbers) and about
symmetric, the payload is at most 1.01 n H bits once n H is some 100,000 bits; tables, states and lengths are in it. Any
other distribution is coded without loss and at more cost.

There are two ways: words.py codes several integers at once, which is fast and pays where a tensor is large and few of its
integers are alike; elements.py codes them one by one, skips runs, and finds what a matrix's rows and columns have in
common. The payload's first byte says which, or that the tensor travels as it is.
"""

from __future__ import annotations

import collections
from typing import Optional

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders import elements, words
from tff_kit.encoders.graphs import built_once
from tff_kit.encoders.stage import CoderStage

_ELEMENTS, _VERBATIM, _NOT_FINITE, _WORDS = 0, 1, 2, 3  # The payload's first byte.
_LARGEST = 2.0**31  # Tensors with larger integers travel as they are.
_LONG = 2**17  # Elements for which a book of words is worth making.


@te.core.tf_style_encoding_stage
class EntropyCodingStage(CoderStage):
    """Codes a tensor of any known shape that holds integers into as few bytes as it can. Lossless.

    `encode` returns one uint8 [bytes], whose length depends on the values. A tensor with an integer outside of int32
    travels as it is, in as many bytes as it has. A tensor with an element that is not finite travels as just that, in one
    byte, and decodes to NaN everywhere. Floats that are not integers are rounded towards 0.

    Raises:
      ValueError: On encoding, if the shape is not fully known or the size is 2^31 or more.
    """

    PAYLOAD_KEY = "payload"

    name = "entropy_coding"

    def encode(self, x, encode_params):
        del encode_params
        size = x.shape.num_elements()
        if size is None or size >= 2**31:
            raise ValueError(f"Expected a tensor of fully known shape and less than 2^31 elements, found shape {x.shape}.")
        columns = x.shape[-1] if x.shape.rank > 1 else None
        encode = built_once(_encode, tf.TensorSpec([size], x.dtype), columns=columns)
        encoded = collections.OrderedDict([(self.PAYLOAD_KEY, encode(tf.reshape(x, [size])))])
        return self.tag(encoded, x.dtype)

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        dtype = self.dtype(encoded_tensors)
        shape = tf.cast(shape, tf.int32)  # A scalar's [] comes as a float.
        size = tf.reduce_prod(shape)
        columns = tf.concat([[size], shape], axis=0)[-1]
        decode = built_once(_decode, *elements.CODE, dtype=dtype)
        return tf.reshape(decode(encoded_tensors[self.PAYLOAD_KEY], size, columns), shape)


def _encode(x: tf.Tensor, columns: Optional[int]) -> tf.Tensor:
    """Returns the payload of a flat tensor of known size."""
    if not x.shape[0]:
        return tf.constant([_VERBATIM], tf.uint8)
    wide = x if x.dtype in (tf.float32, tf.float64) else tf.cast(x, tf.float64)
    # A sum tells of what is not finite, and is faster than to look at each. It overflows only where something doesn't fit.
    fits = (tf.reduce_min(wide) >= -_LARGEST) & (tf.reduce_max(wide) < _LARGEST) & tf.math.is_finite(tf.reduce_sum(wide))

    def why_not():
        return tf.where(tf.reduce_all(tf.math.is_finite(wide)), _VERBATIM, _NOT_FINITE)

    integers = tf.cast(x, tf.int32)
    words_format = words.choose_format(integers, columns is not None) if x.shape[0] >= _LONG else tf.constant(words.NONE)
    kind = tf.cond(fits, lambda: tf.where(tf.equal(words_format, words.NONE), _ELEMENTS, _WORDS), why_not)
    verbatim = tf.reshape(tf.bitcast(x, tf.uint8), [-1])
    ways = {
        _ELEMENTS: lambda: elements.encode(integers, columns),
        _VERBATIM: lambda: verbatim,
        _NOT_FINITE: lambda: verbatim[:0],
        _WORDS: lambda: words.encode(integers, words_format),
    }
    return tf.concat([tf.cast(kind[tf.newaxis], tf.uint8), tf.switch_case(kind, ways)], axis=0)


def _decode(payload: tf.Tensor, size: tf.Tensor, columns: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the flat tensor of `size` elements whose payload this is."""
    body = payload[1:]
    width = dtype.size

    def verbatim():
        # Padded, since this branch's shapes must fit together whichever is taken.
        flat = tf.reshape(tf.pad(body, [[0, size * width]])[: size * width], [size, width])
        return tf.bitcast(tf.squeeze(flat, 1) if width == 1 else flat, dtype)

    not_finite = tf.cast(tf.constant(np.nan if dtype.is_floating else 0.0), dtype)  # Integers are finite.
    ways = {
        _ELEMENTS: lambda: tf.cast(built_once(elements.decode, *elements.CODE)(body, size, columns), dtype),
        _VERBATIM: verbatim,
        _NOT_FINITE: lambda: tf.fill([size], not_finite),
        _WORDS: lambda: words.decode(body, size, dtype),
    }
    return tf.switch_case(tf.cast(payload[0], tf.int32), ways)
