"""EDEN, and at one bit DRIVE: rotated coordinates rounded to what is best for a normal distribution, without bias.

Each block y of a rotated tensor is divided by its root mean square and rounded to centroids Q(y); the decoder multiplies
them with the block's scale, one float32. With the scale S = |y|^2 / <y, Q(y)> the estimate is unbiased: a uniformly random
rotation R leaves E[R^-1 f(R x)] = x E<R x, f(R x)> / |x|^2 for any f, and S makes the product <y, S Q(y)> the norm |y|^2.
That holds for each block with its own scale, also where the blocks of a rotation overlap. The rotation here is random
Hadamard, not uniform; the tests show what remains.

A rate of b bits between whole numbers gives the first coordinates of each block the next higher number of bits and the
others the lower one; below 1 the others get none and are decoded as 0, a random sparsification, since what the first
coordinates of a rotation are is random. If share p has h bits and the rest l, and D_h is the distortion of the Lloyd-Max
quantizer of h bits for the normal distribution (D_0 = 1), then the normalised squared error is 1 / c - 1 with
c = p (1 - D_h) + (1 - p) (1 - D_l): pi/2 - 1 = .571 at one bit, .133 at two, .036 at three. With the scale
<y, Q(y)> / |Q(y)|^2 it is 1 - c instead, the least there is, and the estimate biased towards 0.

S. Vargaftik, R. Ben Basat, A. Portnoy, G. Mendelson, Y. Ben-Itzhak, M. Mitzenmacher: EDEN: Communication-Efficient and
Robust Distributed Mean Estimation for Federated Learning. ICML 2022, arXiv 2108.08842. The same authors: DRIVE: One-bit
Distributed Mean Estimation. NeurIPS 2021, arXiv 2105.08339. S. P. Lloyd: Least Squares Quantization in PCM. IEEE
Transactions on Information Theory 28, 1982.
"""

from __future__ import annotations

import collections
import functools
import math
import statistics

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import from_rows, spoil, static_size, to_rows
from tff_kit.encoders.checks import checked
from tff_kit.encoders.rotation import BLOCK, fitting
from tff_kit.encoders.stage import Stage

_MOST_BITS = 8


@te.core.tf_style_encoding_stage
class EdenStage(Stage):
    """Rounds a float tensor, rotated by a `RotationStage` of the same block, to the normal distribution's centroids.

    `encode` returns the centroids' numbers, 0 to 2^h - 1 in the input's dtype, of the coordinates that have h bits; those
    of the others, 0 to 2^l - 1, where there are such; and a scale a block. With n elements, blocks of d and m = the part of
    d that has h bits, `sizes` tells how many there are of each. A block should keep tens of coordinates: of only a few, an
    unbiased scale has to multiply what by chance is small by a lot. A tensor with an element that is not finite decodes to
    elements none of which is finite.

    Args:
      rate: Bits an element, more than 0, at most 8, scales and seed not included.
      block: That of the rotation.
      unbiased: Which of the two scales, above.

    Raises:
      ValueError: If `rate` is not as above.
    """

    CODES_KEY = "codes"
    COARSE_CODES_KEY = "codes_coarse"
    SCALES_KEY = "scales"

    def __init__(self, rate: float, block: int = BLOCK, unbiased: bool = True):
        if not 0 < rate <= _MOST_BITS:
            raise ValueError(f"Expected a rate of more than 0 and at most {_MOST_BITS} bits, found {rate}.")
        self.bits = math.ceil(rate)
        self.coarse_bits = self.bits - 1 if rate < self.bits else 0  # Of the others, if any.
        self._share = 1 - (self.bits - rate)
        self._block = block
        self._unbiased = unbiased

    name = "eden"
    compressible_tensors_keys = [CODES_KEY, COARSE_CODES_KEY]
    decode_needs_input_shape = True

    def sizes(self, size: int) -> tuple[int, int]:
        """Returns how many of `size` elements have `bits` and how many `coarse_bits`; the others have none."""
        block = fitting(self._block, size)
        fine = self._fine(block)
        count = size // block * fine + min(size % block, fine)
        return count, size - count if self.coarse_bits else 0

    def _fine(self, block: int) -> int:
        return min(block, math.ceil(block * self._share - 1e-9))

    def encode(self, x, encode_params):
        del encode_params
        size = static_size(x.shape)
        block = fitting(self._block, size)
        fine, (count, coarse_count) = self._fine(block), self.sizes(size)
        rows = to_rows(x, block, fill=0)
        largest = tf.reduce_max(tf.abs(rows), axis=1, keepdims=True)
        rows = tf.math.divide_no_nan(rows, largest)  # Squares neither overflow nor vanish.
        energy = tf.reduce_sum(tf.square(rows), axis=1, keepdims=True)
        elements = tf.constant(np.minimum(block, size - np.arange(0, size, block))[:, np.newaxis], x.dtype)
        normal = rows * tf.math.divide_no_nan(tf.ones([], x.dtype), tf.sqrt(energy / elements))
        codes = _nearest(normal[:, :fine], self.bits)
        coarse = _nearest(normal[:, fine:], self.coarse_bits)
        rounded = self._centroids(codes, coarse, block, x.dtype)
        product = tf.reduce_sum(rows * rounded, axis=1, keepdims=True)
        if self._unbiased:
            scale = tf.math.divide_no_nan(energy, product)
        else:
            rounded = to_rows(from_rows(rounded, [size]), block, fill=0)
            scale = tf.math.divide_no_nan(product, tf.reduce_sum(tf.square(rounded), axis=1, keepdims=True))
        scales = tf.squeeze(spoil(scale * largest, largest), axis=1)
        encoded = collections.OrderedDict([(self.CODES_KEY, tf.cast(tf.reshape(codes, [-1])[:count], x.dtype))])
        if self.coarse_bits:
            encoded[self.COARSE_CODES_KEY] = tf.cast(tf.reshape(coarse, [-1])[:coarse_count], x.dtype)
        encoded[self.SCALES_KEY] = scales
        return encoded

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        size = static_size(shape)
        block = fitting(self._block, size)
        fine = self._fine(block)
        codes = tf.cast(encoded_tensors[self.CODES_KEY], tf.int32)
        fit = tf.reduce_all((codes >= 0) & (codes < 2**self.bits))  # Packed ones are; a coder's may not be.
        codes = checked(codes, fit, f"Expected codes from 0 to {2**self.bits - 1}, found others.")
        coarse = encoded_tensors.get(self.COARSE_CODES_KEY)
        scales = encoded_tensors[self.SCALES_KEY][:, tf.newaxis]
        rows = -(-size // block)
        coarse = tf.zeros([rows * (block - fine)], tf.int32) if coarse is None else tf.cast(coarse, tf.int32)
        codes, coarse = (
            tf.reshape(tf.pad(c, [[0, rows * width - static_size(c.shape)]]), [rows, width])
            for c, width in ((codes, fine), (coarse, block - fine))
        )
        return from_rows(self._centroids(codes, coarse, block, scales.dtype) * scales, shape)

    def _centroids(self, codes: tf.Tensor, coarse: tf.Tensor, block: int, dtype: tf.DType) -> tf.Tensor:
        """Returns the centroids, [rows, block], of the codes of the first and of the other coordinates."""
        others = block - self._fine(block)
        fine = _points(codes, self.bits, dtype)
        if not self.coarse_bits:
            return tf.pad(fine, [[0, 0], [0, others]]) if others else fine
        return tf.concat([fine, _points(coarse, self.coarse_bits, dtype)], axis=1)


def _nearest(normal: tf.Tensor, bits: int) -> tf.Tensor:
    """Returns the numbers of the nearest centroids, int32."""
    if bits == 0:
        return tf.zeros(tf.shape(normal), tf.int32)
    if bits == 1:
        return tf.cast(normal >= 0, tf.int32)
    thresholds = (lloyd_max(bits)[1:] + lloyd_max(bits)[:-1]) / 2
    if bits <= 4:  # Faster than searching for so few.
        return tf.add_n([tf.cast(normal > threshold, tf.int32) for threshold in thresholds])
    return tf.raw_ops.Bucketize(input=normal, boundaries=thresholds.tolist())


def _points(codes: tf.Tensor, bits: int, dtype: tf.DType) -> tf.Tensor:
    """Returns the centroids with the numbers `codes`, int32."""
    points = lloyd_max(bits)
    if bits == 1:  # Much faster than looking up one of two.
        return (2 * tf.cast(codes, dtype) - 1) * points[1]
    return tf.gather(tf.constant(points, dtype), codes)


@functools.cache
def lloyd_max(bits: int) -> np.ndarray:
    """Returns the 2^bits points that represent a standard normal number with the least mean squared error, ascending.

    Lloyd's algorithm: thresholds halfway between points, points at the means of the distribution between thresholds. It
    starts from the density of points that is best for many bits, that of a normal distribution of variance 3.
    """
    count = 2**bits
    if count == 1:
        return np.zeros(1)
    start = statistics.NormalDist(sigma=math.sqrt(3))
    points = np.array([start.inv_cdf((i + 0.5) / count) for i in range(count // 2, count)])  # Those above 0.
    for _ in range(300):
        thresholds = np.array([0, *(points[1:] + points[:-1]) / 2, np.inf])
        density = np.exp(-np.square(thresholds) / 2) / math.sqrt(2 * math.pi)
        above = np.array([math.erfc(t / math.sqrt(2)) / 2 for t in thresholds])
        points = np.diff(density) / np.diff(above)
    return np.concatenate([-points[::-1], points])
