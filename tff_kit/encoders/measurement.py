"""Bits and error of encoders on given tensors, and the least that theory allows.

The error is the normalised mean squared error, |decoded - x|^2 / |x|^2 with sums over all tensors of a client. Of the mean
over clients it is |mean decoded - mean x|^2 over the clients' mean |x|^2, so that independent errors without bias make it
smaller by the number of clients.

Curves are of independent normal numbers of variance 1, in bits a number. C. E. Shannon: Coding Theorems for a Discrete
Source With a Fidelity Criterion. IRE National Convention Record 7, 1959. S. P. Lloyd: Least Squares Quantization in PCM. IEEE
Transactions on Information Theory 28, 1982. What training sends is neither independent nor normal, so an encoder that finds
what it has in common may lie below them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.eden import lloyd_max
from tff_kit.encoders.rate_control import rounded_normal
from tff_kit.encoders.size import payload_bits
from tff_kit.encoders.spec import THRESHOLD, build_broadcast_encoder_fn

Tensors = Sequence[np.ndarray]  # One a variable.


@dataclasses.dataclass(frozen=True)
class Sent:
    """What became of a client's tensors.

    Attributes:
      decoded: The tensors that the receiver has, in the shapes that they had.
      bits: Of the payload, side information included.
      encode_seconds: What encoding took, of all processors together, whatever else the machine did.
      decode_seconds: What decoding took.
    """

    decoded: list[np.ndarray]
    bits: int
    encode_seconds: float
    decode_seconds: float


def send(spec: str, tensors: Tensors, threshold: int = THRESHOLD) -> Sent:
    """Encodes and decodes `tensors`, float32, by the encoder that `spec` names; the first time of a shape also traces graphs."""
    made = [_encoder(spec, threshold, x.shape) for x in tensors]
    constants = [tf.constant(x) for x in tensors]
    began = time.process_time()
    encoded = [encoder.encode(x)[0] for encoder, x in zip(made, constants)]
    between = time.process_time()
    decoded = [encoder.decode(x).numpy() for encoder, x in zip(made, encoded)]
    return Sent(decoded, int(payload_bits(encoded)), between - began, time.process_time() - between)


@functools.cache
def _encoder(spec: str, threshold: int, shape: tuple[int, ...]) -> te.core.SimpleEncoder:
    return build_broadcast_encoder_fn(spec, threshold)(tf.TensorSpec(shape, tf.float32))


def nmse(clients: Sequence[Tensors], decoded: Sequence[Tensors]) -> float:
    """Returns the normalised squared error of the mean over clients; with one client, that of its tensors."""
    means = ([np.mean(x, axis=0, dtype=np.float64) for x in zip(*side)] for side in (clients, decoded))
    error = [y - x for x, y in zip(*means)]
    return squared_norm(error) / float(np.mean([squared_norm(tensors) for tensors in clients]))


def squared_norm(tensors: Tensors) -> float:
    """Returns the sum of all squares, in float64."""
    return sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors)


def shannon(bits: np.ndarray) -> np.ndarray:
    """Returns the least error of any code of so many bits a number, 4^-bits."""
    return 4.0 ** -np.asarray(bits, float)


def shannon_unbiased(bits: np.ndarray) -> np.ndarray:
    """Returns the least error of any unbiased code: the best one's D, scaled up to be unbiased, is D / (1 - D)."""
    return 1 / (4.0 ** np.asarray(bits, float) - 1)


def entropy_coded_uniform() -> tuple[np.ndarray, np.ndarray]:
    """Returns bits and error of multiples of a step, coded by an ideal coder; at high rates 0.25 bits above Shannon."""
    return rounded_normal(tuple(np.geomspace(0.03, 6, 60)))


def fixed_length() -> tuple[np.ndarray, np.ndarray]:
    """Returns bits, 1 to 8, and error of the best quantizers with codes of equal length, Lloyd-Max."""
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-np.square(x) / 2) / np.sum(np.exp(-np.square(x) / 2))
    bits = np.arange(1, 9)
    nearest = [lloyd_max(b)[np.searchsorted((lloyd_max(b)[1:] + lloyd_max(b)[:-1]) / 2, x)] for b in bits.tolist()]
    return bits, np.array([np.sum(np.square(x - q) * density) for q in nearest])
