"""Checkpoints of a run: arrays, written whole, and checked when they are read."""

from __future__ import annotations

from tff_kit.requirements import require_tff

require_tff()

import asyncio
import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow_federated as tff

from tff_kit.training import runs

_DIGEST = "sha256"


class DamagedError(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """Versions of a flat list of arrays in a folder, the last few of them.

    A list, because TensorFlow's SavedModel takes tuples and dicts for its own, and gives others back. Each version has the digest
    of its files beside them, so that no damage goes unnoticed.

    Args:
      folder: Where; made if it does not exist.
      prefix: The prefix of a version's name.
      kept: Number of versions that are kept.
    """

    def __init__(self, folder: pathlib.Path, prefix: str, kept: int):
        self._folder, self._prefix = folder, prefix
        self._manager = tff.program.FileProgramStateManager(folder, prefix, keep_total=kept, keep_first=False)
        for unfinished in folder.glob(f"{prefix}*_temp*"):  # Of a run that was killed while it wrote.
            shutil.rmtree(unfinished)

    def versions(self) -> list[int]:
        """Returns the numbers of the versions that there are, the last one first."""
        return sorted(asyncio.run(self._manager.get_versions()) or [], reverse=True)

    def path(self, version: int) -> pathlib.Path:
        """Returns the folder of a version."""
        return self._folder / f"{self._prefix}{version}"

    def save(self, arrays: Sequence[Any], version: int) -> None:
        """Writes a version, or nothing; replaces an earlier one of its number."""
        if self.path(version).exists():
            shutil.rmtree(self.path(version))
        asyncio.run(self._manager.save(list(arrays), version))
        runs.write_whole(self.path(version) / _DIGEST, _digest(self.path(version)))

    def load(self, version: int, expected: Sequence[Any]) -> Optional[list[Any]]:
        """Returns the arrays of a version, or `None` where they have other numbers or shapes than the expected ones.

        Raises:
          DamagedError: If they are not what was written.
        """
        digest = self.path(version) / _DIGEST
        try:
            if digest.exists() and digest.read_bytes() != _digest(self.path(version)).encode():
                raise DamagedError(f"{self.path(version)} is damaged: its files are not as they were written.")
            saved = asyncio.run(self._manager.load(version, list(expected)))
        except DamagedError:
            raise
        except ValueError:  # Another number of arrays.
            return None
        except Exception as error:  # Whatever TensorFlow makes of a damaged file.
            raise DamagedError(f"{self.path(version)} is damaged: {type(error).__name__}.") from error
        return saved if [np.shape(x) for x in saved] == [np.shape(x) for x in expected] else None


def _digest(folder: pathlib.Path) -> str:
    """Returns the SHA-256 of all files' names and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _DIGEST:
            found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()
