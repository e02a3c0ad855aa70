"""Encoders: what every stage must keep, and what each claims."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit import encoders
from tff_kit.encoders import packing

SPECS = ("identity", "tensor_encoding:8", "uniform:1", "uniform:3", "uniform:8", "uniform:11", "uniform:16")
QUANTIZERS = {"tensor_encoding:8": 8, "uniform:1": 1, "uniform:3": 3, "uniform:8": 8, "uniform:11": 11, "uniform:16": 16}


class _StageTest(te.testing.BaseEncodingStageTest):
    def evaluate_tf_py_list(self, fetches, session=None):  # The original compares arrays with (), an error in NumPy 1.25.
        flat = tf.nest.flatten(list(fetches))
        values = iter(self.maybe_evaluate([value for value in flat if tf.is_tensor(value)], session))
        return tf.nest.pack_sequence_as(list(fetches), [next(values) if tf.is_tensor(value) else value for value in flat])


class UniformQuantizationStageTest(_StageTest):
    """tensor_encoding's own tests of a stage."""

    def default_encoding_stage(self):
        return encoders.UniformQuantizationStage(bits=8)

    def default_input(self):
        return tf.random.uniform([2, 5, 7], minval=-1.0, maxval=3.0)

    @property
    def is_lossless(self):
        return False

    def common_asserts_for_test_data(self, data):
        step = (np.max(data.x) - np.min(data.x)) / 255
        self.assertAllClose(data.x, data.decoded_x, rtol=0, atol=step * 1.001)


class BitpackingStageTest(_StageTest):
    """tensor_encoding's own tests of a stage."""

    def default_encoding_stage(self):
        return encoders.BitpackingStage(bits=5)

    def default_input(self):
        return tf.floor(tf.random.uniform([3, 7], maxval=32))

    @property
    def is_lossless(self):
        return True

    def common_asserts_for_test_data(self, data):
        self.assertAllEqual(data.x, data.decoded_x)


del _StageTest  # Abstract; pytest would collect it.


def _simple(spec, shape, seed=0, threshold=0):
    return encoders.build_broadcast_encoder_fn(spec, threshold, seed)(tf.TensorSpec(shape, tf.float32))


def _round_trip(spec, x, seed=0):
    encoder = _simple(spec, np.shape(x), seed)
    encoded, _ = encoder.encode(tf.constant(x, tf.float32))
    return encoder.decode(encoded).numpy(), encoders.payload_bits(encoded)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 11), (100_003,)])
def test_round_trip_keeps_shape_and_is_off_by_a_step_at_most(spec, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    decoded, _ = _round_trip(spec, x)
    assert decoded.shape == shape
    step = np.ptp(x) / (2 ** QUANTIZERS[spec] - 1) if spec in QUANTIZERS else 0
    np.testing.assert_allclose(decoded, x, rtol=0, atol=step * 1.001 + 1e-6 * bool(step))


@pytest.mark.parametrize(
    ("spec", "payload"),
    [
        ("identity", lambda n: 32 * n),
        ("tensor_encoding:8", lambda n: 32 * -(-8 * n // 28) + 64),
        ("uniform:1", lambda n: 8 * -(-n // 8) + 64),
        ("uniform:3", lambda n: 8 * -(-3 * n // 8) + 64),
        ("uniform:8", lambda n: 8 * n + 64),
        ("uniform:11", lambda n: 8 * n + 8 * -(-3 * n // 8) + 64),
        ("uniform:16", lambda n: 16 * n + 64),
    ],
)
@pytest.mark.parametrize("size", [1, 8, 1000, 65_537])
def test_payload_is_exactly_the_formula(spec, payload, size):
    assert _round_trip(spec, np.linspace(-1, 1, size))[1] == payload(size)


def _quantized(x, bits, seed):
    stage = encoders.UniformQuantizationStage(bits, seed)
    return stage.decode(stage.encode(x, {}), {}).numpy()


@pytest.mark.parametrize("bits", [1, 3, 8, 11])  # At 16 bits float32's own rounding is of the size of the spread.
def test_rounding_is_unbiased(bits):
    x = np.random.default_rng(1).normal(size=200).astype(np.float32)
    draws = np.stack([_quantized(x, bits, seed) for seed in range(400)])
    spread = draws.std(axis=0) / np.sqrt(len(draws))
    inside = spread > 1e-6 * np.ptp(x)  # The extremes are levels themselves and have no spread.
    z = (draws.mean(axis=0) - x)[inside] / spread[inside]
    assert inside.mean() > 0.5
    assert np.abs(z).max() < 5  # Of 200 standard normal draws, one is beyond 5 in 9,000 tries.
    assert abs(z.mean()) < 5 / np.sqrt(len(z))


@pytest.mark.parametrize("bits", [1, 3, 8, 11])
def test_expected_squared_error_is_that_of_stochastic_rounding(bits):
    x = np.random.default_rng(2).normal(size=100_000).astype(np.float32)
    step = np.ptp(x.astype(np.float64)) / (2**bits - 1)
    place = (x - x.min().astype(np.float64)) / step % 1
    expected = np.sum(place * (1 - place)) * step**2
    assert np.sum(np.square(_quantized(x, bits, 0) - x.astype(np.float64))) == pytest.approx(expected, rel=0.03)
    assert expected <= x.size * step**2 / 4


def test_the_tutorials_and_the_tight_packing_differ_in_size_only():
    x = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    np.testing.assert_array_equal(_round_trip("tensor_encoding:8", x)[0], _round_trip("uniform:8", x)[0])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_error_of_the_mean_falls_with_the_number_of_clients_also_when_updates_resemble(correlation):
    generator = np.random.default_rng(4)
    common = generator.normal(size=20_000)
    errors = {}
    for clients in (1, 16):
        own = generator.normal(size=(clients, 20_000))
        x = (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own).astype(np.float32)
        decoded = np.stack([_quantized(row, 3, 0) for row in x])
        errors[clients] = np.mean(np.square(decoded.mean(axis=0) - x.mean(axis=0)))
    assert errors[1] / errors[16] == pytest.approx(16, rel=0.25)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e-30])
def test_constant_tensors_come_back_exactly(spec, value):
    np.testing.assert_array_equal(_round_trip(spec, np.full(1000, value, np.float32))[0], np.float32(value))


@pytest.mark.parametrize("spec", SPECS)
def test_empty_tensors_come_back_empty(spec):
    decoded, _ = _round_trip(spec, np.zeros([0, 3], np.float32))
    assert decoded.shape == (0, 3)


@pytest.mark.parametrize("spec", QUANTIZERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_does_not_come_back_as_numbers(spec, bad):
    x = np.linspace(-1, 1, 100).astype(np.float32)
    x[17] = bad
    assert not np.isfinite(_round_trip(spec, x)[0]).any()


def test_the_same_seed_and_tensor_draw_alike_and_others_do_not():
    x = np.random.default_rng(5).normal(size=1000).astype(np.float32)
    other = np.nextafter(x, np.float32(9))
    np.testing.assert_array_equal(_quantized(x, 2, 7), _quantized(x, 2, 7))
    assert (_quantized(x, 2, 7) != _quantized(x, 2, 8)).mean() > 0.1
    assert (_quantized(x, 2, 7) != _quantized(other, 2, 7)).mean() > 0.1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.data())
def test_packing_is_lossless_and_tight(bits, data):
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=100))
    packed = packing.pack(tf.constant(numbers, tf.int64, [len(numbers)]), bits)
    assert packed.dtype == tf.uint8
    assert len(packed) == -(-len(numbers) * bits // 8)
    np.testing.assert_array_equal(packing.unpack(packed, bits, tf.constant(len(numbers))), numbers)


def test_ten_million_elements():
    x = np.random.default_rng(6).normal(size=10**7).astype(np.float32)
    decoded, bits = _round_trip("uniform:8", x)
    assert bits == 8 * 10**7 + 64
    np.testing.assert_allclose(decoded, x, rtol=0, atol=np.ptp(x) / 255 * 1.001)


def test_variables_up_to_the_threshold_travel_as_they_are():
    small, large = (_simple("uniform:8", [n], threshold=100) for n in (100, 101))
    assert encoders.payload_bits(small.encode(tf.zeros([100]))[0]) == 3200
    assert encoders.payload_bits(large.encode(tf.zeros([101]))[0]) == 8 * 101 + 64


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="Expected a variable of fully known shape, found"):
        encoders.build_mean_encoder_fn("uniform:8")(tf.TensorSpec([None, 3], tf.float32))


@pytest.mark.parametrize(
    "spec", ["", "zip", "uniform", "uniform:", "uniform:0", "uniform:17", "uniform:-1", "uniform:2.5", "identity:8", "uniform:²"]
)
def test_a_spec_that_names_no_encoder_is_refused(spec):
    with pytest.raises(encoders.SpecError, match=r"Expected .* found .*identity, tensor_encoding, uniform|one of identity"):
        encoders.parse_spec(spec)


def test_payload_bits_counts_numbers_and_strings():
    assert (
        encoders.payload_bits({"a": tf.zeros([3, 5]), "b": (tf.zeros([2], tf.bool), tf.zeros([], tf.int64))}) == 15 * 32 + 16 + 64
    )
    assert encoders.payload_bits(tf.constant(["ab", "", "äß"])).numpy() == 8 * (2 + 4)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.uint8)])
    def bits(x):
        return encoders.payload_bits(x)

    assert bits(tf.zeros([7, 2], tf.uint8)).numpy() == 14 * 8
