"""The largest and random elements, their places, and Golomb-Rice coding."""

import math

import numpy as np
import pytest
import stages
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_kit import encoders
from tff_kit.encoders import sparsification


class TopKStageTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.TopKStage(0.1)

    def default_input(self):
        return tf.random.normal([3, 7, 11])

    def common_asserts_for_test_data(self, data):
        self.assertAllEqual(np.where(data.decoded_x, data.x, 0), data.decoded_x)


class RandomKStageTest(TopKStageTest):
    def default_encoding_stage(self):
        return encoders.RandomKStage(1.0)  # Of all elements each is its own stratum.

    is_lossless = True


class RiceCodingStageTest(stages.StageTest):
    is_lossless = True

    def default_encoding_stage(self):
        return encoders.RiceCodingStage()

    def default_input(self):
        return tf.round(tf.random.normal([3, 77], stddev=5.0))

    def common_asserts_for_test_data(self, data):
        self.assertAllEqual(data.x, data.decoded_x)


def _rice_bits(numbers):
    """Returns the bits of the best Golomb-Rice code of z >= 0, each stream in whole bytes, and of its parameter."""

    def cost(r):
        return 8 * math.ceil(len(numbers) * r / 8) + 8 * math.ceil(sum(int(z >> r) + 1 for z in numbers) / 8)

    return 8 + min(cost(r) for r in range(32)), [8 + cost(r) for r in range(32)]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), max_size=80), st.booleans())
def test_rice_coding_is_lossless(numbers, signed):
    x = np.array(numbers if signed else np.abs(numbers), np.float32)
    decoded, encoded = stages.through(encoders.RiceCodingStage(signed), x)
    np.testing.assert_array_equal(decoded, x)
    zigzag = [int(2 * v if v >= 0 else -2 * v - 1) for v in x] if signed else [int(v) for v in x]
    parameter = int(encoded["parameter"])
    assert encoders.payload_bits(encoded) == _rice_bits(zigzag)[1][parameter]


@pytest.mark.parametrize("mean", [0.05, 0.5, 3, 40, 5000])
def test_rice_coding_takes_the_best_parameter_for_geometric_numbers_and_comes_near_their_entropy(mean):
    p = 1 / (mean + 1)
    numbers = np.random.default_rng(0).geometric(p, size=4000) - 1
    _, encoded = stages.through(encoders.RiceCodingStage(signed=False), numbers.astype(np.int32))
    bits = int(encoders.payload_bits(encoded))
    assert bits <= 1.005 * _rice_bits(numbers)[0] + 8
    entropy = -(math.log2(p) + mean * math.log2(1 - p))  # Of a number: log2 of its probability, on average.
    assert bits / numbers.size <= max(1 + 1.1 * mean, 1.06 * entropy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_rice_coding_keeps_dtype_and_shape(dtype):
    x = np.arange(-3, 3).reshape(2, 3).astype(dtype)
    decoded, _ = stages.through(encoders.RiceCodingStage(), x)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, x)


@pytest.mark.parametrize("x", [[], [0], [0, 0, 0], [2**31 - 2], [-(2**31)]])
def test_rice_coding_of_few_numbers(x):
    decoded, _ = stages.through(encoders.RiceCodingStage(), np.array(x, np.int64))
    np.testing.assert_array_equal(decoded, x)


@pytest.mark.parametrize("size", [1, 2, 30, 10_007])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 1])
def test_top_k_keeps_the_largest_and_its_payload_is_exactly_the_formula(size, fraction):
    x = stages.normal(size)
    kept = max(1, round(size * fraction))
    largest = np.sort(np.argsort(-np.abs(x))[:kept])
    expected = np.zeros(size, np.float32)
    expected[largest] = x[largest]
    decoded, bits = stages.round_trip(f"topk:{fraction}", x)
    np.testing.assert_array_equal(decoded, expected)
    gaps = np.diff(largest, prepend=-1) - 1
    assert gaps.sum() <= size - kept
    assert bits - 32 * kept in _rice_bits(gaps)[1]
    assert bits - 32 * kept <= 1.02 * _rice_bits(gaps)[0] + 8


def test_places_take_nearly_no_more_than_counting_all_sets_of_places_allows():
    size, kept = 2**20, 2**20 // 100
    _, bits = stages.round_trip("topk:0.01", stages.normal(size))
    limit = (math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)) / math.log(2)
    assert limit < bits - 32 * round(0.01 * size) < 1.02 * limit


def test_values_can_be_quantized_and_bits_are_those_of_both():
    x = stages.normal(100_000)
    decoded, bits = stages.round_trip("topk:0.01+uniform:6", x)
    exact, exact_bits = stages.round_trip("topk:0.01", x)
    assert exact_bits - bits == 1000 * 32 - (1000 * 6 + 64)
    np.testing.assert_array_equal(decoded != 0, exact != 0)
    np.testing.assert_allclose(decoded, exact, atol=np.ptp(exact) / 63 * 1.001)


@pytest.mark.parametrize("size", [1, 2, 30, 10_007])
@pytest.mark.parametrize("fraction", [0.001, 0.3, 1])
def test_random_k_sends_values_and_a_seed_and_keeps_one_element_of_each_stratum(size, fraction):
    x = stages.normal(size) + 10
    kept = max(1, round(size * fraction))
    decoded, bits = stages.round_trip(f"randk:{fraction}", x)
    assert bits == 32 * kept + 64
    ends = np.arange(kept + 1) * size // kept
    (places,) = np.nonzero(decoded)
    assert all(start <= place < end for start, place, end in zip(ends, places, ends[1:]))
    np.testing.assert_allclose(decoded[places], x[places] * np.diff(ends), rtol=1e-6)


@pytest.mark.parametrize("every", [2, 10, 64])
def test_error_of_random_k_is_that_of_theory(every):
    x = stages.normal(2**18 // every * every)
    error = stages.nmse(stages.round_trip(f"randk:{1 / every}", x)[0], x)
    assert error == pytest.approx(every - 1, rel=0.05)


@pytest.mark.slow
def test_random_k_takes_every_element_equally_often_where_strata_differ_in_size():
    x = np.ones(7, np.float32)
    draws = stages.draws("randk:0.43", x, 2000)  # Three of seven: strata of 2, 2 and 3.
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=5 * math.sqrt(2 / 2000))  # Variance: size of the stratum - 1.


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize("stage", [encoders.TopKStage, encoders.RandomKStage])
def test_fractions_out_of_range_are_refused(stage, fraction):
    with pytest.raises(ValueError, match="Expected a fraction of more than 0 and at most 1, found"):
        stage(fraction)


def test_what_is_kept():
    assert [sparsification.kept(*x) for x in ((0, 0.5), (1, 0.01), (1000, 0.01), (1000, 1.0), (10, 0.26))] == [0, 1, 10, 1000, 3]
