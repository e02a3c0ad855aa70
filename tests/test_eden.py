"""EDEN and DRIVE, against theory."""

import functools
import math

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders
from tff_kit.encoders import eden

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Distortions that J. Max found: Quantizing for Minimum Distortion, IRE Transactions on Information Theory 6, 1960."""


class EdenStageTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.EdenStage(rate=1.5, block=64)

    def default_input(self):
        return tf.random.normal([333])

    def common_asserts_for_test_data(self, data):
        self.assertAllEqual(np.shape(data.x), np.shape(data.decoded_x))
        # <y, S Q(y)> = |y|^2 is what makes the scale.
        self.assertAllClose(np.vdot(data.x, data.decoded_x), np.vdot(data.x, data.x), rtol=1e-4)


@functools.cache
def _distortion(bits):
    """Returns the expected squared error of the quantizer for a normal distribution, integrated numerically."""
    x = np.linspace(-9, 9, 2_000_001)
    density = np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    centroids = eden.lloyd_max(bits)
    nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)]
    return np.sum(np.square(x - nearest) * density) * (x[1] - x[0])


def _expected(rate):
    """Returns 1 / c - 1 with c the share of the norm that the centroids catch, from the formula in the module."""
    bits = math.ceil(rate)
    share = 1 - (bits - rate)
    coarse = _distortion(bits - 1) if bits > 1 else 1
    return 1 / (share * (1 - _distortion(bits)) + (1 - share) * (1 - coarse)) - 1


@pytest.mark.parametrize("bits", MAX_1960)
def test_the_centroids_are_the_best_known(bits):
    assert _distortion(bits) == pytest.approx(MAX_1960[bits], rel=3e-3)  # He computed with three digits or so.


def test_two_centroids_are_the_means_of_half_a_normal_distribution():
    np.testing.assert_allclose(eden.lloyd_max(1), [-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], rtol=1e-12)


@pytest.mark.parametrize("bits", [6, 7, 8])
def test_many_centroids_come_near_the_limit_of_panter_and_dite(bits):
    """Distortion approaches pi sqrt(3) / 2 x 4^-bits from below."""
    limit = math.pi * math.sqrt(3) / 2 * 4.0**-bits
    assert 0.9 * limit < _distortion(bits) < limit


@pytest.mark.parametrize("rate", [0.1, 0.5, 1, 1.5, 2, 3, 4])
def test_error_on_a_million_normal_numbers_is_that_of_theory(rate):
    x = stages.normal(2**20)
    decoded, bits = stages.round_trip(f"eden:{rate}", x)
    assert stages.nmse(decoded, x) == pytest.approx(_expected(rate), rel=0.015)
    assert bits <= (rate + 0.0083) * x.size


def test_one_bit_meets_the_target():
    x = stages.normal(2**20)
    decoded, bits = stages.round_trip("eden:1", x)
    assert bits <= 1.01 * x.size
    assert stages.nmse(decoded, x) <= 0.575
    assert _expected(1) == pytest.approx(math.pi / 2 - 1, rel=1e-5)


@pytest.mark.parametrize("rate", [0.5, 1, 2.5])
def test_the_biased_scale_has_the_least_error(rate):
    x = stages.normal(100_000)
    error = stages.nmse(stages.round_trip(f"eden:{rate},unbiased=no", x)[0], x)
    assert error == pytest.approx(1 - 1 / (1 + _expected(rate)), rel=0.02)  # 1 - c


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 7, 4096, 4097, 10_000, 65_537])
@pytest.mark.parametrize("rate", [0.25, 1, 1.5, 3])
def test_payload_is_exactly_the_formula(rate, size):
    block = min(4096, 2 ** int(math.log2(size)))
    high, low = math.ceil(rate), math.ceil(rate) - 1
    fine_of_a_block = math.ceil((rate - low) * block)
    fine = size // block * fine_of_a_block + min(size % block, fine_of_a_block)
    coarse = size - fine
    expected = 8 * math.ceil(fine * high / 8) + 8 * math.ceil(coarse * low / 8) + 32 * math.ceil(size / block) + 64
    decoded, bits = stages.round_trip(f"eden:{rate}", stages.normal(size))
    assert bits == expected
    assert decoded.shape == (size,)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 1, 1.5, 2])
def test_a_tensor_with_two_elements_is_unbiased_too(rate):
    """One Hadamard rotation would make (1.25, 0) of (1, 0.5) at one bit, whatever the signs: an error of a quarter."""
    x = np.zeros(1024, np.float32)
    x[[3, 700]] = 1, 0.5
    draws = stages.draws(f"eden:{rate}", x, 300)
    # What is unbiased has an error of 1/300 of a draw's in the mean of 300.
    assert stages.nmse(draws.mean(axis=0), x) == pytest.approx(_expected(rate) / 300, rel=0.3)


def test_blocks_of_very_different_size_are_unbiased_with_a_scale_each():
    x = stages.normal(3000) * np.repeat([1, 1e4, 1e-3], 1000).astype(np.float32)
    stage = encoders.EdenStage(rate=1, block=512)
    decoded, _ = stages.through(stage, x)
    for start in range(0, 3000, 512):
        part = slice(start, start + 512)
        assert np.vdot(x[part], decoded[part]) == pytest.approx(stages.squared(x[part]), rel=1e-4)


@pytest.mark.parametrize("rate", [0, -1, 8.5])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"Expected a rate of more than 0 and at most 8 bits, found"):
        encoders.EdenStage(rate)
