"""Errors of the disk, said in a sentence that names the folder and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from tff_kit.datasets.federated import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(folder: os.PathLike) -> Iterator[None]:
    """Turns the disk's refusals to write into `folder` into a `DataError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"Expected room to write in {folder}, found the disk full ({error.strerror}). Free some space and run the "
                "same command again: it goes on where it stopped."
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or error.errno == errno.EROFS:
            raise DataError(f"Expected a folder to write in at {folder}, found: {error.strerror} ({error.filename}).") from error
        raise


def require_room(folder: os.PathLike, needed: int) -> None:
    """Raises `DataError` if the disk that holds `folder` has less than `needed` bytes left."""
    existing = pathlib.Path(folder).resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(f"Expected {needed / 1e9:.2f} GB of free space for {folder}, found {free / 1e9:.2f} GB.")
