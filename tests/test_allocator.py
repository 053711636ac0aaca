"""What malloc keeps: bounded where that can be, and left alone where the owner has chosen."""

from __future__ import annotations

import subprocess
import sys
import unittest
from unittest import mock

from inferless_shim import allocator

from .support import ROOT

# Threads that each free large blocks; printed is how much of them is still there.
FREED = """
import re, sys, threading
from inferless_shim import allocator

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def work(number):
    for size in (4, 4, 4):
        block = bytearray(size << 20)
        del block
    small.append(bytes(200_000))
    ready.wait()

if sys.argv[1] == "bounded":
    assert allocator.bound_arenas({})
small, ready = [], threading.Barrier(17)
threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
before = resident()
for thread in threads:
    thread.start()
ready.wait()
for thread in threads:
    thread.join()
allocator.trim()
print(resident() - before)
"""


def freed(how: str) -> int:
    """Return the megabytes that a process keeps of what its threads have freed."""
    done = subprocess.run(
        [sys.executable, "-c", FREED, how], cwd=ROOT, env={}, stdout=subprocess.PIPE, check=True, text=True
    )
    return int(done.stdout)


class AllocatorTests(unittest.TestCase):
    @unittest.skipUnless(allocator._library(), "the C library is not glibc")
    def test_bound_arenas(self) -> None:
        """What sixteen threads have freed goes back, but for what the few arenas keep."""
        self.assertLess(freed("bounded"), 16 + 16)

    def test_freed(self) -> None:
        """Little that was freed is left where it is; once it is much it is given back, and counted anew."""
        given: list[int] = []
        freed = allocator.Freed()
        with mock.patch.object(allocator, "trim", lambda: given.append(1)):
            freed.add(allocator.WORTH_IT - 1)
            freed.give_back()
            self.assertEqual(given, [])
            freed.add(1)
            freed.give_back()
            freed.give_back()
            self.assertEqual((given, freed.size), ([1], 0))

    def test_owners_choice(self) -> None:
        """Where the environment says how malloc is to be, nothing is changed."""
        for name in allocator.OWNERS_CHOICE:
            self.assertFalse(allocator.bound_arenas({name: "1"}))

    def test_elsewhere(self) -> None:
        """Without glibc nothing is done, and nothing fails."""
        with mock.patch.object(allocator, "_library", lambda: None):
            self.assertFalse(allocator.bound_arenas({}))
            allocator.trim()


if __name__ == "__main__":
    unittest.main()
