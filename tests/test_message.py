"""The container of encoded tensors: what it holds, what it costs, what it refuses."""

import re
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_kit.encoders import PayloadError
from tff_kit.encoders.message import HEADER_BYTES, Layout

DTYPES = (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.uint8, tf.int32, tf.int64, tf.bool)
DIMENSIONS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3)  # Sizes, and whether they vary.
LAYOUT = Layout(({"a": tf.TensorSpec([2, None], tf.int32), "b": tf.TensorSpec([3], tf.bool)}, ()), "test message")


def _tensor(dtype, shape):
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7
    return tf.cast(tf.constant(numbers), dtype)


def _message(columns=4):
    return LAYOUT.pack(({"a": _tensor(tf.int32, [2, columns]), "b": _tensor(tf.bool, [3])}, ()))


def _sealed(message):
    """Returns `message` with the checksum of what it has become."""
    return message[:5] + zlib.crc32(message[HEADER_BYTES:]).to_bytes(4, "little") + message[HEADER_BYTES:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), DIMENSIONS), max_size=5))
def test_tensors_come_back_and_cost_a_header_and_their_open_sizes(described):
    tensors = [_tensor(dtype, [size for size, _ in dimensions]) for dtype, dimensions in described]
    layout = Layout([tf.TensorSpec([None if varies else n for n, varies in d], dtype) for dtype, d in described], "message")
    message = layout.pack(tensors)
    unpacked = layout.unpack(message)
    for before, after in zip(tensors, unpacked):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        np.testing.assert_array_equal(before.numpy(), after.numpy())
    elements = sum(x.dtype.size * int(tf.size(x)) for x in tensors)
    assert len(message) == HEADER_BYTES + sum(varies for _, d in described for _, varies in d) + elements


@pytest.mark.parametrize(("size", "needed"), [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (300_000, 3)])
def test_a_size_takes_a_byte_for_every_seven_bits(size, needed):
    layout = Layout([tf.TensorSpec([None], tf.uint8)], "message")
    message = layout.pack([tf.ones([size], tf.uint8)])
    assert len(message) == HEADER_BYTES + needed + size
    assert layout.unpack(message)[0].shape == [size]


def test_the_structure_comes_back():
    a, nothing = LAYOUT.unpack(_message())
    assert nothing == ()
    np.testing.assert_array_equal(a["a"], [[0, 1, 2, 3], [4, 5, 6, 0]])
    np.testing.assert_array_equal(a["b"], [False, True, True])


REFUSED = {
    "at least 9 bytes, found 0": lambda m: b"",
    "at least 9 bytes, found 8": lambda m: m[:8],
    "version 2, found 1": lambda m: b"\x01" + m[1:],
    "digest [0-9a-f]{8}\\), found digest 0+; both sides need the same SPEC": lambda m: m[:1] + bytes(4) + m[5:],
    "with its checksum, found bytes that were altered": lambda m: m[:-1] + b"\x02",
    "with its checksum, found .* or cut": lambda m: m[:-1],
    "of 45 bytes, as its sizes say; found 44": lambda m: _sealed(m[:-1]),
    "of 45 bytes, as its sizes say; found 46": lambda m: _sealed(m + b"\0"),
    "of 274,877,906,953 bytes, as its sizes say; found 49": lambda m: _sealed(m[:9] + b"\xff\xff\xff\xff\x7f" + m[10:]),
    "a size of one to five bytes at byte 9 .*, found none": lambda m: _sealed(m[:9] + b"\xff\xff\xff\xff\xff\x01" + m[10:]),
    "a size of one to five bytes at byte 9 of": lambda m: _sealed(m[:9] + b"\x84\x00" + m[10:]),  # Not its shortest form.
    "a size of one to five bytes at": lambda m: _sealed(m[:9]),
    "bools of 0 or 1 in the test message, found 2": lambda m: _sealed(m[:-1] + b"\x02"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_bytes_are_refused_with_a_reason(reason):
    with pytest.raises(PayloadError, match=reason) as raised:
        LAYOUT.unpack(REFUSED[reason](_message()))
    assert re.match("Expected .*, found|Expected .*; found", str(raised.value))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_give_the_tensors_or_the_error(body, with_header):
    message = _sealed(_message()[:HEADER_BYTES] + body) if with_header else body
    try:
        a, _ = LAYOUT.unpack(message)
    except PayloadError:
        return
    assert a["a"].shape[0] == 2
    assert a["b"].shape == [3]
    assert LAYOUT.pack((a, ())) == message  # Nothing is said in two ways.


def test_other_labels_dtypes_and_shapes_have_other_digests():
    layouts = [
        Layout([tf.TensorSpec([3], tf.int32)], "message"),
        Layout([tf.TensorSpec([3], tf.int32)], "other"),
        Layout([tf.TensorSpec([3], tf.int64)], "message"),
        Layout([tf.TensorSpec([None], tf.int32)], "message"),
        Layout([tf.TensorSpec([3], tf.int32)] * 2, "message"),
        Layout([tf.TensorSpec([3], tf.int32)], "message", ["threshold 10"]),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert Layout([tf.TensorSpec([3], tf.int32)], "message").digest == layouts[0].digest


@pytest.mark.parametrize("spec", [tf.TensorSpec([3], tf.string), tf.TensorSpec(None, tf.int32)])
def test_what_has_no_bytes_of_known_number_is_refused(spec):
    with pytest.raises(TypeError, match="Expected encoded tensors of numbers and of known rank, found TensorSpec"):
        Layout([spec], "message")
