"""Memory of a worker process: how long freed memory is kept, and when Python collects.

A worker makes and frees buffers of megabytes all the time: answers to fetches, inflated batches,
chunks. By default glibc gives each of them back to the system and asks for it again, and the
system clears every page anew. Measured on a virtual machine: inflating LZ4 batches of 350 KB took
222 ns an event, 38 ns once freed memory is kept. Once a minute all of it is given back: otherwise
the memory of a burst or a large merge would stay for ever, and a minute's work soon has its memory
again (200 MiB are 50,000 pages, some 30 ms of a minute).

Python's collector looks for cycles whenever 700 more objects live than died. A chunk is tens of
thousands of objects without a cycle, all of which it would walk again and again: walking fetched
records took 1,717 ns an event, 551 ns without the collector.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
import time

KEPT_BYTES = 256 << 20
"""The freed memory that stays with the process, at most. Memory in use is bounded elsewhere."""

GIVE_BACK_SECONDS = 60.0

COLLECT_AFTER_OBJECTS = 50_000
COLLECT_OLDER_AFTER = 20

# The first two of mallopt(3); their values are part of glibc's interface.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES_MAX = 32 << 20


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory; return whether it can (glibc can)."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES_MAX)
            and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        )
    return False


def trim_periodically(seconds: float = GIVE_BACK_SECONDS) -> None:
    """Give freed memory back to the system now and then, in a thread of its own (glibc can)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def give_back() -> None:
        while True:
            time.sleep(seconds)
            # Called without the interpreter's lock, so nobody waits for it.
            trim(0)

    threading.Thread(target=give_back, name="memory", daemon=True).start()


def tune_gc() -> None:
    """Leave the present objects out of all collections, and collect later ones less often.

    Call it once a process has started: modules, classes and settings live as long as it does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, COLLECT_OLDER_AFTER, COLLECT_OLDER_AFTER)
