"""Makes a store of Whisper's embeddings of Speech Commands, or a synthetic store to try everything with."""

from __future__ import annotations

import atexit
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from tff_kit.embeddings import store as stores
from tff_kit.embeddings import writer
from tff_kit.tasks.keywords import whisper
from tff_kit.tasks.keywords.speech_commands import CLASS_NAMES, CLIP_SAMPLES, Clip, SpeechCommands

_BATCH_SIZE = {"30s": 4, "1s": 32}  # Larger ones are not faster on a CPU, and a killed run loses up to one.


def embed(
    speech: SpeechCommands,
    encoder: whisper.Encoder,
    folder: os.PathLike,
    dtype: str = "float16",
    batch_size: Optional[int] = None,
    show_progress: bool = True,
) -> stores.Store:
    """Writes the embeddings of all clips to `folder`. An interrupted run resumes, and a finished store stays as it is.

    Args:
      speech: The clips.
      encoder: The encoder that embeds them.
      folder: The store's folder.
      dtype: "float16", or "int8" for half of the space. `Store.relative_error` has the error.
      batch_size: Number of clips that are embedded together. The default is fast on a CPU.
      show_progress: Whether to show a bar, clips per second and the time left on the terminal.

    Returns:
      The finished store.

    Raises:
      DataError: If another store is in `folder`, another process writes to it, the disk is full, or a clip has become
        unreadable.
    """
    batch_size = batch_size or _BATCH_SIZE[encoder.window]
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
        sounds = np.zeros([batch_size, CLIP_SAMPLES], np.float32)  # Always of one size, so that equal clips give equal bits.
        for i, number in enumerate(numbers):
            sounds[i] = speech.read(every[number])
        return encoder.embed(tf.constant(sounds)).numpy()[: len(numbers)]

    return writer.write(store, labels, embeddings, batch_size, show_progress)


def demo(
    folder: Optional[os.PathLike] = None, window: str = "1s", clients: int = 8, clips_per_client: int = 40, seed: int = 0
) -> stores.Store:
    """Writes a small store of synthetic embeddings, to try everything without sound, encoder or network.

    Each class has its own pattern, each client shifts all patterns a little, and noise is added. It is easy to learn, and its
    accuracy means nothing.

    Args:
      folder: The store's folder; `None` for a temporary folder that is removed when Python ends.
      window: "30s" or "1s". It determines the shape.
      clients: Number of clients. Validation and test have as many clips as one client.
      clips_per_client: Number of clips of each client.
      seed: Seed of all random draws.

    Returns:
      The finished store.
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
        notes=("This data is synthetic. It is made up to try the program, and its accuracy means nothing.",),
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

    return writer.write(store, labels, embeddings, batch_size=8, show_progress=False)


def store_gigabytes(clips: int, window: str = "30s", dtype: str = "float16", width: int = 384) -> float:
    """Returns the size of a store of `clips` clips, in GB of 10^9 bytes. Speech Commands v0.02 has 84,848 training clips."""
    return clips * (1 + stores.record_bytes(whisper.positions(window), width, dtype)) / 1e9


def _sha256(splits: Mapping[str, Sequence[Clip]]) -> str:
    digest = hashlib.sha256()
    for name, clips in splits.items():
        for clip in clips:
            altered = "" if clip.alteration is None else f"\t{clip.alteration}"
            digest.update(f"{name}\t{clip.path}\t{clip.start}\t{clip.label}{altered}\n".encode())
    return digest.hexdigest()


def _with_copies(copies: int) -> str:
    return f", each training clip with {copies} altered {'copy' if copies == 1 else 'copies'}" if copies else ""
