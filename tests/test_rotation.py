"""The randomized Hadamard rotation."""

import numpy as np
import pytest
import stages
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_kit import encoders
from tff_kit.encoders import rotation


class RotationStageTest(stages.StageTest):
    is_lossless = True

    def default_encoding_stage(self):
        return encoders.RotationStage(block=64)

    def default_input(self):
        return tf.random.uniform([3, 7, 11], minval=-1.0, maxval=3.0)

    def common_asserts_for_test_data(self, data):
        self.assertAllClose(data.x, data.decoded_x, rtol=0, atol=1e-5)


def _rotated(x, block=4096, seed=0):
    decoded, encoded = stages.through(encoders.RotationStage(block, seed), x)
    return decoded, encoded["rotated"].numpy(), encoded["seed"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 1500), st.integers(0, 2**40))
def test_any_number_of_elements_stays_that_many_coordinates_of_the_same_norm_and_comes_back(log_block, size, seed):
    x = stages.normal(size, seed=1)
    decoded, rotated, sent = _rotated(x, 2**log_block, seed)
    assert rotated.shape == x.shape
    assert encoders.payload_bits(sent) == 64
    assert stages.squared(rotated) == pytest.approx(stages.squared(x), rel=1e-4)
    np.testing.assert_allclose(decoded, x, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65_536, 10**6])
def test_real_sizes_come_back(size):
    x = stages.normal(size)
    decoded, rotated, _ = _rotated(x)
    assert rotated.shape == decoded.shape == (size,)
    np.testing.assert_allclose(decoded, x, atol=2e-5)


def test_the_hadamard_matrix_is_the_one_there_is():
    """Sylvester's: entries (-1)^(number of bits that row and column have in common) / sqrt(size)."""
    size = 128
    common = np.arange(size)[:, None] & np.arange(size)
    parity = sum(common >> bit & 1 for bit in range(7)) % 2
    transformed = rotation.hadamard(tf.reshape(tf.eye(size), [-1]), size)
    np.testing.assert_allclose(tf.reshape(transformed, [size, size]), (1 - 2 * parity) / np.sqrt(size), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 10])
def test_whatever_the_tensor_looks_like_coordinates_look_normal(count):
    """Fourth moments: 3 for normal numbers, whereas one rotation of one or two elements leaves 1 to 2."""
    x = np.zeros(4096, np.float32)
    x[:count] = 1 / np.arange(1, count + 1)
    rotated = np.concatenate([_rotated(x, seed=seed)[1] for seed in range(20)]).astype(np.float64)
    # 81,920 samples; the fourth power of a normal number has the standard deviation sqrt(96).
    kurtosis = np.mean(rotated**4) / np.mean(rotated**2) ** 2
    assert kurtosis == pytest.approx(3, abs=5 * np.sqrt(96 / rotated.size))


def test_other_seeds_other_tensors_and_other_blocks_rotate_independently():
    x = stages.normal(8192)
    other = x.copy()
    other[0] = np.nextafter(other[0], np.float32(9))
    rotated = _rotated(x)[1]
    np.testing.assert_array_equal(rotated, _rotated(x)[1])
    for different in (_rotated(other)[1], _rotated(x, seed=1)[1]):
        assert abs(np.corrcoef(rotated, different)[0, 1]) < 5 / np.sqrt(8192)
    twice = _rotated(np.tile(x[:4096], 2))[1]
    assert abs(np.corrcoef(twice[:4096], twice[4096:])[0, 1]) < 5 / np.sqrt(4096)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("spike", [0, 100])
def test_uniform_quantization_after_it_keeps_the_bound_of_suresh(bits, spike):
    """Normalised error at most (2 ln n + 2) / (k - 1)^2 with k levels, whatever the tensor."""
    x = stages.normal(4096)
    x[1234] += spike
    errors = [stages.nmse(stages.round_trip(f"rotate+uniform:{bits}", x, seed)[0], x) for seed in range(10)]
    assert np.mean(errors) < (2 * np.log(x.size) + 2) / (2**bits - 1) ** 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_block_that_is_not_finite_does_not_come_back_as_numbers(bad):
    x = stages.normal(100)
    x[17] = bad
    assert not np.isfinite(_rotated(x, block=128)[0][:64]).any()


@pytest.mark.parametrize("block", [0, 3, -4, 4097])
def test_blocks_that_are_no_powers_of_two_are_refused(block):
    with pytest.raises(ValueError, match=f"Expected block to be a power of two, found {block}"):
        encoders.RotationStage(block)


def test_a_shape_that_is_not_known_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def encode(x):
        return encoders.RotationStage().encode(x, {})

    with pytest.raises(ValueError, match="Expected a tensor of fully known shape"):
        encode(tf.zeros([3]))
