"""Entropy coding of integers: as few bits as they carry information, plus at most about one in a hundred.

With n integers of empirical entropy H, of a distribution that is smooth (beyond its eight most central numbers) and about
symmetric, the payload is at most 1.01 n H bits once n H is some 100,000 bits; tables, states and lengths are in it. Any
other distribution is coded without loss and at more cost.

There are three coders: rows.py codes a matrix whose rows and columns differ, and takes less than the entropy of its elements;
tuples.py codes several integers at once, which is fast and pays where a tensor is large and few of its integers are alike;
elements.py codes them one by one and skips runs. The payload's first byte says which, or that the tensor travels as it is.
docs/format.md specifies all bytes.
"""

from __future__ import annotations

import collections
from typing import Optional

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.checks import checked
from tff_kit.encoders.entropy import elements, rows, tuples
from tff_kit.encoders.entropy.header import VERSION, PayloadHeader
from tff_kit.encoders.graphs import built_once
from tff_kit.encoders.stage import CoderStage

ELEMENTS, VERBATIM, NOT_FINITE, TUPLES, ROWS = 0, 1, 2, 3, 4  # The coder, by the payload's header.
_LARGEST = 2.0**31  # Tensors with larger integers travel as they are.
_LONG = 2**17  # Elements for which a codebook is worth making.


@te.core.tf_style_encoding_stage
class EntropyCodingStage(CoderStage):
    """Codes a tensor of any known shape that holds integers into as few bytes as it can. Lossless.

    `encode` returns one uint8 [bytes], whose length depends on the values. A tensor with an integer outside of int32
    travels as it is, in as many bytes as it has. A tensor with an element that is not finite travels as just that, in one
    byte, and decodes to NaN everywhere. Floats that are not integers are rounded towards 0.

    `decode` makes of any bytes a tensor of the given shape and the tagged dtype, or raises; bytes of its own come back.

    Raises:
      ValueError: On encoding, if the shape is not fully known or the size is 2^31 or more.
      tf.errors.InvalidArgumentError: On decoding, when the graph runs, if the bytes are no payload for this shape.
    """

    PAYLOAD_KEY = "payload"

    name = "entropy_coding"

    def encode(self, x, encode_params):
        del encode_params
        size = x.shape.num_elements()
        if size is None or size >= 2**31:
            raise ValueError(f"Expected a tensor of fully known shape and less than 2^31 elements, found shape {x.shape}.")
        columns = x.shape[-1] if x.shape.rank > 1 else None
        payload = encode_integers(tf.reshape(x, [size]), columns)
        encoded = collections.OrderedDict([(self.PAYLOAD_KEY, payload)])
        return self.tag(encoded, x.dtype)

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        return decode_integers(encoded_tensors[self.PAYLOAD_KEY], shape, self.dtype(encoded_tensors))


def encode_integers(x: tf.Tensor, columns: Optional[int] = None) -> tf.Tensor:
    """Returns the payload, uint8 [bytes], of a flat tensor of integers: of a matrix of so many columns, or just a row.

    Args:
      x: [n] of any dtype. A size that is known only when the graph runs must not be 0, and leaves out tuples.
      columns: Of which n is a multiple.
    """
    encode = built_once(_encode, tf.TensorSpec(x.shape, x.dtype), tf.TensorSpec([], tf.int32), is_matrix=columns is not None)
    return encode(x, tf.constant(0 if columns is None else columns))


def decode_integers(payload: tf.Tensor, shape: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Undoes `encode_integers`: returns the tensor of this shape and dtype.

    Raises:
      tf.errors.InvalidArgumentError: When the graph runs, if the bytes are no payload for this shape.
    """
    shape = tf.cast(shape, tf.int32)  # A scalar's [] comes as a float.
    size = tf.reduce_prod(shape)
    columns = tf.concat([[size], shape], axis=0)[-1]
    decode = built_once(_decode, *rows.CODE, dtype=dtype)
    return tf.reshape(decode(payload, size, columns), shape)


def _encode(x: tf.Tensor, columns: tf.Tensor, is_matrix: bool) -> tf.Tensor:
    """Returns the payload of a flat tensor, of a matrix of so many columns if it is one."""
    if x.shape[0] == 0:
        return _header(tf.constant(VERBATIM))
    wide = x if x.dtype in (tf.float32, tf.float64) else tf.cast(x, tf.float64)
    # A sum tells of what is not finite, and is faster than to look at each. It overflows only where something doesn't fit.
    fits = (tf.reduce_min(wide) >= -_LARGEST) & (tf.reduce_max(wide) < _LARGEST) & tf.math.is_finite(tf.reduce_sum(wide))

    def why_not():
        return tf.where(tf.reduce_all(tf.math.is_finite(wide)), VERBATIM, NOT_FINITE)

    integers = tf.cast(x, tf.int32)
    is_long = (x.shape[0] or 0) >= _LONG
    shape = tuples.choose_shape(integers) if is_long else tf.constant(tuples.NONE)
    sections = rows.choose_sections(integers, columns) if is_matrix else tf.constant(rows.OTHER)
    by_elements = tf.where(tf.equal(shape, tuples.NONE), ELEMENTS, TUPLES)
    coder = tf.cond(fits, lambda: tf.where(tf.equal(sections, rows.OTHER), by_elements, ROWS), why_not)
    verbatim = tf.reshape(tf.bitcast(x, tf.uint8), [-1])
    ways = {
        ELEMENTS: lambda: elements.encode(integers),
        VERBATIM: lambda: verbatim,
        NOT_FINITE: lambda: verbatim[:0],
        TUPLES: (lambda: tuples.encode(integers, shape)) if is_long else (lambda: verbatim),  # Which is not chosen then,
        ROWS: (lambda: rows.encode(integers, columns, sections)) if is_matrix else (lambda: verbatim),  # nor this.
    }
    return tf.concat([_header(coder), tf.switch_case(coder, ways)], axis=0)


def _header(coder: tf.Tensor) -> tf.Tensor:
    return PayloadHeader(coder=coder, version=tf.constant(VERSION)).pack()


def _decode(payload: tf.Tensor, size: tf.Tensor, columns: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the flat tensor of `size` elements whose payload this is."""
    coder, body = _read_header(payload, size)
    width = dtype.size

    def verbatim():
        expected, found = width * tf.cast(size, tf.int64), tf.size(body, tf.int64)
        exact = checked(body, tf.equal(found, expected), "Expected a tensor of {} bytes, found {}.", expected, found)
        flat = tf.reshape(exact, [size, width])
        return tf.bitcast(tf.squeeze(flat, 1) if width == 1 else flat, dtype)

    not_finite = tf.cast(tf.constant(np.nan if dtype.is_floating else 0.0), dtype)  # Integers are finite.
    ways = {
        ELEMENTS: lambda: tf.cast(built_once(elements.decode, *elements.CODE)(body, size), dtype),
        VERBATIM: verbatim,
        NOT_FINITE: lambda: tf.fill([size], not_finite),
        TUPLES: lambda: tuples.decode(body, size, dtype),
        ROWS: lambda: tf.cast(built_once(rows.decode, *rows.CODE)(body, size, columns), dtype),
    }
    return tf.switch_case(coder, ways)


def _read_header(payload: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the coder of a payload for `size` elements, and the bytes behind the header."""
    # No payload is longer: it takes at most 8 bytes an element, and less than 2^18 of tables and lanes.
    most, found = 16 * tf.cast(size, tf.int64) + 2**18, tf.size(payload, tf.int64)
    payload = checked(payload, found <= most, "Expected a payload of at most {} bytes, found {}.", most, found)
    header, body = PayloadHeader.unpack(payload)
    is_ours = tf.equal(header.version, VERSION)
    expected = f"Expected a payload of the entropy coder in format {VERSION}, found format {{}}; both sides need one tff_kit."
    coder = checked(header.coder, is_ours, expected, header.version)
    return checked(coder, coder <= ROWS, f"Expected a coder from 0 to {ROWS}, found {{}}.", coder), body
