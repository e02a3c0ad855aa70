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
      initialize: From the `tf.TensorSpec`s of the weights to a state.
      next: From a state, weights, and a gradient for each weight, `None` where there is none, to a new state and new weights.
      hyperparameters: The numbers that TFF broadcasts to clients in each round, float32.
    """

    initialize: Callable[[Sequence[tf.TensorSpec]], State]
    next: Callable[[State, Tensors, Sequence[Union[tf.Tensor, tf.IndexedSlices, None]]], tuple[State, list[tf.Tensor]]]
    hyperparameters: tuple[float, ...]


def build_client_optimizer(experiment: Experiment) -> Optimizer:
    """Returns what the experiment's clients train with, without the proximal term."""
    build = {"sgd": build_sgd, "adam": build_adam}[experiment.client_optimizer]
    return build(experiment.client_lr)


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

    def step(state, w, g):
        return (), w - tf.constant(lr, g.dtype) * g

    return _per_weight(lambda spec: (), step, (lr,))


def build_momentum(lr: float, momentum: float) -> Optimizer:
    """Returns gradient descent with momentum: a = momentum * a + g, w - lr * a."""

    def step(state, w, g):
        a = tf.constant(momentum, g.dtype) * state[0] + g
        return (a,), w - tf.constant(lr, g.dtype) * a

    return _per_weight(lambda spec: (tf.zeros(spec.shape, spec.dtype),), step, (lr, momentum))


def build_adam(lr: float, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Optimizer:
    """Returns Adam, D. P. Kingma, J. Ba: Adam: A Method for Stochastic Optimization. ICLR 2015, arXiv 1412.6980."""

    def step(state, w, g, rate):
        a, p = state
        a = a + (g - a) * (1 - tf.constant(beta_1, a.dtype))
        p = p + (tf.square(g) - p) * (1 - tf.constant(beta_2, p.dtype))
        return (a, p), w - tf.cast(rate, a.dtype) * a / (tf.sqrt(p) + tf.constant(epsilon, p.dtype))

    def start(spec):
        return tf.zeros(spec.shape, spec.dtype), tf.zeros(spec.shape, spec.dtype)

    return _counting(start, step, lr, beta_1, beta_2, epsilon)


def build_yogi(lr: float, beta_1: float, beta_2: float, epsilon: float) -> Optimizer:
    """Returns Yogi, M. Zaheer et al.: Adaptive Methods for Nonconvex Optimization. NeurIPS 2018."""

    def step(state, w, g, rate):
        a, p = state
        a = a + (g - a) * (1 - tf.constant(beta_1, g.dtype))
        square = tf.square(g)
        p = p + (1 - tf.constant(beta_2, g.dtype)) * tf.sign(square - p) * square
        return (a, p), w - tf.cast(rate, g.dtype) * a / (tf.sqrt(p) + tf.constant(epsilon, g.dtype))

    def start(spec):
        return tf.zeros(spec.shape, spec.dtype), tf.ones(spec.shape, spec.dtype) * tf.constant(_YOGI_START, spec.dtype)

    return _counting(start, step, lr, beta_1, beta_2, epsilon)


def build_adagrad(lr: float, initial: float, epsilon: float) -> Optimizer:
    """Returns Adagrad, J. Duchi, E. Hazan, Y. Singer: Adaptive Subgradient Methods for Online Learning. JMLR 12, 2011."""

    def step(state, w, g):
        p = state[0] + tf.square(g)
        return (p,), w - tf.constant(lr, g.dtype) * g / tf.sqrt(p + tf.constant(epsilon, p.dtype))

    def start(spec):
        return (tf.ones(spec.shape, spec.dtype) * tf.constant(initial, spec.dtype),)

    return _per_weight(start, step, (lr, epsilon))


def _per_weight(start: Callable, step: Callable, hyperparameters: tuple[float, ...]) -> Optimizer:
    """Returns the optimizer that treats each weight by itself; `step(state, w, g)` returns a weight's new state and value."""

    def initialize(specs):
        return tuple(x for spec in specs for x in start(spec))

    def update(state, weights, gradients):
        each = len(state) // len(weights)
        states = [tuple(state[i * each : (i + 1) * each]) for i in range(len(weights))]
        moved = [
            (s, w) if g is None else step(s, w, tf.convert_to_tensor(g)) for s, w, g in zip(states, weights, gradients)
        ]
        return tuple(x for s, _ in moved for x in s), [w for _, w in moved]

    return Optimizer(initialize, update, hyperparameters)


def _counting(start: Callable, step: Callable, lr: float, beta_1: float, beta_2: float, epsilon: float) -> Optimizer:
    """Returns an optimizer like `_per_weight`, whose learning rate is corrected by the number of steps, as Adam's is."""

    def rate(count):
        lr_, b1, b2, n = (tf.cast(x, tf.float32) for x in (lr, beta_1, beta_2, count))
        return lr_ * tf.sqrt(1 - tf.pow(b2, n)) / (1 - tf.pow(b1, n))

    def initialize(specs):
        return (tf.constant(0), *(x for spec in specs for x in start(spec)))

    def update(state, weights, gradients):
        count = state[0] + 1
        at_rate = _per_weight(start, lambda s, w, g: step(s, w, g, rate(count)), ())
        moved, weights = at_rate.next(state[1:], weights, gradients)
        return (count, *moved), weights

    return Optimizer(initialize, update, (lr, beta_1, beta_2, epsilon))
