"""Any bytes give tensors of the expected shapes and dtypes, or one clear error."""

import functools

import numpy as np
import pytest
import stages
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_decoders import Target, mutated
from tff_kit import encoders

SPECS = (
    "tensor_encoding:5",
    "uniform:11,dithered",
    "uniform:3,nearest,16",
    "step:1,dithered+rice",
    "rate:2+rice",
    "rotate+uniform:4",
    "eden:2+rice",
    "topk:0.1+uniform:6",
    "randk:0.2",
    "lowrank:2",
)


@functools.cache
def _target(spec):
    return Target(spec, ((40, 25),))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_altered_message_is_decoded_or_refused(spec, seed):
    target = _target(spec)
    assert target.decode(mutated(np.random.default_rng(seed), target.codec.layout, target.payloads)) in ("decoded", "refused")


@pytest.mark.parametrize("spec", SPECS)
def test_real_messages_are_decoded(spec):
    assert {_target(spec).decode(payload) for payload in _target(spec).payloads} == {"decoded"}


def _rice(x):
    return encoders.RiceCodingStage().encode(tf.constant(x, tf.int32), {})


RICE = {
    "Expected remainders of at most 62 bits, found 63": {"parameter": tf.constant(63, tf.uint8)},
    "Expected 4 bytes of remainders, found 1": {"remainders": tf.zeros([1], tf.uint8)},
    "Expected at most 5 bytes of quotients, found 6": {"quotients": tf.zeros([6], tf.uint8)},
    "Expected 10 quotients, found 0": {"quotients": tf.zeros([2], tf.uint8)},
    "Expected 10 quotients, found 16": {"quotients": tf.fill([2], tf.constant(255, tf.uint8))},
}


@pytest.mark.parametrize("reason", RICE)
def test_a_rice_code_that_cannot_be_is_refused_before_it_is_decoded(reason):
    encoded = {**_rice([5, -5] * 5), **RICE[reason]}
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        encoders.RiceCodingStage().decode(encoded, {}, shape=[10])


@pytest.mark.parametrize(
    ("gaps", "reason"),
    [
        ([-1, 0], "Expected gaps from 0 to 19, found others"),
        ([2**31 - 1, 0], "Expected gaps from 0 to 19, found others"),
        ([19, 0], "Expected places up to 19, found one at 20"),
    ],
)
def test_gaps_that_leave_the_tensor_are_refused(gaps, reason):
    encoded = {"values": tf.ones([2]), "gaps": tf.constant(gaps, tf.int32)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        encoders.TopKStage(0.1).decode(encoded, {}, shape=[20])


def test_codes_without_a_centroid_are_refused():
    stage = encoders.EdenStage(2)
    encoded = stage.encode(tf.constant(stages.normal(64)), {})
    encoded["codes"] = tf.tensor_scatter_nd_update(encoded["codes"], [[3]], [4.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected codes from 0 to 3, found others"):
        stage.decode(encoded, {}, shape=[64])


@pytest.mark.parametrize("bits", [3, 8, 11])
def test_packed_numbers_of_another_length_are_refused(bits):
    packed = encoders.BitpackingStage(bits).encode(tf.ones([40]), {})["packed"]
    for wrong in (packed[:-1], tf.concat([packed, packed], axis=0)):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=f"Expected {5 * bits} bytes of packed numbers, found {len(wrong)}"
        ):
            encoders.BitpackingStage(bits).decode({"packed": wrong}, {}, shape=[40])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-3, 3)), max_size=60))
def test_any_integers_pass_the_checks_of_rice_codes(numbers):
    x = np.array(numbers, np.int32)
    decoded, _ = stages.through(encoders.RiceCodingStage(), x)
    np.testing.assert_array_equal(decoded, x)
