"""Reads batches from a store of embeddings, with TensorFlow's own operations only, since a worker has no others."""

from __future__ import annotations

import tensorflow as tf

from tff_kit.embeddings import store as stores

_PREFETCH = 2


def shuffled(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the numbers below `count` in random order, int64 [count]; `seed` is int64 [2]."""
    return tf.random.experimental.stateless_shuffle(tf.range(tf.cast(count, tf.int64)), seed)


def read_labels(path: tf.Tensor, label_bytes: int = 1) -> tf.Tensor:
    """Returns the labels of a folder of clips, uint8 [labels, label_bytes]."""
    return tf.reshape(tf.io.decode_raw(tf.io.read_file(path + ".labels"), tf.uint8), [-1, label_bytes])


def batches(store: stores.Store, folder: tf.Tensor, number: tf.Tensor, label: tf.Tensor, batch_size: int) -> tf.data.Dataset:
    """Returns batches of embeddings, float32 [batch, positions, width], and labels, in the order of `number`.

    Args:
      store: The store.
      folder: The folder of the clips, a string; or one for each clip, string [n].
      number: The numbers of the clips, int [n]. A clip may come several times.
      label: The label of each, [n, ...].
      batch_size: Clips in a batch; the last one may have fewer.
    """
    names = tf.strings.as_string(number, width=stores.DIGITS, fill="0")  # Of all at once, which is faster than one by one.
    clips = tf.data.Dataset.from_tensor_slices((tf.strings.join([folder, "/", names]), label))
    read = clips.map(lambda path, label: (tf.io.read_file(path), label)).batch(batch_size)
    return read.map(lambda raw, label: (stores.decode(store, raw), label)).prefetch(_PREFETCH)
