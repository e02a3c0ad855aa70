"""Random operations of a model, such as dropout, that a run can repeat.

TensorFlow's stateful random operations keep a state in the session that runs them. TFF's worker shares its sessions among
clients, in the order in which these happen to run, so even operations with a seed draw otherwise in each run. Here a model draws
from nothing but a seed, the client's examples, and how often it has drawn for this client before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.ops import gen_random_ops  # Where all of TensorFlow's stateful random functions end.

from tff_kit.encoders.seeds import tensor_seed


def draw_from_examples(model: tff.learning.models.VariableModel, seed: int) -> tff.learning.models.VariableModel:
    """Returns `model`, whose random operations in `forward_pass` now draw from the batches that it is given.

    Uniform and normal numbers, truncated ones too, integers, categories and shuffles are drawn so; hence all random layers of
    Keras. Gamma and Poisson numbers are not, and neither is what asks a `tf.random.Generator` that was not made from a seed.

    Args:
      model: A model of TFF whose `forward_pass` was not called yet.
      seed: Other seeds make independent draws for the same examples.
    """
    state = tf.Variable(tf.zeros([2], tf.int32), trainable=False, name="draws")
    forward_pass = model.forward_pass

    def next_seed() -> tf.Tensor:
        return state.assign_add([1, 0]).read_value()

    @tf.function
    def seeded_forward_pass(batch: Any, training: bool = True) -> Any:
        for x in tf.nest.flatten(batch, expand_composites=True):
            if x.dtype != tf.string:
                state.assign_add(tensor_seed(x, seed))
        with _stateless(next_seed):
            return forward_pass(batch, training=training)

    model.forward_pass = seeded_forward_pass
    return model


@contextlib.contextmanager
def _stateless(next_seed: Callable[[], tf.Tensor]) -> Iterator[None]:
    """Gives the operations that are made within stateless ones in place of the stateful ones."""

    def uniform(shape, dtype, seed=0, seed2=0, name=None):
        return tf.random.stateless_uniform(shape, next_seed(), dtype=dtype, name=name)

    def uniform_int(shape, minval, maxval, seed=0, seed2=0, name=None):
        minval = tf.convert_to_tensor(minval)
        return tf.random.stateless_uniform(shape, next_seed(), minval, maxval, minval.dtype, name=name)

    def normal(shape, dtype, seed=0, seed2=0, name=None):
        return tf.random.stateless_normal(shape, next_seed(), dtype=dtype, name=name)

    def truncated_normal(shape, dtype, seed=0, seed2=0, name=None):
        return tf.random.stateless_truncated_normal(shape, next_seed(), dtype=dtype, name=name)

    def multinomial(logits, num_samples, seed=0, seed2=0, output_dtype=tf.int64, name=None):
        return tf.random.stateless_categorical(logits, num_samples, next_seed(), output_dtype, name=name)

    def shuffle(value, seed=0, seed2=0, name=None):
        return tf.random.experimental.stateless_shuffle(value, next_seed())

    stateless = {
        "random_uniform": uniform,
        "random_uniform_int": uniform_int,
        "random_standard_normal": normal,
        "truncated_normal": truncated_normal,
        "multinomial": multinomial,
        "random_shuffle": shuffle,
    }
    stateful = {name: getattr(gen_random_ops, name) for name in stateless}
    try:
        for name, function in stateless.items():
            setattr(gen_random_ops, name, function)
        yield
    finally:
        for name, function in stateful.items():
            setattr(gen_random_ops, name, function)
