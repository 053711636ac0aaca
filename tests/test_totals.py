"""What streams have made, counted without looking at each event: exactly, and never less than a moment ago."""

from __future__ import annotations

import random
import sys
import threading
import unittest
from collections.abc import Callable
from itertools import pairwise
from unittest import mock

from inferless_shim.config import Settings
from inferless_shim.outputs import Native
from inferless_shim.store import Store
from inferless_shim.stream import Stream
from inferless_shim.tally import PAUSES, State, Tally, Timing
from inferless_shim.totals import Totals
from tests.support import Clock, TestCase


class Meddling:
    """A lock; once it is released for the first time, something happens at once."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.happens = [happens]

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        while self.happens:
            self.happens.pop()()


def stream(dialect: Native | None = None) -> Stream:
    return Stream(dialect or Native(), log_cap=1 << 20, retry=2)


class OfOneStream(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        patch = mock.patch("inferless_shim.stream.time", self.clock)
        patch.start()
        self.addCleanup(patch.stop)
        self.stream = stream()

    def send(self, after: float) -> None:
        self.clock.now += after
        self.stream.append(b"data: {}\n\n")

    def test_nothing_yet(self) -> None:
        """A stream without events has no first one and no pauses, also when it has ended."""
        for end in (False, True):
            with self.subTest(ended=end):
                if end:
                    self.clock.now += 50
                    self.stream.fail("timeout", "late")
                tally = self.stream.tally()
                self.assertEqual((tally.events, tally.first, sum(tally.pauses), tally.paced), (0, None, 0, 0.0))

    def test_first_event(self) -> None:
        """The first event's time counts from the request, fast or slow, and is no pause."""
        for after in (0.0, 0.001, 3.0):
            with self.subTest(after):
                self.stream = stream()
                self.send(after)
                tally = self.stream.tally()
                self.assertAlmostEqual(tally.first or 0.0, after)
                self.assertEqual((tally.events, sum(tally.pauses), tally.paced), (1, 0, 0.0))

    def test_pauses_are_those_that_were(self) -> None:
        """Whatever the pauses: as many in each bucket as when each is looked at, and the same sum."""
        for seed in range(20):
            with self.subTest(seed=seed):
                draw = random.Random(seed)
                self.stream = stream()
                self.send(draw.choice((0.0, 0.5)))
                pauses = [draw.choice((0.0001, 0.0019, 0.003, 0.02, 0.09, 0.7, 3.0, 20.0)) for _ in range(60)]
                for pause in pauses:
                    self.send(pause)
                tally = self.stream.tally()
                bounds = (0.0, *PAUSES, float("inf"))
                expected = [sum(low < p <= high for p in pauses) for low, high in pairwise(bounds)]
                self.assertEqual(list(tally.pauses), expected)
                self.assertAlmostEqual(tally.paced, sum(pauses))

    def test_the_end_is_not_the_apps(self) -> None:
        """The last event is in the bytes alone: what it says was not sent by the app, nor when it is said."""
        self.send(0.1)
        self.send(0.1)
        before = self.stream.tally()
        self.clock.now += 30
        self.stream.fail("cancelled", "gone", cause="unfollowed")
        after = self.stream.tally()
        self.assertEqual(after[:4], before[:4])
        self.assertGreater(after.logged, before.logged)
        self.assertEqual((before.state, after.state, after.cause), (State.OPEN, State.CANCELLED, "unfollowed"))

    def test_cause(self) -> None:
        """A failure's code is its cause, unless a better one is told; what ended well has none."""
        self.stream.finish()
        self.assertEqual((self.stream.tally().state, self.stream.tally().cause), (State.FINISHED, ""))
        self.stream = stream()
        self.stream.fail("app_error", "no")
        self.assertFalse(self.stream.fail("cancelled", "too late", cause="deleted"))
        self.assertEqual(self.stream.tally().cause, "app_error")

    def test_ended_needs_no_lock(self) -> None:
        """The store adds an ended stream under its own lock, so that must take no other."""
        self.send(0.1)
        self.stream.finish()
        with self.stream.lock:
            self.assertEqual(self.stream.tally().events, 1)


class InTotal(TestCase):
    def test_causes(self) -> None:
        """Each failure has one of six causes; what is not the client's or ours is the app's."""
        cases = {
            ("cancelled", "deleted"): "deleted",
            ("cancelled", "unfollowed"): "unfollowed",
            ("timeout", ""): "timeout",
            ("shutting_down", ""): "shutdown",
            ("app_error", ""): "app",
            ("schema_changed", ""): "app",
            ("bad_request", ""): "client",
        }
        for (code, cause), counted in cases.items():
            with self.subTest(code=code, cause=cause):
                totals, one = Totals(), stream()
                one.fail(code, "no", cause=cause)
                totals.add(one)
                self.assertEqual(totals.cancelled, {counted: 1})

    def test_copy_is_its_own(self) -> None:
        """What is added to a copy is not in the original."""
        totals, one = Totals(), stream()
        one.append(b"data: {}\n\n")
        one.append(b"data: {}\n\n")
        one.fail("timeout", "late")
        other = totals.copy()
        other.add(one)
        self.assertEqual((totals.streams, totals.events, totals.logged, sum(totals.pauses.counts)), (0, 0, 0, 0))
        self.assertEqual((sum(totals.firsts.counts), totals.states, totals.cancelled), (0, {}, {}))
        self.assertEqual((other.streams, other.events, sum(other.pauses.counts)), (1, 2, 1))

    def test_read_in_one_step(self) -> None:
        """A stream that is forgotten just after the store let go of its lock is still counted, and once."""
        store = Store(Settings())
        one = store.open(Native(), detached=True)
        one.append(b"data: {}\n\n")
        one.finish()
        store.lock = Meddling(lambda: store.forget(one))  # type: ignore[assignment]
        for _ in range(2):
            kept, _, totals = store.read()
            for each in kept:
                totals.add(each)
            self.assertEqual((totals.streams, totals.events, totals.states), (1, 1, {State.FINISHED: 1}))
        self.assertEqual(kept, [])

    def test_counted_under_the_lock(self) -> None:
        """While a stream runs, how many events there are and how far apart is read at one moment."""
        one = stream()
        held = []

        class Watched(Timing):
            def tally(self, events: int, last: float) -> Tally:
                held.append(one.lock.locked())
                return super().tally(events, last)

        with mock.patch.object(one, "_timing", Watched(one.created)):
            one.tally()
        self.assertEqual((held, one.lock.locked()), ([True], False))

    def test_never_less_than_before(self) -> None:
        """While streams send, end and are forgotten, no total of all, however often it is read, ever falls."""
        store = Store(Settings(max_streams=8, retention=0.0))
        readings: list[tuple[int, ...]] = []
        over = threading.Event()

        def read() -> None:
            last = False
            while not last:
                last = over.is_set()
                kept, _, totals = store.read()
                for each in kept:
                    totals.add(each)
                firsts, pauses = totals.firsts, totals.pauses
                ended = sum(n for state, n in totals.states.items() if state is not State.OPEN)
                below = [sum(pauses.counts[: end + 1]) for end in range(len(pauses.counts))]
                readings.append((totals.streams, totals.events, totals.logged, ended, totals.states[State.FINISHED],
                                 sum(firsts.counts), firsts.billionths, pauses.billionths, *below))  # fmt: skip

        def work(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(200):
                one = store.open(Native(), detached=True)
                for _ in range(draw.randrange(30)):
                    one.append(b"data: {}\n\n")
                    with one.lock:  # all that was is longer ago
                        passed = draw.choice((0.0, 0.0, 0.004))
                        one.created -= passed
                        one.appended -= passed
                        timing = one._timing
                        timing._began, timing._first = timing._began - passed, timing._first - passed
                if draw.random() < 0.5:
                    one.finish()
                else:
                    one.fail("timeout", "late")
                if draw.random() < 0.5:
                    store.forget(one)
                else:
                    store.sweep()

        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(10e-6)
        reader = threading.Thread(target=read)
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for each in (reader, *workers):
            each.start()
        for each in workers:
            each.join()
        over.set()
        reader.join()
        self.assertGreater(len(readings), 10)
        for before, after in pairwise(readings):
            self.assertTrue(all(old <= new for old, new in zip(before, after, strict=True)), (before, after))
        self.assertEqual((readings[-1][0], readings[-1][3]), (600, 600))


if __name__ == "__main__":
    unittest.main()
