"""Graphs that are built once and called from others.

TFF builds the graph of an encoder several times for each variable: for clients, for the server, and to learn the types. The
entropy coder has thousands of operations, which takes seconds each time, and a model has many matrices of one shape. The
graphs are not inlined where they are called: TensorFlow would then prepare each call by itself.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import tensorflow as tf


def built_once(function: Callable, *signature: tf.TensorSpec, **constants: Any) -> Callable:
    """Returns `function(..., **constants)`, which while a graph is being built is a call of one that all such calls share.

    Args:
      function: A function of a module, of tensors and `constants`.
      *signature: The tensors' specs.
      **constants: Other arguments, which the graph is built for.
    """
    if tf.executing_eagerly():
        return functools.partial(function, **constants)
    return _graph(function, signature, tuple(constants.items()))


@functools.cache
def _graph(function: Callable, signature: tuple[tf.TensorSpec, ...], constants: tuple) -> Callable:
    with tf.init_scope():  # Else it would belong to the graph that calls it first.
        made = tf.function(
            functools.partial(function, **dict(constants)),
            input_signature=signature,
            autograph=False,
            experimental_attributes={"_noinline": True},
        )
        return made.get_concrete_function()
