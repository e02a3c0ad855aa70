"""Uniform quantization and steps: errors, biases and payloads against their formulas."""

import functools
import math

import numpy as np
import pytest
import stages
import tensorflow as tf

from tff_kit import encoders


def _place(x, bits):
    step = np.ptp(x.astype(np.float64)) / (2**bits - 1)
    return (x - x.min().astype(np.float64)) / step % 1, step


def _step(x, step):
    return step * math.sqrt(stages.squared(x) / x.size)


def _quantized(x, *arguments, **named):
    return stages.through(encoders.StepQuantizationStage(*arguments, **named), x)[0]


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("nearest", lambda f: np.minimum(f, 1 - f) ** 2),
        ("stochastic", lambda f: f * (1 - f)),
        ("dithered", lambda f: np.full_like(f, 1 / 12)),
    ],
)
def test_error_of_uniform_quantization_is_that_of_its_rounding(rounding, expected, bits):
    x = stages.normal(100_000)
    place, step = _place(x, bits)
    decoded, _ = stages.round_trip(f"uniform:{bits},{rounding}", x)
    assert stages.squared(decoded - x.astype(np.float64)) == pytest.approx(np.sum(expected(place)) * step**2, rel=0.02)


@pytest.mark.parametrize("spec", ["uniform:2", "step:2"])
def test_dithered_error_is_uniform_and_has_nothing_to_do_with_the_tensor(spec):
    x = stages.normal(100_000)
    error = stages.round_trip(f"{spec},dithered" + "+rice" * ("step" in spec), x)[0] - x.astype(np.float64)
    step = _place(x, 2)[1] if "uniform" in spec else _step(x, 2)
    assert np.abs(error).max() <= step / 2 * 1.001
    places = np.sort(error) / step + 0.5
    # Kolmogorov and Smirnov: beyond 2.5 / sqrt(n) in one of 130,000 samples of a uniform distribution.
    assert np.abs(places - (np.arange(x.size) + 0.5) / x.size).max() < 2.5 / math.sqrt(x.size)
    assert abs(np.corrcoef(error, x)[0, 1]) < 5 / math.sqrt(x.size)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "dithered"])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_blocks_have_their_own_ranges_and_nothing_is_padded(rounding, size):
    x = stages.normal(size) * 10.0 ** (np.arange(size) // 64 % 5)
    decoded, bits = stages.round_trip(f"uniform:5,{rounding},64", x.astype(np.float32))
    assert bits == 8 * math.ceil(5 * size / 8) + 64 * math.ceil(size / 64) + 64 * (rounding == "dithered")
    for start in range(0, size, 64):
        part = slice(start, start + 64)
        np.testing.assert_allclose(decoded[part], x[part], rtol=0, atol=np.ptp(x[part]) / 31 * 1.001 + 1e-6)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("nearest", lambda f: np.minimum(f, 1 - f) ** 2),
        ("stochastic", lambda f: f * (1 - f)),
        ("dithered", lambda f: np.full_like(f, 1 / 12)),
    ],
)
@pytest.mark.parametrize("step", [0.1, 1, 3])
def test_error_of_steps_is_that_of_their_rounding(rounding, expected, step):
    x = stages.normal(100_000)
    absolute = _step(x, step)
    error = stages.squared(_quantized(x, step, rounding=rounding) - x.astype(np.float64))
    assert error == pytest.approx(np.sum(expected(x / absolute % 1)) * absolute**2, rel=0.02)


@pytest.mark.parametrize(("rounding", "bits"), [("nearest", 32), ("stochastic", 32), ("dithered", 32 + 64)])
def test_beside_the_integers_the_step_travels_and_the_seed_where_it_is_needed(rounding, bits):
    x = stages.normal(100)
    _, encoded = stages.through(encoders.StepQuantizationStage(2, rounding=rounding), x)
    levels = encoded.pop("levels").numpy()
    np.testing.assert_array_equal(levels, np.round(levels))
    assert encoders.payload_bits(encoded) == bits
    assert encoded["step"].numpy() == pytest.approx(_step(x, 2), rel=1e-6)


def test_dithered_integers_are_sent_so_that_they_tell_less_of_their_dither():
    """Entropies by integration over normal numbers and dither: of what is rounded, of what is sent, and given the dither."""
    step = 3.0
    dither = (np.arange(200) + 0.5) / 200
    x = np.linspace(-9, 9, 20_001)
    density = np.exp(-np.square(x) / 2) / np.sum(np.exp(-np.square(x) / 2))
    levels = np.floor(x[:, None] / step + dither).astype(int)
    shares = np.stack([np.bincount(column + 10, density, minlength=21) for column in levels.T])
    mirrored = np.where(dither[:, None] > 0.5, shares[:, ::-1], shares)

    def entropy(shares):
        return -np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=-1)

    rounded, expected, least = entropy(shares.mean(axis=0)), entropy(mirrored.mean(axis=0)), entropy(shares).mean()
    _, encoded = stages.through(encoders.StepQuantizationStage(step, rounding="dithered"), stages.normal(400_000))
    assert stages.entropy(encoded["levels"]) == pytest.approx(expected, abs=0.005)
    assert least < expected < 0.86 * rounded


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_step_neither_overflows_nor_vanishes(scale):
    x = stages.normal(1000)
    np.testing.assert_allclose(_quantized(x * np.float32(scale), 0.5) / scale, _quantized(x, 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize(("step", "price"), [(0.5, 0.05), (1, 0.116), (2, 0.116), (3, 0.3)])
def test_what_is_chosen_for_a_price_costs_less_than_what_is_nearest(kind, step, price):
    """In error + price x step^2 x entropy, both measured here and not as the stage estimates them."""
    x = getattr(np.random.default_rng(0), kind)(size=200_000).astype(np.float32)
    absolute = _step(x, step)

    def cost(**named):
        decoded, encoded = stages.through(encoders.StepQuantizationStage(step, **named), x)
        error = stages.squared(decoded - x.astype(np.float64)) / x.size
        return error, stages.entropy(encoded["levels"]), error + price * absolute**2 * stages.entropy(encoded["levels"])

    nearest, chosen = cost(), cost(price=price)
    assert chosen[0] > nearest[0]
    assert chosen[1] < nearest[1]
    assert chosen[2] < nearest[2]
    # No other width of the dead zone, all else as it was, is better by much.
    sizes = np.abs(x.astype(np.float64)) / absolute
    for dead in np.arange(0.5, 1.5, 0.05):
        levels = np.sign(x) * np.where(sizes < dead, 0, np.maximum(np.round(sizes), 1))
        other = stages.squared(levels * absolute - x) / x.size + price * absolute**2 * stages.entropy(levels)
        assert chosen[2] < 1.005 * other


def test_the_higher_the_price_the_more_zeros():
    x = stages.normal(10_000)
    np.testing.assert_array_equal(_quantized(x, 1.5, price=1e-6), _quantized(x, 1.5))
    zeros = [np.sum(_quantized(x, 1.5, price=price) == 0) for price in (0, 0.05, 0.1, 0.3, 1)]
    assert zeros == sorted(set(zeros))


@pytest.mark.parametrize("price", [0.0, 0.2])
def test_centroids_are_the_means_of_what_is_decoded_to_them(price):
    x = stages.normal(10_000)
    decoded, encoded = stages.through(encoders.StepQuantizationStage(1, price=price, centroids=True), x)
    assert encoders.payload_bits({k: v for k, v in encoded.items() if k != "levels"}) == 32 + 64
    levels = encoded["levels"].numpy()
    one = np.abs(levels) == 1
    np.testing.assert_allclose(np.abs(decoded[one]), np.mean(np.abs(x[one])), rtol=1e-4)
    assert np.sum(np.abs(decoded)) == pytest.approx(np.sum(np.abs(x[levels != 0])), rel=1e-4)
    assert stages.nmse(decoded, x) < stages.nmse(levels * encoded["step"].numpy(), x)


@functools.cache
def _entropy_coded_uniform(bits):
    """Returns the error of a uniform quantizer of a normal distribution whose ideal code takes `bits`, by integration."""
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-np.square(x) / 2)
    density /= density.sum()

    def rate_and_error(step):
        levels = np.round(x / step)
        shares = np.bincount((levels - levels.min()).astype(int), density)
        shares = shares[shares > 0]
        return -np.sum(shares * np.log2(shares)), np.sum(np.square(x - levels * step) * density)

    low, high = 0.01, 10.0
    for _ in range(24):  # Halvings, to a step known to 6e-7.
        step = (low + high) / 2
        low, high = (step, high) if rate_and_error(step)[0] > bits else (low, step)
    return rate_and_error(step)[1]


@pytest.mark.parametrize("step", [0.5, 1, 1.7, 2.5])
def test_steps_on_normal_numbers_have_the_error_of_entropy_coded_uniform_quantization_and_a_price_improves_on_it(step):
    x = stages.normal(2**19)

    def point(**named):
        decoded, encoded = stages.through(encoders.StepQuantizationStage(step, **named), x)
        return stages.entropy(encoded["levels"]), stages.nmse(decoded, x)

    bits, error = point()
    assert error == pytest.approx(_entropy_coded_uniform(bits), rel=0.01)
    bits, error = point(price=math.log(2) / 6, centroids=True)
    assert 4**-bits < error < _entropy_coded_uniform(bits)  # Shannon's limit, and what nearest levels reach.


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0.5, 1, 2, 3, 4])
def test_with_everything_in_the_payload_the_error_is_that_of_ideal_codes(bits):
    x = stages.normal(2**20)
    decoded, payload = stages.round_trip(f"rate:{bits}+entropy", x)
    assert payload / x.size == pytest.approx(bits, rel=0.02)
    assert stages.nmse(decoded, x) <= 1.02 * _entropy_coded_uniform(payload / x.size)


def test_the_entropy_coded_column_of_published_limits_is_what_is_integrated_here():
    """At high rates 0.2546 bit above Shannon's limit: H. Gish, J. Pierce, Asymptotically Efficient Quantizing, 1968."""
    assert _entropy_coded_uniform(4) == pytest.approx(4.0**-4 * math.pi * math.e / 6, rel=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "dithered"])
def test_integers_stay_integers_whatever_the_tensor(rounding, bad):
    x = stages.normal(100)
    x[17] = bad
    for stage in (
        encoders.StepQuantizationStage(1, rounding=rounding),
        encoders.UniformQuantizationStage(4, rounding=rounding, block=10),
    ):
        decoded, encoded = stages.through(stage, x)
        levels = encoded["levels"].numpy()
        np.testing.assert_array_equal(levels, np.round(levels))
        assert np.abs(levels).max() < 100
        assert not np.isfinite(decoded).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: encoders.StepQuantizationStage(0), "Expected step to be 0.001 or more"),
        (lambda: encoders.StepQuantizationStage(math.nan), "Expected step to be 0.001 or more"),
        (
            lambda: encoders.StepQuantizationStage(1, rounding="up"),
            "Expected rounding to be one of nearest, stochastic, dithered",
        ),
        (lambda: encoders.StepQuantizationStage(1, price=-1), "Expected price to be from 0 to 1, found -1"),
        (
            lambda: encoders.StepQuantizationStage(1, rounding="dithered", price=1),
            "Expected rounding to be nearest for price",
        ),
        (lambda: encoders.UniformQuantizationStage(8, rounding="up"), "Expected rounding to be one of"),
        (lambda: encoders.UniformQuantizationStage(8, block=0), "Expected block to be at least 1, found 0"),
        (lambda: encoders.UniformQuantizationStage(17), "Expected bits to be an integer from 1 to 16, found 17"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tensor_of_float64_stays_one():
    x = tf.constant(stages.normal(10), tf.float64)
    for stage in (encoders.StepQuantizationStage(0.5, rounding="dithered"), encoders.UniformQuantizationStage(8, block=4)):
        assert stage.decode(stage.encode(x, {}), {}).dtype == tf.float64


@pytest.mark.slow
@pytest.mark.parametrize("price", [0.0, 0.1])
def test_an_unbiased_step_keeps_the_projection_and_its_error_follows_from_the_best(price):
    x = stages.normal(2**18)
    decoded, _ = stages.round_trip(f"step:2,price={price},unbiased=yes+entropy", x)
    assert np.dot(decoded, x) == pytest.approx(np.dot(x, x), rel=1e-4)
    levels = decoded / np.abs(decoded[decoded != 0]).min()
    best = levels * np.dot(levels, x) / np.dot(levels, levels)  # The least error D of any scale.
    least = stages.nmse(best, x)
    assert stages.nmse(decoded, x) == pytest.approx(least / (1 - least), rel=1e-3)


@pytest.mark.slow
def test_after_rotation_an_unbiased_step_is_unbiased():
    x = stages.normal(512) ** 3
    draws = stages.draws("rotate+step:3,price=0.1,unbiased=yes+rice", x, 300)  # The faster coder; neither loses anything.
    z = (draws.mean(axis=0) - x) / (draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) + 1e-12)
    assert np.mean(np.square(z)) < 1.3
