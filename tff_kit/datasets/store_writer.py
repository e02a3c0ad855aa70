"""Writing a store: the encoder's work on every clip, or synthetic embeddings to try everything with.

`embed` works through the clips in a fixed order and in batches of a fixed size. The files tell how far it came, so a run that
was killed goes on from the last whole batch and ends with the same bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import hashlib
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable, Optional

import numpy as np
import tensorflow as tf
from rich import progress as rich_progress

from tff_kit import whisper
from tff_kit.datasets import disk
from tff_kit.datasets import store as stores
from tff_kit.datasets.federated import DataError
from tff_kit.datasets.speech_commands import CLASS_NAMES, CLIP_SAMPLES, Clip, SpeechCommands

_EMBED_BATCH_SIZE = {"30s": 4, "1s": 32}  # larger ones are not faster on a CPU, and a killed run loses up to one
_ERROR_CLIPS = 64


def embed(
    speech: SpeechCommands,
    encoder: whisper.Encoder,
    folder: os.PathLike,
    dtype: str = "float16",
    batch_size: Optional[int] = None,
    show_progress: bool = True,
) -> stores.Store:
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
    store = stores.Store(
        folder=pathlib.Path(folder),
        name=f"Speech Commands as {encoder.window} embeddings of {encoder.model}{_with_copies(speech.copies)}",
        model=encoder.model,
        weights_sha256=encoder.weights_sha256,
        window=encoder.window,
        positions=encoder.positions,
        width=encoder.width,
        dtype=dtype,
        speakers_per_client=speech.speakers_per_client,
        clips_sha256=_sha256(splits),
        clips={name: len(clips) for name, clips in splits.items()},
        copies=speech.copies,
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
) -> stores.Store:
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
    store = stores.Store(
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


def _write(
    store: stores.Store,
    labels: Mapping[str, np.ndarray],
    embeddings: Callable[[Sequence[int]], np.ndarray],
    batch_size: int,
    show_progress: bool,
) -> stores.Store:
    """Writes `store`. `embeddings` returns the clips of given numbers, at most `batch_size`, counted through all folders."""
    stores.check_dtype(store.dtype)
    with disk.writing(store.folder):
        (store.folder / "clients").mkdir(parents=True, exist_ok=True)
        with _alone(store.folder):
            before = stores.read_description(store.folder)
            if before is not None:
                _check_same(before, store)
                if before.relative_error is not None:
                    return stores.open_store(store.folder)
            else:
                _check_empty(store)
                disk.require_room(store.folder, store.num_clips * (store.record_bytes + 1))
                for name, values in labels.items():
                    (store.folder / name).mkdir(exist_ok=True)
                    (store.folder / f"{name}.labels").write_bytes(values.tobytes())
                stores.write_description(store)
            files = stores.clip_files(store)
            done = stores.count_done(store)
            done = done if done == len(files) else done // batch_size * batch_size
            with _bar(show_progress) as bar:
                task = bar.add_task("embedding", total=len(files), completed=done)
                for start in range(done, len(files), batch_size):
                    batch = range(start, min(start + batch_size, len(files)))
                    for number, record in zip(batch, stores.encode(embeddings(batch), store.dtype)):
                        files[number].write_bytes(record.tobytes())
                    bar.update(task, completed=batch.stop)
            os.sync()  # what is called finished shall be on the disk
            finished = dataclasses.replace(store, relative_error=_relative_error(store, embeddings, batch_size))
            stores.write_description(finished)
    return finished


def _relative_error(store: stores.Store, embeddings: Callable[[Sequence[int]], np.ndarray], batch_size: int) -> float:
    """Reads clips from all over the store and compares them with what is computed anew."""
    error = norm = 0.0
    files = stores.clip_files(store)
    numbers = sorted({int(i) for i in np.linspace(0, len(files) - 1, _ERROR_CLIPS)})
    for batch in (numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)):
        stored = stores.decode(store, tf.constant([files[number].read_bytes() for number in batch])).numpy()
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


def _check_same(found: stores.Store, expected: stores.Store) -> None:
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


def _check_empty(store: stores.Store) -> None:
    # Labels and a lock are what a run leaves that was killed before it had a description.
    strange = [p for p in store.folder.rglob("*") if p.is_file() and p.suffix not in (".labels", ".new") and p.name != ".lock"]
    if strange:
        raise DataError(f"Expected an empty folder for a new store, found {strange[0]}. Choose another folder.")


def _sha256(splits: Mapping[str, Sequence[Clip]]) -> str:
    digest = hashlib.sha256()
    for name, clips in splits.items():
        for clip in clips:
            altered = "" if clip.alteration is None else f"\t{clip.alteration}"
            digest.update(f"{name}\t{clip.path}\t{clip.start}\t{clip.label}{altered}\n".encode())
    return digest.hexdigest()


def _with_copies(copies: int) -> str:
    return f", each training clip with {copies} altered {'copy' if copies == 1 else 'copies'}" if copies else ""


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
