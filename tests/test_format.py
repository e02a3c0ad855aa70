"""docs/format.md, the reference decoder and the entropy coder say the same; and no bytes harm a decoder."""

import dataclasses
import pathlib
import re

import entropy_golden
import numpy as np
import pytest
import reference_decoder
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_kit.encoders import EntropyCodingStage
from tff_kit.encoders.entropy import codebook, header, stage

STAGE = EntropyCodingStage()
FORMAT = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "format.md").read_text()
HEADERS = [header.PayloadHeader, header.ElementsHeader, header.TuplesHeader, header.RowsHeader]
FIELDS = [pytest.param(kind, k, id=f"{kind.name}-{f.name}") for kind in HEADERS for k, f in enumerate(dataclasses.fields(kind))]


def _encode(x):
    return STAGE.encode(tf.constant(x), {})[STAGE.PAYLOAD_KEY].numpy().tobytes()


def _decode(payload, x):
    """Returns what becomes of a payload for a tensor like `x`."""
    encoded = STAGE.tag({STAGE.PAYLOAD_KEY: tf.constant(np.frombuffer(payload, np.uint8))}, tf.as_dtype(x.dtype))
    return STAGE.decode(encoded, {}, shape=list(x.shape)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "x"), entropy_golden.tensors().items(), ids=entropy_golden.tensors())
def test_golden_payloads_both_ways(name, x):
    golden = (entropy_golden.FOLDER / f"entropy-{name}.bin").read_bytes()
    expected = x if np.isfinite(x).all() else np.full_like(x, np.nan)
    assert _encode(x) == golden
    for decoded in (_decode(golden, x), reference_decoder.decode(golden, x.shape, x.dtype)):
        assert decoded.dtype == x.dtype
        np.testing.assert_array_equal(decoded, expected)


def test_golden_payloads_are_of_all_kinds():
    coders, signs, shapes, sections = set(), set(), set(), set()
    for path in entropy_golden.FOLDER.glob("entropy-*.bin"):
        first, body = header.PayloadHeader.unpack(tf.constant(np.frombuffer(path.read_bytes(), np.uint8)))
        coders.add(int(first.coder))
        if first.coder == stage.ELEMENTS:
            signs.add(int(header.ElementsHeader.unpack(body)[0].signs_bypass))
        elif first.coder == stage.TUPLES:
            shapes.add(int(header.TuplesHeader.unpack(body)[0].shape))
        elif first.coder == stage.ROWS:
            sections.add(int(header.RowsHeader.unpack(body)[0].sections))
    assert coders == {0, 1, 2, 3, 4}
    assert signs == {0, 1}
    assert sections == {1, 8}
    assert shapes


@pytest.mark.parametrize("kind", HEADERS)
def test_the_document_lists_the_fields_of_headers_in_order(kind):
    rows = re.findall(r"^\|(?: 0 \|)? `(\w+)` \| (\d+)", FORMAT, re.MULTILINE)
    expected = [(f.name, str(bits)) for f, bits in zip(dataclasses.fields(kind), kind.bits())]
    assert any(rows[k : k + len(expected)] == expected for k in range(len(rows)))


def test_the_document_lists_the_shapes_of_tuples_and_the_version():
    for name in ("length", "reach"):
        assert f"| {name} | " + " | ".join(str(getattr(shape, name)) for shape in codebook.SHAPES) + " |" in FORMAT
    assert f"This is version {header.VERSION} of the format" in FORMAT


def _of(kind, k, value):
    return kind(*(tf.constant(value if i == k else low, tf.int64) for i, low in enumerate(kind.lowest())))


@pytest.mark.parametrize(("kind", "k"), FIELDS)
def test_a_field_holds_its_extremes_and_refuses_what_is_beyond(kind, k):
    lowest, highest = kind.lowest()[k], kind.lowest()[k] + 2 ** kind.bits()[k] - 1
    for value in (lowest, highest):
        packed = _of(kind, k, value).pack()
        assert packed.shape == [kind.size()]
        again, rest = kind.unpack(tf.concat([packed, [7]], axis=0))
        assert [int(number) for number in dataclasses.astuple(again)] == [
            value if i == k else n for i, n in enumerate(kind.lowest())
        ]
        np.testing.assert_array_equal(rest, [7])
    for value in (lowest - 1, highest + 1):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"Expected numbers that the {kind.name} header holds"):
            _of(kind, k, value).pack()


def test_a_header_cut_short_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected 10 bytes of the elements header, found 9"):
        header.ElementsHeader.unpack(tf.zeros([9], tf.uint8))


_SHAPES = {"dense": (500,), "sparse": (800,), "rows": (400, 300), "rows-sections": (1500, 13), "tuples": (2**17,)}
_GOLDEN = {name: (entropy_golden.FOLDER / f"entropy-{name}.bin").read_bytes() for name in _SHAPES}


@tf.function(input_signature=[tf.TensorSpec([None], tf.uint8), tf.TensorSpec([None], tf.int32)])
def _decode_float32(payload, shape):
    return STAGE.decode({STAGE.PAYLOAD_KEY: payload}, {}, shape=shape)


def _assert_tensor_or_one_sentence(payload, shape):
    """Returns whether a payload is refused, in one sentence; else asserts that it makes a tensor of that shape."""
    try:
        decoded = _decode_float32(tf.constant(np.frombuffer(payload, np.uint8)), tf.constant(shape, tf.int32))
    except tf.errors.InvalidArgumentError as error:
        assert re.search(r"assertion failed: \[Expected [^\n]* found [^\n]*\]", error.message)
        return True
    assert decoded.dtype == tf.float32
    assert decoded.shape == shape
    return False


def _is_refused_by_reference(payload, shape):
    try:
        reference_decoder.decode(payload, shape)
    except reference_decoder.PayloadError:
        return True
    return False


@st.composite
def _mutated(draw):
    """A name of _SHAPES and its payload with bits flipped, cut, lengthened, or with a field of its headers altered."""
    name = draw(st.sampled_from(list(_SHAPES)))
    payload = bytearray(_GOLDEN[name])
    how = draw(st.sampled_from(["flip", "front", "cut", "longer", "random"]))
    if how == "cut":
        return name, bytes(payload[: draw(st.integers(0, len(payload) - 1))])
    if how == "longer":
        return name, bytes(payload) + draw(st.binary(max_size=40))
    if how == "random":
        return name, bytes([draw(st.sampled_from([32, 35, 36]))]) + draw(st.binary(max_size=200))
    end = len(payload) if how == "flip" else 60
    for at in draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        payload[at] ^= draw(st.integers(1, 255))
    return name, bytes(payload)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(_mutated())
def test_altered_payloads_end_in_a_tensor_or_in_one_sentence_as_the_document_says(mutated):
    name, payload = mutated
    refused = _assert_tensor_or_one_sentence(payload, _SHAPES[name])
    if name != "tuples":  # Their reference is slow.
        assert refused == _is_refused_by_reference(payload, _SHAPES[name])


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=100), st.lists(st.integers(0, 20), max_size=3))
def test_any_bytes_end_in_a_tensor_or_in_one_sentence(payload, shape):
    _assert_tensor_or_one_sentence(payload, shape)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"", "Expected 1 bytes of the payload header, found 0."),
        (b"\x00", "Expected a payload of the entropy coder in format 2, found format 0"),
        (b"\x25", "Expected a coder from 0 to 4, found 5."),
        (b"\x21123", "Expected a tensor of 8 bytes, found 3."),
        (bytes(2**18 + 100), "Expected a payload of at most 262176 bytes, found 262244."),
        (b"\x20" + bytes(9), "Expected 10 bytes of the elements header, found 9."),
    ],
)
def test_errors_say_what_is_wrong(payload, sentence):
    for decode in (_decode_float32, _decode_float32.python_function):  # In a graph, and op by op.
        with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(sentence)):
            decode(tf.constant(np.frombuffer(payload, np.uint8)), tf.constant([2]))
