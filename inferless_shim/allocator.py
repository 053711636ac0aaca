"""What C's malloc keeps of freed memory: little enough that what is bounded here is bounded for the process, too.

glibc has up to eight arenas a core, which threads share out among themselves, and each keeps what was freed at its end:
up to twice the largest block that ever was. The threads that read large bodies would each leave that much behind.
Elsewhere (musl, macOS, Windows) nothing is done.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from typing import Any

# As many as are of use where one interpreter lock is: threads of a library's that allocate at once have theirs.
ARENAS = 4
M_ARENA_MAX = -8  # glibc's malloc.h
OWNERS_CHOICE = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
# How much is freed before malloc is asked to give it back: then it is worth milliseconds.
WORTH_IT = 8 * 1024 * 1024


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    """Return the C library if it is glibc, else None."""
    try:
        import ctypes

        found = ctypes.CDLL(None)
        found.malloc_trim.argtypes = [ctypes.c_size_t]
        return found if hasattr(found, "gnu_get_libc_version") else None
    except (ImportError, OSError, TypeError, AttributeError):
        return None


def bound_arenas(environment: Mapping[str, str] = os.environ) -> bool:
    """Bound the arenas, unless the environment does; before there are threads. Return whether that was done."""
    if _library() is None or any(name in environment for name in OWNERS_CHOICE):
        return False
    return bool(_library().mallopt(M_ARENA_MAX, ARENAS))


def trim() -> None:
    """Give back what is free. Takes milliseconds, in which other threads of Python run. Any thread."""
    if _library() is not None:
        _library().malloc_trim(0)


class Freed:
    """Counts what was freed in large pieces, and gives it back when that is much. Any thread."""

    def __init__(self) -> None:
        self.size = 0
        self.lock = threading.Lock()  # guards `size`; no other lock is taken under it

    def add(self, size: int) -> None:
        with self.lock:
            self.size += size

    def give_back(self) -> None:
        """Let the system have it, once it is much. Takes milliseconds then; not for an infer thread."""
        with self.lock:
            much = self.size >= WORTH_IT
            if much:
                self.size = 0
        if much:
            trim()
