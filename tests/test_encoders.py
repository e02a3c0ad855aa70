"""Encoders: what every stage must keep, and what each claims."""

import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
import stages
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit import encoders
from tff_kit.encoders import packing, rotation

SPECS = ("identity", "tensor_encoding:8", "uniform:1", "uniform:3", "uniform:8", "uniform:11", "uniform:16")
QUANTIZERS = {"tensor_encoding:8": 8, "uniform:1": 1, "uniform:3": 3, "uniform:8": 8, "uniform:11": 11, "uniform:16": 16}


class UniformQuantizationStageTest(stages.StageTest):
    """tensor_encoding's own tests of a stage."""

    def default_encoding_stage(self):
        return encoders.UniformQuantizationStage(bits=8)

    def default_input(self):
        return tf.random.uniform([2, 5, 7], minval=-1.0, maxval=3.0)

    def common_asserts_for_test_data(self, data):
        step = (np.max(data.x) - np.min(data.x)) / 255
        self.assertAllClose(data.x, data.decoded_x, rtol=0, atol=step * 1.001)


class DitheredBlocksTest(UniformQuantizationStageTest):
    def default_encoding_stage(self):
        return encoders.UniformQuantizationStage(bits=8, rounding="dithered", block=16)


class StepQuantizationStageTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.StepQuantizationStage(step=0.5)

    def default_input(self):
        return tf.random.normal([2, 5, 7])

    def common_asserts_for_test_data(self, data):
        step = 0.5 * np.sqrt(np.mean(np.square(data.x)))
        self.assertAllClose(data.x, data.decoded_x, rtol=0, atol=step / 2 * 1.001)


class CentroidsTest(StepQuantizationStageTest):
    def default_encoding_stage(self):
        return encoders.StepQuantizationStage(step=0.5, price=0.1, centroids=True)

    def common_asserts_for_test_data(self, data):
        self.assertAllClose(np.mean(data.x), np.mean(data.decoded_x), atol=0.2)


class BitpackingStageTest(stages.StageTest):
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


def _round_trip(spec, x, seed=0):
    encoder = stages.simple(spec, np.shape(x), seed)
    encoded, _ = encoder.encode(tf.constant(x, tf.float32))
    return encoder.decode(encoded).numpy(), encoders.payload_bits(encoded)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 11), (100_003,)])
def test_round_trip_keeps_shape_and_is_off_by_a_step_at_most(spec, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    decoded, _ = _round_trip(spec, x)
    assert decoded.shape == shape
    step = np.ptp(x) / (2 ** QUANTIZERS[spec] - 1) if spec in QUANTIZERS else 0
    np.testing.assert_allclose(decoded, x, rtol=0, atol=step * 1.001 + 1e-6 * bool(step))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 3, 8, 11])  # At 16 bits float32's own rounding is of the size of the spread.
def test_rounding_is_unbiased(bits):
    x = np.random.default_rng(1).normal(size=200).astype(np.float32)
    draws = stages.draws(f"uniform:{bits}", x, 400)
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


@pytest.mark.slow
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


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.data())
def test_packing_is_lossless_and_tight(bits, data):
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=100))
    packed = packing.pack(tf.constant(numbers, tf.int64, [len(numbers)]), bits)
    assert packed.dtype == tf.uint8
    assert len(packed) == -(-len(numbers) * bits // 8)
    np.testing.assert_array_equal(packing.unpack(packed, bits, tf.constant(len(numbers))), numbers)


def test_variables_up_to_the_threshold_travel_as_they_are():
    small, large = (stages.simple("uniform:8", (n,), threshold=100) for n in (100, 101))
    assert encoders.payload_bits(small.encode(tf.zeros([100]))[0]) == 3200
    assert encoders.payload_bits(large.encode(tf.zeros([101]))[0]) == 8 * 101 + 64


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="Expected a variable of fully known shape, found"):
        encoders.build_mean_encoder_fn("uniform:8")(tf.TensorSpec([None, 3], tf.float32))


SPEC_ERRORS = {
    "": "each STAGE one of identity, tensor_encoding, uniform, .*; found ''",
    "zip": "each STAGE one of identity, tensor_encoding, uniform, .*; found 'zip'",
    "uniform": r"Expected uniform:BITS\[,ROUNDING\]\[,BLOCK\], found 'uniform' in .*Expected bits, found none. Stages are ",
    "uniform:": "Expected bits to be a whole number, found ''",
    "uniform:0": "Expected bits to be an integer from 1 to 16, found 0",
    "uniform:17": "Expected bits to be an integer from 1 to 16, found 17",
    "uniform:-1": "Expected bits to be a whole number, found '-1'",
    "uniform:2.5": "Expected bits to be a whole number, found '2.5'",
    "uniform:²": "Expected bits to be a whole number, found '²'",
    "uniform:8,up": "Expected rounding to be one of nearest, stochastic, dithered; found 'up'",
    "uniform:8,nearest,4,4": "Expected bits and rounding and block, each once; found '4'",
    "uniform:8,bits=8": "Expected bits and rounding and block, each once; found 'bits=8'",
    "uniform:8,width=8": "Expected bits and rounding and block, each once; found 'width=8'",
    "identity:8": "Expected identity, found 'identity:8' in .*Expected no argument, each once; found '8'",
    "eden:1,unbiased=1": "Expected unbiased to be yes or no, found '1'",
    "eden:nan": "Expected rate to be a number, found 'nan'",
    "rotate:100": "Expected block to be a power of two, found 100",
    "uniform:8/uniform:8/uniform:8": "one of large and one of small variables, LARGE/SMALL; found",
    "uniform:8/zip": "found 'zip' in 'uniform:8/zip'",
    "uniform:8+rotate": "Expected 'rotate' where there are numbers, found it where 'uniform' puts out integers",
    "rice": "Expected 'rice' where there are integers, found it where it is given a whole variable",
    "topk:0.1+rice": "Expected 'rice' where there are integers, found it where 'topk' puts out numbers",
    "rotate+identity": "Expected 'identity' where there are a whole variable, found it where 'rotate' puts out numbers",
    "uniform:8+rice+rice": "Expected 'rice' where there are integers, found it where 'rice' puts out bits",
    "step:3": "the integers of step_quantization have no bounds and need a coder",
    "eden:1.5+rice": "what eden puts out has its coders already",
}


@pytest.mark.parametrize("spec", SPEC_ERRORS)
def test_a_spec_that_names_no_encoder_is_refused(spec):
    with pytest.raises(encoders.SpecError, match=SPEC_ERRORS[spec]) as raised:
        encoders.Spec.parse(spec)
    assert repr(spec) in str(raised.value)


CANONICAL = {
    "eden:.50,4096,yes/identity": "eden:0.5",
    "uniform:4,block=64,rounding=dithered": "uniform:4,dithered,64",
    "uniform:4,stochastic,64": "uniform:4,block=64",
    "step:1e0,nearest,.1,no,yes+entropy/uniform:8": "step:1,price=0.1,unbiased=yes+entropy/uniform:8",
    "step:1e30+rice": "step:1e30+rice",
    "step:.001,nearest,1e-5+rice": "step:0.001,price=1e-05+rice",
    "rotate:4096+lowrank:2,rows=8": "rotate+lowrank:2,8",
    "identity/identity": "identity",
}


@pytest.mark.parametrize("text", CANONICAL)
def test_a_spec_is_a_value_with_one_shortest_text(text):
    spec, same = encoders.Spec.parse(text), encoders.Spec.parse(CANONICAL[text])
    assert str(spec) == CANONICAL[text]
    assert (spec, hash(spec), spec.digest) == (same, hash(same), same.digest)
    assert encoders.Spec.parse(spec) is spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec not in {encoders.Spec.parse(other) for other in CANONICAL if CANONICAL[other] != CANONICAL[text]}


def test_a_spec_tells_its_stages_with_all_their_arguments():
    spec = encoders.Spec.parse("rotate+uniform:4,dithered/uniform:8")
    assert [stage.name for stage in spec.large.stages] == ["rotate", "uniform"]
    assert spec.large.stages[1].arguments == (("bits", 4), ("rounding", "dithered"), ("block", None))
    assert [str(stage) for stage in spec.small.stages] == ["uniform:8"]
    assert spec.digest == hashlib.sha256(b"rotate+uniform:4,dithered/uniform:8").digest()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.large = spec.small


@pytest.mark.parametrize("build", [encoders.build_broadcast_encoder_fn, encoders.build_mean_encoder_fn])
def test_the_value_of_a_spec_builds_the_encoder_of_its_text(build):
    value = tf.TensorSpec([300])
    for spec in ("uniform:3", encoders.Spec.parse("uniform:3")):
        encoder = build(spec, 100)(value)
        params = () if isinstance(encoder, te.core.SimpleEncoder) else encoder.get_params()[:1]
        assert encoders.payload_bits(encoder.encode(stages.normal(300), *params)[0]) == 8 * 113 + 64


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e38), st.integers(1, 16), st.integers(1, 10**6), st.booleans())
def test_any_argument_is_printed_as_it_is_parsed(step, bits, block, unbiased):
    number = f"{step!r}".replace("+", "")
    text = f"step:{number},unbiased={'yes' if unbiased else 'no'}+rice/uniform:{bits},nearest,{block}"
    spec = encoders.Spec.parse(text)
    assert dict(spec.large.stages[0].arguments)["step"] == step
    assert encoders.Spec.parse(str(spec)) == spec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("uniform:4,dithered,64", "uniform:4,block=64,rounding=dithered"),
        ("eden:.5", "eden:0.50,4096,yes"),
        ("rotate+uniform:4", "rotate:4096+uniform:bits=4"),
        ("step:1e-1+rice", "step:0.1,nearest,0,no+rice"),
    ],
)
def test_arguments_can_have_names_and_defaults_be_left_out(spec, same):
    x = stages.normal(5000)
    np.testing.assert_array_equal(_round_trip(spec, x)[0], _round_trip(same, x)[0])


def test_small_variables_have_an_encoder_of_their_own():
    small, large = (stages.simple("eden:1/uniform:8", (n,), threshold=4096) for n in (4096, 8192))
    assert encoders.payload_bits(small.encode(tf.zeros([4096]))[0]) == 8 * 4096 + 64
    assert encoders.payload_bits(large.encode(tf.zeros([8192]))[0]) == 8192 + 2 * 32 + 64


_SIZE = 6000
UNBIASED = (
    "uniform:2",
    "uniform:2,dithered",
    "uniform:2,dithered,256",
    "rotate+uniform:2",
    "rotate+uniform:2,dithered",
    "eden:0.5",
    "eden:1",
    "eden:1.5",
    "eden:2",
    "randk:0.1",
    "randk:0.1+uniform:4",
    "rotate+randk:0.1",
    "step:2,stochastic+rice",
    "step:2,dithered+rice",
    "rotate+step:3,dithered+rice",
)
BIASED = (
    "uniform:4,nearest",
    "topk:0.1",
    "rotate+topk:0.1+uniform:4",
    "eden:1,unbiased=no",
    "step:2,price=0.1,centroids=yes+rice",
    "rate:0.5,price=0.1+entropy",
)


@pytest.mark.slow
@pytest.mark.parametrize("spec", UNBIASED)
def test_the_mean_of_many_draws_is_the_tensor(spec):
    """Error of the mean of n draws: 1/n of a draw's, where there is no bias; z: standard normal in each direction."""
    x = stages.normal(_SIZE)
    draws = stages.draws(spec, x, 100)
    error = np.mean([stages.nmse(draw, x) for draw in draws])
    assert stages.nmse(draws.mean(axis=0), x) == pytest.approx(error / 100, rel=0.12)
    along = (draws - x) @ stages.normal(_SIZE, 50, seed=1)
    z = along.mean(axis=0) / (along.std(axis=0) / np.sqrt(100))
    assert np.abs(z).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("spec", UNBIASED)
def test_error_of_the_mean_falls_with_the_number_of_clients_also_at_a_cosine_of_nine_tenths(spec):
    encoder = stages.simple(spec, (_SIZE,))
    x = stages.resembling(21, _SIZE, 0.9)

    def encode(row):
        return encoder.decode(encoder.encode(row)[0]).numpy()

    single = np.mean([stages.nmse(encode(row), row) for row in x])
    for clients in (10, 21):
        assert stages.nmse_of_mean(encode, x[:clients]) == pytest.approx(single / clients, rel=0.12)


def test_a_rotation_that_clients_share_would_not():
    """The trap that peers fell into; published at 0.2533 for ten clients and a cosine of 0.9, with own rotations 0.0569."""
    x = stages.resembling(10, 65_536, 0.9)

    def encode(row, seed):
        rotated = rotation.rotate(tf.constant(row), 4096, seed, salt=0)
        decoded, _ = stages.through(encoders.EdenStage(1), rotated)
        return rotation.rotate_back(tf.constant(decoded), 4096, seed, salt=0).numpy()

    shared = stages.nmse_of_mean(lambda row: encode(row, tf.constant([1, 2])), x)
    own = iter(range(10))
    assert shared == pytest.approx(0.2533, rel=0.03)
    assert stages.nmse_of_mean(lambda row: encode(row, tf.constant([3, next(own)])), x) == pytest.approx(0.0569, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("spec", UNBIASED + BIASED)
@pytest.mark.parametrize("size", [0, 1, 3, 4097])
def test_zeros_of_any_size_come_back_as_zeros(spec, size):
    decoded, _ = stages.round_trip(spec, np.zeros(size, np.float32))
    np.testing.assert_array_equal(decoded, np.zeros(size))


@pytest.mark.slow
@pytest.mark.parametrize("spec", UNBIASED + BIASED)
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_no_encoder_makes_numbers_of_what_is_not_finite(spec, bad):
    x = stages.normal(300)
    x[299] = bad
    assert not np.isfinite(stages.round_trip(spec, x)[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["uniform:4,nearest,64", "topk:0.1", "randk:0.1+uniform:4", "lowrank:2", "eden:1.5"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_no_graph_makes_numbers_of_what_is_not_finite(spec, bad):
    x = stages.normal(20, 15)
    x[7, 8] = bad
    encoder = stages.simple(spec, x.shape)
    assert not np.isfinite(encoder.decode(encoder.encode(x)[0])).any()


@pytest.mark.slow
@pytest.mark.parametrize("spec", UNBIASED + BIASED)
@pytest.mark.parametrize("value", [-1e-30, 1e30])
def test_constants_stay_finite_and_draws_repeat(spec, value):
    x = np.full([3, 100], value, np.float32)
    decoded, bits = stages.round_trip(spec, x)
    assert decoded.shape == x.shape
    assert np.isfinite(decoded).all()
    again, same_bits = stages.round_trip(spec, x)
    np.testing.assert_array_equal(decoded, again)
    assert bits == same_bits


@pytest.mark.parametrize("spec", UNBIASED + BIASED)
def test_a_scalar_stays_one(spec):
    assert stages.round_trip(spec, np.float32(2.5))[0].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "uniform:4",
        "rotate+uniform:4",
        "eden:1",
        "topk:0.01",
        "randk:0.01",
        "step:2,dithered+rice",
        "rate:1+entropy",
        "lowrank:2+uniform:8",
    ],
)
def test_ten_million_elements(spec):
    x = stages.normal(2500, 4000)
    decoded, bits = stages.round_trip(spec, x)
    assert decoded.shape == x.shape
    assert bits < 4.1 * 10**7


def test_payload_bits_counts_numbers_and_strings():
    assert (
        encoders.payload_bits({"a": tf.zeros([3, 5]), "b": (tf.zeros([2], tf.bool), tf.zeros([], tf.int64))}) == 15 * 32 + 16 + 64
    )
    assert encoders.payload_bits(tf.constant(["ab", "", "äß"])).numpy() == 8 * (2 + 4)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.uint8)])
    def bits(x):
        return encoders.payload_bits(x)

    assert bits(tf.zeros([7, 2], tf.uint8)).numpy() == 14 * 8
