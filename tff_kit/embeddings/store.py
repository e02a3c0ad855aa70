"""A store of embeddings on disk. The frozen encoder makes them once for each clip, and clients train on them in every round.

A clip is what the encoder is given at a time: a second of sound, or an image.

A store is a folder:

    store.json                    the description: the fields of `Store`
    clients/<id>.labels           one byte for each clip; or what a task keeps of its examples, `label_bytes` for each
    clients/<id>/000000, ...      one file for each clip's embeddings, numbered in the labels' order
    validation.labels, ...        the same for the held-out speakers
    test.labels, ...

A worker reads only the clips that it trains on, in the order in which it draws them, with TensorFlow's own operations. Its
memory holds a few batches, however large the store is. Each clip has a file of its own because no TensorFlow operation reads
from the middle of a file: `FixedLengthRecordDataset` reads through the header that it skips, so a clip of a client with 160
clips cost eight times as much.

A file contains

    float16   positions x width float16
    int8      positions float16 steps, then positions x width int8: value = step of its position x int8
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_kit.datasets.federated import DataError

VERSION = 1
DTYPES = ("float16", "int8")
DIGITS = 6
"""The number of digits of a clip's number in its file's name."""
_DESCRIPTION = "store.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """The description of a store.

    Attributes:
      folder: The store's folder.
      name: The data, in a few words.
      model: The hub id or folder name of the encoder.
      weights_sha256: SHA-256 of the encoder's weights.
      window: What the encoder was given of a clip, by the encoder's name for it, such as "30s" or "1024px".
      positions: Number of embeddings a clip.
      width: Number of elements of an embedding.
      dtype: "float16" or "int8".
      speakers_per_client: Number of speakers of a client; 1 where data says who a client is.
      clips_sha256: SHA-256 of all clips' names, crops, labels and alterations in order. It is equal for equal data.
      clips: The number of clips in each folder, in the order in which the folders are written.
      copies: Number of altered copies of each training clip.
      notes: Sentences that a user should read before trusting a result on this data.
      label_bytes: Size of a label, in bytes.
      examples: The number of labels of each folder; empty where each clip has one.
      relative_error: The error of storing: the norm of (stored - computed) divided by the norm of computed, over up to 64 clips
        that were read back from the finished store. `None` while the store is not finished.
      version: The version of this layout.
    """

    folder: pathlib.Path
    name: str
    model: str
    weights_sha256: str
    window: str
    positions: int
    width: int
    dtype: str
    speakers_per_client: int
    clips_sha256: str
    clips: Mapping[str, int]
    copies: int = 0
    label_bytes: int = 1
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    relative_error: Optional[float] = None
    version: int = VERSION

    @property
    def record_bytes(self) -> int:
        """The size of one clip's file, in bytes."""
        return record_bytes(self.positions, self.width, self.dtype)

    @property
    def num_clips(self) -> int:
        """The number of clips in all folders."""
        return sum(self.clips.values())

    @property
    def num_bytes(self) -> int:
        """The size of all clips and labels, in bytes."""
        return self.num_clips * self.record_bytes + sum(map(self.num_labels, self.clips)) * self.label_bytes

    @property
    def client_ids(self) -> tuple[str, ...]:
        """All clients, including those with too few clips to train."""
        return tuple(name.split("/")[1] for name in self.clips if name.startswith("clients/"))

    @property
    def precision_notes(self) -> tuple[str, ...]:
        """What a user should know of the numbers' precision: a sentence for int8, none for float16."""
        if self.dtype != "int8":
            return ()
        return (f"Embeddings are stored as int8, with a relative error of {self.relative_error:.2%}.",)

    def num_labels(self, name: str) -> int:
        """The number of labels of one folder of clips, such as "clients/0000" or "test"."""
        return self.examples[name] if self.examples else self.clips[name]

    def labels(self, name: str) -> np.ndarray:
        """The labels of one folder of clips, uint8 [labels]; or [labels, label_bytes] where they have more than a byte."""
        read = np.fromfile(self.folder / f"{name}.labels", np.uint8)
        return read if self.label_bytes == 1 else read.reshape(-1, self.label_bytes)

    @property
    def client_labels(self) -> dict[str, np.ndarray]:
        """The labels of each client's clips."""
        return {client: self.labels(f"clients/{client}") for client in self.client_ids}


def record_bytes(positions: int, width: int, dtype: str) -> int:
    """Returns the size of one clip's file, in bytes."""
    check_dtype(dtype)
    return positions * width * 2 if dtype == "float16" else positions * (2 + width)


SPEECH = (
    "Make one from a folder of Speech Commands with make embeddings SPEECH=FOLDER STORE=FOLDER (python -m tff_kit embed), or use "
    "synthetic embeddings with STORE=demo (--data demo)."
)


def open_store(
    folder: os.PathLike,
    window: Optional[str] = None,
    weights_sha256: Optional[str] = None,
    how: str = SPEECH,
) -> Store:
    """Returns the description of the finished store in `folder`.

    Args:
      folder: The store's folder.
      window: The window that the store must have been made with; `None` for any.
      weights_sha256: SHA-256 of the encoder that the store must have been made with; `None` for any.
      how: A sentence on how to make a store, for messages.

    Raises:
      DataError: If there is no store, the store is unfinished or was changed, or it was made with another encoder or window.
    """
    store = read_description(pathlib.Path(folder))
    if store is None:
        raise DataError(f"Expected a store of embeddings in {folder}, found none. {how}")
    for name in store.clips:
        _check_size(store, pathlib.Path(f"{name}.labels"), store.num_labels(name) * store.label_bytes)
    done = count_done(store)
    if store.relative_error is None:
        raise DataError(
            f"Expected a finished store in {folder}, found {done:,} of {store.num_clips:,} clips in it. Run the same embed "
            "command again. It resumes where it stopped."
        )
    if done < store.num_clips:
        path = clip_files(store)[done].relative_to(store.folder)
        _check_size(store, path, store.record_bytes)
    if window is not None and window != store.window:
        raise DataError(
            f"Expected a store of the {window} window, found {folder} with the {store.window} window, {store.positions} "
            "positions. Choose a store that fits, or make one."
        )
    if weights_sha256 is not None and weights_sha256 != store.weights_sha256:
        raise DataError(
            f"Expected a store made by the encoder with weights {weights_sha256[:12]}, found {folder} made by {store.model} with "
            f"weights {store.weights_sha256[:12]}. A head fits only the encoder that it was trained on."
        )
    return store


def write_client(store: Store, client: str, folder: pathlib.Path) -> None:
    """Copies one client's clips to `folder`, which becomes a store of that client alone, with nothing held out."""
    name = f"clients/{client}"
    shutil.copytree(store.folder / name, folder / name)
    shutil.copyfile(store.folder / f"{name}.labels", folder / f"{name}.labels")
    for held_out in ("validation", "test"):
        (folder / f"{held_out}.labels").touch()
    examples = {name: store.num_labels(name)} if store.examples else {}
    write_description(dataclasses.replace(store, folder=folder, clips={name: store.clips[name]}, examples=examples))


def clip_files(store: Store) -> list[pathlib.Path]:
    """Returns the file of each clip, in the order in which the files are written."""
    return [store.folder / name / f"{number:0{DIGITS}d}" for name, count in store.clips.items() for number in range(count)]


def count_done(store: Store) -> int:
    """Returns the number of complete clips before the first incomplete one."""
    done = 0
    for name, count in store.clips.items():
        folder = store.folder / name
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)} if folder.is_dir() else {}
        for number in range(count):
            if sizes.get(f"{number:0{DIGITS}d}") != store.record_bytes:
                return done
            done += 1
    return done


def decode(store: Store, raw: tf.Tensor) -> tf.Tensor:
    """Decodes clips' files, string [n], to embeddings, float32 [n, positions, width], with TensorFlow's operations only."""
    shape = [-1, store.positions, store.width]
    if store.dtype == "float16":
        return tf.reshape(tf.cast(tf.io.decode_raw(raw, tf.float16), tf.float32), shape)
    values = tf.io.decode_raw(raw, tf.int8)
    steps = tf.bitcast(tf.reshape(values[:, : 2 * store.positions], [-1, store.positions, 1, 2]), tf.float16)
    return tf.cast(tf.reshape(values[:, 2 * store.positions :], shape), tf.float32) * tf.cast(steps, tf.float32)


def encode(embeddings: np.ndarray, dtype: str) -> np.ndarray:
    """Encodes a batch of embeddings, float32 [batch, positions, width], as records, uint8 [batch, record_bytes].

    Raises:
      DataError: If an element is not finite or too large for float16.
    """
    largest = np.abs(embeddings).max(axis=-1, keepdims=True)
    if not largest.max() < np.finfo(np.float16).max:  # This also catches NaN.
        raise DataError(f"Expected embeddings that float16 can hold, found a largest element of {largest.max()}.")
    if dtype == "float16":
        return embeddings.astype("<f2").reshape(len(embeddings), -1).view(np.uint8)
    steps = (largest / 127).astype("<f2")
    values = np.rint(embeddings / np.maximum(steps.astype(np.float32), np.finfo(np.float32).tiny)).clip(-127, 127).astype(np.int8)
    flat = [steps.reshape(len(embeddings), -1).view(np.uint8), values.reshape(len(embeddings), -1).view(np.uint8)]
    return np.concatenate(flat, axis=1)


def write_description(store: Store) -> None:
    """Writes `store.json` completely or not at all."""
    fields = {f.name: getattr(store, f.name) for f in dataclasses.fields(store) if f.name != "folder"}
    new = store.folder / f"{_DESCRIPTION}.new"
    with open(new, "w") as file:
        json.dump({**fields, "complete": store.relative_error is not None}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, store.folder / _DESCRIPTION)


def read_description(folder: pathlib.Path) -> Optional[Store]:
    """Returns the store that `store.json` in `folder` describes, or `None` if there is no such file.

    Raises:
      DataError: If the file is damaged or of another version.
    """
    path = folder / _DESCRIPTION
    if not path.is_file():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        version = fields["version"]
        if version == VERSION:
            del fields["complete"]
            store = Store(folder=folder, **{**fields, "notes": tuple(fields["notes"])})
            check_dtype(store.dtype)
            return store
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"Expected the description of a store in {path}, found something else: {error!r}. Make the store again."
        ) from error
    raise DataError(f"Expected a store of version {VERSION} in {folder}, found version {version}. Make the store again.")


def _check_size(store: Store, name: os.PathLike, expected: int) -> None:
    found = _size(store.folder / name)
    if found != expected:
        raise DataError(
            f"Expected {expected:,} bytes in {store.folder / name}, found {found:,}. The store was changed. Make it again."
        )


def check_dtype(dtype: str) -> None:
    """Raises `ValueError` if `dtype` is not in `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"Expected a dtype of {' or '.join(DTYPES)}, found {dtype!r}.")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0
