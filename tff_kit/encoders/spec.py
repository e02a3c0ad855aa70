"""Encoders by name: `identity`, `uniform:8` and the others that `--broadcast` and `--mean` accept.

A SPEC is a name, or a name, a colon and the encoder's argument.
"""

from __future__ import annotations

from typing import Callable, Optional

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.packing import BitpackingStage
from tff_kit.encoders.quantization import UniformQuantizationStage

THRESHOLD = 10_000  # Elements; the seed's. Biases are sensitive to error, and small.

EncoderFactory = Callable[[int], te.core.Encoder]  # From a seed.


class SpecError(ValueError):
    """A SPEC that names no encoder."""


def _identity(argument: Optional[str]) -> EncoderFactory:
    if argument is not None:
        raise ValueError("it takes no argument")
    return lambda seed: te.encoders.identity()


def _tensor_encoding(argument: Optional[str]) -> EncoderFactory:
    # The seed's encoder. Its own quantization stage draws from a stream that no killed run can repeat, hence ours, which
    # has the same levels; the packing, and so every bit that travels, is its own.
    bits = _bits(argument)
    packing, flatten = te.stages.BitpackingEncodingStage, te.stages.FlattenEncodingStage
    return lambda seed: (
        te.core.EncoderComposer(packing(bits))
        .add_parent(UniformQuantizationStage(bits, seed), UniformQuantizationStage.LEVELS_KEY)
        .add_parent(flatten(), flatten.ENCODED_VALUES_KEY)
        .make()
    )


def _uniform(argument: Optional[str]) -> EncoderFactory:
    bits = _bits(argument)
    return lambda seed: (
        te.core.EncoderComposer(BitpackingStage(bits))
        .add_parent(UniformQuantizationStage(bits, seed), UniformQuantizationStage.LEVELS_KEY)
        .make()
    )


def _bits(argument: Optional[str]) -> int:
    if argument is None or not (argument.isascii() and argument.isdecimal()) or int(argument) not in range(1, 17):
        raise ValueError("its argument is the number of bits an element, 1 to 16")
    return int(argument)


_ENCODERS: dict[str, Callable[[Optional[str]], EncoderFactory]] = {
    "identity": _identity,  # Every element as it is.
    "tensor_encoding": _tensor_encoding,  # The seed's: stochastic uniform quantization, 28 of 32 bits used.
    "uniform": _uniform,  # The same quantization, tightly packed.
}


def parse_spec(spec: str) -> EncoderFactory:
    """Returns a function that makes the encoder that `spec` names, from a seed for its random draws.

    Raises:
      SpecError: If `spec` names no encoder. The message lists those there are.
    """
    name, _, argument = spec.partition(":")
    known = ", ".join(_ENCODERS)
    if name not in _ENCODERS:
        raise SpecError(f"Expected an encoder NAME or NAME:ARGUMENT with NAME one of {known}; found {spec!r}.")
    try:
        return _ENCODERS[name](argument if ":" in spec else None)
    except ValueError as error:
        raise SpecError(f"Expected a valid encoder, found {spec!r}. Of {name!r}: {error}. Encoders are {known}.") from None


def build_broadcast_encoder_fn(
    spec: str = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.SimpleEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder that broadcasts it.

    Args:
      spec: The encoder of variables with more than `threshold` elements; the others travel as they are.
      threshold: In elements. 0 encodes all variables.
      seed: For the encoder's random draws.

    Raises:
      SpecError: If `spec` names no encoder.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_simple_encoder)


def build_mean_encoder_fn(
    spec: str = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0
) -> Callable[[tf.TensorSpec], te.core.GatherEncoder]:
    """Returns a function from a variable's `tf.TensorSpec` to the encoder of the clients' updates to it.

    Arguments and errors are those of `build_broadcast_encoder_fn`.
    """
    return _encoder_fn(spec, threshold, seed, te.encoders.as_gather_encoder)


def _encoder_fn(spec: str, threshold: int, seed: int, wrap: Callable) -> Callable:
    make = parse_spec(spec)

    def encoder_fn(value: tf.TensorSpec):
        value = tf.TensorSpec(value.shape, value.dtype)
        if not value.shape.is_fully_defined():
            raise ValueError(f"Expected a variable of fully known shape, found {value}. Encoders are made for one shape.")
        large = value.shape.num_elements() > threshold
        return wrap(make(seed) if large else te.encoders.identity(), value)

    return encoder_fn
