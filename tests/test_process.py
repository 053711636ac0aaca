"""What the process uses: figures that move when it uses more, and that are left out where nobody tells them."""

from __future__ import annotations

import os
import sys
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import process
from inferless_shim.metrics import exposition
from tests.support import Metric, TestCase, read_metrics


def read() -> dict[str, Metric]:
    return read_metrics(exposition(process.families()).decode())


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
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        before = process.threads()
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(end.set)
        self.assertEqual(process.threads(), before + 1)

    def test_memory(self) -> None:
        """Memory is in bytes: 32 MiB more are seen as that."""
        before = process.resident() or 0
        kept = b"x" * (32 << 20)
        grown = (process.resident() or 0) - before
        self.assertTrue(24 << 20 < grown < 48 << 20, (grown, len(kept)))

    @unittest.skipUnless(Path("/proc/self/fd").exists(), "descriptors are only told by /proc")
    def test_descriptors(self) -> None:
        """A descriptor more is one more; the limit is the one that holds."""
        import resource

        before = read()["process_open_fds"].value()
        opened = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, opened)
        self.assertEqual(read()["process_open_fds"].value(), before + 1)
        self.assertEqual(read()["process_max_fds"].value(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def test_without_proc(self) -> None:
        """Elsewhere than on Linux the most memory ever and Python's threads are told, and descriptors are not."""
        with mock.patch.object(process, "PROC", Path("/nowhere")):
            figures = read()
            self.assertNotIn("process_open_fds", figures)
            self.assertGreater(figures["process_resident_memory_bytes"].value(), 1 << 20)
            self.assertEqual(figures["process_threads"].value(), len(sys._current_frames()))
            with mock.patch.object(process, "resource", None):
                self.assertNotIn("process_resident_memory_bytes", read())


if __name__ == "__main__":
    unittest.main()
