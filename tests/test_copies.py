"""The copy of a stream's log: what it is given to read, when it is woken, and what waits for it."""

from __future__ import annotations

import random
import re
import unittest
from typing import Any

from inferless_shim.copies import CopiedStream, Copy
from inferless_shim.outputs import Generate, Native
from inferless_shim.stream import Progress, Subscriber
from inferless_shim.tally import State
from tests.support import TestCase

FRAME = re.compile(rb"[0-9a-f]+\r\nid: [0-9a-f]{32}-([0-9]+)\n.*?\n\n\r\n", re.DOTALL)


def copied_stream(*, gates: bool = False, cap: int = 1 << 20, dialect: Any = None) -> tuple[CopiedStream, Copy, list]:
    """Return a stream, its copy, and the list of who was woken."""
    stream = CopiedStream(dialect or Native(), log_cap=cap, retry=1.0)
    woken: list[Copy] = []
    copy = Copy(stream, woken.append, gates=gates)
    stream.copy_to(copy)
    return stream, copy, woken


def numbers(data: bytes) -> list[int]:
    """The events in whole frames, one after the other; AssertionError if there is anything else."""
    assert b"".join(match[0] for match in FRAME.finditer(data)) == bytes(data), data
    return [int(match[1]) for match in FRAME.finditer(data)]


class Follower:
    """A subscriber whose socket takes everything, or nothing while `full`."""

    def __init__(self, stream: CopiedStream, number: int = 0, **options: Any) -> None:
        self.got = b""
        self.wakes = 0
        self.full = False
        self.subscriber = Subscriber(self.send, self.wake, **options)
        self.stream = stream
        assert stream.attach(self.subscriber, number)

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        self.got += data
        return len(data)

    def wake(self) -> None:
        self.wakes += 1

    def follow(self) -> Progress:
        """Do what its handler thread does after a wake."""
        while (progress := self.stream.advance(self.subscriber)) is Progress.MORE:
            pass
        return progress


class Reading(TestCase):
    def test_woken_once_until_all_is_read(self) -> None:
        """The first event wakes the copy, the next ones do not, until it has found nothing new."""
        stream, copy, woken = copied_stream()
        for _ in range(3):
            stream.append(b"data: {}\n\n")
        self.assertEqual(woken, [copy])
        self.assertEqual(numbers(stream.read_new(copy, 1 << 16).data), [1, 2, 3])
        stream.append(b"data: {}\n\n")
        self.assertEqual(woken, [copy])
        self.assertEqual(numbers(stream.read_new(copy, 1 << 16).data), [4])
        self.assertEqual(stream.read_new(copy, 1 << 16)[:3], (5, 4, b""))
        stream.append(b"data: {}\n\n")
        self.assertEqual(woken, [copy, copy])

    def test_end_is_told_with_the_last_events_and_again(self) -> None:
        """The batch that has the last event says so; a stream that ends without one wakes the copy all the same."""
        for dialect, last in ((Native(), 2), (Generate("m"), 1)):
            with self.subTest(dialect):
                stream, copy, woken = copied_stream(dialect=dialect)
                stream.append(b"data: {}\n\n")
                self.assertFalse(stream.read_new(copy, 1 << 16).ended)
                self.assertFalse(stream.read_new(copy, 1 << 16).ended)
                stream.finish()
                self.assertEqual(len(woken), 2)
                batch = stream.read_new(copy, 1 << 16)
                self.assertEqual((batch.last, batch.ended, batch.lost), (last, True, False))
                self.assertTrue(stream.read_new(copy, 1 << 16).ended)
                self.assertFalse(copy.idle)

    def test_batches_are_whole_frames_whatever_the_limit(self) -> None:
        """Of any sizes and limits, the batches joined are the log; none is above the limit unless it is one event."""
        seed = random.randrange(1 << 32)
        draw = random.Random(seed)
        with self.subTest(seed=seed):
            stream, copy, _ = copied_stream()
            sizes = [draw.choice((1, 10, 3_000, 70_000)) for _ in range(60)]
            for size in sizes:
                stream.append(b"data: %b\n\n" % (b"x" * size))
            stream.finish()
            data = b""
            while not (batch := stream.read_new(copy, draw.choice((1, 100, 5_000, 1 << 20)))).ended or batch.data:
                found = numbers(batch.data)
                self.assertEqual(found, [*range(batch.first, batch.last + 1)])
                data += batch.data
            self.assertEqual(data, bytes(stream.log.read(0, stream.log.end)))

    def test_read_can_go_back(self) -> None:
        """Whoever finds that what was read has got lost goes back and reads the same again."""
        stream, copy, _ = copied_stream()
        for _ in range(3):
            stream.append(b"data: {}\n\n")
        first = stream.read_new(copy, 1 << 16)
        stream.read_again(copy, 0)
        self.assertEqual(stream.read_new(copy, 1 << 16), first)
        stream.read_again(copy, 9)  # more than there is
        self.assertEqual(stream.read_new(copy, 1 << 16).first, 4)

    def test_read_goes_on_after_what_is_forgotten(self) -> None:
        """Where the log has lost what comes next, it is read from the oldest that is kept."""
        stream, copy, _ = copied_stream(cap=100_000)
        for _ in range(400):
            stream.append(b"data: %b\n\n" % (b"x" * 1000))
        self.assertTrue(stream.read_new(copy, 1).lost)
        stream.read_again(copy, copy.read)
        batch = stream.read_new(copy, 1)
        self.assertEqual((batch.first, batch.lost), (stream.log.first, False))

    def test_parked(self) -> None:
        """A copy that was parked is woken by what is new."""
        stream, copy, woken = copied_stream()
        stream.append(b"data: {}\n\n")
        stream.park(copy)
        stream.append(b"data: {}\n\n")
        self.assertEqual(woken, [copy, copy])
        self.assertEqual(numbers(stream.read_new(copy, 1 << 16).data), [1, 2])


class Trimming(TestCase):
    def fill(self, stream: CopiedStream, events: int) -> None:
        for _ in range(events):
            stream.append(b"data: %b\n\n" % (b"x" * 1000))

    def test_waits_for_the_copy_until_twice_the_cap(self) -> None:
        """What is not copied is kept up to twice the cap, then lost, which the next batch says."""
        stream, copy, _ = copied_stream(cap=100_000)
        self.fill(stream, 150)
        self.assertEqual(stream.log.first, 1)
        self.fill(stream, 100)
        self.assertGreater(stream.log.first, 1)
        self.assertLessEqual(len(stream.log), 200_000)
        self.assertTrue(stream.read_new(copy, 1 << 16).lost)

    def test_goes_on_when_it_is_copied(self) -> None:
        """What was copied is forgotten past the cap, at once."""
        stream, copy, _ = copied_stream(cap=100_000)
        self.fill(stream, 150)
        while stream.read_new(copy, 1 << 16).data:
            pass
        stream.copied(copy, copy.read)
        self.assertLessEqual(len(stream.log), 100_000)
        self.assertGreater(stream.log.first, 1)

    def test_without_a_copy_any_more(self) -> None:
        """A copy that was given up holds nothing back, is not woken, and cannot be moved."""
        stream, copy, woken = copied_stream(cap=100_000)
        self.fill(stream, 150)
        stream.end_copy()
        self.assertLessEqual(len(stream.log), 100_000)
        copy.idle = True
        self.fill(stream, 1)
        stream.copied(copy, 1)
        self.assertEqual(len(woken), 1)


class Gate(TestCase):
    def test_nothing_is_seen_before_it_is_safe(self) -> None:
        """Direct, pulled and HTTP/1.0 subscribers get each event when it is copied, not before, and then its end."""
        for options in ({}, {"pulled": True}, {"chunked": False}):
            with self.subTest(options):
                stream, copy, _ = copied_stream(gates=True)
                follower = Follower(stream, **options)
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                for _ in range(3):
                    stream.append(b"data: {}\n\n")
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                self.assertEqual(follower.got, b"")
                stream.copied(copy, 2)
                follower.follow()
                self.assertEqual(follower.got.count(b"data:"), 2)
                stream.finish()
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                self.assertEqual(follower.got.count(b"data:"), 2)
                stream.copied(copy, 4)
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                self.assertEqual(follower.got.count(b"data:"), 4)
                wakes = follower.wakes
                stream.end_copy()
                self.assertGreater(follower.wakes, wakes)
                self.assertIs(follower.follow(), Progress.ENDED)

    def test_end_without_an_event_is_not_seen_before_it_is_safe(self) -> None:
        """Where nothing follows the app's last event, or an answer is the end, that waits for its copy as well."""
        for dialect, events in ((Generate("m"), 2), (None, 0)):
            with self.subTest(dialect):
                stream, copy, _ = copied_stream(gates=True)
                stream.dialect = dialect
                follower = Follower(stream)
                for _ in range(events):
                    stream.append(b"data: {}\n\n")
                stream.copied(copy, events)
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                stream.finish()
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                stream.end_copy()
                self.assertIs(follower.follow(), Progress.ENDED)
                self.assertTrue(copy.idle)

    def test_resume_is_shown_no_more(self) -> None:
        """Who attaches later sees as much as the others; who has seen more than is safe waits for what follows it."""
        stream, copy, _ = copied_stream(gates=True)
        for _ in range(4):
            stream.append(b"data: {}\n\n")
        stream.copied(copy, 1)
        for number, before, after in ((0, [1], [1, 2, 3]), (2, [], [3]), (3, [], [])):
            with self.subTest(number):
                copy_of_gate = stream._gate
                follower = Follower(stream, number)
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                self.assertEqual(numbers(follower.got), before)
                stream.copied(copy, 3)
                follower.follow()
                self.assertEqual(numbers(follower.got), after)
                stream.detach(follower.subscriber)
                stream._gate = copy_of_gate

    def test_opens_when_the_copy_is_given_up(self) -> None:
        """A copy that cannot go on lets everything out, and later events at once."""
        stream, _, _ = copied_stream(gates=True)
        follower = Follower(stream)
        follower.follow()
        stream.append(b"data: {}\n\n")
        stream.end_copy()
        self.assertEqual(numbers(follower.got), [1])
        stream.append(b"data: {}\n\n")
        self.assertEqual(numbers(follower.got), [1, 2])

    def test_client_that_is_full_meanwhile(self) -> None:
        """When the gate opens, a socket that takes nothing is left to its own thread."""
        stream, copy, _ = copied_stream(gates=True)
        follower = Follower(stream)
        follower.follow()
        follower.full = True
        stream.append(b"data: {}\n\n")
        stream.copied(copy, 1)
        self.assertEqual((follower.got, follower.wakes), (b"", 1))
        follower.full = False
        self.assertIs(follower.follow(), Progress.CAUGHT_UP)
        self.assertEqual(numbers(follower.got), [1])

    def test_model_never_waits(self) -> None:
        """A gate that never opens bounds what is kept, and those who wait behind it are told that they fell behind."""
        stream, copy, _ = copied_stream(gates=True, cap=100_000)
        follower = Follower(stream)
        follower.follow()
        for _ in range(400):
            stream.append(b"data: %b\n\n" % (b"x" * 1000))
        self.assertLessEqual(len(stream.log), 200_000)
        self.assertTrue(stream.read_new(copy, 1).lost)
        stream.end_copy()
        self.assertIs(follower.follow(), Progress.OVERRUN)


class FollowedElsewhere(TestCase):
    def test_keeps_it_running(self) -> None:
        """Who follows through another process counts; the wait for a return begins when the last of both has left."""
        stream, _, _ = copied_stream()
        follower = Follower(stream)
        stream.followed_elsewhere(True)
        stream.detach(follower.subscriber)
        self.assertIsNone(stream.unfollowed)
        stream.followed_elsewhere(False)
        self.assertIsNotNone(stream.unfollowed)
        stream.followed_elsewhere(True)
        self.assertIsNone(stream.unfollowed)
        follower = Follower(stream)
        stream.followed_elsewhere(False)
        self.assertIsNone(stream.unfollowed)

    def test_detached_waits_for_its_first_follower(self) -> None:
        """One that was begun with respond-async does not begin to linger because nobody follows elsewhere either."""
        stream = CopiedStream(Native(), log_cap=1000, retry=1.0, detached=True)
        stream.followed_elsewhere(False)
        self.assertIsNone(stream.unfollowed)
        stream.followed_elsewhere(True)
        stream.followed_elsewhere(False)
        self.assertIsNotNone(stream.unfollowed)


class Interrupted(TestCase):
    def test_client_that_has_seen_more_than_was_kept(self) -> None:
        """It is told so, numbered one above what it has; who has seen less gets the rest and the same end."""
        stream, _, _ = copied_stream()
        for _ in range(2):
            stream.append(b"data: {}\n\n")
        self.assertIsNone(stream.told_past(5))
        self.assertTrue(stream.interrupt())
        self.assertEqual((stream.state, stream.cause, stream.kept_events), (State.FAILED, "interrupted", 2))
        self.assertIsNone(stream.told_past(2))
        for number in (3, 17):
            told = stream.told_past(number)
            assert told is not None
            self.assertTrue(
                told.startswith(b"id: %b-%d\nevent: error\ndata: {" % (stream.id.encode(), number + 1)), told
            )
            self.assertIn(b'"code":"interrupted","events":2}', told)
        follower = Follower(stream, 1)
        self.assertIs(follower.follow(), Progress.ENDED)
        self.assertEqual(numbers(follower.got), [2, 3])

    def test_stream_that_has_ended_cannot_be(self) -> None:
        """What has ended has ended: it is not interrupted, and nobody is told so."""
        stream, _, _ = copied_stream()
        stream.finish()
        self.assertFalse(stream.interrupt())
        self.assertEqual((stream.state, stream.kept_events, stream.told_past(9)), (State.FINISHED, None, None))


if __name__ == "__main__":
    unittest.main()
