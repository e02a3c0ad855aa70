"""Randomized Hadamard rotation in blocks: whatever a tensor looks like, its coordinates come to look Gaussian.

A block of d = 2^m elements is multiplied by random signs and by the orthonormal Hadamard matrix, twice. It keeps its norm,
and each of its coordinates becomes a sum of all d elements with random signs. That bounds the range that a uniform
quantizer has to cover, and gives a quantizer for the normal distribution the source it is made for. Once is what is mostly
done, and enough for dense blocks; a block with two elements that are not zero would come out with four values only.

Nothing is padded. n elements are floor(n / d) blocks, and where something is left over, the last d elements, those of
rotated blocks included, are rotated once more. For n < d, d is the largest power of two that n allows. A product of
orthogonal maps is orthogonal, and n elements stay n coordinates. The order in which they come makes blocks of d: full
blocks that were rotated as one whole each, then those coordinates that a block gave to no second rotation.

A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan: Distributed Mean Estimation with Limited Communication. ICML 2017, arXiv
1611.00429. With uniform quantization to k levels of n rotated coordinates the normalised squared error is at most
(2 ln n + 2) / (k - 1)^2 with stochastic rounding, instead of the n / (2 (k - 1)^2) without rotation.
"""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.blocks import from_rows, static_size
from tff_kit.encoders.seeds import tensor_seed
from tff_kit.encoders.stage import Stage

BLOCK = 4096  # A float32 of side information for as many elements is 1/128 bit each; two products with 64 x 64.
_BYTES = ((np.arange(256)[:, np.newaxis] >> np.arange(8)) & 1) * 2 - 1  # The eight signs that a byte stands for.


@te.core.tf_style_encoding_stage
class RotationStage(Stage):
    """Rotates a float tensor of any shape, known before the graph runs, to coordinates of shape [elements].

    The signs are drawn from a seed of 64 bits that travels. It is made of the tensor's contents, so that clients rotate
    independently and the error of their mean falls with their number, also where their tensors resemble each other.

    Args:
      block: Elements that are rotated together, a power of two.
      seed: Other seeds make other rotations of the same tensor.

    Raises:
      ValueError: If `block` is not a power of two.
    """

    ROTATED_KEY = "rotated"
    SEED_KEY = "seed"

    def __init__(self, block: int = BLOCK, seed: int = 0):
        if block < 1 or block & (block - 1):
            raise ValueError(f"Expected block to be a power of two, found {block}.")
        self._block = block
        self._seed = seed

    name = "rotation"
    compressible_tensors_keys = [ROTATED_KEY]
    decode_needs_input_shape = True

    def encode(self, x, encode_params):
        del encode_params
        seed = tensor_seed(x, self._seed)
        size = static_size(x.shape)
        block = fitting(self._block, size)
        (whole, rest), head = _parts(size, block), tf.reshape(x, [-1])
        head, tail = head[:whole], head[whole:]
        head = rotate(head, block, seed, salt=0)
        if rest:
            # The last block again, with what is left over in the place of its beginning, which moves to the end.
            last = rotate(tf.concat([head[whole - block + rest :], tail], axis=0), block, seed, salt=1)
            head = tf.concat([head[: whole - block], last, head[whole - block : whole - block + rest]], axis=0)
        return collections.OrderedDict([(self.ROTATED_KEY, head), (self.SEED_KEY, seed)])

    def decode(self, encoded_tensors, decode_params, num_summands=None, shape=None):
        del decode_params, num_summands
        rotated, seed = encoded_tensors[self.ROTATED_KEY], encoded_tensors[self.SEED_KEY]
        size = static_size(shape)
        block = fitting(self._block, size)
        whole, rest = _parts(size, block)
        head, tail = rotated[:whole], rotated[whole:]
        if rest:
            last = rotate_back(head[whole - block :], block, seed, salt=1)
            head = tf.concat([head[: whole - block], tail, last[: block - rest]], axis=0)
            tail = last[block - rest :]
        return from_rows(tf.concat([rotate_back(head, block, seed, salt=0), tail], axis=0), shape)


def fitting(block: int, size: int) -> int:
    """Returns the largest power of two that is at most `block`, itself one, and at most `size`; 1 for no elements."""
    return min(block, 1 << max(size.bit_length() - 1, 0))


def rotate(x: tf.Tensor, block: int, seed: tf.Tensor, salt: int) -> tf.Tensor:
    """Rotates float [n], with n a multiple of `block`, in blocks; by `seed`, int32 [2], and `salt`."""
    for turn in range(2):
        x = hadamard(x * _signs(x, seed, 2 * salt + turn), block)
    return x


def rotate_back(x: tf.Tensor, block: int, seed: tf.Tensor, salt: int) -> tf.Tensor:
    """Undoes `rotate`."""
    for turn in (1, 0):
        x = hadamard(x, block) * _signs(x, seed, 2 * salt + turn)
    return x


def hadamard(x: tf.Tensor, block: int) -> tf.Tensor:
    """Multiplies each `block`, 2^m elements, of float [n] by the orthonormal Hadamard matrix, which is its own inverse.

    That matrix is the Kronecker product of two of about the square root of its size: two products with small matrices,
    2 sqrt(block) multiplications an element, which matrix units do faster than the m passes of the usual algorithm.
    """
    rows = 1 << (block.bit_length() - 1) // 2
    columns = block // rows
    x = tf.reshape(tf.matmul(tf.reshape(x, [-1, columns]), _matrix(columns, x.dtype)), [-1, rows, columns])
    return tf.reshape(tf.matmul(_matrix(rows, x.dtype), x), [-1])


def _matrix(size: int, dtype: tf.DType) -> tf.Tensor:
    matrix = np.ones([1, 1])
    while len(matrix) < size:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return tf.constant(matrix / np.sqrt(size), dtype)


def _signs(like: tf.Tensor, seed: tf.Tensor, salt: int) -> tf.Tensor:
    """Returns -1s and 1s, as many as `like` has elements: a function of `seed` and `salt` on any device."""
    size = static_size(like.shape)
    seed = tf.bitwise.bitwise_xor(seed, tf.constant([salt, 0], tf.int32))
    words = tf.random.stateless_uniform([-(-size // 32)], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    eights = tf.cast(tf.reshape(tf.bitcast(words, tf.uint8), [-1]), tf.int32)
    return tf.reshape(tf.gather(tf.constant(_BYTES, like.dtype), eights), [-1])[:size]


def _parts(size: int, block: int) -> tuple[int, int]:
    """Returns how many elements full blocks have, and how many are left over."""
    return size - size % block, size % block
