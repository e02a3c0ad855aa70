"""`==` and `!=` of tensors inside TFF's graphs: element by element, as everywhere else in TensorFlow 2.

TFF traces in graphs of TensorFlow 1, where `labels == 1` asks whether both are the same Python object. It says no, and a loss,
layer or metric that asks computes something else, without an error.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_KERAS = ("keras", "tf_keras")
_TENSORFLOW = ("tensorflow", "tensorflow_federated", "tensorflow_model_optimization")


@contextlib.contextmanager
def by_element() -> Iterator[None]:
    """Lets `==` and `!=` of tensors compare elements while the context lasts."""
    kept = tf.Tensor.__eq__, tf.Tensor.__ne__
    tf.Tensor.__eq__, tf.Tensor.__ne__ = _equal, _not_equal
    try:
        yield
    finally:
        tf.Tensor.__eq__, tf.Tensor.__ne__ = kept


def compare_by_element(model: tff.learning.models.VariableModel) -> tff.learning.models.VariableModel:
    """Returns `model`, whose loss, layers and metrics now compare tensors element by element.

    Args:
      model: A model of TFF whose `forward_pass` was not called yet.
    """
    forward_pass, metric_finalizers = model.forward_pass, model.metric_finalizers

    def comparing_forward_pass(batch: Any, training: bool = True) -> Any:
        with by_element():
            return forward_pass(batch, training=training)

    def comparing_finalizers() -> Any:
        with by_element():
            return metric_finalizers()

    model.forward_pass, model.metric_finalizers = comparing_forward_pass, comparing_finalizers
    return model


def _equal(x: tf.Tensor, y: Any) -> Any:
    return x is y if _is_identity(x, sys._getframe(1)) else _compare(tf.raw_ops.Equal, x, y, False)


def _not_equal(x: tf.Tensor, y: Any) -> Any:
    return x is not y if _is_identity(x, sys._getframe(1)) else _compare(tf.raw_ops.NotEqual, x, y, True)


def _is_identity(x: tf.Tensor, caller: types.FrameType) -> bool:
    """Returns whether a library compares, whose code for graphs of TensorFlow 1 looks for a tensor in a list.

    Keras does so where it builds a model. In the function of a loss or a layer it computes.
    """
    library = caller.f_globals.get("__name__", "")
    if library.startswith("tensorflow.python.autograph"):  # It compares for the code that it has converted.
        return False
    if library.split(".")[0] in _KERAS:
        graph = getattr(x, "graph", None)
        return graph is not None and not graph.building_function
    return library.split(".")[0] in _TENSORFLOW


def _compare(operation: Any, x: tf.Tensor, y: Any, where_none: bool) -> Any:
    if y is None:
        return where_none
    return operation(x=x, y=tf.convert_to_tensor(y, x.dtype), incompatible_shape_error=False)
