"""A stream of another process: its frames come as they are, and a client may be ahead of them."""

from __future__ import annotations

import unittest
from typing import Any

from inferless_shim.errors import Gone
from inferless_shim.mirror import Mirror
from inferless_shim.outputs import Native
from inferless_shim.stream import Progress, Stream
from inferless_shim.tally import State
from tests.support import TestCase
from tests.test_copies import Follower, numbers


def frames(stream_id: str, first: int, last: int, size: int = 10) -> list[bytes]:
    """Make the frames that another process would."""
    made = []
    for number in range(first, last + 1):
        event = b"id: %b-%d\ndata: %b\n\n" % (stream_id.encode(), number, b"x" * size)
        made.append(b"%x\r\n%b\r\n" % (len(event), event))
    return made


def mirror(cap: int = 1 << 20) -> Mirror:
    return Mirror(Native(), id="f" * 32, log_cap=cap, retry=1.0)


class Receiving(TestCase):
    def test_followers_get_the_bytes_as_they_came(self) -> None:
        """Those caught up are sent them at once, later ones from the log; the end comes after the last one."""
        stream = mirror()
        early = Follower(stream)
        early.follow()
        made = frames(stream.id, 1, 5)
        stream.receive(made[:3])
        self.assertEqual(early.got, b"".join(made[:3]))
        late = Follower(stream, 2)
        stream.receive(made[3:])
        stream.end_as(State.FINISHED)
        self.assertEqual((early.follow(), late.follow()), (Progress.ENDED, Progress.ENDED))
        self.assertEqual((early.got, late.got), (b"".join(made), b"".join(made[2:])))
        stream.receive(frames(stream.id, 6, 6))
        self.assertEqual(stream.log.last, 5)
        self.assertFalse(stream.can_follow(5))

    def test_bounded_as_every_log(self) -> None:
        """Past its cap it loses the oldest; those caught up miss nothing."""
        stream = mirror(cap=100_000)
        follower = Follower(stream)
        follower.follow()
        for number in range(1, 401):
            stream.receive(frames(stream.id, number, number, 1000))
        self.assertEqual(numbers(follower.got), [*range(1, 401)])
        self.assertLessEqual(len(stream.log), 100_000)
        with self.assertRaises(Gone):
            stream.can_follow(0)

    def test_severed(self) -> None:
        """Its followers' connections break, without an end."""
        stream = mirror()
        follower = Follower(stream)
        follower.follow()
        stream.sever()
        self.assertEqual((follower.follow(), follower.wakes), (Progress.BROKEN, 1))


class Ahead(TestCase):
    def test_client_waits_for_what_follows_what_it_has(self) -> None:
        """What it has seen of the other process is not sent to it again when it arrives here."""
        for options in ({}, {"chunked": False}):
            with self.subTest(options):
                stream = mirror()
                stream.receive(frames(stream.id, 1, 2))
                self.assertTrue(stream.can_follow(4))
                follower = Follower(stream, 4, **options)
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                stream.receive(frames(stream.id, 3, 3))
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                stream.receive(frames(stream.id, 4, 6))
                self.assertIs(follower.follow(), Progress.CAUGHT_UP)
                stream.receive(frames(stream.id, 7, 7))
                follower.follow()
                self.assertEqual(
                    [line for line in follower.got.split(b"\n") if line.startswith(b"id:")],
                    [b"id: %b-%d" % (stream.id.encode(), number) for number in (5, 6, 7)],
                )

    def test_client_is_told_when_that_is_lost(self) -> None:
        """If the process dies before it came, the client gets the error as its next event, and its end."""
        for number, expected in ((2, [3]), (3, [4]), (9, [10])):
            with self.subTest(number):
                stream = mirror()
                stream.receive(frames(stream.id, 1, 2))
                follower = Follower(stream, number)
                follower.follow()
                self.assertTrue(stream.interrupt())
                self.assertIs(follower.follow(), Progress.ENDED)
                self.assertEqual(numbers(follower.got), expected)
                self.assertEqual(follower.got.count(b'"code":"interrupted","events":2'), 1)

    def test_stream_that_ends_without_it(self) -> None:
        """If it ends where the client is, or before (which no true client has seen), nothing follows."""
        for number in (2, 3):
            with self.subTest(number):
                stream = mirror()
                stream.receive(frames(stream.id, 1, 1))
                follower = Follower(stream, number)
                follower.follow()
                stream.receive(frames(stream.id, 2, 2))
                stream.end_as(State.FINISHED)
                self.assertIs(follower.follow(), Progress.ENDED)
                self.assertEqual(follower.got, b"")

    def test_client_of_one_that_has_ended_is_not(self) -> None:
        """Once it has ended, nothing comes: a number at or above the last is 204's."""
        stream = mirror()
        stream.receive(frames(stream.id, 1, 1))
        stream.end_as(State.FAILED, ("app_error", "no"), "app_error")
        self.assertEqual((stream.failure, stream.cause), (("app_error", "no"), "app_error"))
        self.assertEqual([stream.can_follow(number) for number in (0, 1, 2)], [True, False, False])


class Unlike(TestCase):
    def test_own_stream_refuses_what_is_ahead(self) -> None:
        """Only another process's stream may be behind its clients."""
        stream: Any = Stream(Native(), log_cap=1000, retry=1.0)
        self.assertFalse(stream.elsewhere)
        with self.assertRaisesRegex(Exception, "ahead of the stream"):
            stream.can_follow(1)


if __name__ == "__main__":
    unittest.main()
