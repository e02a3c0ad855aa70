"""What the tests of encoding stages share."""

import functools

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit import encoders


class StageTest(te.testing.BaseEncodingStageTest):
    """tensor_encoding's own tests of a stage."""

    is_lossless = False

    def evaluate_tf_py_list(self, fetches, session=None):  # The original compares arrays with (), an error in NumPy 1.25.
        flat = tf.nest.flatten(list(fetches))
        values = iter(self.maybe_evaluate([value for value in flat if tf.is_tensor(value)], session))
        return tf.nest.pack_sequence_as(list(fetches), [next(values) if tf.is_tensor(value) else value for value in flat])


def through(stage, x):
    """Returns `x` encoded and decoded by one stage, and the encoded tensors."""
    encoded = stage.encode(tf.constant(x), {})
    return stage.decode(encoded, {}, shape=np.shape(x)).numpy(), encoded


def round_trip(spec, x, seed=0):
    """Returns `x` encoded and decoded by `spec`, op by op since shapes are many, and the bits of the payload."""
    encoder = encoders.Spec.parse(spec).large.make(seed)
    encoding, decoding = encoder.get_params(encoder.initial_state())
    encoded, _, shapes = encoder.encode(tf.constant(x, tf.float32), encoding)
    return encoder.decode(encoded, decoding, shapes).numpy(), int(encoders.payload_bits(encoded))


@functools.cache
def simple(spec, shape, seed=0, threshold=0):
    """Returns the `SimpleEncoder` of `spec`, a graph as in a federated computation."""
    return encoders.build_broadcast_encoder_fn(spec, threshold, seed)(tf.TensorSpec(shape, tf.float32))


def draws(spec, x, count):
    """Returns `count` independent encodings of `x`, decoded: float64 [count, ...].

    What is encoded differs by a factor near 1, taken out afterwards, since draws depend on the tensor.
    """
    encoder = simple(spec, x.shape)
    factors = (1 + np.arange(count) / 2**16).astype(np.float32)
    return np.stack([encoder.decode(encoder.encode(x * f)[0]).numpy() / np.float64(f) for f in factors])


def normal(*shape, seed=0):
    """Returns standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def squared(x):
    """Returns the sum of squares, in float64."""
    return np.sum(np.square(np.asarray(x, np.float64)))


def entropy(numbers):
    """Returns the empirical entropy in bits a number."""
    shares = np.unique(numbers, return_counts=True)[1] / np.size(numbers)
    return -np.sum(shares * np.log2(shares))


def nmse(decoded, x):
    """Returns the squared error over the squared norm."""
    return squared(np.asarray(decoded, np.float64) - x) / squared(x)


def resembling(clients, size, cosine, seed=0):
    """Returns tensors of unit variance, float32 [clients, size], with this cosine between any two."""
    common, own = normal(size, seed=seed), normal(clients, size, seed=seed + 1)
    return (np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own).astype(np.float32)


def nmse_of_mean(encode, x):
    """Returns the error of the mean of clients [clients, size], over a client's mean squared norm."""
    decoded = np.mean([encode(row).astype(np.float64) for row in x], axis=0)
    return squared(decoded - x.mean(axis=0, dtype=np.float64)) / (squared(x) / len(x))
