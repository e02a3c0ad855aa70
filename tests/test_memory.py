"""What rounds leave behind goes back to the system."""

import ctypes
import gc
import platform
import subprocess
import sys
import weakref

import pytest
from conftest import ROOT

from tff_kit.training import memory


class _Knot:
    def __init__(self):
        self.itself = self


def _assert_a_knot_is_found_at_once():
    with memory.given_back() as give_back:
        assert gc.get_freeze_count() > 0
        knot = weakref.ref(_Knot())
        give_back()
        assert knot() is None
    assert gc.get_freeze_count() == 0


def test_what_hangs_in_cycles_is_found_at_once_and_later_as_ever():
    _assert_a_knot_is_found_at_once()


def test_a_c_library_that_cannot_give_memory_back_is_no_error(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    _assert_a_knot_is_found_at_once()


_FREED = """
import runpy, sys, psutil
with runpy.run_path(sys.argv[1])["given_back"]() as give_back:
    blocks = [b"x" * 100_000 for _ in range(1000)]
    last = blocks[-1]  # Keeps the C library from giving them back from the end.
    del blocks
    before = psutil.Process().memory_info().rss
    give_back()
    print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_what_was_freed_does_not_stay_with_the_process():
    # A process of its own, whose C library keeps all blocks in one pool until it is told to give them back.
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**24), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    command = [sys.executable, "-c", _FREED, str(ROOT / "tff_kit/training/memory.py")]
    program = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert int(program.stdout) > 90_000_000
