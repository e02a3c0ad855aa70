"""The clients' data of keyword spotting: batches that the worker reads from a store of embeddings."""

from __future__ import annotations

import dataclasses
import os
from typing import Optional

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError, PooledDataset
from tff_kit.embeddings import reader
from tff_kit.embeddings import store as stores
from tff_kit.tasks.keywords.speech_commands import CLASS_NAMES

BATCH_SIZE = 8
"""The batch size of Flower's example."""
_TEST_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class EmbeddingDataset(PooledDataset):
    """The clients' embeddings. Batches of all clients together are class-balanced. `validation` has speakers of its own.

    Attributes:
      store: The store of the embeddings.
    """

    store: Optional[stores.Store] = None


def load(
    folder: os.PathLike,
    batch_size: int = BATCH_SIZE,
    window: Optional[str] = None,
    local_epochs: int = 1,
    balanced: bool = False,
    weights_sha256: Optional[str] = None,
) -> EmbeddingDataset:
    """Reads a store as clients' data: float32 embeddings [batch, positions, width] and int32 labels [batch].

    In a local epoch, a client goes through its clips in random order. The last, incomplete batch is dropped. Clients with fewer
    than two batches take no part.

    Args:
      folder: A finished store.
      batch_size: Number of clips in a training batch.
      window: The window that the store must have been made with; `None` for any.
      local_epochs: How often a client goes through its clips in a round.
      balanced: Whether a client draws as many clips with replacement instead, so that classes are about balanced.
      weights_sha256: SHA-256 of the encoder that the store must have been made with; `None` for any.

    Returns:
      The clients' data.

    Raises:
      DataError: As `tff_kit.embeddings.store.open_store`, and if no client has two batches.
    """
    store = stores.open_store(folder, window, weights_sha256)
    root = str(store.folder.resolve())
    enough = tuple(c for c in store.client_ids if store.clips[f"clients/{c}"] // batch_size >= 2)
    if not enough:
        raise DataError(
            f"Expected clients with {2 * batch_size} clips or more in {folder}, found none. Put more speakers in a client."
        )
    notes = list(store.notes)
    if len(enough) < len(store.client_ids):
        few = len(store.client_ids) - len(enough)
        notes.append(
            f"{few} of {len(store.client_ids)} clients have fewer than two batches of {batch_size} clips and take no part."
        )
    notes.extend(store.precision_notes)

    def client_dataset(client_id: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        path = tf.strings.join([root, "/clients/", client_id])
        labels = _classes(reader.read_labels(path))
        whole = tf.size(labels) // batch_size * batch_size
        own = tf.strings.to_hash_bucket_fast(client_id, 2**31 - 1)  # clients with equal labels draw differently
        seed = tf.stack([tf.cast(seed, tf.int64), own])

        def draw(epoch: tf.Tensor) -> tf.Tensor:
            of_epoch = tf.random.experimental.stateless_fold_in(seed, epoch)
            drawn = _draw_balanced(labels, of_epoch) if balanced else reader.shuffled(tf.size(labels), of_epoch)
            return drawn[:whole]

        drawn = tf.reshape(tf.map_fn(draw, tf.range(local_epochs, dtype=tf.int64)), [-1])
        return reader.batches(store, path, drawn, tf.gather(labels, drawn), batch_size)

    names = [f"clients/{client}" for client in store.client_ids]
    of_file = [store.labels(name) for name in names]
    all_batches = sum(len(x) for x in of_file) // batch_size

    def all_clients(seed: tf.Tensor) -> tf.data.Dataset:
        paths = tf.constant([f"{root}/{name}" for name in names])
        labels = tf.constant(np.concatenate(of_file), tf.int32)
        file = tf.constant(np.repeat(np.arange(len(names)), [len(x) for x in of_file]))
        record = tf.constant(np.concatenate([np.arange(len(x)) for x in of_file]))
        drawn = _draw_balanced(labels, tf.stack([tf.cast(seed, tf.int64), tf.constant(-1, tf.int64)]))
        drawn = drawn[: all_batches * batch_size]
        folders, records = tf.gather(paths, tf.gather(file, drawn)), tf.gather(record, drawn)
        return reader.batches(store, folders, records, tf.gather(labels, drawn), batch_size)

    return EmbeddingDataset(
        name=store.name,
        client_ids=enough,
        client_dataset=client_dataset,
        test=_in_order(store, f"{root}/test"),
        notes=tuple(notes),
        validation=_in_order(store, f"{root}/validation"),
        all_clients=all_clients,
        all_batches=all_batches,
        store=store,
        write_client=lambda client, folder: stores.write_client(store, client, folder),
    )


def _draw_balanced(labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws as many clips as there are, with replacement.

    A clip's weight is that of Flower's example: n / (clips of its class + 1) + 1, with n clips in all.
    """
    count = tf.size(labels)
    of_class = tf.gather(tf.math.bincount(labels, minlength=len(CLASS_NAMES)), labels)
    weights = tf.cast(count, tf.float32) / tf.cast(of_class + 1, tf.float32) + 1
    return tf.random.stateless_categorical(tf.math.log(weights)[tf.newaxis], count, seed, dtype=tf.int64)[0]


def _in_order(store: stores.Store, path: str) -> tf.data.Dataset:
    labels = _classes(reader.read_labels(tf.constant(path)))
    return reader.batches(store, tf.constant(path), tf.range(tf.size(labels)), labels, _TEST_BATCH_SIZE)


def _classes(labels: tf.Tensor) -> tf.Tensor:
    return tf.cast(labels[:, 0], tf.int32)
