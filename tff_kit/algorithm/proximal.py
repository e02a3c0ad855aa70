"""FedProx: an optimizer that keeps clients near the model that they received.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020,
arXiv 1812.06127.

TFF 0.87's own `build_weighted_fed_prox` adds strength * (received - current) to the gradient. That is the term with the wrong
sign: it drives clients away from the received model.
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


class ProximalOptimizer(tff.learning.optimizers.Optimizer):
    """A client's optimizer that minimizes its loss plus strength / 2 * |weights - received weights|^2.

    The first weights that `next` is given are the received ones.

    Args:
      optimizer: The optimizer that takes the steps. Its hyperparameters are also this optimizer's.
      strength: The strength of the proximal term, 0 or more.
    """

    def __init__(self, optimizer: tff.learning.optimizers.Optimizer, strength: float):
        self._optimizer = optimizer
        self._strength = strength

    def initialize(self, specs: Any) -> Any:
        return collections.OrderedDict(
            inner=self._optimizer.initialize(specs),
            received=tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs),
            started=tf.constant(False),
        )

    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        received = tf.nest.map_structure(lambda r, w: tf.where(state["started"], r, w), state["received"], weights)
        gradients = tff.learning.optimizers.handle_indexed_slices_gradients(gradients)
        pulled = tf.nest.map_structure(
            lambda g, w, r: None if g is None else g + self._strength * (w - r), gradients, weights, received
        )
        inner, weights = self._optimizer.next(state["inner"], weights, pulled)
        return collections.OrderedDict(inner=inner, received=received, started=tf.constant(True)), weights

    def get_hparams(self, state: Any) -> Any:
        return self._optimizer.get_hparams(state["inner"])

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return collections.OrderedDict(state, inner=self._optimizer.set_hparams(state["inner"], hparams))
