"""Embeddings on disk: what the frozen encoder made of every clip, once, for clients to train on in every round.

A store is a folder:

    store.json                    what it is of, and which files it has: the fields of `Store`
    clients/<id>.labels           one byte a clip
    clients/<id>/000000, ...      the embeddings of one clip a file, numbered in the labels' order
    validation.labels, ...        the same for the held-out speakers
    test.labels, ...

A worker reads the clips that it trains on, in the order in which it draws them, and no others, by TensorFlow's own
operations; its memory holds a few batches however large the store is. That is why a clip is a file: no such operation reads
from the middle of one (`FixedLengthRecordDataset` reads through the header that it skips, which for a client of 160 clips made
a clip cost eight times as much). A file is

    float16   positions x width float16
    int8      positions float16 steps, then positions x width int8: value = step of its position x int8

`embed` works through the clips in a fixed order and in batches of a fixed size. The files tell how far it came, so a run that
was killed goes on from the last whole batch and ends with the same bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf
from rich import progress as rich_progress

from tff_kit import whisper
from tff_kit.datasets import disk
from tff_kit.datasets.federated import DataError, FederatedDataset
from tff_kit.datasets.speech_commands import CLASS_NAMES, CLIP_SAMPLES, Clip, SpeechCommands

VERSION = 1
DTYPES = ("float16", "int8")
BATCH_SIZE = 8  # of Flower's example
_TEST_BATCH_SIZE = 32
_EMBED_BATCH_SIZE = {"30s": 4, "1s": 32}  # larger ones are not faster on a CPU, and a killed run loses up to one
_ERROR_CLIPS = 64
_DESCRIPTION = "store.json"
_PREFETCH = 2
_DIGITS = 6  # of a clip's number in its file's name


@dataclasses.dataclass(frozen=True)
class Store:
    """What a store is of.

    Attributes:
      folder: Where it is.
      name: What the data is, in a few words.
      model: The hub id or folder name of the encoder.
      weights_sha256: Of the encoder's weights.
      window: The sound that the encoder was given, a key of `whisper.WINDOWS`.
      positions: Embeddings a clip.
      width: Of an embedding.
      dtype: "float16" or "int8".
      speakers_per_client: How many speakers a client has.
      clips_sha256: Of all clips' names, crops and labels in order: equal for equal data.
      clips: The number of clips in each folder of them, in the order in which they are written.
      notes: Sentences that a user should read before trusting a result on this data.
      relative_error: What storing costs: the norm of (stored - computed) divided by that of computed, over up to 64 clips
        read back from the finished store; `None` while it is not finished.
      version: Of this layout.
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
    notes: Sequence[str] = ()
    relative_error: Optional[float] = None
    version: int = VERSION

    @property
    def record_bytes(self) -> int:
        """The size of one clip's file."""
        return record_bytes(self.positions, self.width, self.dtype)

    @property
    def num_clips(self) -> int:
        """How many clips there are in all folders."""
        return sum(self.clips.values())

    @property
    def client_ids(self) -> tuple[str, ...]:
        """All clients, also those with too few clips to train."""
        return tuple(name.split("/")[1] for name in self.clips if name.startswith("clients/"))

    def labels(self, name: str) -> np.ndarray:
        """The labels of one folder of clips, such as "clients/0000" or "test"."""
        return np.fromfile(self.folder / f"{name}.labels", np.uint8)

    @property
    def client_labels(self) -> dict[str, np.ndarray]:
        """The labels of each client's clips."""
        return {client: self.labels(f"clients/{client}") for client in self.client_ids}


@dataclasses.dataclass(frozen=True)
class EmbeddingDataset(FederatedDataset):
    """A `FederatedDataset` with what keyword spotting needs beside it.

    Attributes:
      validation: Batches of `(inputs, labels)` of other held-out speakers than those of `test`, always in the same order.
      all_clients: From a seed, an int64 tensor, to one epoch of class-balanced training batches of all clients' clips
        together, for training without federation.
      store: What the data was read from.
    """

    validation: Optional[tf.data.Dataset] = None
    all_clients: Optional[Callable[[tf.Tensor], tf.data.Dataset]] = None
    store: Optional[Store] = None


def record_bytes(positions: int, width: int, dtype: str) -> int:
    """Returns the bytes that one clip takes."""
    _check_dtype(dtype)
    return positions * width * 2 if dtype == "float16" else positions * (2 + width)


def store_gigabytes(clips: int, window: str = "30s", dtype: str = "float16", width: int = 384) -> float:
    """Returns the size of a store, in GB of 10^9 bytes; such as for the 84,848 training clips of Speech Commands v0.02."""
    return clips * (1 + record_bytes(whisper.positions(window), width, dtype)) / 1e9


def embed(
    speech: SpeechCommands,
    encoder: whisper.Encoder,
    folder: os.PathLike,
    dtype: str = "float16",
    batch_size: Optional[int] = None,
    show_progress: bool = True,
) -> Store:
    """Writes the embeddings of all clips to `folder`. A run that was stopped goes on; a finished store is left as it is.

    Args:
      speech: The clips.
      encoder: What embeds them.
      folder: Where the store is, or shall be.
      dtype: "float16", or "int8" for half of the space at an error that `Store.relative_error` tells.
      batch_size: Clips that are embedded together, by default what is fast on a CPU.
      show_progress: Whether to show a bar, clips per second and the time left on the terminal.

    Raises:
      DataError: If there is another store in `folder`, another process is writing to it, the disk is full, or a clip has
        become unreadable.
    """
    batch_size = batch_size or _EMBED_BATCH_SIZE[encoder.window]
    splits = {name: tuple(clips) for name, clips in speech.splits.items()}
    store = Store(
        folder=pathlib.Path(folder),
        name=f"Speech Commands as {encoder.window} embeddings of {encoder.model}",
        model=encoder.model,
        weights_sha256=encoder.weights_sha256,
        window=encoder.window,
        positions=encoder.positions,
        width=encoder.width,
        dtype=dtype,
        speakers_per_client=speech.speakers_per_client,
        clips_sha256=_sha256(splits),
        clips={name: len(clips) for name, clips in splits.items()},
        notes=tuple(speech.notes),
    )
    labels = {name: np.array([clip.label for clip in clips], np.uint8) for name, clips in splits.items()}
    every = [clip for clips in splits.values() for clip in clips]

    def embeddings(numbers: Sequence[int]) -> np.ndarray:
        sounds = np.zeros([batch_size, CLIP_SAMPLES], np.float32)  # always of one size, so that the same clip gives the same bits
        for i, number in enumerate(numbers):
            sounds[i] = speech.read(every[number])
        return encoder.embed(tf.constant(sounds)).numpy()[: len(numbers)]

    return _write(store, labels, embeddings, batch_size, show_progress)


def demo(
    folder: Optional[os.PathLike] = None, window: str = "1s", clients: int = 8, clips_per_client: int = 40, seed: int = 0
) -> Store:
    """Writes a small store of synthetic embeddings, to try everything without sound, encoder or network.

    Each class has its own pattern, each client shifts them all a little, and noise comes on top: easy to learn, and no
    measure of anything.

    Args:
      folder: Where to write it; `None` for a temporary folder that is removed when Python ends.
      window: "30s" or "1s", for the shape.
      clients: How many clients there are. As many clips as one of them has are held out for validation, and for test.
      clips_per_client: How many clips each has.
      seed: Of everything random in it.
    """
    if folder is None:
        temporary = tempfile.mkdtemp(prefix="tff_kit-synthetic-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    root = pathlib.Path(temporary if folder is None else folder)
    positions, width = whisper.positions(window), 384
    classes = len(CLASS_NAMES)
    names = [*(f"clients/{i:04d}" for i in range(clients)), "validation", "test"]
    store = Store(
        folder=root,
        name=f"synthetic embeddings of {window}",
        model="synthetic",
        weights_sha256="synthetic",
        window=window,
        positions=positions,
        width=width,
        dtype="float16",
        speakers_per_client=1,
        clips_sha256=f"synthetic {seed}",
        clips=dict.fromkeys(names, clips_per_client),
        notes=("This data is synthetic: made up to try the program, no measure of any model.",),
    )
    drawn = np.random.default_rng([seed, 0]).integers(0, classes, [len(names), clips_per_client], np.uint8)
    labels = dict(zip(names, drawn))
    patterns = np.random.default_rng([seed, 1]).standard_normal([classes, positions, width], np.float32)

    def embeddings(numbers: Sequence[int]) -> np.ndarray:
        made = []
        for clip in numbers:
            name = clip // clips_per_client
            shift = np.random.default_rng([seed, 2, name]).standard_normal([1, width], np.float32)
            noise = np.random.default_rng([seed, 3, clip]).standard_normal([positions, width], np.float32)
            made.append(0.3 * patterns[labels[names[name]][clip % clips_per_client]] + 0.3 * shift + noise)
        return np.stack(made)

    return _write(store, labels, embeddings, batch_size=8, show_progress=False)


def open_store(folder: os.PathLike, window: Optional[str] = None, weights_sha256: Optional[str] = None) -> Store:
    """Returns what the finished store in `folder` is of.

    Args:
      folder: Where the store is.
      window: The window that the store must have been made with; `None` for any.
      weights_sha256: The encoder that the store must have been made with; `None` for any.

    Raises:
      DataError: If there is no store, it is not finished or has been changed, or is of another encoder or window.
    """
    store = _read_description(pathlib.Path(folder))
    if store is None:
        raise DataError(f"Expected a store of embeddings in {folder}, found none. Make it with the embed command.")
    for name, count in store.clips.items():
        _check_size(store, pathlib.Path(f"{name}.labels"), count)
    done = _count_done(store)
    if store.relative_error is None:
        raise DataError(
            f"Expected a finished store in {folder}, found {done:,} of {store.num_clips:,} clips in it. Run the same embed "
            "command again: it goes on where it stopped."
        )
    if done < store.num_clips:
        path = _clip_files(store)[done].relative_to(store.folder)
        _check_size(store, path, store.record_bytes)
    if window is not None and window != store.window:
        raise DataError(
            f"Expected a store of the {window} window, {whisper.positions(window)} positions, found {folder} with "
            f"{store.window}, {store.positions} positions. Choose the store that fits, or make one."
        )
    if weights_sha256 is not None and weights_sha256 != store.weights_sha256:
        raise DataError(
            f"Expected a store made by the encoder with weights {weights_sha256[:12]}, found {folder} made by {store.model} with "
            f"weights {store.weights_sha256[:12]}. A head only fits the encoder it was trained on."
        )
    return store


def load(
    folder: os.PathLike, batch_size: int = BATCH_SIZE, window: Optional[str] = None, weights_sha256: Optional[str] = None
) -> EmbeddingDataset:
    """Reads a store as clients' data: float32 embeddings [batch, positions, width] and int32 labels [batch].

    A round's data of a client are as many clips as it has, drawn with replacement so that classes are about balanced, as
    in Flower's example; the last, incomplete batch is dropped. Clients with fewer than two batches take no part.

    Args:
      folder: A finished store.
      batch_size: Clips a training batch.
      window: The window that the store must have been made with; `None` for any.
      weights_sha256: The encoder that the store must have been made with; `None` for any.

    Raises:
      DataError: As `open_store`, and if no client has two batches.
    """
    store = open_store(folder, window, weights_sha256)
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
    if store.dtype == "int8":
        notes.append(f"Embeddings are stored as int8, with a relative error of {store.relative_error:.2%}.")

    def client_dataset(client_id: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        path = tf.strings.join([root, "/clients/", client_id])
        labels = _read_labels(path)
        own = tf.strings.to_hash_bucket_fast(client_id, 2**31 - 1)  # clients with equal labels draw differently
        drawn = _draw(labels, tf.stack([tf.cast(seed, tf.int64), own]), batch_size)
        records = tf.data.Dataset.from_tensor_slices((tf.gather(labels, drawn), drawn))
        return _batches(store, records.map(lambda label, record: (path, record, label)), batch_size)

    names = [f"clients/{client}" for client in store.client_ids]
    of_file = [store.labels(name) for name in names]

    def all_clients(seed: tf.Tensor) -> tf.data.Dataset:
        paths = tf.constant([f"{root}/{name}" for name in names])
        labels = tf.constant(np.concatenate(of_file), tf.int32)
        file = tf.constant(np.repeat(np.arange(len(names)), [len(x) for x in of_file]))
        record = tf.constant(np.concatenate([np.arange(len(x)) for x in of_file]))
        drawn = _draw(labels, tf.stack([tf.cast(seed, tf.int64), tf.constant(-1, tf.int64)]), batch_size)
        records = tf.data.Dataset.from_tensor_slices((tf.gather(file, drawn), tf.gather(record, drawn), tf.gather(labels, drawn)))
        return _batches(store, records.map(lambda f, r, y: (paths[f], r, y)), batch_size)

    return EmbeddingDataset(
        name=store.name,
        client_ids=enough,
        client_dataset=client_dataset,
        test=_in_order(store, f"{root}/test"),
        notes=tuple(notes),
        validation=_in_order(store, f"{root}/validation"),
        all_clients=all_clients,
        store=store,
    )


# Reading: TensorFlow's own operations only, since a worker has no others.


def _draw(labels: tf.Tensor, seed: tf.Tensor, batch_size: int) -> tf.Tensor:
    """Draws clips with replacement, as many as there are in whole batches.

    A clip's weight is that of Flower's example: n / (clips of its class + 1) + 1, with n clips in all.
    """
    count = tf.size(labels)
    of_class = tf.gather(tf.math.bincount(labels, minlength=len(CLASS_NAMES)), labels)
    weights = tf.cast(count, tf.float32) / tf.cast(of_class + 1, tf.float32) + 1
    whole = count // batch_size * batch_size
    return tf.random.stateless_categorical(tf.math.log(weights)[tf.newaxis], whole, seed, dtype=tf.int64)[0]


def _batches(store: Store, records: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """From a dataset of (folder, number of the clip, label) to batches of embeddings and labels."""

    def read(path, number, label):
        return tf.io.read_file(tf.strings.join([path, "/", tf.strings.as_string(number, width=_DIGITS, fill="0")])), label

    batches = records.map(read).batch(batch_size)
    return batches.map(lambda raw, label: (_decode(store, raw), label)).prefetch(_PREFETCH)


def _in_order(store: Store, path: str) -> tf.data.Dataset:
    labels = _read_labels(tf.constant(path))
    clips = tf.data.Dataset.from_tensor_slices((tf.range(tf.size(labels)), labels))
    return _batches(store, clips.map(lambda number, label: (path, number, label)), _TEST_BATCH_SIZE)


def _read_labels(path: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.io.decode_raw(tf.io.read_file(path + ".labels"), tf.uint8), tf.int32)


def _decode(store: Store, raw: tf.Tensor) -> tf.Tensor:
    shape = [-1, store.positions, store.width]
    if store.dtype == "float16":
        return tf.reshape(tf.cast(tf.io.decode_raw(raw, tf.float16), tf.float32), shape)
    values = tf.io.decode_raw(raw, tf.int8)
    steps = tf.bitcast(tf.reshape(values[:, : 2 * store.positions], [-1, store.positions, 1, 2]), tf.float16)
    return tf.cast(tf.reshape(values[:, 2 * store.positions :], shape), tf.float32) * tf.cast(steps, tf.float32)


def _encode(embeddings: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the records of a batch, uint8 [batch, record_bytes]."""
    largest = np.abs(embeddings).max(axis=-1, keepdims=True)
    if not largest.max() < np.finfo(np.float16).max:  # also when it is not a number
        raise DataError(f"Expected embeddings that float16 can hold, found a largest element of {largest.max()}.")
    if dtype == "float16":
        return embeddings.astype("<f2").reshape(len(embeddings), -1).view(np.uint8)
    steps = (largest / 127).astype("<f2")
    values = np.rint(embeddings / np.maximum(steps.astype(np.float32), np.finfo(np.float32).tiny)).clip(-127, 127).astype(np.int8)
    flat = [steps.reshape(len(embeddings), -1).view(np.uint8), values.reshape(len(embeddings), -1).view(np.uint8)]
    return np.concatenate(flat, axis=1)


# Writing.


def _write(
    store: Store,
    labels: Mapping[str, np.ndarray],
    embeddings: Callable[[Sequence[int]], np.ndarray],
    batch_size: int,
    show_progress: bool,
) -> Store:
    """Writes `store`. `embeddings` returns the clips of given numbers, at most `batch_size`, counted through all folders."""
    _check_dtype(store.dtype)
    with disk.writing(store.folder):
        (store.folder / "clients").mkdir(parents=True, exist_ok=True)
        with _alone(store.folder):
            before = _read_description(store.folder)
            if before is not None:
                _check_same(before, store)
                if before.relative_error is not None:
                    return open_store(store.folder)
            else:
                _check_empty(store)
                disk.require_room(store.folder, store.num_clips * (store.record_bytes + 1))
                for name, values in labels.items():
                    (store.folder / name).mkdir(exist_ok=True)
                    (store.folder / f"{name}.labels").write_bytes(values.tobytes())
                _write_description(store)
            files = _clip_files(store)
            done = _count_done(store)
            done = done if done == len(files) else done // batch_size * batch_size
            with _bar(show_progress) as bar:
                task = bar.add_task("embedding", total=len(files), completed=done)
                for start in range(done, len(files), batch_size):
                    batch = range(start, min(start + batch_size, len(files)))
                    for number, record in zip(batch, _encode(embeddings(batch), store.dtype)):
                        files[number].write_bytes(record.tobytes())
                    bar.update(task, completed=batch.stop)
            os.sync()  # what is called finished shall be on the disk
            finished = dataclasses.replace(store, relative_error=_relative_error(store, embeddings, batch_size))
            _write_description(finished)
    return finished


def _clip_files(store: Store) -> list[pathlib.Path]:
    """Returns the file of each clip in the order in which they are written."""
    return [store.folder / name / f"{number:0{_DIGITS}d}" for name, count in store.clips.items() for number in range(count)]


def _count_done(store: Store) -> int:
    """Returns how many clips are whole, counted up to the first that is not."""
    done = 0
    for name, count in store.clips.items():
        folder = store.folder / name
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)} if folder.is_dir() else {}
        for number in range(count):
            if sizes.get(f"{number:0{_DIGITS}d}") != store.record_bytes:
                return done
            done += 1
    return done


def _relative_error(store: Store, embeddings: Callable[[Sequence[int]], np.ndarray], batch_size: int) -> float:
    """Reads clips from all over the store and compares them with what is computed anew."""
    error = norm = 0.0
    files = _clip_files(store)
    numbers = sorted({int(i) for i in np.linspace(0, len(files) - 1, _ERROR_CLIPS)})
    for batch in (numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)):
        stored = _decode(store, tf.constant([files[number].read_bytes() for number in batch])).numpy()
        computed = embeddings(batch)
        error += np.square(stored - computed).sum(dtype=np.float64)
        norm += np.square(computed).sum(dtype=np.float64)
    found = math.sqrt(error / norm)
    if not found < 0.1:  # int8 makes a few percent; more than that are other clips
        raise DataError(
            f"Expected the store in {store.folder} to hold what the encoder makes, found a relative error of {found:.3f}. It was "
            "changed while it was written; remove it and start again."
        )
    return float(f"{found:.3g}")


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"Expected to be alone in writing to {folder}, found another process at it. Wait for it to end."
            ) from error
        yield


def _write_description(store: Store) -> None:
    fields = {f.name: getattr(store, f.name) for f in dataclasses.fields(store) if f.name != "folder"}
    new = store.folder / f"{_DESCRIPTION}.new"
    with open(new, "w") as file:
        json.dump({**fields, "complete": store.relative_error is not None}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, store.folder / _DESCRIPTION)


def _read_description(folder: pathlib.Path) -> Optional[Store]:
    path = folder / _DESCRIPTION
    if not path.is_file():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        version = fields["version"]
        if version == VERSION:
            del fields["complete"]
            store = Store(folder=folder, **{**fields, "notes": tuple(fields["notes"])})
            _check_dtype(store.dtype)
            return store
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"Expected the description of a store in {path}, found something else: {error!r}. Make the store anew."
        ) from error
    raise DataError(f"Expected a store of version {VERSION} in {folder}, found version {version}. Make it anew.")


def _check_same(found: Store, expected: Store) -> None:
    names = ("weights_sha256", "window", "positions", "width", "dtype", "speakers_per_client", "clips_sha256")
    different = [
        f"{name}: expected {getattr(expected, name)!r}, found {getattr(found, name)!r}"
        for name in names
        if getattr(found, name) != getattr(expected, name)
    ]
    if different:
        raise DataError(
            f"Expected to go on with the store in {expected.folder}, found another one. {'; '.join(different)}. "
            "Choose another folder."
        )


def _check_empty(store: Store) -> None:
    # Labels and a lock are what a run leaves that was killed before it had a description.
    strange = [p for p in store.folder.rglob("*") if p.is_file() and p.suffix not in (".labels", ".new") and p.name != ".lock"]
    if strange:
        raise DataError(f"Expected an empty folder for a new store, found {strange[0]}. Choose another folder.")


def _check_size(store: Store, name: os.PathLike, expected: int) -> None:
    found = _size(store.folder / name)
    if found != expected:
        raise DataError(
            f"Expected {expected:,} bytes in {store.folder / name}, found {found:,}. The store was changed; make it anew."
        )


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"Expected a dtype of {' or '.join(DTYPES)}, found {dtype!r}.")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sha256(splits: Mapping[str, Sequence[Clip]]) -> str:
    digest = hashlib.sha256()
    for name, clips in splits.items():
        for clip in clips:
            digest.update(f"{name}\t{clip.path}\t{clip.start}\t{clip.label}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _bar(show: bool) -> Iterator[rich_progress.Progress]:
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        _ClipsPerSecond(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("left"),
    )
    with rich_progress.Progress(*columns, disable=not show) as bar:
        yield bar


class _ClipsPerSecond(rich_progress.ProgressColumn):
    def render(self, task: rich_progress.Task):
        return f"{task.speed:.1f} clips/s" if task.speed else "- clips/s"
