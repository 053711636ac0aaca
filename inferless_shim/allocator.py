"""What C's malloc keeps of freed memory, and giving it back to the system.

glibc has up to eight arenas a core, and each keeps what was freed in it: once a block of many megabytes was freed,
twice its size. The threads that read large bodies would each leave that much behind, and no sum would hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable


@functools.lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], object] | None:
    """Return glibc's malloc_trim(3); None where there is none. Loaded at first use: ctypes takes a megabyte."""
    try:
        import ctypes

        found = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, TypeError, AttributeError):  # musl, macOS, Windows
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    made: Callable[[int], object] = found
    return made


def trim() -> None:
    """Give back what is free. Takes milliseconds, in which other threads of Python run. Any thread."""
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)
