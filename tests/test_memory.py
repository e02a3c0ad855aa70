"""What rounds leave behind goes back to the system."""

import gc
import weakref

import psutil

from tff_kit.training import memory


class _Knot:
    def __init__(self):
        self.itself = self


def test_what_hangs_in_cycles_is_found_at_once_and_later_as_ever():
    with memory.given_back() as give_back:
        assert gc.get_freeze_count() > 0
        knot = weakref.ref(_Knot())
        give_back()
        assert knot() is None
    assert gc.get_freeze_count() == 0


def test_what_was_freed_does_not_stay_with_the_process():
    with memory.given_back() as give_back:
        blocks = [b"x" * 100_000 for _ in range(1000)]  # Too small for the C library to give each back by itself.
        last = blocks[-1]  # Keeps it from giving them back from the end.
        del blocks
        before = psutil.Process().memory_info().rss
        give_back()
        assert psutil.Process().memory_info().rss < before - 80_000_000
        assert last
