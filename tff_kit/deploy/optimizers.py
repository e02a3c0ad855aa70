"""TensorFlow Federated's optimizers without TensorFlow Federated: what clients and server step with in a deployment.

The formulas, their order of operations and their names are those of `tff.learning.optimizers`, so that a deployment takes the
same steps as a simulation. A state is a flat tuple of tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable, Union

import tensorflow as tf

from tff_kit.experiment import Experiment

Tensors = Sequence[tf.Tensor]
State = tuple[tf.Tensor, ...]
# As in S. J. Reddi et al.: Adaptive Federated Optimization. ICLR 2021, arXiv 2003.00295, and as in the simulation.
_MOMENTUM, _BETA_1, _BETA_2, _EPSILON = 0.9, 0.9, 0.99, 1e-3
_YOGI_START = 1e-6  # Of the preconditioner, TFF's default.


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer as two functions of tensors.

    Attributes:
      hyperparameters: Its numbers, the learning rate first. In a graph they are tensors, as in TFF: folded into it as constants,
        they would change the order of multiplications.
      initialize: From the `tf.TensorSpec`s of the weights to a state.
      next: From the hyperparameters as float32 scalars, a state, weights, and a gradient for each weight, `None` where there is
        none, to a new state and new weights.
    """

    hyperparameters: tuple[float, ...]
    initialize: Callable[[Sequence[tf.TensorSpec]], State]
    next: Callable[[Tensors, State, Tensors, Sequence[Union[tf.Tensor, tf.IndexedSlices, None]]], tuple[State, list[tf.Tensor]]]


def build_client_optimizer(experiment: Experiment) -> Optimizer:
    """Returns what the experiment's clients train with, without the proximal term."""
    return build_adam(experiment.client_lr) if experiment.client_optimizer == "adam" else build_sgd(experiment.client_lr)


def build_server_optimizer(experiment: Experiment) -> Optimizer:
    """Returns what the experiment's server makes of the mean update."""
    builders: dict[str, Callable[[float], Optimizer]] = {
        "sgd": build_sgd,
        "sgdm": lambda lr: build_momentum(lr, _MOMENTUM),
        "adam": lambda lr: build_adam(lr, _BETA_1, _BETA_2, _EPSILON),
        "yogi": lambda lr: build_yogi(lr, _BETA_1, _BETA_2, _EPSILON),
        "adagrad": lambda lr: build_adagrad(lr, _EPSILON**2, _EPSILON),
    }
    return builders[experiment.server_optimizer](experiment.server_lr)


def build_sgd(lr: float) -> Optimizer:
    """Returns gradient descent: w - lr * g."""

    def step(numbers, state, w, g):
        (lr,) = numbers
        return (), w - lr * g

    return _per_weight((lr,), lambda spec: (), step)


def build_momentum(lr: float, momentum: float) -> Optimizer:
    """Returns gradient descent with momentum: a = momentum * a + g, w - lr * a."""

    def step(numbers, state, w, g):
        lr, momentum = numbers
        a = momentum * state[0] + g
        return (a,), w - lr * a

    return _per_weight((lr, momentum), lambda spec: (_zeros(spec),), step)


def build_adam(lr: float, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Optimizer:
    """Returns Adam, D. P. Kingma, J. Ba: Adam: A Method for Stochastic Optimization. ICLR 2015, arXiv 1412.6980."""

    def step(numbers, state, w, g):
        rate, beta_1, beta_2, epsilon = numbers
        a, p = state
        a = a + (g - a) * (1 - beta_1)
        p = p + (tf.square(g) - p) * (1 - beta_2)
        return (a, p), w - rate * a / (tf.sqrt(p) + epsilon)

    return _counting((lr, beta_1, beta_2, epsilon), lambda spec: (_zeros(spec), _zeros(spec)), step)


def build_yogi(lr: float, beta_1: float, beta_2: float, epsilon: float) -> Optimizer:
    """Returns Yogi, M. Zaheer et al.: Adaptive Methods for Nonconvex Optimization. NeurIPS 2018."""

    def step(numbers, state, w, g):
        rate, beta_1, beta_2, epsilon = numbers
        a, p = state
        a = a + (g - a) * (1 - beta_1)
        square = tf.square(g)
        p = p + (1 - beta_2) * tf.sign(square - p) * square
        return (a, p), w - rate * a / (tf.sqrt(p) + epsilon)

    return _counting((lr, beta_1, beta_2, epsilon), lambda spec: (_zeros(spec), _filled(spec, _YOGI_START)), step)


def build_adagrad(lr: float, initial: float, epsilon: float) -> Optimizer:
    """Returns Adagrad, J. Duchi, E. Hazan, Y. Singer: Adaptive Subgradient Methods for Online Learning. JMLR 12, 2011."""

    def step(numbers, state, w, g):
        lr, epsilon = numbers
        p = state[0] + tf.square(g)
        return (p,), w - lr * g / tf.sqrt(p + epsilon)

    return _per_weight((lr, epsilon), lambda spec: (_filled(spec, initial),), step)


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros(spec.shape, spec.dtype)


def _filled(spec: tf.TensorSpec, value: float) -> tf.Tensor:
    return tf.ones(spec.shape, spec.dtype) * tf.constant(value, spec.dtype)


def _per_weight(hyperparameters: tuple[float, ...], start: Callable, step: Callable) -> Optimizer:
    """Returns the optimizer that treats each weight by itself.

    `start(spec)` returns a weight's state, `step(numbers, state, w, g)` its new state and value.
    """

    def initialize(specs):
        return tuple(x for spec in specs for x in start(spec))

    def update(numbers, state, weights, gradients):
        each = len(state) // len(weights)
        states = [tuple(state[i * each : (i + 1) * each]) for i in range(len(weights))]
        triples = zip(states, weights, gradients)
        moved = [(s, w) if g is None else step(_cast(numbers, w), s, w, tf.convert_to_tensor(g)) for s, w, g in triples]
        return tuple(x for s, _ in moved for x in s), [w for _, w in moved]

    return Optimizer(hyperparameters, initialize, update)


def _counting(hyperparameters: tuple[float, ...], start: Callable, step: Callable) -> Optimizer:
    """Returns an optimizer as `_per_weight` does, whose learning rate is corrected by the number of steps, as Adam's is."""
    inner = _per_weight(hyperparameters, start, step)

    def initialize(specs):
        return (tf.constant(0), *inner.initialize(specs))

    def update(numbers, state, weights, gradients):
        lr, beta_1, beta_2, epsilon = numbers
        count = state[0] + 1
        steps = tf.cast(count, tf.float32)
        rate = lr * tf.sqrt(1 - tf.pow(beta_2, steps)) / (1 - tf.pow(beta_1, steps))
        moved, weights = inner.next((rate, beta_1, beta_2, epsilon), state[1:], weights, gradients)
        return (count, *moved), weights

    return Optimizer(hyperparameters, initialize, update)


def _cast(numbers: Tensors, weight: tf.Tensor) -> list[tf.Tensor]:
    return [tf.cast(x, weight.dtype) for x in numbers]
