"""Makes a store of SAM's embeddings of a folder of images; or of made-up images, to try everything with."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tff_kit.datasets import disk
from tff_kit.embeddings import store as stores
from tff_kit.embeddings import writer
from tff_kit.tasks.segmentation import demo
from tff_kit.tasks.segmentation.folder import Pictures, load_folder
from tff_kit.tasks.segmentation.objects import object_bytes, pack_object
from tff_kit.tasks.segmentation.sam import TINY, Sam, load_sam, prepare
from tff_kit.tasks.segmentation.sizes import Sizes
from tff_kit.tasks.segmentation.stored import StoredSam, write_sam

_BATCH_SIZE = {TINY: 16}


def embed(pictures: Pictures, sam: Sam, folder: os.PathLike, dtype: str = "float16", show_progress: bool = True) -> stores.Store:
    """Writes the embeddings of all images, and their objects, to `folder`. An interrupted run resumes.

    Args:
      pictures: The images and masks.
      sam: The SAM whose encoder embeds them.
      folder: The store's folder.
      dtype: "float16", or "int8" for half of the space.
      show_progress: Whether to show a bar on the terminal.

    Returns:
      The finished store.

    Raises:
      DataError: If another store is in `folder`, another process writes to it, the disk is full, or a file has changed.
    """
    encoder, batch_size = sam.encoder, _BATCH_SIZE.get(sam.encoder.model, 1)
    every = [picture for own in pictures.splits.values() for picture in own]
    store = stores.Store(
        folder=pathlib.Path(folder),
        name=f"{pictures.name} as embeddings of {_described(sam)}",
        model=encoder.model,
        weights_sha256=encoder.weights_sha256,
        window=encoder.window,
        positions=encoder.positions,
        width=encoder.width,
        dtype=dtype,
        speakers_per_client=1,
        clips_sha256=_sha256(pictures),
        clips={name: len(own) for name, own in pictures.splits.items()},
        label_bytes=object_bytes(sam.sizes),
        examples={name: sum(len(picture.values) for picture in own) for name, own in pictures.splits.items()},
        notes=(*pictures.notes, *_notes(sam)),
    )

    def embeddings(numbers: Sequence[int]) -> np.ndarray:
        images = np.zeros([batch_size, sam.sizes.image_size, sam.sizes.image_size, 3], np.float32)  # Always of one size.
        for i, number in enumerate(numbers):
            images[i] = prepare(pictures.read_image(every[number]), sam.sizes)
        return encoder.embed(tf.constant(images)).numpy()[: len(numbers)]

    finished = writer.write(store, _Objects(pictures, sam.sizes), embeddings, batch_size, show_progress)
    with disk.writing(store.folder):
        write_sam(store.folder, StoredSam(sam.sizes, sam.prompts, sam.decoder or {}))
    return finished


@functools.cache
def demo_store(model: str = TINY, clients: int = 8, images: int = 24, held_out: int = 24) -> pathlib.Path:
    """Writes a store of made-up images in a folder that is removed when Python ends, once; returns the folder."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="tff_kit-demo-images-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    demo.write_demo(root / "data", clients, images, held_out)
    pictures = dataclasses.replace(load_folder(root / "data"), name=demo.NAME, notes=(demo.NOTE,))
    return embed(pictures, load_sam(model), root / "store", show_progress=False).folder


class _Objects(Mapping):
    """The objects of each folder of images as a store keeps them, one folder's in memory at a time."""

    def __init__(self, pictures: Pictures, sizes: Sizes):
        self._pictures, self._sizes = pictures, sizes

    def __getitem__(self, name: str) -> np.ndarray:
        read = enumerate(self._pictures.splits[name])
        packed = [pack_object(i, mask, self._sizes) for i, own in read for mask in self._pictures.read_objects(own)]
        return np.concatenate(packed) if packed else np.zeros([0], np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pictures.splits)

    def __len__(self) -> int:
        return len(self._pictures.splits)


def _described(sam: Sam) -> str:
    return "a tiny SAM that nobody trained" if sam.decoder is None else sam.encoder.model


def _notes(sam: Sam) -> tuple[str, ...]:
    if sam.decoder is not None:
        return ()
    return ("The encoder is tiny and was never trained: its weights are random. Its results say nothing about SAM.",)


def _sha256(pictures: Pictures) -> str:
    """Returns the SHA-256 of all images' and masks' names and contents, by client and in order."""
    digest = hashlib.sha256()
    for name, own in pictures.splits.items():
        for picture in own:
            for file in (picture.image, picture.mask):
                contents = hashlib.sha256((pictures.folder / file).read_bytes()).hexdigest()
                digest.update(f"{name}\t{file}\t{contents}\n".encode())
    return digest.hexdigest()
