"""Writes a store of embeddings in a fixed order and in batches of a fixed size.

The files show how far the work came. So a run that was killed resumes after the last complete batch and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable

import numpy as np
import tensorflow as tf
from rich import progress as rich_progress

from tff_kit.datasets import disk
from tff_kit.datasets.federated import DataError
from tff_kit.embeddings import store as stores

_ERROR_CLIPS = 64


def write(
    store: stores.Store,
    labels: Mapping[str, np.ndarray],
    embeddings: Callable[[Sequence[int]], np.ndarray],
    batch_size: int,
    show_progress: bool,
) -> stores.Store:
    """Writes a store. An interrupted run resumes, and a finished store stays as it is.

    Args:
      store: The description of the store, with its folder.
      labels: The labels of each folder of clips, uint8 [labels] or [labels, label_bytes]; one folder's are asked for at a time.
      embeddings: Maps the numbers of at most `batch_size` clips, counted through all folders, to their embeddings, float32
        [clips, positions, width].
      batch_size: Number of clips that are embedded together.
      show_progress: Whether to show a bar, clips per second and the time left on the terminal.

    Returns:
      The finished store.

    Raises:
      DataError: If another store is in the folder, another process writes to it, the disk is full, or the written clips do not
        read back.
    """
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
                disk.require_room(store.folder, store.num_bytes)
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
            os.sync()  # A finished store must be on the disk.
            finished = dataclasses.replace(store, relative_error=_relative_error(store, embeddings, batch_size))
            stores.write_description(finished)
    return finished


def _relative_error(store: stores.Store, embeddings: Callable[[Sequence[int]], np.ndarray], batch_size: int) -> float:
    """Reads clips from all parts of the store and compares them with newly computed embeddings."""
    error = norm = 0.0
    files = stores.clip_files(store)
    numbers = sorted({int(i) for i in np.linspace(0, len(files) - 1, _ERROR_CLIPS)})
    for batch in (numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)):
        stored = stores.decode(store, tf.constant([files[number].read_bytes() for number in batch])).numpy()
        computed = embeddings(batch)
        error += np.square(stored - computed).sum(dtype=np.float64)
        norm += np.square(computed).sum(dtype=np.float64)
    found = math.sqrt(error / norm)
    if not found < 0.1:  # int8 has an error of a few percent. A larger error means other clips.
        raise DataError(
            f"Expected the store in {store.folder} to hold the encoder's embeddings, found a relative error of {found:.3f}. The "
            "store was changed while it was written. Remove it and start again."
        )
    return float(f"{found:.3g}")


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"Expected no other process to write to {folder}, found another process. Wait for it to end."
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
            f"Expected to resume the store in {expected.folder}, found a different one. {'; '.join(different)}. "
            "Choose another folder."
        )


def _check_empty(store: stores.Store) -> None:
    # A run that was killed before it wrote a description leaves labels and a lock.
    strange = [p for p in store.folder.rglob("*") if p.is_file() and p.suffix not in (".labels", ".new") and p.name != ".lock"]
    if strange:
        raise DataError(f"Expected an empty folder for a new store, found {strange[0]}. Choose another folder.")


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
