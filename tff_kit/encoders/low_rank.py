"""Low rank: a matrix m x n as the product of two factors, (m + n) k numbers instead of m n.

What a client learns in a few steps from a few dozen examples has few directions, and the change since the initial weights is
a sum of such. The error of the best approximation of rank k is the sum of the squares of the singular values behind the k-th;
here these are found by subspace iteration from a random start, whose expected error is little more.

T. Vogels, S. P. Karimireddy, M. Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization. NeurIPS
2019, arXiv 1905.13727. J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon: Federated Learning:
Strategies for Improving Communication Efficiency. 2016, arXiv 1610.05492 (structured updates). N. Halko, P.-G. Martinsson,
J. A. Tropp: Finding Structure with Randomness. SIAM Review 53, 2011, arXiv 0909.4061, theorem 10.6 and corollary 10.10.
"""

from __future__ import annotations

import collections
import math
from typing import Optional

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import spoil, static_size
from tff_kit.encoders.stage import Stage

_ITERATIONS = 2
_LARGEST_EXPONENT = 10  # Of numbers from 2^-20 to 2^20 a float32 holds the fourth powers that eigenvalues square to.
_MORE = 4  # Directions that are followed beyond the rank, and then dropped.


@te.core.tf_style_encoding_stage
class LowRankStage(Stage):
    """Approximates a float tensor, seen as a matrix, by one of low rank. Biased: what is left out is lost.

    `encode` returns the two factors A [m, k] and B [n, k], whose product A B^T is the approximation, one below the other,
    [m + n, k]. Both columns of a component have the same norm, the root of its singular value, so that an equal error in
    any element costs about the same. A tensor of which the factors would have no fewer elements is returned as it is. A
    tensor with an element that is not finite decodes to elements none of which is finite.

    Args:
      rank: k, at least 1.
      rows: m. By default all dimensions but the last; of a vector there is then nothing to gain.

    Raises:
      ValueError: If an argument is less than 1, or on encoding, if the shape is not fully known or has not as many elements
        as `rows` or a multiple.
    """

    FACTORS_KEY = "factors"

    def __init__(self, rank: int, rows: Optional[int] = None):
        if rank < 1:
            raise ValueError(f"Expected rank to be at least 1, found {rank}.")
        if rows is not None and rows < 1:
            raise ValueError(f"Expected rows to be at least 1, found {rows}.")
        self._rank = rank
        self._rows = rows

    name = "low_rank"
    compressible_tensors_keys = [FACTORS_KEY]
    decode_needs_input_shape = True

    def encode(self, x, encode_params):
        del encode_params
        m, n = self._matrix_shape(x.shape)
        if not self._pays(m, n):
            return collections.OrderedDict([(self.FACTORS_KEY, tf.identity(x))])
        finite = tf.where(tf.math.is_finite(x), x, tf.zeros([], x.dtype))  # The decompositions can't be trusted with others.
        a, b = _factors(tf.reshape(finite, [m, n]), min(self._rank, m, n))
        return collections.OrderedDict([(self.FACTORS_KEY, spoil(tf.concat([a, b], axis=0), x))])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        factors = encoded_tensors[self.FACTORS_KEY]
        static = tf.get_static_value(shape)
        m, n = self._matrix_shape(tf.TensorShape(static.astype(int)) if static is not None else shape)
        if not self._pays(m, n):
            return factors
        return tf.reshape(tf.matmul(factors[:m], factors[m:], transpose_b=True), tf.cast(shape, tf.int32))

    def _matrix_shape(self, shape) -> tuple[int, int]:
        size = static_size(shape)
        if not size:
            return 0, 0
        rows = self._rows or (size // int(shape[-1]) if len(shape) > 1 else size)
        if size % rows:
            raise ValueError(f"Expected a tensor that makes a matrix of {rows} rows, found shape {shape}.")
        return rows, size // rows

    def _pays(self, m: int, n: int) -> bool:
        return (m + n) * min(self._rank, m, n) < m * n


def _factors(matrix: tf.Tensor, rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns A [m, rank] and B [n, rank], whose columns are the singular vectors times the root of their singular value."""
    root_of_unit = _root_of_unit(tf.reduce_max(tf.abs(matrix)))
    left, right, singular = _leading(matrix / root_of_unit / root_of_unit, rank)
    root = tf.sqrt(singular)
    return tf.math.divide_no_nan(left, root) * root_of_unit, right * root * root_of_unit


def components(matrix: tf.Tensor, rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns [m, rank] and [n, rank], whose columns are about the first singular vectors, each times its singular value.

    Args:
      matrix: [m, n], in a unit in which fourth powers of its singular values are in the dtype's range.
      rank: At most m and n.
    """
    left, right, singular = _leading(matrix, rank)
    return left, right * singular


def _leading(matrix: tf.Tensor, rank: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns left singular vectors times their values [m, rank], right ones [n, rank] and the values [rank], largest first."""
    n = matrix.shape[1]
    start = np.random.default_rng(0).standard_normal([n, min(rank + _MORE, *matrix.shape)])
    right = tf.constant(start, matrix.dtype)
    for _ in range(_ITERATIONS):
        left, _ = tf.linalg.qr(tf.matmul(matrix, right))
        right, _ = tf.linalg.qr(tf.matmul(matrix, left, transpose_a=True))
    image = tf.matmul(matrix, right)
    # Its singular values are the roots of a small matrix's eigenvalues, which come in rising order.
    eigenvalues, rotation = tf.linalg.eigh(tf.matmul(image, image, transpose_a=True))
    rotation = tf.reverse(rotation, [1])[:, :rank]
    singular = tf.sqrt(tf.maximum(tf.reverse(eigenvalues, [0])[:rank], 0))
    return tf.matmul(image, rotation), tf.matmul(right, rotation), singular


def _root_of_unit(largest: tf.Tensor) -> tf.Tensor:
    """Returns 1 for a matrix whose products neither overflow nor vanish, else the root of a unit in which it is such a one.

    It is a power of two, with which a division is exact.
    """
    exponent = tf.round(tf.math.log(tf.maximum(largest, largest.dtype.as_numpy_dtype(1e-30))) / math.log(2) / 2)
    return tf.where(tf.abs(exponent) > _LARGEST_EXPONENT, tf.pow(tf.constant(2, largest.dtype), exponent), 1)
