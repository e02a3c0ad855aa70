"""The server's side of federated averaging: from the model to a payload, and from the clients' payloads to a new model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_kit.deploy import layouts, messages
from tff_kit.deploy.client_work import build_metrics, model_variables
from tff_kit.deploy.codecs import build_broadcast_codec, build_mean_codec
from tff_kit.deploy.optimizers import build_client_optimizer, build_server_optimizer
from tff_kit.encoders import PayloadError
from tff_kit.encoders.message import HEADER_BYTES
from tff_kit.experiment import Experiment

_MEASURED_BITS = 64  # The squared error and norm of an update's encoding.


@dataclasses.dataclass(frozen=True)
class State:
    """What the server knows between rounds.

    Attributes:
      weights: Of the model, trainable ones first.
      optimizer: Of the server.
      broadcast: The broadcast encoders' state.
      mean: The update encoders' state.
    """

    weights: list[Any]
    optimizer: Any
    broadcast: Any
    mean: Any


@dataclasses.dataclass(frozen=True)
class Sent:
    """What each client of a round receives.

    Attributes:
      numbers: The client optimizer's hyperparameters.
      model: The encoded model.
      params: What clients encode their updates with.
      bits: Of all, for one client, without the containers' headers.
      broadcast: The broadcast encoders' state of the next round.
      distortion: Squared error of the broadcast over the squared norm of what was broadcast.
    """

    numbers: bytes
    params: bytes
    model: bytes
    bits: int
    broadcast: Any
    distortion: float


@dataclasses.dataclass(frozen=True)
class Received:
    """A client's update, decoded and found to be whole.

    Attributes:
      weight: What the client counts; 0 where its update was not finite, or it has no examples.
      left_out: Whether its update was not finite.
      measured: Its unfinished metrics.
      part: Its part of the sum.
      bits: Of its message's tensors.
    """

    weight: float
    left_out: bool
    measured: list[np.ndarray]
    part: Any
    bits: int


class Averaging:
    """Federated averaging of an experiment, with its graphs built once."""

    def __init__(self, experiment: Experiment):
        self.model = experiment.build_model()
        self._initial = [x.numpy() for x in model_variables(self.model)]
        self._trainable = len(self.model.trainable_variables)
        self._change = experiment.broadcast_change
        self._broadcast = build_broadcast_codec(experiment, self.model)
        self._mean = build_mean_codec(experiment, self.model)
        self._optimizer = build_server_optimizer(experiment)
        self._step = tf.function(self._optimizer.next)
        client_optimizer = build_client_optimizer(experiment)
        numbers = [np.float32(x) for x in client_optimizer.hyperparameters]
        self._numbers = layouts.numbers_layout(client_optimizer).pack(numbers)
        self._metrics = build_metrics(experiment)
        self._names = [*(metric.name for metric in experiment.metrics()), "loss"]
        self._scalars = layouts.scalars_layout(self._metrics)
        self.settings = layouts.settings_of(experiment, self._initial)

    def initial_state(self) -> State:
        """Returns the state before the first round."""
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in self.model.trainable_variables]
        optimizer = self._optimizer.initialize(specs)
        return State(list(self._initial), optimizer, self._broadcast.initial_state(), self._mean.initial_state())

    def send(self, state: State) -> Sent:
        """Returns what the clients of a round receive."""
        values = [x - x0 for x, x0 in zip(state.weights, self._initial)] if self._change else state.weights
        sent = self._broadcast.encode(values, state.broadcast)
        params = self._mean.params(state.mean)
        bits = sent.bits + _container_bits(params) + _container_bits(self._numbers)
        return Sent(self._numbers, params, sent.payload, bits, sent.state, sent.distortion)

    def read(self, trained: messages.Trained) -> Received:
        """Decodes and checks a client's message; raises `PayloadError` where it can't be counted."""
        weight, left_out, *measured = [np.asarray(x) for x in self._scalars.unpack(trained.scalars)]
        if not all(np.all(np.isfinite(x)) for x in (weight, *measured)) or weight < 0 or (left_out and weight):
            raise PayloadError(f"Expected a weight of 0 or more and finite metrics, found a weight of {weight}.")
        part = self._mean.decode(trained.update)
        bits = _container_bits(trained.scalars) + int(part["bits"]) + _MEASURED_BITS
        return Received(float(weight), bool(left_out), measured, part, bits)

    def apply(self, state: State, sent: Sent, received: Sequence[Received]) -> tuple[State, dict[str, Optional[float]]]:
        """Returns the next state, and by name the loss, metrics and distortion of the round, `None` where nobody had examples.

        Args:
          state: That before the round.
          sent: What `send` made of it.
          received: At least one; added up in this order.
        """
        total = self._mean.zero()
        for one in received:
            total = self._mean.merge(total, one.part)
        weight = np.sum([one.weight for one in received], dtype=np.float32)
        mean_state, update, measured = self._mean.finish(state.mean, sent.params, total, float(weight))
        weights, optimizer = self._optimize(state, update)
        found: dict[str, Optional[float]] = {
            **self._finish_metrics([one.measured for one in received]),
            "distortion": measured["distortion"],
        }
        if not any(one.measured[-2] for one in received):
            found = dict.fromkeys(found, None)
        return State(weights, optimizer, sent.broadcast, mean_state), found

    def put_weights(self, state: State) -> None:
        """Gives `model` the weights of a state."""
        for variable, value in zip(model_variables(self.model), state.weights):
            variable.assign(value)

    def _optimize(self, state: State, update: Sequence[tf.Tensor]) -> tuple[list[np.ndarray], Any]:
        trainable, others = state.weights[: self._trainable], state.weights[self._trainable :]
        if not all(np.all(np.isfinite(x)) for x in update):  # As TFF's finalizer: the server stays where it is.
            return state.weights, state.optimizer
        numbers = [tf.constant(x, tf.float32) for x in self._optimizer.hyperparameters]
        optimizer, moved = self._step(numbers, state.optimizer, [tf.constant(x) for x in trainable], list(update))
        return [*(x.numpy() for x in moved), *others], optimizer

    def _finish_metrics(self, measured: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
        """Returns what the metrics make of the sum of all clients' variables."""
        sums = iter([np.sum(x, axis=0, dtype=x[0].dtype) for x in zip(*measured)])
        for metric in self._metrics:
            for variable in metric.variables:
                variable.assign(next(sums))
        return {name: float(metric.result()) for name, metric in zip(self._names, self._metrics)}


def _container_bits(payload: bytes) -> int:
    """Returns the bits of the tensors in a container, all of known shapes."""
    return 8 * (len(payload) - HEADER_BYTES)
