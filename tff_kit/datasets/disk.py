"""Turns disk errors into one sentence that names the folder and what to do."""

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
    """Turns errors of writing to `folder` into a `DataError`. Other errors pass unchanged.

    Args:
      folder: The folder that the context writes to.

    Raises:
      DataError: If the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"Expected room to write in {folder}, found the disk full ({error.strerror}). Free some space and run the "
                "same command again. It resumes where it stopped."
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or error.errno == errno.EROFS:
            raise DataError(
                f"Expected a folder to write to at {folder}, found: {error.strerror} ({error.filename}). Choose another folder."
            ) from error
        raise


def require_room(folder: os.PathLike, needed: int) -> None:
    """Raises `DataError` if the disk of `folder` has fewer than `needed` bytes free."""
    existing = pathlib.Path(folder).resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(f"Expected {needed / 1e9:.2f} GB of free space for {folder}, found {free / 1e9:.2f} GB. Free some space.")
