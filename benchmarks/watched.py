"""Watches programs while they run: the memory of each with all that it has started, and how often TensorFlow was imported.

Memory is what the processes have of their own, and each page of a file once, however many of them map it. That is what a device
needs which runs nothing else. Linux has it in /proc.
"""

from __future__ import annotations

import collections
import contextlib
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

import psutil

_LIBRARY = "libtensorflow"
# In /proc/PID/smaps: the line of a mapping, with the offset in its file and that file, then how much of it is resident.
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ (\S+) \S+ \d+ *(.*)$", re.MULTILINE)
_SIZES = re.compile(r"^(Rss|Anonymous): +(\d+) kB$", re.MULTILINE)


class Watch:
    """What a family of programs took, sampled while they run.

    Args:
      programs: Their process ids; what they start is of the family.
      seconds: Between two samples.
    """

    def __init__(self, programs: Sequence[int], seconds: float = 0.5):
        self._programs, self._seconds = list(programs), seconds
        self._sampled: list[float] = []
        self._tensorflow: set[int] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Samples while the context lasts, in a thread."""
        done = threading.Event()

        def sample() -> None:
            while not done.wait(self._seconds):
                self._sampled.append(self._sample())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def take_samples(self) -> list[float]:
        """Returns the mebibytes of the family since the last call, a sample each, and forgets them."""
        sampled, self._sampled = self._sampled, []
        return sampled

    @property
    def imports(self) -> int:
        """How many processes have loaded TensorFlow so far."""
        return len(self._tensorflow)

    def _sample(self) -> float:
        anonymous = 0
        files: dict[str, int] = collections.defaultdict(int)
        for pid in _family(self._programs):
            with contextlib.suppress(OSError):  # It has ended.
                smaps = pathlib.Path(f"/proc/{pid}/smaps").read_text()
                if _LIBRARY in smaps:
                    self._tensorflow.add(pid)
                own, mapped = _resident(smaps)
                anonymous += own
                for place, kilobytes in mapped.items():
                    files[place] = max(files[place], kilobytes)
        return (anonymous + sum(files.values())) / 1024


def _resident(smaps: str) -> tuple[int, dict[str, int]]:
    """Returns a process's own kilobytes, and those of files by file and offset."""
    own, mapped = 0, {}
    _, *parts = _MAPPING.split(smaps)
    for offset, file, sizes in zip(parts[::3], parts[1::3], parts[2::3]):
        found = {name: int(kilobytes) for name, kilobytes in _SIZES.findall(sizes)}
        own += found["Anonymous"]
        if found["Rss"] > found["Anonymous"]:
            mapped[f"{file}:{offset}"] = found["Rss"] - found["Anonymous"]
    return own, mapped


def _family(programs: Sequence[int]) -> list[int]:
    """Returns programs and all that they have started, which is there."""
    started: dict[int, list[int]] = {}
    for process in psutil.process_iter(["ppid"]):
        started.setdefault(process.info["ppid"], []).append(process.pid)
    family = list(programs)
    for pid in family:  # Grows while it is walked through.
        family.extend(started.get(pid, []))
    return family
