"""When a replica counts as dead, and which streams count as followed: by a clock that the test turns."""

from __future__ import annotations

import random
import unittest

from inferless_shim.extras.valkey.following import RENEWAL, TERM, Following
from inferless_shim.extras.valkey.lease import LOOK, WATCH, Pulse, Watch
from inferless_shim.extras.valkey.lease import TERM as LEASE_TERM

LEASE = 10.0
STEP = LEASE * LOOK


class WatchTests(unittest.TestCase):
    def setUp(self) -> None:
        self.watch = Watch(LEASE)
        self.now = 100.0

    def look(self, present: bool, after: float = STEP) -> bool:
        self.now += after
        return self.watch.see("r", present, self.now)

    def looks_until_dead(self) -> float:
        """Look until it is dead; return how long after the first look that was."""
        self.assertFalse(self.look(False))
        first = self.now
        while not self.look(False):
            self.assertLess(self.now, first + LEASE)
        return self.now - first

    def test_dead(self) -> None:
        """A replica is dead when it was absent at all looks of a period, and not earlier."""
        took = self.looks_until_dead()
        self.assertGreaterEqual(took, LEASE * WATCH)
        self.assertLessEqual(took, LEASE * (WATCH + LOOK) + 0.001)

    def test_within_the_lease(self) -> None:
        """From the death of a replica that has just renewed its lease, all takes --log-lease at most."""
        self.assertLessEqual(LEASE_TERM + LOOK + WATCH + LOOK, 1.0001)

    def test_back_once(self) -> None:
        """A lease that was there at one look begins the period anew."""
        for _ in range(8):
            self.assertFalse(self.look(False))
        self.assertFalse(self.look(True))
        self.assertGreaterEqual(self.looks_until_dead(), LEASE * WATCH)

    def test_blink(self) -> None:
        """A store that could not be reached begins all periods anew."""
        for _ in range(8):
            self.assertFalse(self.look(False))
        self.watch.blink()
        self.assertGreaterEqual(self.looks_until_dead(), LEASE * WATCH)

    def test_reader_stopped(self) -> None:
        """A reader that did not look for long has seen nothing meanwhile, however long that was."""
        self.look(False)
        self.assertFalse(self.look(False, after=1000))
        self.assertGreaterEqual(self.looks_until_dead(), LEASE * WATCH - STEP)

    def test_each_for_itself(self) -> None:
        """Replicas are looked at one by one, and one that nobody asks for is forgotten."""
        self.watch.see("other", False, self.now)
        for _ in range(8):
            self.look(False)
        self.watch.only({"r"})
        self.assertFalse(self.watch.see("other", False, self.now))
        self.assertTrue(self.look(False, after=LEASE * WATCH / 3) or self.look(False))

    def test_at_random(self) -> None:
        """Whatever is seen: dead only after a whole period of looks that all saw it absent, none far apart."""
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        for _ in range(200):
            watch, now = Watch(LEASE), 0.0
            absent: float | None = None
            looked = 0.0
            for _ in range(100):
                now += chance.choice([STEP, STEP, STEP, LEASE * WATCH * 0.4, LEASE])
                if chance.random() < 0.03:
                    watch.blink()
                    absent = None
                present = chance.random() < 0.05
                if present or now - looked > LEASE * WATCH / 2:
                    absent = None
                if not present and absent is None:
                    absent = now
                looked = now
                expected = absent is not None and not present and now - absent >= LEASE * WATCH
                self.assertEqual(watch.see("r", present, now), expected, f"seed {seed}")


class PulseTests(unittest.TestCase):
    def test_awake(self) -> None:
        """A process that beats never woke, also where it is a little late, and before its first beat."""
        pulse = Pulse(LEASE)
        self.assertLess(pulse.woke(1000.0), 0)
        for now in (0.0, 0.25, 0.5, 0.5 + LEASE * LEASE_TERM):
            pulse.beat(now)
            self.assertLess(pulse.woke(now), 0)

    def test_slept(self) -> None:
        """One that slept for longer than its lease lives knows it before its next beat, and afterwards."""
        pulse = Pulse(LEASE)
        pulse.beat(0.0)
        self.assertEqual(pulse.woke(100.0), 100.0)
        pulse.beat(101.0)
        pulse.beat(101.2)
        self.assertEqual(pulse.woke(101.3), 101.0)


class FollowingTests(unittest.TestCase):
    def test_said(self) -> None:
        """What replicas say is followed, all of them together, until they say something else."""
        following = Following()
        following.note("a", ["1", "2"], 0.0)
        following.note("b", ["2", "3"], 0.0)
        self.assertEqual(following.followed(1.0), {"1", "2", "3"})
        following.note("a", ["1"], 1.0)
        following.note("b", [], 1.0)
        self.assertEqual(following.followed(1.0), {"1"})

    def test_silent(self) -> None:
        """A replica that says nothing for a few renewals follows nothing any more."""
        following = Following()
        following.note("a", ["1"], 0.0)
        following.note("b", ["2"], RENEWAL)
        self.assertEqual(following.followed(TERM - 0.1), {"1", "2"})
        self.assertEqual(following.followed(TERM), {"2"})

    def test_prolonged(self) -> None:
        """While the store was away nobody could say anything: the terms begin anew when it is back."""
        following = Following()
        following.note("a", ["1"], 0.0)
        following.prolong(TERM * 5)
        self.assertEqual(following.followed(TERM * 5.9), {"1"})
        self.assertEqual(following.followed(TERM * 6), set())

    def test_nobody(self) -> None:
        """Where nobody has said anything, nothing is followed."""
        self.assertEqual(Following().followed(0.0), set())


if __name__ == "__main__":
    unittest.main()
