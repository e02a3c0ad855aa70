"""Uniform quantization: `UniformQuantizationStage` between a tensor's extremes, `StepQuantizationStage` without bounds.

Both put an element x at a place p = (x - low) / step, round p to an integer k, and decode low + step k. With f the part
of p behind the point, the squared error in units of step^2 is

* nearest: min(f, 1 - f)^2 <= 1/4, the smallest there is. Biased: elements nearer to 0 than half a step vanish for good.
* stochastic: k = floor(p) or floor(p) + 1 with the probabilities that make the expectation exact; f (1 - f) expected, at
  most 1/4 and 1/6 on average. Unbiased.
* dithered: k = floor(p + u), and k + 1/2 - u is decoded, with u uniform in (0, 1) made again from a seed that travels.
  The error is uniform in (-1/2, 1/2] whatever x is: 1/12, and unbiased.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic: QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding. NIPS 2017, arXiv 1610.02132. A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan: Distributed Mean Estimation with
Limited Communication. ICML 2017, arXiv 1611.00429, whose "stochastic k-level quantization" is the stochastic one. Dither:
L. Schuchman: Dither Signals and Their Effect on Quantization Noise. IEEE Transactions on Communication Technology 12, 1964.
"""

from __future__ import annotations

import collections
from typing import Optional, Union

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import from_rows, spoil, to_rows
from tff_kit.encoders.seeds import tensor_seed
from tff_kit.encoders.stage import Stage

ROUNDINGS = ("nearest", "stochastic", "dithered")


@te.core.tf_style_encoding_stage
class UniformQuantizationStage(Stage):
    """Rounds a float tensor of any shape to 2^bits levels between its extremes, or between those of each block.

    `encode` returns the levels' numbers, 0 to 2^bits - 1, in the input's dtype and shape, and two extremes a block,
    [blocks, 2]. With n elements and step s = (max - min) / (2^bits - 1) the squared error is at most n s^2 / 4. A tensor
    with an element that is not finite decodes to elements none of which is finite.

    Args:
      bits: Bits an element, 1 to 16. A float32 does not resolve the place between finer levels.
      seed: Rounding is a function of this and the tensor's contents, so that a run can be repeated bit for bit.
      rounding: nearest, stochastic or dithered, as above. For dithered a seed of 64 bits travels.
      block: Elements that share their extremes, the last block being what is left; None for the whole tensor.

    Raises:
      ValueError: If `bits` is not an integer from 1 to 16, `rounding` none of the above, or `block` less than 1.
    """

    LEVELS_KEY = "levels"
    EXTREMES_KEY = "min_max"
    SEED_KEY = "seed"

    def __init__(self, bits: int, seed: int = 0, rounding: str = "stochastic", block: Optional[int] = None):
        if bits not in range(1, 17):
            raise ValueError(f"Expected bits to be an integer from 1 to 16, found {bits}.")
        if block is not None and block < 1:
            raise ValueError(f"Expected block to be at least 1, found {block}.")
        self._largest_level = 2**bits - 1
        self._seed = seed
        self._rounding = _checked(rounding)
        self._block = block

    name = "uniform_quantization"
    compressible_tensors_keys = [LEVELS_KEY]
    decode_needs_input_shape = False

    def encode(self, x, encode_params):
        del encode_params
        rows = to_rows(x, self._block)
        low, high = tf.reduce_min(rows, axis=1, keepdims=True), tf.reduce_max(rows, axis=1, keepdims=True)
        # A constant block has only level 0, which decodes to the constant.
        place = from_rows(tf.math.divide_no_nan(rows - low, high - low) * self._largest_level, tf.shape(x))
        place = tf.where(place >= 0, place, tf.zeros([], x.dtype))  # Of what is not finite the extremes tell.
        level, seed, _ = _round(place, self._rounding, x, self._seed)
        extremes = tf.concat([low, high], axis=1)
        encoded = collections.OrderedDict(
            [
                (self.LEVELS_KEY, tf.minimum(level, self._largest_level)),
                (self.EXTREMES_KEY, extremes if self._block is None else spoil(extremes, extremes)),
            ]
        )
        if seed is not None:
            encoded[self.SEED_KEY] = seed
        return encoded

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands, shape
        level = encoded_tensors[self.LEVELS_KEY]
        if self._rounding == "dithered":
            level += 0.5 - _dither(level, encoded_tensors[self.SEED_KEY])
        low, high = tf.split(encoded_tensors[self.EXTREMES_KEY], 2, axis=1)
        rows = low + to_rows(level, self._block) * ((high - low) / self._largest_level)
        return from_rows(rows, tf.shape(level))


@te.core.tf_style_encoding_stage
class StepQuantizationStage(Stage):
    """Rounds a float tensor of any shape to multiples of a step in proportion to its root mean square.

    `encode` returns the multiples, integers without bounds in the input's dtype and shape, to be coded by a lossless
    stage, and the step. The squared error is that of `rounding`, above, with the step in place of s: a dithered tensor of
    n elements has n step^2 / 12. A tensor with an element that is not finite decodes to elements none of which is finite.

    Dithered integers tell something of their dither, which the decoder knows already. Below u = 1/2 an element near 0
    becomes 0 or -1, above 0 or 1; there the integers are sent mirrored, so that both look alike. Of normal numbers at a
    step of 3 that makes .94 bits of 1.10, where .86 are the information given u, the least that dithered steps can take
    (J. Ziv: On Universal Quantization. IEEE Transactions on Information Theory 31, 1985).

    With `price` > 0 each element chooses, of 0 and the multiples around it, the one with the least squared error plus
    price x step^2 x bits: D + lambda R with lambda = price x step^2. Bits are those of an ideal coder for zeros and, beyond
    them, magnitudes that fall geometrically, with the shares found in this very tensor; the decoder needs to know none of
    it. The choice comes to a wider dead zone and thresholds that lie further out. At high rates the best price for a given
    step is ln 2 / 6 = 0.116, where the slope of D = step^2 / 12 against bits is lambda.

    N. Mitchell, J. Ballé, Z. Charles, J. Konečný: Optimizing the Communication-Accuracy Trade-off in Federated Learning
    with Rate-Distortion Theory. 2022, arXiv 2201.02664. G. J. Sullivan: Efficient Scalar Quantization of Exponential and
    Laplacian Random Variables. IEEE Transactions on Information Theory 42, 1996.

    Args:
      step: Distance of levels in units of the tensor's root mean square, 0.001 or more.
      seed: Rounding is a function of this and the tensor's contents, so that a run can be repeated bit for bit.
      rounding: nearest, stochastic or dithered. For dithered a seed of 64 bits travels.
      price: What a bit costs in units of step^2, 0 to 1; for nearest only.
      unbiased: Whether all levels are decoded larger by |x|^2 / <x, levels>, so that on average over rotations of x the result
        is x (EDEN's scale, arXiv 2108.08842): a squared error D |x|^2 becomes D / (1 - D) |x|^2 for centroids. For nearest.
      centroids: Whether elements of magnitude 1, and those beyond, are decoded to their means instead of to the middle of
        their cells, which two float32 more tell; for nearest only.

    Raises:
      ValueError: If an argument is not as above.
    """

    LEVELS_KEY = "levels"
    STEP_KEY = "step"
    CENTROIDS_KEY = "centroids"
    SEED_KEY = "seed"

    def __init__(
        self,
        step: float,
        seed: int = 0,
        rounding: str = "nearest",
        price: float = 0.0,
        centroids: bool = False,
        unbiased: bool = False,
    ):
        if not 0.001 <= step < float("inf"):  # A float32 holds all integers up to 2^24 only.
            raise ValueError(f"Expected step to be 0.001 or more, in units of the root mean square, found {step}.")
        if not 0 <= price <= 1:
            raise ValueError(f"Expected price to be from 0 to 1, found {price}.")
        self._step = step
        self._seed = seed
        self._rounding = _checked(rounding)
        if rounding != "nearest" and (price or centroids or unbiased):
            raise ValueError(f"Expected rounding to be nearest for price, centroids or unbiased, found {rounding}.")
        if centroids and unbiased:
            raise ValueError("Expected centroids or unbiased, found both.")
        self._price = price
        self._centroids = centroids
        self._unbiased = unbiased

    name = "step_quantization"
    compressible_tensors_keys = [LEVELS_KEY]
    decode_needs_input_shape = False

    def encode(self, x, encode_params):
        del encode_params
        return self.to_multiples(x, self._step)

    def to_multiples(self, x: tf.Tensor, step: Union[float, tf.Tensor]) -> collections.OrderedDict:
        """Returns what `encode` does, with another step, also in units of the root mean square."""
        step *= root_mean_square(x)
        place = tf.math.divide_no_nan(x, step)
        place = tf.where(tf.math.is_finite(step), place, tf.zeros([], x.dtype))  # Of what is not finite the step tells.
        level, seed, dither = _round(place, self._rounding, x, self._seed)
        if self._price:
            level = cheapest(place, level, self._price)
        if self._unbiased:
            step *= tf.math.divide_no_nan(tf.reduce_sum(tf.square(place)), tf.reduce_sum(place * level))
        encoded = collections.OrderedDict([(self.LEVELS_KEY, level), (self.STEP_KEY, step)])
        if dither is not None:
            encoded[self.LEVELS_KEY] = _mirrored(level, dither)
        if seed is not None:
            encoded[self.SEED_KEY] = seed
        if self._centroids:
            size, over = tf.abs(level), (place - level) * tf.sign(level)
            encoded[self.CENTROIDS_KEY] = tf.stack([_mean(over, size == 1), _mean(over, size > 1)])
        return encoded

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands, shape
        level = encoded_tensors[self.LEVELS_KEY]
        if self._centroids:
            one, more = tf.unstack(encoded_tensors[self.CENTROIDS_KEY])
            level += tf.sign(level) * tf.where(tf.abs(level) > 1, more, one)
        if self._rounding == "dithered":
            dither = _dither(level, encoded_tensors[self.SEED_KEY])
            level = _mirrored(level, dither) + 0.5 - dither
        return level * encoded_tensors[self.STEP_KEY]


def _checked(rounding: str) -> str:
    if rounding not in ROUNDINGS:
        raise ValueError(f"Expected rounding to be one of {', '.join(ROUNDINGS)}; found {rounding!r}.")
    return rounding


def _round(
    place: tf.Tensor, rounding: str, x: tf.Tensor, seed: int
) -> tuple[tf.Tensor, Optional[tf.Tensor], Optional[tf.Tensor]]:
    """Returns `place` rounded to integers, and where it is dithered the seed that the decoder needs and the dither."""
    if rounding == "nearest":
        return tf.round(place), None, None
    drawn_from = tensor_seed(x, seed)
    if rounding == "dithered":
        dither = _dither(place, drawn_from)
        return tf.floor(place + dither), drawn_from, dither
    level = tf.floor(place)
    draw = tf.random.stateless_uniform(tf.shape(place), drawn_from, dtype=place.dtype)
    return level + tf.cast(draw < place - level, place.dtype), None, None


def _mirrored(level: tf.Tensor, dither: tf.Tensor) -> tf.Tensor:
    """Returns the levels with those of dither above 1/2 mirrored; that undoes itself."""
    return tf.where(dither > 0.5, -level, level)


def _dither(like: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns numbers in (0, 1), as many as `like` has elements: a function of `seed` on any device.

    They are the middles of 2^16 equal parts, so that a mean may be off by 2^-17 of a step; two cost one draw.
    """
    size = tf.size(like)
    draws = tf.random.stateless_uniform([(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    parts = tf.reshape(tf.bitcast(draws, tf.uint16), [-1])[:size]
    places = (tf.cast(parts, tf.float32) + 0.5) * 2.0**-16  # Exact, which they would not be in a narrower dtype.
    return tf.reshape(tf.cast(places, like.dtype), tf.shape(like))


def root_mean_square(x: tf.Tensor) -> tf.Tensor:
    """Returns the root mean square, a scalar; its squares neither overflow nor vanish. NaN where `x` is not finite."""
    largest = tf.reduce_max(tf.abs(x))
    return largest * tf.sqrt(tf.reduce_mean(tf.square(tf.math.divide_no_nan(x, largest))))


def cheapest(place: tf.Tensor, level: tf.Tensor, price: float, axis: Optional[int] = None) -> tf.Tensor:
    """Returns the levels of the least (place - level)^2 + price x bits, with bits as `level` suggests them.

    Args:
      place: Numbers, in steps.
      level: The nearest integers.
      price: Of a bit, in units of step^2.
      axis: Along which bits are found, such as 0 for each column of a matrix by itself; by default of all numbers.
    """
    size = tf.abs(place)
    share = 0.5 / tf.cast(tf.size(place) if axis is None else tf.shape(place)[axis], place.dtype)
    for _ in range(2):  # The choice changes the shares that it was made with.
        chosen = tf.abs(level)
        others = tf.reduce_mean(tf.cast(chosen > 0, place.dtype), axis=axis)
        # With magnitudes 1, 2, ... of mean m, P(k + 1) / P(k) = 1 - 1/m. A half counts for what was not seen.
        mean = (tf.reduce_mean(chosen, axis=axis) + 2 * share) / (others + share)
        more = -_log2(1 - 1 / mean)
        first = tf.maximum(_log2((1 - others + share) / (others + share)) + 1 + _log2(mean), 0)  # The sign is a bit.
        nonzero = tf.maximum(tf.math.ceil(size - 0.5 - price / 2 * more), 1)
        spent, saved = first + (nonzero - 1) * more, nonzero * (2 * size - nonzero)
        level = tf.sign(place) * tf.where(saved > price * spent, nonzero, 0)
    return level


def _log2(x: tf.Tensor) -> tf.Tensor:
    return tf.math.log(x) / tf.math.log(tf.constant(2, x.dtype))


def _mean(x: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    mask = tf.cast(where, x.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(x * mask), tf.reduce_sum(mask))
