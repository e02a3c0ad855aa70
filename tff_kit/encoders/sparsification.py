"""Sparsification: the largest elements of a tensor, or random ones, and where they are.

The largest k of n elements keep as much of the squared norm as any k can; the others are decoded as 0, and the estimate is
biased. Their places are coded as the gaps between them. If all sets of k places are equally likely, no code takes less than
log2 C(n, k) bits, about k log2(e n / k); Golomb-Rice codes of the gaps take a few percent more.

k random elements, multiplied by n / k, are an unbiased estimate with a normalised squared error of n / k - 1 if k divides
n. Their places take no bits but those of a seed: one is drawn in each of k strata of floor or ceil(n / k) neighbours, and
multiplied by the stratum's size, which makes it unbiased for any n and k.

S. U. Stich, J.-B. Cordonnier, M. Jaggi: Sparsified SGD with Memory. NeurIPS 2018, arXiv 1809.07599 (both). J. Konečný, H. B.
McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon: Federated Learning: Strategies for Improving Communication
Efficiency. 2016, arXiv 1610.05492 (random masks from a seed).
"""

from __future__ import annotations

import collections

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import from_rows, spoil, static_size
from tff_kit.encoders.checks import checked
from tff_kit.encoders.seeds import tensor_seed
from tff_kit.encoders.stage import Stage


@te.core.tf_style_encoding_stage
class TopKStage(Stage):
    """Keeps the elements of the largest magnitudes of a float tensor of any shape, known before the graph runs.

    `encode` returns their values in the order in which they stand, [k] in the input's dtype, and the numbers of elements
    between them, int32 [k], for a lossless stage. A tensor with an element that is not finite decodes to elements none of
    which is finite.

    Args:
      fraction: k is this times the elements, rounded, and at least 1. More than 0, at most 1.

    Raises:
      ValueError: If `fraction` is not as above.
    """

    VALUES_KEY = "values"
    GAPS_KEY = "gaps"

    def __init__(self, fraction: float):
        self._fraction = _checked(fraction)

    name = "top_k"
    compressible_tensors_keys = [VALUES_KEY, GAPS_KEY]
    decode_needs_input_shape = True

    def encode(self, x, encode_params):
        del encode_params
        flat = tf.reshape(x, [-1])
        _, places = tf.math.top_k(tf.abs(flat), kept(static_size(x.shape), self._fraction), sorted=False)
        places = tf.sort(places)
        gaps = places - tf.concat([tf.fill([min(1, static_size(places.shape))], -1), places[:-1]], axis=0) - 1
        return collections.OrderedDict([(self.VALUES_KEY, spoil(tf.gather(flat, places), flat)), (self.GAPS_KEY, gaps)])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        gaps, size = tf.cast(encoded_tensors[self.GAPS_KEY], tf.int64), static_size(shape)
        fit = tf.reduce_all((gaps >= 0) & (gaps < size))
        places = tf.cumsum(checked(gaps, fit, f"Expected gaps from 0 to {size - 1}, found others.") + 1) - 1
        last = tf.reduce_sum(places[-1:])
        places = checked(places, last < max(size, 1), f"Expected places up to {size - 1}, found one at {{}}.", last)
        return _scatter(encoded_tensors[self.VALUES_KEY], places, shape)


@te.core.tf_style_encoding_stage
class RandomKStage(Stage):
    """Keeps random elements of a float tensor of any shape, known before the graph runs. Unbiased.

    `encode` returns their values times the sizes of their strata, [k] in the input's dtype, and the seed of their places, 64
    bits. A tensor with an element that is not finite decodes to elements none of which is finite.

    Args:
      fraction: k is this times the elements, rounded, and at least 1. More than 0, at most 1.
      seed: The places are a function of this and the tensor's contents.

    Raises:
      ValueError: If `fraction` is not as above.
    """

    VALUES_KEY = "values"
    SEED_KEY = "seed"

    def __init__(self, fraction: float, seed: int = 0):
        self._fraction = _checked(fraction)
        self._seed = seed

    name = "random_k"
    compressible_tensors_keys = [VALUES_KEY]
    decode_needs_input_shape = True

    def encode(self, x, encode_params):
        del encode_params
        flat, seed, size = tf.reshape(x, [-1]), tensor_seed(x, self._seed), static_size(x.shape)
        places, strata = _draw(size, kept(size, self._fraction), seed)
        values = tf.gather(flat, places) * tf.cast(strata, x.dtype)
        return collections.OrderedDict([(self.VALUES_KEY, spoil(values, flat)), (self.SEED_KEY, seed)])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        size = static_size(shape)
        places, _ = _draw(size, kept(size, self._fraction), encoded_tensors[self.SEED_KEY])
        return _scatter(encoded_tensors[self.VALUES_KEY], places, shape)


def kept(size: int, fraction: float) -> int:
    """Returns k for `size` elements."""
    return min(size, max(1, round(fraction * size)))


def _checked(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"Expected a fraction of more than 0 and at most 1, found {fraction}.")
    return fraction


def _draw(size: int, count: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns one place in each of `count` strata of `size` elements, and the strata's sizes, int64 [count]."""
    ends = tf.range(count + 1, dtype=tf.int64) * size // max(count, 1)
    strata = ends[1:] - ends[:-1]
    # 2^31 has so many multiples of a stratum's size that the rest doesn't matter.
    draw = tf.random.stateless_uniform([count], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    return ends[:-1] + (tf.cast(draw, tf.int64) + 2**31) % tf.maximum(strata, 1), strata


def _scatter(values: tf.Tensor, places: tf.Tensor, shape) -> tf.Tensor:
    nothing = spoil(tf.zeros([static_size(shape)], values.dtype), values)
    return from_rows(tf.tensor_scatter_nd_update(nothing, places[:, tf.newaxis], values), shape)
