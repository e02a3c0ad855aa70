"""Keras optimizers become the optimizers that TFF runs on clients and on the server.

TFF has its own optimizers, whose state is passed along instead of kept in variables. An option of a Keras optimizer is either
honoured here or refused; none is dropped.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Union

import tensorflow as tf
import tensorflow_federated as tff

OptimizerFn = Union[tff.learning.optimizers.Optimizer, Callable[[], Any]]

_CLIPPING = ("clipvalue", "clipnorm", "global_clipnorm")  # In the order in which Keras's legacy optimizers apply them.
_WITHOUT_EFFECT = {"name", "jit_compile", "is_legacy_optimizer", "ema_momentum", "ema_overwrite_frequency"}
_MAPPED = {
    "SGD": ("learning_rate", "momentum"),
    "Adam": ("learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"),
    "Adagrad": ("learning_rate", "initial_accumulator_value", "epsilon"),
}
_KINDS = {
    tf.keras.optimizers.SGD: "SGD",
    tf.keras.optimizers.legacy.SGD: "SGD",
    tf.keras.optimizers.Adam: "Adam",
    tf.keras.optimizers.AdamW: "Adam",
    tf.keras.optimizers.legacy.Adam: "Adam",
    tf.keras.optimizers.Adagrad: "Adagrad",  # The legacy one adds epsilon elsewhere than TFF's.
}


def as_tff_optimizer(optimizer_fn: OptimizerFn) -> tff.learning.optimizers.Optimizer:
    """Returns the TFF optimizer that takes the same steps as `optimizer_fn`'s.

    Args:
      optimizer_fn: A `tff.learning.optimizers.Optimizer`, or a function that returns one or returns a Keras optimizer: `SGD` or
        `Adam`, of today or legacy, `AdamW` or `Adagrad`. Gradient clipping and Adam's weight decay are honoured.

    Raises:
      TypeError: If it is another optimizer, or has an option that TFF's has not: Nesterov, AMSGrad, learning-rate schedules or
        decay, SGD's weight decay, moving averages of weights, gradient transformers.
    """
    optimizer = optimizer_fn if isinstance(optimizer_fn, tff.learning.optimizers.Optimizer) else _made(optimizer_fn)
    if isinstance(optimizer, tff.learning.optimizers.Optimizer):
        return optimizer
    kind = _KINDS.get(type(optimizer))  # A subclass may take other steps.
    if kind is None:
        raise TypeError(
            "Expected an optimizer of tff.learning.optimizers, tf.keras.optimizers.SGD, Adam, AdamW or Adagrad, or a function "
            f"that returns one; found {optimizer!r}. Tip: tff.learning.optimizers has what TFF can run on clients."
        )
    config = optimizer.get_config()
    _refuse_what_is_lost(optimizer, config, {*_MAPPED[kind], *_CLIPPING, *_WITHOUT_EFFECT})
    clipping = {key: _number(optimizer, key, config[key]) for key in _CLIPPING if config.get(key) is not None}
    options = {key: _number(optimizer, key, config.get(key) or 0.0) for key in _MAPPED[kind]}
    converted = _build(kind, options)
    return _ClippingOptimizer(converted, **clipping) if clipping else converted


def _made(optimizer_fn: Any) -> Any:
    return optimizer_fn() if callable(optimizer_fn) else optimizer_fn


def _build(kind: str, options: dict[str, float]) -> tff.learning.optimizers.Optimizer:
    if kind == "SGD":
        return tff.learning.optimizers.build_sgdm(options["learning_rate"], options["momentum"] or None)
    if kind == "Adagrad":
        return tff.learning.optimizers.build_adagrad(*options.values())
    if options["weight_decay"]:
        return tff.learning.optimizers.build_adamw(**options)
    del options["weight_decay"]
    return tff.learning.optimizers.build_adam(**options)


def _refuse_what_is_lost(optimizer: Any, config: dict[str, Any], kept: set[str]) -> None:
    defaults = type(optimizer)().get_config()
    lost = {key: value for key, value in config.items() if key not in kept and (value or None) != (defaults.get(key) or None)}
    # What Keras keeps outside of an optimizer's configuration.
    if getattr(optimizer, "gradient_transformers", None):
        lost["gradient_transformers"] = optimizer.gradient_transformers
    excluded = [getattr(optimizer, f"_exclude_from_weight_decay{names}", None) for names in ("", "_names")]
    if any(excluded):
        lost["exclude_from_weight_decay"] = excluded
    changing = {key: value for key, value in getattr(optimizer, "_hyper", {}).items() if callable(value)}
    lost.update(changing)
    if isinstance(config["learning_rate"], dict):
        lost["learning_rate"] = config["learning_rate"]["class_name"]
    if lost:
        found = ", ".join(f"{key}={value!r}" for key, value in lost.items())
        raise TypeError(
            f"Expected an optimizer of tff.learning.optimizers, or a Keras {type(optimizer).__name__} with options that TFF's "
            f"has as well; found {found}. Tip: leave the option out, or build the optimizer with tff.learning.optimizers."
        )


def _number(optimizer: Any, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number >= 0 or (key in _CLIPPING and not number):
        raise TypeError(
            f"Expected an optimizer of tff.learning.optimizers, or one of Keras whose {key} is a positive number; "
            f"found {key}={value!r} of {type(optimizer).__name__}."
        )
    return number


class _ClippingOptimizer(tff.learning.optimizers.Optimizer):
    """An optimizer that clips gradients before its steps as Keras does.

    Args:
      optimizer: What takes the steps; its hyperparameters are this one's.
      clipvalue: Each number of a gradient is kept between minus and plus this.
      clipnorm: The gradient of each variable is scaled down to this norm.
      global_clipnorm: The gradients of all variables together are scaled down to this norm.
    """

    def __init__(
        self,
        optimizer: tff.learning.optimizers.Optimizer,
        clipvalue: Optional[float] = None,
        clipnorm: Optional[float] = None,
        global_clipnorm: Optional[float] = None,
    ):
        self._optimizer = optimizer
        self._clipvalue, self._clipnorm, self._global_clipnorm = clipvalue, clipnorm, global_clipnorm

    def initialize(self, specs: Any) -> Any:
        return self._optimizer.initialize(specs)

    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        gradients = tff.learning.optimizers.handle_indexed_slices_gradients(gradients)
        flat = [None if g is None else self._clipped(g) for g in tf.nest.flatten(gradients)]
        if self._global_clipnorm:
            flat, _ = tf.clip_by_global_norm(flat, self._global_clipnorm)
        return self._optimizer.next(state, weights, tf.nest.pack_sequence_as(gradients, flat))

    def _clipped(self, gradient: tf.Tensor) -> tf.Tensor:
        if self._clipvalue:
            gradient = tf.clip_by_value(gradient, -self._clipvalue, self._clipvalue)
        return tf.clip_by_norm(gradient, self._clipnorm) if self._clipnorm else gradient

    def get_hparams(self, state: Any) -> Any:
        return self._optimizer.get_hparams(state)

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return self._optimizer.set_hparams(state, hparams)
