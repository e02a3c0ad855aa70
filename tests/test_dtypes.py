"""Every encoder takes every dtype: floats of other widths as float32, and what is no float as it is."""

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders

SPECS = (
    "identity",
    "tensor_encoding:8",
    "uniform:8",
    "uniform:8,dithered",
    "uniform:16,nearest,64",
    "step:0.1,stochastic+rice",
    "step:0.1,dithered+rice",
    "step:0.1,price=0.1,centroids=yes+rice",
    "step:0.5,unbiased=yes+rice",
    "rate:2+rice",
    "rotate+uniform:4",
    "eden:1.5",
    "topk:0.1+uniform:8",
    "randk:0.1",
    "lowrank:2",
)
LARGE = {tf.float16: 3e4, tf.bfloat16: 1e37, tf.float64: 1e100, tf.float32: 1e37}


def _round_trip(spec, x):
    encoder = encoders.Spec.parse(spec).large.make(0, x.dtype)
    encoding, decoding = encoder.get_params(encoder.initial_state())
    encoded, _, shapes = encoder.encode(x, encoding)
    decoded = encoder.decode(encoded, decoding, shapes)
    assert (decoded.dtype, decoded.shape) == (x.dtype, x.shape)
    return decoded, int(encoders.payload_bits(encoded))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64], ids=lambda dtype: dtype.name)
def test_a_float_of_any_width_is_encoded_as_well_as_float32(spec, dtype):
    x = tf.cast(stages.normal(30, 20), dtype)
    decoded, bits = _round_trip(spec, x)
    wide = tf.cast(x, tf.float32)
    in_float32, bits_in_float32 = _round_trip(spec, wide)
    rounding = float(np.finfo(np.float16).eps) ** 2 if dtype == tf.float16 else 2.0**-16 if dtype == tf.bfloat16 else 0
    error, expected = (stages.nmse(np.asarray(y, np.float64), np.asarray(wide, np.float64)) for y in (decoded, in_float32))
    if dtype == tf.float64:  # Draws depend on the tensor's bytes.
        assert error == pytest.approx(expected, rel=0.35, abs=1e-9)
    else:
        assert error <= 1.01 * expected + rounding
        assert spec == "identity" or bits == bits_in_float32


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", LARGE, ids=lambda dtype: dtype.name)
def test_numbers_near_the_ends_of_a_dtype_stay_finite(spec, dtype):
    x = np.clip(stages.normal(10, 20), -2, 2) / 2
    for scale in (LARGE[dtype], 1e-6 if dtype == tf.float16 else 1e-30):
        assert np.isfinite(_round_trip(spec, tf.cast(tf.constant(x * scale), dtype))[0]).all()


@pytest.mark.parametrize("spec", ["uniform:8,dithered", "step:0.01,dithered+rice"])
def test_no_dither_of_many_float16_makes_a_number_that_is_not_finite(spec):
    x = tf.cast(stages.normal(40_000), tf.float16)
    encoder = encoders.build_broadcast_encoder_fn(spec)(tf.TensorSpec(x.shape, x.dtype))
    decoded = encoder.decode(encoder.encode(x)[0])
    assert decoded.dtype == tf.float16
    assert stages.nmse(decoded.numpy(), x.numpy().astype(np.float64)) < 2e-4


@pytest.mark.parametrize("dtype", [tf.int8, tf.int64, tf.bool, tf.complex64], ids=lambda dtype: dtype.name)
def test_what_is_no_float_comes_back_with_no_bit_more(dtype):
    x = tf.cast(tf.range(300) % 2, dtype)
    for build in (encoders.build_broadcast_encoder_fn, encoders.build_mean_encoder_fn):
        encoder = build("step:1+entropy/uniform:8", 100)(tf.TensorSpec(x.shape, dtype))
        if build is encoders.build_mean_encoder_fn:
            encoding, before, after = encoder.get_params()
            encoded = encoder.encode(x, encoding)[0]
            part = encoder.decode_before_sum(encoded, before)
            decoded = encoder.decode_after_sum(part, after, 1)
        else:
            encoded = encoder.encode(x)[0]
            decoded = encoder.decode(encoded)
        np.testing.assert_array_equal(decoded, x)
        assert encoders.payload_bits(encoded) == 300 * 8 * dtype.size


def test_low_rank_is_as_good_of_the_smallest_and_largest_numbers():
    """A float32 holds neither the squares of 1e-30 nor those of 1e30."""
    errors = []
    for scale in (1, 2.0**-100, 2.0**100):
        x = stages.normal(50, 40) * np.float32(scale)
        errors.append(stages.nmse(stages.round_trip("lowrank:2", x)[0], x))
    np.testing.assert_allclose(errors, errors[0], rtol=1e-5)
