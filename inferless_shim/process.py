"""What this process uses, as metrics by the names that Prometheus's own libraries have for them.

What a system does not tell is left out.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from .metrics import Family, counter, gauge

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

PROC = Path("/proc/self")
STARTED = time.time()  # within a tenth of a second of the process's own start
# Which of the fields behind the process's name in /proc/self/stat tells the threads (proc(5): num_threads is the 20th).
THREADS = 20 - 3


def families() -> list[Family]:
    """Read memory, threads, descriptors and CPU time now."""
    found = [
        gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", STARTED),
        counter("process_cpu_seconds_total", "CPU time used, user and system.", time.process_time()),
        gauge("process_threads", "Threads, those of the app's libraries included.", threads()),
    ]
    memory = resident()
    if memory is not None:
        found.append(gauge("process_resident_memory_bytes", "Memory in use.", memory))
    with contextlib.suppress(OSError):
        descriptors = len(os.listdir(PROC / "fd")) - 1  # without the listing's own
        found.append(gauge("process_open_fds", "Open descriptors.", descriptors))
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = float("inf") if limit == resource.RLIM_INFINITY else limit
        found.append(gauge("process_max_fds", "How many descriptors may be open.", most))
    return found


def resident() -> int | None:
    """Return the bytes of memory in use; without /proc the most that were ever; None where neither is told."""
    with contextlib.suppress(OSError):
        return int((PROC / "statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def threads() -> int:
    """Return how many threads there are; without /proc, Python's own."""
    with contextlib.suppress(OSError):
        return int((PROC / "stat").read_bytes().rpartition(b")")[2].split()[THREADS])
    return len(sys._current_frames())
