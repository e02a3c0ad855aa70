"""Tensors to bytes and back: what the two ends of a real link call, with TensorFlow alone.

The steps, and so the bits, are those of the simulation (`collectives.py`); the bytes between them are `message.py`'s. The
graphs are built once, when a codec is made. Both ends make it of the same specs, SPEC and threshold.

    codec = BroadcastCodec(specs, "uniform:8")                        # On both sides.
    sent = codec.encode(weights, codec.initial_state())               # On the server, which keeps sent.state.
    received = codec.decode(sent.payload)                             # On a client.

    codec = MeanCodec(specs, "uniform:8")                             # On both sides.
    state = codec.initial_state()                                     # On the server.
    params = codec.params(state)                                      # Bytes that go to the clients with the model.
    sent = codec.encode(update, examples, params)                     # On a client.
    total = codec.merge(total, codec.decode(sent.payload))            # On the server; it begins with codec.zero().
    state, mean, measurements = codec.finish(state, params, total, all_examples)
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Callable, Union

import tensorflow as tf

from tff_kit.encoders.collectives import EncodedBroadcast, EncodedSum
from tff_kit.encoders.message import Layout, PayloadError, describe
from tff_kit.encoders.size import payload_bits
from tff_kit.encoders.spec import THRESHOLD, Spec, build_broadcast_encoder_fn, build_mean_encoder_fn


@dataclasses.dataclass(frozen=True)
class SentBroadcast:
    """What a server sends to each client.

    Attributes:
      payload: The message's bytes.
      state: The codec's state for the next round.
      bits: Of the encoded tensors, side information included; `payload` has 9 bytes more, and a few for sizes.
      distortion: Squared error of the encoding over the squared norm of what was encoded.
    """

    payload: bytes
    state: Any
    bits: int
    distortion: float


@dataclasses.dataclass(frozen=True)
class SentUpdate:
    """What a client sends to the server.

    Attributes:
      payload: The message's bytes.
      bits: Of the encoded tensors, side information included. `payload` has 17 bytes more, and a few for sizes: the header,
        and the encoding's squared error and norm.
    """

    payload: bytes
    bits: int


class BroadcastCodec:
    """The model's way to the clients as bytes.

    Args:
      specs: A nested structure of the variables' `tf.TensorSpec`s, of fully known shapes.
      spec: The SPEC, as of `build_broadcast_encoder_fn`.
      threshold: In elements, likewise.
      seed: For random draws. Only the sender's counts.
      error_feedback: Whether to add what the last encoding lost. Only the sender's counts.

    Raises:
      SpecError: If `spec` names no encoder.
      ValueError: If a shape is not fully known.
    """

    def __init__(
        self,
        specs: Any,
        spec: Union[str, Spec] = "tensor_encoding:8",
        threshold: int = THRESHOLD,
        seed: int = 0,
        error_feedback: bool = False,
    ):
        self._specs = _plain(specs)
        flat = tf.nest.flatten(self._specs)
        steps = EncodedBroadcast(flat, build_broadcast_encoder_fn(spec, threshold, seed), error_feedback)
        self._initial_state = steps.initial_state
        self._encode, (_, encoded_specs, _) = _graph(steps.encode, _specs_of(steps.initial_state()), flat)
        self._decode, _ = _graph(_with_finite(steps.decode), encoded_specs)
        self.layout = Layout(encoded_specs, f"broadcast by {Spec.parse(spec)}", _context(threshold, flat))

    def initial_state(self) -> Any:
        """Returns the encoders' state before the first round: a nested structure of tensors, on the server."""
        return self._initial_state()

    def encode(self, values: Any, state: Any) -> SentBroadcast:
        """Encodes `values`, of the specs' structure, shapes and dtypes."""
        state, encoded, measured = self._encode(state, _flat(values, self._specs))
        bits, distortion = int(measured["bits_per_client"]), float(measured["distortion"])
        return SentBroadcast(self.layout.pack(encoded), state, bits, distortion)

    def decode(self, payload: bytes) -> Any:
        """Returns the values that `payload` holds, in the specs' structure.

        Raises:
          PayloadError: If it holds none, or numbers that are not finite.
        """
        values = _checked(self._decode, self.layout, payload)
        return tf.nest.pack_sequence_as(self._specs, values)


class MeanCodec:
    """The clients' updates on their way to the server as bytes, and their weighted mean.

    Args:
      specs: A nested structure of the trainable variables' `tf.TensorSpec`s, of fully known shapes.
      spec: The SPEC, as of `build_mean_encoder_fn`.
      threshold: In elements, likewise.
      seed: For random draws. Only the sender's counts.

    Raises:
      SpecError: If `spec` names no encoder.
      ValueError: If a shape is not fully known.
    """

    def __init__(self, specs: Any, spec: Union[str, Spec] = "tensor_encoding:8", threshold: int = THRESHOLD, seed: int = 0):
        self._specs = _plain(specs)
        flat = tf.nest.flatten(self._specs)
        self._steps = steps = EncodedSum(flat, build_mean_encoder_fn(spec, threshold, seed))
        state_specs, weight_spec = _specs_of(steps.initial_state()), tf.TensorSpec([], tf.float32)
        self._params, params_specs = _graph(steps.params, state_specs)
        self._encode, (message_specs, _) = _graph(_weighted(steps.encode), flat, weight_spec, params_specs)
        self._decode, (self._part_specs, _) = _graph(_with_finite(steps.decode), message_specs)
        total_specs = steps.total_specs(self._part_specs)
        self._merge, _ = _graph(steps.merge, total_specs, total_specs)
        self._finish, _ = _graph(_divided(steps.finish), state_specs, params_specs, total_specs, weight_spec)
        context = _context(threshold, flat)
        self.params_layout = Layout(params_specs, f"message of parameters by {Spec.parse(spec)}", context)
        self.layout = Layout(message_specs, f"update by {Spec.parse(spec)}", context)

    def initial_state(self) -> Any:
        """Returns the encoders' state before the first round: a nested structure of tensors, on the server."""
        return self._steps.initial_state()

    def params(self, state: Any) -> bytes:
        """Returns what the clients need to encode, and the server to decode, in this round."""
        return self.params_layout.pack(self._params(state))

    def encode(self, values: Any, weight: float, params: bytes) -> SentUpdate:
        """Encodes `weight` times `values`, which have the specs' structure, shapes and dtypes.

        Raises:
          PayloadError: If `params` are not those of this codec.
        """
        params = self.params_layout.unpack(params)
        message, bits = self._encode(_flat(values, self._specs), _float32(weight), params)
        return SentUpdate(self.layout.pack(message), int(bits))

    def decode(self, payload: bytes) -> Any:
        """Returns a client's part of the sum.

        Raises:
          PayloadError: If `payload` holds none, or numbers that are not finite.
        """
        return _checked(self._decode, self.layout, payload)

    def zero(self) -> Any:
        """Returns the sum of no client."""
        return self._steps.zero(self._part_specs)

    def merge(self, a: Any, b: Any) -> Any:
        """Returns the sum of two sums."""
        return self._merge(a, b)

    def finish(self, state: Any, params: bytes, total: Any, weight: float) -> tuple[Any, Any, dict[str, float]]:
        """Returns the next state, the mean, and what was measured.

        Args:
          state: That before the round.
          params: Those that `params` made of it.
          total: The sum over clients.
          weight: The sum of the clients' weights.

        Returns:
          The next state; `total` divided by `weight`, in the specs' structure; `bits_per_client` and `distortion`.
        """
        params = self.params_layout.unpack(params)
        state, mean, measured = self._finish(state, params, total, _float32(weight))
        return state, tf.nest.pack_sequence_as(self._specs, mean), {key: float(value) for key, value in measured.items()}


def _graph(function: Callable, *signature: Any) -> tuple[Callable, Any]:
    """Returns `function` as a graph of tensors of this signature, and the `tf.TensorSpec`s of what it returns."""
    made = tf.function(function, input_signature=signature, autograph=False)
    with _without_grappler():
        returned = _specs_of(made.get_concrete_function().structured_outputs)

    def call(*tensors):
        with _without_grappler():
            return made(*tensors)

    return call, returned


@contextlib.contextmanager
def _without_grappler() -> Iterator[None]:
    """Leaves out TensorFlow's optimizer of graphs: a first encoding takes several times as long with it, a later one as long."""
    chosen = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": chosen})


def _weighted(encode: Callable) -> Callable:
    def encode_weighted(values, weight, params):
        message = encode([x * tf.cast(weight, x.dtype) for x in values], params)
        return message, tf.cast(payload_bits(message[0]), tf.int64)

    return encode_weighted


def _divided(finish: Callable) -> Callable:
    def finish_mean(state, params, total, weight):
        state, sums, measurements = finish(state, params, total)
        return state, [tf.math.divide_no_nan(x, tf.cast(weight, x.dtype)) for x in sums], measurements

    return finish_mean


def _with_finite(decode: Callable) -> Callable:
    def decode_and_look(encoded):
        decoded = decode(encoded)
        numbers = [x for x in tf.nest.flatten(decoded) if x.dtype.is_floating]
        return decoded, tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in numbers])

    return decode_and_look


def _checked(decode: Callable, layout: Layout, payload: bytes) -> Any:
    """Returns what `payload` decodes to; a PayloadError if it can't be decoded or is not finite."""
    try:
        decoded, finite = decode(layout.unpack(payload))
    except tf.errors.OpError as error:
        raise PayloadError(f"Expected a {layout.label} that can be decoded, found: {_reason(error)}") from None
    if not finite:
        raise PayloadError(f"Expected a {layout.label} of finite numbers, found one with NaN or infinity.")
    return decoded


def _reason(error: tf.errors.OpError) -> str:
    """Returns the sentence of a check (`checks.py`), or the first line of what TensorFlow says."""
    message = error.message or type(error).__name__
    sentence = re.search(r"assertion failed: \[(.*?)\]", message)
    return sentence[1] if sentence else message.partition("\n")[0]


def _context(threshold: int, specs: list[tf.TensorSpec]) -> list[str]:
    """Returns what both sides have to agree on beside the SPEC."""
    return [f"threshold {threshold}", *map(describe, specs), ""]


def _plain(specs: Any) -> Any:
    """Returns `specs` without names, which would be asked of tensors too."""
    return tf.nest.map_structure(lambda spec: tf.TensorSpec(spec.shape, spec.dtype), specs)


def _specs_of(tensors: Any) -> Any:
    return tf.nest.map_structure(tf.TensorSpec.from_tensor, tensors)


def _flat(values: Any, specs: Any) -> list[tf.Tensor]:
    tf.nest.assert_same_structure(specs, values)
    return [tf.convert_to_tensor(x, spec.dtype) for x, spec in zip(tf.nest.flatten(values), tf.nest.flatten(specs))]


def _float32(number: float) -> tf.Tensor:
    return tf.constant(number, tf.float32)
