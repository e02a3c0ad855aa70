"""What a deployed training needs to go on after its server was killed: one file a round, the last two kept."""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_kit.deploy.aggregation import State
from tff_kit.training import runs

_KEPT = 2  # The one before the last, should the last turn out to be damaged.
_NAME = re.compile(r"round_(\d+)\.npz")


def save(folder: pathlib.Path, round_num: int, state: State, spent: dict[str, int]) -> None:
    """Writes the state after a round, all of it or nothing, and deletes those before the last two."""
    folder.mkdir(exist_ok=True)
    part = folder / "round.part"
    leaves = [np.asarray(x) for x in tf.nest.flatten(_parts(state))]
    with open(part, "wb") as file:
        np.savez(file, *leaves, **{name: np.int64(value) for name, value in spent.items()})
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / f"round_{round_num}.npz")
    for old in _rounds(folder)[:-_KEPT]:
        (folder / f"round_{old}.npz").unlink()


def load_last(folder: pathlib.Path, like: State, spent: dict[str, int]) -> Optional[tuple[State, int, dict[str, int]]]:
    """Returns the last state that is whole, its round, and what was spent until then; `None` where there is none.

    Args:
      folder: Of the checkpoints.
      like: A state of the same structure and shapes.
      spent: Names of what was spent.

    Raises:
      RunError: If none can be read, or it is of another model or other encoders.
    """
    for round_num in reversed(_rounds(folder)):
        try:
            with np.load(folder / f"round_{round_num}.npz") as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue
        return _restored(arrays, like, folder), round_num, {name: int(arrays.get(name, 0)) for name in spent}
    if _rounds(folder):
        raise runs.RunError(f"Expected a checkpoint that can be read in {folder}, found damaged ones. Use another --logdir.")
    return None


def _restored(arrays: dict[str, np.ndarray], like: State, folder: pathlib.Path) -> State:
    expected = tf.nest.flatten(_parts(like))
    found = [arrays.get(f"arr_{i}") for i in range(len(expected))]
    if f"arr_{len(expected)}" in arrays or any(x is None or x.shape != np.shape(y) for x, y in zip(found, expected)):
        raise runs.RunError(
            f"Expected a checkpoint of this model and these encoders in {folder}, found one with other tensors. "
            "Use another --logdir."
        )
    return State(*tf.nest.pack_sequence_as(_parts(like), found))


def _parts(state: State) -> tuple[Any, ...]:
    return state.weights, state.optimizer, state.broadcast, state.mean


def _rounds(folder: pathlib.Path) -> list[int]:
    names = (_NAME.fullmatch(path.name) for path in folder.glob("round_*.npz"))
    return sorted(int(match[1]) for match in names if match)
