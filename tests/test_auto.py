"""The stage `auto`: one step for all variables, low rank where it pays, and any model, whatever its shapes."""

import numpy as np
import pytest
import reference_stages
import stages
import tensorflow as tf
from entropy_golden import FOLDER, _random

from tff_kit import encoders
from tff_kit.encoders import message
from tff_kit.encoders.auto import PRICE, bits, elements_in_steps, factor_levels
from tff_kit.encoders.low_rank import components
from tff_kit.encoders.quantization import cheapest
from tff_kit.encoders.views import matrix_views


class AutoStageTest(stages.StageTest):
    def default_encoding_stage(self):
        return encoders.AutoStage(0.2)

    def default_input(self):
        return tf.constant(stages.normal(70, 60))

    def common_asserts_for_test_data(self, data):
        self.assertLess(stages.nmse(data.decoded_x, data.x), 0.2**2)


def _stage(spec, shapes):
    return encoders.Spec.parse(spec).large.stages[0].parts(0)[0].stage.of_shapes(shapes)


def _sent(values, spec="auto:1"):
    """Returns the values as they arrive, op by op since models are many, the bits and the relative squared error."""
    stage = _stage(spec, [x.shape for x in values])
    flat = np.concatenate([x.ravel() for x in values])
    encoded = stage.encode(tf.constant(flat), {})
    decoded = stage.decode(encoded, {}, shape=tf.constant(flat.shape)).numpy()
    parts = np.split(decoded, np.cumsum([x.size for x in values])[:-1])
    error = stages.squared(decoded - flat) / max(stages.squared(flat), 1e-300)
    return [part.reshape(x.shape) for part, x in zip(parts, values)], encoders.payload_bits(encoded), error


def _of_rank(rank, m, n, seed=0):
    return stages.normal(m, rank, seed=seed) @ stages.normal(rank, n, seed=seed + 1) / np.float32(rank**0.5)


def test_views_of_models_that_it_was_and_was_not_made_for():
    digits = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]
    assert [v for v in matrix_views(digits) if v] == [((800, 64),), ((3136, 512),)]
    keywords = [(128, 50), (128,), (49152, 12), (12,)]
    assert matrix_views(keywords)[2] == ((128, 4608), (384, 1536))
    assert matrix_views([(16, 50), (16,), (6144, 12), (12,)])[2] == ((16, 4608), (384, 192))
    assert matrix_views([(7, 7, 3, 3), (), (0, 5), (100_000,), (3, 3, 512, 1)]) == [()] * 5
    assert matrix_views([(64, 256), (64, 256), (256,)]) == [((64, 256),)] * 2 + [()]  # An LSTM's.


def test_an_element_has_the_error_of_one_step_in_whatever_variable():
    """Without structure each is off by step^2 / 12 and a little more, for the price."""
    values = [stages.normal(300, seed=1) * 10, stages.normal(20, 9, seed=2), stages.normal(5000, seed=3)]
    decoded, _, _ = _sent(values, "auto:0.2")
    step = 0.2 * np.sqrt(np.mean(np.square(np.concatenate([x.ravel() for x in values]))))
    for x, y in zip(values, decoded):
        assert step**2 / 12 * 0.8 < np.mean(np.square(x - y)) < step**2 / 12 * 1.3


def test_low_rank_is_found_and_takes_the_bits_of_its_factors():
    x = _of_rank(3, 400, 300)
    _, bits_of_factors, error = _sent([x], "auto:1")
    decoded, bits_of_elements = stages.round_trip("step:1,price=0.12+entropy", x)
    assert bits_of_factors < bits_of_elements / 10
    assert error < 0.01 < stages.nmse(decoded, x)


def test_the_sample_of_elements_is_of_all_columns():
    """Every eighteenth element would be of every sixth column only, and these are zero here."""
    x = stages.normal(384, 768)
    x[:, ::6] = 0
    _, _, error = _sent([x], "auto:0.5,8")
    assert error < 1.5 * 0.5**2 / 12


def test_what_elements_keep_does_not_depend_on_which_of_them_are_in_the_sample():
    x = stages.normal(60_000)
    x[1:4] = 200  # Nearly all of the norm, and one of four elements is in the sample.
    saved, kept = (
        float(y) for y in elements_in_steps(tf.constant(x), tf.constant(stages.squared(x), tf.float32), tf.constant(0.5))
    )
    levels = cheapest(tf.constant(x / 0.5), tf.round(x / 0.5), PRICE).numpy()
    exact = stages.squared(x / 0.5) - stages.squared(x / 0.5 - levels)
    assert kept == pytest.approx(exact, rel=1e-3)
    assert saved == pytest.approx(exact - PRICE * float(bits(tf.constant(levels))), rel=1e-2)


def test_a_component_is_sent_only_if_it_saves_more_than_its_bits():
    x = np.concatenate([_of_rank(2, 100, 80) * 8, np.zeros([100, 80])], axis=0).astype(np.float32) + stages.normal(200, 80) / 4
    levels, saved, about = factor_levels(*components(tf.constant(x), 20))
    kept = np.any(levels.numpy() != 0, axis=0)
    assert kept.sum() == 2
    a, b = levels.numpy()[:200], levels.numpy()[200:]
    product = (a / np.sqrt(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)).clip(1e-9)) @ b.T
    of_side = [float(tf.reduce_sum(bits(tf.constant(side), axis=0))) for side in (a, b)]
    norm_kept = stages.squared(x) - stages.squared(x - product)
    assert float(about) == pytest.approx(norm_kept, rel=0.02)
    assert float(saved) == pytest.approx(norm_kept - PRICE * sum(of_side), rel=0.02)


def test_the_estimated_bits_are_about_the_entropy():
    for step in (0.5, 1, 3):
        levels = np.round(stages.normal(20_000) / np.float32(step))
        assert float(bits(tf.constant(levels))) == pytest.approx(stages.entropy(levels) * levels.size, rel=0.1)


@pytest.mark.parametrize("lost", [0.5, 0.1])
def test_no_more_is_lost_than_may_be_and_the_step_is_as_large_as_it_may(lost):
    """Of numbers that are equally large everywhere a coarse step leaves nearly nothing."""
    values = [np.sign(stages.normal(80, 70, seed=1)), np.sign(stages.normal(9, seed=2))]
    _, without, all_lost = _sent(values, "auto:4")
    _, sent, error = _sent(values, f"auto:4,32,{lost}")
    assert error < 1.05 * lost < 0.9 < all_lost
    assert without < sent


def test_what_loses_little_is_encoded_as_without_a_bound():
    x = _of_rank(3, 400, 300)
    for a, b in zip(*(_sent([x], spec)[0] for spec in ("auto:1", "auto:1,32,0.5"))):
        np.testing.assert_array_equal(a, b)


_MODELS = {
    "scalars": [(), (1,), ()],
    "empty": [(0,), (3, 0)],
    "empty among others": [(0, 4), (70, 60), (5, 0), (7,)],
    "recurrent": [(30, 256), (64, 256), (256,), (64, 3), (3,)],
    "residual": [(3, 3, 3, 16), (3, 3, 16, 32), (32,), (1, 1, 16, 32), (3, 3, 32, 1)],
    "attention": [(64, 4, 16), (4, 16), (4, 16, 64), (64,)],
    "flattened": [(16, 50), (16,), (6144, 12), (12,)],
}


@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.parametrize("step", [0.5, 5])
def test_no_variable_of_any_model_is_forgotten(name, step):
    values = [stages.normal(*shape, seed=i) for i, shape in enumerate(_MODELS[name])]
    decoded, _, _ = _sent(values, f"auto:{step}")
    assert [x.shape for x in decoded] == _MODELS[name]
    flat, other = (np.concatenate([x.ravel() for x in side]) for side in (values, decoded))
    assert np.isfinite(other).all()
    assert stages.squared(flat - other) <= stages.squared(flat) * min(step**2 / 10, 1.0001)


@pytest.mark.parametrize("constant", [0.0, -2.5, 1e-30, 1e30])
def test_constants_and_zeros(constant):
    decoded, sent, _ = _sent([np.full([70, 60], constant, np.float32), np.full([3], constant, np.float32)], "auto:0.5")
    for x in decoded:
        np.testing.assert_allclose(x, constant, rtol=0.05)
    if not constant:
        assert sent == 32 + 8  # The step, and one choice.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_finite_comes_of_what_is_not(bad):
    x = stages.normal(70, 60)
    x[3, 4] = bad
    decoded, _ = stages.round_trip("auto:1", x)
    assert not np.isfinite(decoded).any()


@pytest.mark.slow
def test_other_dtypes_and_what_is_no_float():
    specs = [
        tf.TensorSpec([30], tf.float16),
        tf.TensorSpec([2], tf.int64),
        tf.TensorSpec([70, 60], tf.float64),
        tf.TensorSpec([], tf.bool),
    ]
    codec = encoders.BroadcastCodec(specs, "auto:0.5")
    values = [
        np.linspace(-1, 1, 30, dtype=np.float16),
        np.array([2**40, -1]),
        stages.normal(70, 60).astype(float),
        np.array(True),
    ]
    decoded = codec.decode(codec.encode(values, codec.initial_state()).payload)
    assert [x.dtype for x in decoded] == [spec.dtype for spec in specs]
    np.testing.assert_array_equal(decoded[1], values[1])
    assert decoded[3]
    np.testing.assert_allclose(decoded[2], values[2], atol=0.4)


@pytest.mark.slow
def test_the_mean_over_clients():
    shapes = [(90, 80), (7,)]
    codec = encoders.MeanCodec([tf.TensorSpec(shape) for shape in shapes], "auto:0.5")
    state = codec.initial_state()
    params, total = codec.params(state), codec.zero()
    clients = [[_of_rank(2, 90, 80, seed), stages.normal(7, seed=seed)] for seed in range(3)]
    for values in clients:
        total = codec.merge(total, codec.decode(codec.encode(values, 2.0, params).payload))
    _, mean, measured = codec.finish(state, params, total, 6.0)
    for k, shape in enumerate(shapes):
        exact = np.mean([values[k] for values in clients], axis=0)
        assert mean[k].shape == shape
        assert stages.nmse(mean[k], exact) < 0.1
    assert measured["distortion"] < 0.05


@pytest.mark.parametrize(
    "spec",
    [
        "auto:0",
        "auto",
        "auto:1,0",
        "auto:1,9,0",
        "auto:1,9,1.1",
        "auto:1+entropy",
        "rotate+auto:1",
        "auto:1/uniform:8",
        "uniform:8/auto:1",
    ],
)
def test_specs_that_can_not_be_are_refused(spec):
    with pytest.raises(encoders.SpecError):
        encoders.Spec.parse(spec)


GOLDEN_SHAPES = [(7,), (80, 64), (64, 64), (4096, 8), (32,)]
GOLDEN_KEYS = ("choice", "elements_64", "elements_8", "factors", "rest", "step")


def golden_values():
    """Returns whole-number arithmetic's variables: a small one, of low rank, of none, one with two views, zeros."""
    i, j = np.indices((80, 64))
    low_rank = (i % 7 - 3) * (j % 5 - 2) + (i % 3 - 1) * (j % 11 - 5)
    elements = (_random(4096, 7) % 31 - 15).reshape(64, 64)
    _, k = np.indices((4096, 8))
    spread = (np.arange(32768).reshape(4096, 8) * 7919 % 1009 - 504) * (k - 3)
    values = [np.arange(7) - 3, low_rank, elements, spread / 256, np.zeros(32)]
    return [x.astype(np.float32) for x in values]


def golden_message():
    """Returns the broadcast's message of `golden_values()`, encoded op by op."""
    encoded = _stage("auto:0.5,6", GOLDEN_SHAPES).encode(tf.constant(np.concatenate([x.ravel() for x in golden_values()])), {})
    return _layout().pack([encoded[key] for key in sorted(encoded)])


def _layout():
    specs = [tf.TensorSpec([3], tf.uint8), *[tf.TensorSpec([None], tf.uint8)] * 4, tf.TensorSpec([])]
    paths = {f"encoded_tensors/{key}": spec for key, spec in zip(GOLDEN_KEYS, specs)}
    described = [f"float32[{','.join(map(str, shape))}]" for shape in GOLDEN_SHAPES]
    return message.Layout(list(paths.values()), "broadcast by auto:0.5,6", ["threshold 10000", *described, ""])


def test_a_golden_message_both_ways():
    golden, values = (FOLDER / "auto.bin").read_bytes(), golden_values()
    reference = reference_stages.decode_auto(golden, GOLDEN_SHAPES, 0.5, 6)
    encoded = dict(zip(GOLDEN_KEYS, _layout().unpack(golden)))
    np.testing.assert_array_equal(encoded["choice"][:2], [2, 1])
    size = sum(x.size for x in values)
    ours = _stage("auto:0.5,6", GOLDEN_SHAPES).decode(encoded, {}, shape=tf.constant([size])).numpy()
    flat, other = (np.concatenate([x.ravel() for x in side]) for side in (values, reference))
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(flat).max())
    errors = [stages.squared(y - x) for x, y in zip(values, reference)]
    assert sum(errors[:3]) < 0.5**2 / 10 * stages.squared(flat)
    assert errors[3] < 0.25 * stages.squared(values[3])  # Rank 6 is not all of it.
    assert abs(len(golden_message()) - len(golden)) < 0.02 * len(golden)  # Last digits of factors depend on the machine.


@pytest.mark.slow
def test_the_codec_decodes_the_golden_message():
    codec = encoders.BroadcastCodec([tf.TensorSpec(shape) for shape in GOLDEN_SHAPES], "auto:0.5,6")
    golden = (FOLDER / "auto.bin").read_bytes()
    for x, y in zip(codec.decode(golden), reference_stages.decode_auto(golden, GOLDEN_SHAPES, 0.5, 6)):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-2)
