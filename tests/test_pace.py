"""How slowly a client may take what waits for it: in seconds and bytes, on a clock of the test's own."""

from __future__ import annotations

import unittest
from unittest import mock

from inferless_shim import pace
from inferless_shim.pace import MIN_RATE, Pace

STALL = 30.0


class PaceTests(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(pace.time, "monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)
        self.pace = Pace(STALL)

    def lasts(self, every: float, size: int, limit: float = 10_000) -> float:
        """Return how long a client lasts that takes `size` bytes `every` so many seconds; `limit` if that is for ever.

        It is looked at when it takes something, and at its deadline.
        """
        began = self.now
        due = began + every
        while self.now - began < limit:
            self.now = min(due, self.pace.deadline)
            if self.now >= due:
                due += every
                self.pace.took(size)
            if self.pace.left <= 0:
                return self.now - began
        return limit

    def test_takes_nothing(self) -> None:
        """It has `stall` seconds."""
        self.assertEqual(self.lasts(1, 0), STALL)

    def test_a_byte_now_and_then(self) -> None:
        """A byte every 29 seconds held a thread for ever; now it gains no second by it."""
        self.assertLess(self.lasts(29, 1), STALL + 1)

    def test_too_slow(self) -> None:
        """Half of what is asked for lasts twice as long, and not more."""
        self.assertAlmostEqual(self.lasts(1, int(MIN_RATE) // 2), 2 * STALL, delta=2)

    def test_just_fast_enough(self) -> None:
        """What is asked for is enough, however it is spread within a stall."""
        for every in (0.1, 1.0, 29.0):
            with self.subTest(every):
                self.pace = Pace(STALL)
                self.assertEqual(self.lasts(every, int(every * MIN_RATE) + 1), 10_000)

    def test_no_credit(self) -> None:
        """Who took a megabyte at once has `stall` seconds, like everybody."""
        self.pace.took(1 << 20)
        self.assertEqual(self.lasts(1, 0), STALL)


if __name__ == "__main__":
    unittest.main()
