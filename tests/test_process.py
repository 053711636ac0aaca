"""What the process uses: figures that move when it uses more, and that are left out where nobody tells them."""

from __future__ import annotations

import subprocess
import sys
import time
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import process
from inferless_shim.metrics import exposition
from tests.support import ROOT, Metric, TestCase, read_metrics

# What is told before and after a change, in a process where nothing else frees memory, ends a thread or closes a file,
# and where nothing was freed that could be used again.
LOOK_TWICE = """
import os, sys, threading
from inferless_shim import process
from inferless_shim.metrics import exposition

before = exposition(process.families())
exec(sys.argv[1])
sys.stdout.buffer.write(before + b"\\0" + exposition(process.families()))
"""


def read() -> dict[str, Metric]:
    return read_metrics(exposition(process.families()).decode())


def read_twice(change: str) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Return what a process tells of itself before and after it has run `change`."""
    command = [sys.executable, "-c", LOOK_TWICE, change]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True)
    before, after = done.stdout.split("\0")
    return read_metrics(before), read_metrics(after)


class Families(TestCase):
    def test_started(self) -> None:
        """The start is a time of day in the past, and stays."""
        started = read()["process_start_time_seconds"].value()
        self.assertTrue(time.time() - 7 * 86400 < started <= time.time())
        self.assertEqual(read()["process_start_time_seconds"].value(), started)

    def test_cpu_grows(self) -> None:
        """CPU time is a counter of seconds."""
        before = read()["process_cpu_seconds_total"].value()
        while time.process_time() <= before + 0.01:
            pass
        self.assertGreater(read()["process_cpu_seconds_total"].value(), before)

    def test_threads(self) -> None:
        """A thread more is one more."""
        before, after = read_twice("threading.Thread(target=threading.Event().wait, daemon=True).start()")
        self.assertEqual(after["process_threads"].value(), before["process_threads"].value() + 1)

    def test_memory(self) -> None:
        """Memory is in bytes: 32 MiB more are seen as that, once they are used."""
        changes = {"kept = b'x' * (32 << 20)": 32 << 20, "import mmap; kept = mmap.mmap(-1, 32 << 20)": 0}
        for change, expected in changes.items():
            before, after = read_twice(change)
            grown = after["process_resident_memory_bytes"].value() - before["process_resident_memory_bytes"].value()
            self.assertAlmostEqual(grown, expected, delta=8 << 20, msg=change)

    @unittest.skipUnless(Path("/proc/self/fd").exists(), "descriptors are only told by /proc")
    def test_descriptors(self) -> None:
        """A descriptor more than the usual three is four; the limit is the one that holds."""
        import resource

        before, after = read_twice("kept = os.open(os.devnull, os.O_RDONLY)")
        self.assertEqual((before["process_open_fds"].value(), after["process_open_fds"].value()), (3, 4))
        self.assertEqual(after["process_max_fds"].value(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def test_without_proc(self) -> None:
        """Elsewhere than on Linux the most memory ever and Python's threads are told, and descriptors are not."""
        _, elsewhere = read_twice("import pathlib; process.PROC = pathlib.Path('/nowhere')")
        self.assertNotIn("process_open_fds", elsewhere)
        self.assertGreater(elsewhere["process_resident_memory_bytes"].value(), 1 << 20)
        self.assertEqual(elsewhere["process_threads"].value(), 1)
        with mock.patch.object(process, "PROC", Path("/nowhere")), mock.patch.object(process, "resource", None):
            self.assertNotIn("process_resident_memory_bytes", read())


if __name__ == "__main__":
    unittest.main()
