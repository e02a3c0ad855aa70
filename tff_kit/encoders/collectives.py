"""An encoded broadcast and an encoded sum, as steps that TensorFlow runs.

A simulation runs these steps as TFF's computations, a deployment through `codec.py` with bytes between them. Each step is a
function of tensors, without side effects: on the server, on a client, or between two partial sums. The encoders' state lives
on the server.
"""

from __future__ import annotations

import collections
from typing import Any, Callable

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te

from tff_kit.encoders.joined import Joined
from tff_kit.encoders.size import payload_bits

_Modes = te.core.StateAggregationMode


class EncodedBroadcast:
    """The steps of a broadcast: the server encodes once, every client decodes the same payload.

    Args:
      specs: A nested structure of the variables' `tf.TensorSpec`s.
      encoder_fn: Returns the `SimpleEncoder` of a variable, given its `tf.TensorSpec`.
      error_feedback: Whether to add what the last encoding lost.

    Raises:
      TypeError: If `encoder_fn` returns something else than a `SimpleEncoder`.
    """

    def __init__(self, specs: Any, encoder_fn: Callable[[tf.TensorSpec], te.core.SimpleEncoder], error_feedback: bool = False):
        self._joined = make_encoders(encoder_fn, specs, te.core.SimpleEncoder)
        self._encoders = self._joined.encoders
        self._error_feedback = error_feedback

    def initial_state(self):
        """The encoders' states, and what the last encoding lost."""
        lost = tuple(tf.zeros(spec.shape, spec.dtype) for spec in self._joined.specs) if self._error_feedback else ()
        return tuple(encoder.initial_state() for encoder in self._encoders), lost

    def encode(self, state, values):
        """The new state, the payload of all clients, and the measurements; of a flat list of values."""
        encoder_states, lost = state
        values = self._joined.join(values)
        if self._error_feedback:
            values = [x + y if x.dtype.is_floating else x for x, y in zip(values, lost)]
        outputs = [e.encode(x, s) for e, x, s in zip(self._encoders, values, encoder_states)]
        encoded = tuple(output[0] for output in outputs)
        decoded = self._decode(encoded)
        measurements = collections.OrderedDict(
            bits_per_client=tf.cast(payload_bits(encoded), tf.float64),
            distortion=_normalised(_squared_error_and_norm(values, decoded)),
        )
        if self._error_feedback:
            lost = tuple(x - y if x.dtype.is_floating else y for x, y in zip(values, decoded))
        return (tuple(output[1] for output in outputs), lost), encoded, measurements

    def decode(self, encoded):
        """The flat list of values that a client receives."""
        return self._joined.split(self._decode(encoded))

    def _decode(self, encoded):
        return [encoder.decode(x) for encoder, x in zip(self._encoders, encoded)]


class EncodedSum:
    """The steps of an encoded sum over clients.

    A client's message decodes to a part, and parts add up to a total; both are a dict of the values as far as they are
    decoded before the sum, what the clients report to the encoders' state, squared error and norm of their encodings,
    payload bits, and the number of clients.

    Args:
      specs: A nested structure of the values' `tf.TensorSpec`s.
      encoder_fn: Returns the `GatherEncoder` of a value, given its `tf.TensorSpec`.

    Raises:
      TypeError: If `encoder_fn` returns something else than a `GatherEncoder`.
    """

    def __init__(self, specs: Any, encoder_fn: Callable[[tf.TensorSpec], te.core.GatherEncoder]):
        self._specs = specs
        self._joined = make_encoders(encoder_fn, specs, te.core.GatherEncoder)
        self._encoders = self._joined.encoders
        self._modes = [tuple(tf.nest.flatten(encoder.state_update_aggregation_modes)) for encoder in self._encoders]

    def initial_state(self):
        """The encoders' states."""
        return tuple(encoder.initial_state() for encoder in self._encoders)

    def params(self, state):
        """Parameters of encoding, and of decoding before and after the sum."""
        return tuple(encoder.get_params(s) for encoder, s in zip(self._encoders, state))

    def encode(self, value, params):
        """A client's message, with its encodings' squared error and norm."""
        flat = self._joined.join(tf.nest.flatten(value))
        messages, decoded = [], []
        for encoder, x, (encoding, before_sum, after_sum) in zip(self._encoders, flat, params):
            encoded, state_update = encoder.encode(x, encoding)
            # The server has to decode inside the aggregation, where TFF gives it nothing but the client's message.
            messages.append(collections.OrderedDict(encoded=encoded, params=before_sum, state_update=state_update))
            part = encoder.decode_before_sum(encoded, before_sum)
            decoded.append(encoder.decode_after_sum(part, after_sum, tf.constant([1])))
        return tuple(messages), _squared_error_and_norm(flat, decoded)

    def decode(self, message):
        """A client's part."""
        messages, error_and_norm = message
        updates = (tf.nest.flatten(m["state_update"]) for m in messages)
        return collections.OrderedDict(
            values=tuple(e.decode_before_sum(m["encoded"], m["params"]) for e, m in zip(self._encoders, messages)),
            state_updates=self._map_updates(lambda x, mode: x[tf.newaxis] if mode == _Modes.STACK else x, updates),
            error_and_norm=error_and_norm,
            bits=tf.cast(payload_bits(messages), tf.int64),
            clients=tf.constant([1]),
        )

    def zero(self, part_specs):
        """The total of no client."""
        zeros = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), part_specs)
        zeros["state_updates"] = self._map_updates(_no_update, part_specs["state_updates"])
        return zeros

    def total_specs(self, part_specs):
        """The `tf.TensorSpec`s of a total: where updates are stacked, of any number of clients."""
        stacked = self._map_updates(
            lambda spec, mode: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype) if mode == _Modes.STACK else spec,
            part_specs["state_updates"],
        )
        return collections.OrderedDict(part_specs, state_updates=stacked)

    def merge(self, a, b):
        """The sum of two totals."""
        merged = collections.OrderedDict(
            (key, tf.nest.map_structure(tf.add, a[key], b[key])) for key in a if key != "state_updates"
        )
        pairs = (tuple(zip(x, y)) for x, y in zip(a["state_updates"], b["state_updates"]))
        merged["state_updates"] = self._map_updates(_merge_update, pairs)
        return collections.OrderedDict((key, merged[key]) for key in a)

    def finish(self, state, params, total):
        """The new state, the sum, and the measurements."""
        values = [
            encoder.decode_after_sum(value, after_sum, total["clients"])
            for encoder, value, (_, _, after_sum) in zip(self._encoders, total["values"], params)
        ]
        new_state = tuple(
            encoder.update_state(s, tf.nest.pack_sequence_as(encoder.state_update_aggregation_modes, update))
            for encoder, s, update in zip(self._encoders, state, total["state_updates"])
        )
        measurements = collections.OrderedDict(
            bits_per_client=tf.cast(total["bits"], tf.float64) / tf.cast(total["clients"][0], tf.float64),
            distortion=_normalised(total["error_and_norm"]),
        )
        return new_state, tf.nest.pack_sequence_as(self._specs, self._joined.split(values)), measurements

    def _map_updates(self, function, updates):
        return tuple(tuple(map(function, x, modes)) for x, modes in zip(updates, self._modes))


def make_encoders(encoder_fn: Callable, specs: Any, expected: type) -> Joined:
    """Returns the encoders of `specs`, in flat order, and what they encode; a TypeError if one is not of the `expected` class."""
    joined = Joined(encoder_fn, tf.nest.flatten(specs))
    for encoder in joined.encoders:
        if not isinstance(encoder, expected):
            raise TypeError(
                f"Expected encoder_fn to return a {expected.__name__}, found {type(encoder).__name__}. "
                "Tip: a broadcast takes a SimpleEncoder (te.encoders.as_simple_encoder), a mean a GatherEncoder "
                "(te.encoders.as_gather_encoder)."
            )
    return joined


def _no_update(spec: tf.TensorSpec, mode: te.core.StateAggregationMode) -> tf.Tensor:
    if mode == _Modes.STACK:
        return tf.zeros([0, *spec.shape[1:]], spec.dtype)
    return tf.fill(spec.shape, tf.cast({_Modes.SUM: 0, _Modes.MIN: spec.dtype.max, _Modes.MAX: spec.dtype.min}[mode], spec.dtype))


def _merge_update(pair: tuple[tf.Tensor, tf.Tensor], mode: te.core.StateAggregationMode) -> tf.Tensor:
    if mode == _Modes.STACK:
        return tf.concat(pair, axis=0)
    return {_Modes.SUM: tf.add, _Modes.MIN: tf.minimum, _Modes.MAX: tf.maximum}[mode](*pair)


def _squared_error_and_norm(values: list[tf.Tensor], decoded: list[tf.Tensor]) -> tf.Tensor:
    """Returns [squared error, squared norm] of the floats, float32; what is no float travels as it is."""
    pairs = [(_wide(x), _wide(y)) for x, y in zip(values, decoded) if x.dtype.is_floating]
    # Half the sum of squares is one operation, which makes no tensor of the squares.
    error = sum((2 * tf.nn.l2_loss(tf.cast(x - y, tf.float32)) for x, y in pairs), tf.zeros([]))
    norm = sum((2 * tf.nn.l2_loss(tf.cast(x, tf.float32)) for x, _ in pairs), tf.zeros([]))
    return tf.stack([error, norm])


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32) if x.dtype.size < tf.float32.size else x


def _normalised(error_and_norm: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(error_and_norm[0], error_and_norm[1])
