"""The clients' data of segmentation: objects that the worker reads from a store of SAM's embeddings."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_kit.datasets import DataError, PooledDataset
from tff_kit.embeddings import reader
from tff_kit.embeddings import store as stores
from tff_kit.tasks.segmentation.objects import image_numbers, jitter_boxes, object_bytes, unpack_objects
from tff_kit.tasks.segmentation.stored import SAM_FILE, StoredSam, read_sam

_TEST_BATCH_SIZE = 8
_HOW = (
    "Make one from a folder of images and masks with python -m tff_kit embed sam --images FOLDER, or use made-up images with "
    "--data demo."
)
_TEST_SEED = 20_230_405


@dataclasses.dataclass(frozen=True)
class SegmentationDataset(PooledDataset):
    """The clients' images and objects.

    Attributes:
      store: The store of the embeddings.
      sam: What the store has of its SAM.
    """

    store: Optional[stores.Store] = None
    sam: Optional[StoredSam] = None


def load(
    folder: os.PathLike,
    batch_size: int = 2,
    local_epochs: int = 1,
    jitter: int = 20,
    weights_sha256: Optional[str] = None,
) -> SegmentationDataset:
    """Reads a store as clients' data, one example an object.

    Inputs are `image`, float32 [batch, positions, width], and `box`, float32 [batch, 4], in pixels of the encoder's image. Labels
    are masks, float32 [batch, side, side], of 0 and 1. In a local epoch, a client goes through its objects in random order.

    Args:
      folder: A finished store.
      batch_size: Objects in a training batch; a client's last one may have fewer.
      local_epochs: How often a client goes through its objects in a round.
      jitter: How far a box's sides are moved outwards, in 256ths of the image; see `jitter_boxes`. Held-out boxes are moved too,
        always in the same way.
      weights_sha256: SHA-256 of the encoder that the store must have been made with; `None` for any.

    Raises:
      DataError: As `tff_kit.embeddings.store.open_store`, or if the store is not of images.
    """
    store, sam = open_images(pathlib.Path(folder), weights_sha256)
    root = str(store.folder.resolve())
    names = [f"clients/{client}" for client in store.client_ids]

    def client_dataset(client_id: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        path = tf.strings.join([root, "/clients/", client_id])
        objects = reader.read_labels(path, store.label_bytes)
        own = tf.strings.to_hash_bucket_fast(client_id, 2**31 - 1)  # Clients draw differently.
        seed = tf.stack([tf.cast(seed, tf.int64), own])

        def draw(epoch: tf.Tensor) -> tf.Tensor:
            return reader.shuffled(tf.shape(objects)[0], tf.random.experimental.stateless_fold_in(seed, epoch))

        drawn = tf.reshape(tf.map_fn(draw, tf.range(local_epochs, dtype=tf.int64)), [-1])
        return _batches(store, sam, path, tf.gather(objects, drawn), batch_size, jitter, seed)

    def all_clients(seed: tf.Tensor) -> tf.data.Dataset:
        objects = tf.concat([reader.read_labels(tf.constant(f"{root}/{name}"), store.label_bytes) for name in names], axis=0)
        paths = tf.constant(np.repeat([f"{root}/{name}" for name in names], [store.num_labels(name) for name in names]))
        seed = tf.stack([tf.cast(seed, tf.int64), tf.constant(-1, tf.int64)])
        drawn = reader.shuffled(tf.shape(objects)[0], seed)
        return _batches(store, sam, tf.gather(paths, drawn), tf.gather(objects, drawn), batch_size, jitter, seed)

    def held_out(name: str) -> tf.data.Dataset:
        objects = reader.read_labels(tf.constant(f"{root}/{name}"), store.label_bytes)
        return _batches(store, sam, f"{root}/{name}", objects, _TEST_BATCH_SIZE, jitter, tf.constant([_TEST_SEED, 0], tf.int64))

    return SegmentationDataset(
        name=store.name,
        client_ids=store.client_ids,
        client_dataset=client_dataset,
        test=held_out("test"),
        notes=(*store.notes, *store.precision_notes),
        validation=held_out("validation"),
        all_clients=all_clients,
        all_batches=-(-sum(store.num_labels(name) for name in names) // batch_size),
        store=store,
        sam=sam,
        write_client=lambda client, folder: _write_client(store, client, folder),
    )


def open_images(folder: pathlib.Path, weights_sha256: Optional[str] = None) -> tuple[stores.Store, StoredSam]:
    """Returns the store in `folder` and what it has of its SAM; raises `DataError` as `load`."""
    store = stores.open_store(folder, None, weights_sha256, _HOW)
    if not (folder / SAM_FILE).is_file():
        found = f"one of {store.name}" if store.label_bytes == 1 else f"one without {SAM_FILE}"
        raise DataError(f"Expected a store of SAM's embeddings of images in {folder}, found {found}. {_HOW}")
    sam = read_sam(folder)
    shape = sam.sizes.positions, sam.sizes.hidden_size, object_bytes(sam.sizes), sam.sizes.window
    if shape != (store.positions, store.width, store.label_bytes, store.window):
        raise DataError(
            f"Expected embeddings of the SAM in {folder / SAM_FILE}, {shape[0]} of width {shape[1]}; found {store.positions} of "
            f"width {store.width}, made by {store.model}. The files are of two stores. Run the same embed again."
        )
    return store, sam


def _batches(
    store: stores.Store, sam: StoredSam, folder: Any, objects: tf.Tensor, batch_size: int, jitter: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Returns batches of objects in their order, whose boxes are jittered by `seed`."""
    number = image_numbers(objects)
    place = tf.range(tf.cast(tf.shape(objects)[0], tf.int64))

    def example(image: tf.Tensor, label: tuple[tf.Tensor, tf.Tensor]):
        packed, places = label
        _, box, mask = unpack_objects(packed, sam.sizes)
        moved = jitter_boxes(box, jitter, tf.stack([seed[0] + places[0], seed[1]]), sam.sizes)
        return {"image": image, "box": moved}, mask

    return reader.batches(store, folder, number, (objects, place), batch_size).map(example)


def _write_client(store: stores.Store, client: str, folder: pathlib.Path) -> None:
    stores.write_client(store, client, folder)
    shutil.copyfile(store.folder / SAM_FILE, folder / SAM_FILE)
