"""Processes that end with the one that started them, whichever way that ends."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

_SET_PDEATHSIG = 1  # linux/prctl.h
_END_SECONDS = 10.0


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Optional[pathlib.Path], environment: Optional[Mapping[str, str]] = None
) -> Iterator[subprocess.Popen]:
    """Runs a command and what it starts while the context lasts; its output is added to `log`, or goes where this process's goes.

    Call it in the main thread: the kernel ends the command with the thread that started it.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "ab")) if log else None
        child = subprocess.Popen(
            bound(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            env=environment,
            start_new_session=True,  # A Ctrl-C in the terminal is for this process, which then ends the child.
        )
    try:
        yield child
    finally:
        end(child)


def bound(command: Sequence[str]) -> list[str]:
    """Returns the command as one that is asked to terminate when this process ends, whichever way."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def end(child: subprocess.Popen) -> None:
    """Ends a child of `running` and what it started: asked first, then killed."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_line(log: pathlib.Path) -> str:
    """Returns the last line of a log without its colours, "" where there is none."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]) if lines else ""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Ends everything in order also where this process is asked to terminate."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with(process: int) -> None:
    """Ends this process when another one ends, which need not be its parent."""
    try:
        watched = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)

    def wait() -> None:
        select.select([watched], [], [])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def import_tensorflow() -> None:
    """Imports TensorFlow without what its native code prints of every driver that it does not find.

    A GPU's memory it then takes as it needs it, not all at once: others may use the same GPU.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _become(parent: int, command: Sequence[str]) -> None:
    """Becomes `command`, which the kernel asks to terminate when its parent ends, also when that is killed."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # It ended in between.
        sys.exit(1)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
