"""Downloads a file, or an archive and unpacks it. A download resumes, never waits forever, and never leaves half of anything."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pathlib
import shutil
import socket
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from rich import progress as rich_progress

from tff_kit.datasets import disk
from tff_kit.datasets.federated import DataError

_BLOCK_BYTES = 1 << 18


def download_file(url: str, file: os.PathLike, sha256: str, stall_seconds: float = 30.0, attempts: int = 5) -> pathlib.Path:
    """Fetches the file at `url` as `file`, which appears only when it is whole.

    What was fetched before an interruption stays in `<file>.part`, and the next call asks for the rest only.

    Args:
      url: The file.
      file: The file to write. If it exists, nothing is done.
      sha256: The file's checksum, in hexadecimal.
      stall_seconds: Seconds without any data after which a connection is given up.
      attempts: Number of connections in a row without any data after which the download is given up.

    Returns:
      The file.

    Raises:
      DataError: If the server cannot be reached or refuses, the file is not the expected one, or the disk is full.
    """
    file = pathlib.Path(file)
    if file.is_file():
        return file
    part = file.with_name(f"{file.name}.part")
    with disk.writing(file.parent), _bar() as bar:
        file.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, stall_seconds, attempts, bar)
        _check(url, part, sha256)
        part.rename(file)
    return file


def download(url: str, folder: os.PathLike, sha256: str, stall_seconds: float = 30.0, attempts: int = 5) -> pathlib.Path:
    """Downloads the tar archive at `url` and unpacks it as `folder`, which appears only when it is complete.

    After an interruption, the downloaded part stays in `<folder>.tar.part`, and the next call requests only the rest.

    Args:
      url: The archive.
      folder: The folder to unpack it as. If it exists and is not empty, nothing is done.
      sha256: The archive's SHA-256 checksum, in hexadecimal.
      stall_seconds: Seconds without any data after which a connection is given up.
      attempts: Number of connections in a row without any data after which the download is given up.

    Returns:
      The folder.

    Raises:
      DataError: If the server cannot be reached or refuses, the archive is not the expected one, or the disk is full.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    part, unpacking = (folder.with_name(folder.name + suffix) for suffix in (".tar.part", ".unpacking"))
    with disk.writing(folder.parent), _bar() as bar:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, stall_seconds, attempts, bar)
        _check(url, part, sha256)
        shutil.rmtree(unpacking, ignore_errors=True)
        _unpack(url, part, unpacking, bar)
        if folder.is_dir():  # It is empty; not every system replaces it in a rename.
            folder.rmdir()
        unpacking.rename(folder)
        part.unlink()
    return folder


def _fetch(url: str, part: pathlib.Path, stall_seconds: float, attempts: int, bar: rich_progress.Progress) -> None:
    task = bar.add_task("fetching", total=None)
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(url, part, stall_seconds, bar, task):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DataError(f"Expected a file at {url}, found: {error.code} {error.reason}.") from error
            problem = f"{error.code} {error.reason}"
        except (urllib.error.URLError, socket.timeout, ConnectionError, http.client.HTTPException) as error:
            problem = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
        fetched = part.stat().st_size if part.exists() else 0
        failed = 0 if fetched > before else failed + 1
        if failed >= attempts:
            raise DataError(
                f"Expected to fetch {url}, but {failed} attempts in a row failed after {fetched:,} bytes: {problem}. Run the "
                "same command again when there is a network. It resumes where it stopped."
            )
        time.sleep(min(2.0**failed - 1, 10.0))


def _fetch_rest(url: str, part: pathlib.Path, stall_seconds: float, bar: rich_progress.Progress, task) -> bool:
    """Appends the rest of the archive to `part`. Returns whether the archive is complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # Nothing is left: the part is complete, or the checksum will show another file.
            return True
        raise
    with response:
        if response.status != 206:  # The server does not resume, so it sends everything.
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total:
            disk.require_room(part.parent, total - have)
        bar.update(task, completed=have, total=total)
        with open(part, "ab" if have else "wb") as file:
            while block := response.read1(_BLOCK_BYTES):
                file.write(block)
                have += len(block)
                bar.update(task, completed=have)
    return total is None or have >= total


def _check(url: str, part: pathlib.Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        part.unlink()
        raise DataError(
            f"Expected a file with SHA-256 {sha256} at {url}, found {digest.hexdigest()}. The download was removed. Try "
            "again. If that does not help, the file has changed."
        )


def _unpack(url: str, archive: pathlib.Path, folder: pathlib.Path, bar: rich_progress.Progress) -> None:
    task = bar.add_task("unpacking", total=archive.stat().st_size)
    try:
        with open(archive, "rb") as raw, tarfile.open(fileobj=raw) as tar:
            for member in tar:
                target = (folder / member.name).resolve()
                if folder.resolve() not in (target, *target.parents):
                    raise DataError(f"Expected an archive that stays in its folder, found {member.name} in {url}.")
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif member.isfile():  # Links and devices have no place in data.
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = tar.extractfile(member)
                    assert source is not None  # It is `None` only for members that are no files.
                    with source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file)
                bar.update(task, completed=raw.tell())
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"Expected a tar archive at {url}, found: {error}.") from error


@contextlib.contextmanager
def _bar() -> Iterator[rich_progress.Progress]:
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns) as bar:
        yield bar
