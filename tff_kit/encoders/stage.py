"""What stages have in common: `Stage`, and `CoderStage` for those at the end of a chain."""

from __future__ import annotations

import collections

import tensorflow as tf
from tensorflow_model_optimization.python.core.internal import tensor_encoding as te


class Stage(te.core.EncodingStageInterface):
    """A stage that needs no parameters, and whose tensors have to be decoded before they are added.

    AutoGraph does not convert it: a stage is written in TensorFlow's operations, and conversion took longer than to build them.
    """

    commutes_with_sum = False

    def __init_subclass__(cls):
        super().__init_subclass__()
        for name in {"encode", "decode"} & vars(cls).keys():
            setattr(cls, name, tf.autograph.experimental.do_not_convert(vars(cls)[name]))

    def get_params(self):
        return collections.OrderedDict(), collections.OrderedDict()


class CoderStage(Stage):
    """A stage that turns integers of any dtype and shape into bytes that look random."""

    DTYPE_KEY = "dtype"

    compressible_tensors_keys: list[str] = []
    decode_needs_input_shape = True

    def tag(self, encoded: collections.OrderedDict, dtype: tf.DType) -> collections.OrderedDict:
        """Adds to `encoded`, in no bits, what tells `dtype` the dtype; without it, that is float32."""
        if dtype != tf.float32:
            encoded[self.DTYPE_KEY] = tf.zeros([0], dtype)
        return encoded

    def dtype(self, encoded: collections.OrderedDict) -> tf.DType:
        """Returns the dtype that `encoded` was tagged with."""
        return encoded[self.DTYPE_KEY].dtype if self.DTYPE_KEY in encoded else tf.float32
