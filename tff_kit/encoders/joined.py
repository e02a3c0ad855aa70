"""A model's variables as what its encoders encode: each by itself, or all floats joined to one vector.

An encoder that weighs variables against each other has to see them together. Then the floats, one behind another as float32, are
encoded first; what is no float follows, each by itself. A float64 loses digits so, of which an encoder for few bits
leaves none. A number beyond a narrower float's range comes back as its largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable, Optional

import tensorflow as tf

from tff_kit.encoders.narrow import narrowed


class EncoderFn:
    """A function from a variable's `tf.TensorSpec` to its encoder, and where there is one, that of all floats together.

    Args:
      of_one: Returns the encoder of a variable, given its spec.
      of_all: Returns the encoder of a vector, given its spec and the shapes of the variables in it; `None` if each is by itself.
    """

    def __init__(
        self,
        of_one: Callable[[tf.TensorSpec], Any],
        of_all: Optional[Callable[[tf.TensorSpec, Sequence[tuple[int, ...]]], Any]] = None,
    ):
        self._of_one = of_one
        self.of_all = of_all

    def __call__(self, value: tf.TensorSpec) -> Any:
        return self._of_one(value)


class Joined:
    """What a flat list of variables is encoded as, and by what.

    Attributes:
      specs: Of what is encoded.
      encoders: One for each of `specs`.

    Args:
      encoder_fn: An `EncoderFn`, or any function from a spec to an encoder.
      specs: The variables' specs, a flat list.
    """

    def __init__(self, encoder_fn: Callable[[tf.TensorSpec], Any], specs: Sequence[tf.TensorSpec]):
        self._variables = specs
        of_all = getattr(encoder_fn, "of_all", None)
        self._floats = [spec for spec in specs if spec.dtype.is_floating]
        self._are_joined = of_all is not None and bool(self._floats)
        if of_all is None or not self._floats:
            self.specs, self.encoders = list(specs), [encoder_fn(spec) for spec in specs]
            return
        shapes = [tuple(spec.shape.as_list()) for spec in self._floats]
        others = [spec for spec in specs if not spec.dtype.is_floating]
        vector = tf.TensorSpec([sum(map(math.prod, shapes))], tf.float32)
        self.specs = [vector, *others]
        self.encoders = [of_all(vector, shapes), *map(encoder_fn, others)]

    def join(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the variables' values as what is encoded."""
        if not self._are_joined:
            return list(values)
        floats = [tf.reshape(tf.cast(x, tf.float32), [-1]) for x in values if x.dtype.is_floating]
        return [tf.concat(floats, axis=0), *(x for x in values if not x.dtype.is_floating)]

    def split(self, joined: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Undoes `join`."""
        if not self._are_joined:
            return list(joined)
        parts = tf.split(joined[0], [math.prod(spec.shape.as_list()) for spec in self._floats])
        floats, others = iter(parts), iter(joined[1:])
        return [
            narrowed(tf.reshape(next(floats), spec.shape), spec.dtype) if spec.dtype.is_floating else next(others)
            for spec in self._variables
        ]
