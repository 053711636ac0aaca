"""Heads and bodies by their deadlines, from a connection that is a list of what comes when, on a clock of its own."""

from __future__ import annotations

import unittest
from typing import Any
from unittest import mock

from inferless_shim import reader
from inferless_shim.budget import Budget
from inferless_shim.config import Settings
from inferless_shim.connection import ClientGone
from inferless_shim.errors import BadRequest, ContentTooLarge, RequestTimeout
from inferless_shim.http1 import CONTINUE
from inferless_shim.reader import BODY_RATE, Reader
from tests.support import request_bytes

SETTINGS = Settings(read_timeout=10.0, idle_timeout=60.0, max_body=16 << 20)
GET = request_bytes("GET", "/v2")


class Line:
    """A connection: `comes` at a time in seconds, in order; b"" is its end. Waiting moves the clock, and nothing else.

    `late` is how many seconds its thread loses before it looks again each time: others hold the interpreter.
    """

    def __init__(self, *comes: tuple[float, bytes], late: float = 0.0) -> None:
        self.comes = list(comes)
        self.late = late
        self.now = 0.0
        self.sent = b""
        self.started: float | None = None
        self.ended = False

    def monotonic(self) -> float:
        return self.now

    def start(self, deadline: float) -> None:
        self.started = deadline

    def receive(self, timeout: float) -> bytes:
        self.now += self.late
        due = self.comes[0][0] if self.comes else float("inf")
        if due > self.now + max(0.0, timeout - self.late):
            self.now += max(0.0, timeout - self.late)
            raise TimeoutError
        self.now = max(self.now, due)
        return self.comes.pop(0)[1]

    def send_all(self, data: bytes) -> None:
        self.sent += data

    def end_reading(self) -> None:
        self.ended = True


class ReaderTestCase(unittest.TestCase):
    def reader(self, *comes: tuple[float, bytes], late: float = 0.0, **options: Any) -> Reader:
        self.line = Line(*comes, late=late)
        clock = mock.patch.object(reader, "time", self.line)
        clock.start()
        self.addCleanup(clock.stop)
        self.draining = False
        made = Reader(self.line, SETTINGS, lambda: self.draining)  # type: ignore[arg-type]
        made.start()
        return made

    def read_body(self, made: Reader, most: int = SETTINGS.max_body) -> bytes:
        request = made.read_head()
        assert request is not None
        hold = Budget(1 << 40).hold()
        self.addCleanup(hold.release)
        return made.read_body(request, hold, most)


class HeadTests(ReaderTestCase):
    def test_heads_one_after_the_other(self) -> None:
        """Heads that come together, cut up, or apart are read in their order; the end between two is no error."""
        made = self.reader((0, GET + GET[:10]), (1, GET[10:]), (50, GET), (51, b""))
        targets = []
        while (request := made.read_head()) is not None:
            targets.append(request.target)
            self.assertTrue(made.body_read)
        self.assertEqual(targets, ["/v2"] * 3)

    def test_end_in_a_head(self) -> None:
        """A client that leaves in the middle of a head has asked nothing."""
        self.assertIsNone(self.reader((0, GET[:10]), (1, b"")).read_head())

    def test_first_head_is_late(self) -> None:
        """A new connection has `read_timeout` for all of its first head, its handshake and its silence before included.

        The silence and the head had `read_timeout` each.
        """
        made = self.reader((9, GET[:5]), (11, GET[5:]))
        self.assertEqual(self.line.started, 10.0)
        with self.assertRaises(RequestTimeout):
            made.read_head()
        self.assertEqual(self.line.now, 10.0)

    def test_trickling_head(self) -> None:
        """A byte a second does not move the deadline."""
        made = self.reader((0, GET), *((30 + second, bytes([GET[second]])) for second in range(len(GET))))
        made.read_head()
        with self.assertRaises(RequestTimeout):
            made.read_head()
        self.assertEqual(self.line.now, 40.0)

    def test_silence(self) -> None:
        """Silence is no error: after `read_timeout` at first, `idle_timeout` between two requests, nobody is there."""
        made = self.reader()
        self.assertIsNone(made.read_head())
        self.assertEqual(self.line.now, 10.0)
        made = self.reader((5, GET))
        made.read_head()
        self.assertIsNone(made.read_head())
        self.assertEqual(self.line.now, 65.0)

    def test_empty_line_is_no_late_request(self) -> None:
        """An empty line after a request, and then nothing, is told nothing."""
        made = self.reader((0, GET + b"\r\n"))
        made.read_head()
        self.assertIsNone(made.read_head())

    def test_malformed(self) -> None:
        """What is no head is told at once."""
        with self.assertRaises(BadRequest):
            self.reader((0, b"nonsense\r\n\r\n")).read_head()

    def test_drain(self) -> None:
        """In a drain a connection is still heard once, and not again; one that waits is ended, a new one if asked."""
        made = self.reader((0, GET), (1, GET))
        made.end_if_waiting()
        self.assertFalse(self.line.ended)
        made.end_if_waiting(new=True)
        self.assertTrue(self.line.ended)
        self.draining = True
        self.assertIsNotNone(made.read_head())
        self.assertIsNone(made.read_head())
        self.line.ended = False
        made.end_if_waiting()
        self.assertTrue(self.line.ended)
        made.waiting = self.line.ended = False
        made.end_if_waiting(new=True)
        self.assertFalse(self.line.ended, "ended in the middle of a request")


class BodyTests(ReaderTestCase):
    def body(self, size: int, pieces: list[tuple[float, int]], *, late: float = 0.0) -> bytes:
        """Read a body of `size` bytes of which so many come at each time."""
        head = b"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        return self.read_body(self.reader((0, head), *((at, b"x" * count) for at, count in pieces), late=late))

    def test_whole(self) -> None:
        """A body is all that was announced, whatever it is cut into, and no byte of what follows."""
        made = self.reader((0, request_bytes("POST", "/infer", b"12345")[:-3]), (1, b"345" + GET))
        self.assertEqual(self.read_body(made), b"12345")
        self.assertTrue(made.body_read)
        following = made.read_head()
        self.assertEqual(following and following.target, "/v2")

    def test_asks_for_it(self) -> None:
        """CONTINUE is said to who waits for it, once the head has come, and not if the body has begun."""
        head = b"POST /infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        self.read_body(self.reader((0, head), (1, b"{}")))
        self.assertEqual(self.line.sent, CONTINUE)
        self.read_body(self.reader((0, head + b"{"), (1, b"}")))
        self.assertEqual(self.line.sent, b"")

    def test_slow_line(self) -> None:
        """10 MiB at BODY_RATE take 160 s, and pass; with `read_timeout` for all of it they never did."""
        pieces = [(float(second), BODY_RATE) for second in range(160)]
        self.assertEqual(len(self.body(160 * BODY_RATE, pieces)), 160 * BODY_RATE)

    def test_trickle(self) -> None:
        """A byte a second gains nothing worth having."""
        with self.assertRaises(RequestTimeout):
            self.body(1000, [(float(second), 1) for second in range(1000)])
        self.assertLess(self.line.now, 10.1)

    def test_half_the_rate(self) -> None:
        """Who is too slow is told so after a time that is bounded by what has come."""
        with self.assertRaises(RequestTimeout):
            self.body(160 * BODY_RATE, [(float(second), BODY_RATE // 2) for second in range(320)])
        self.assertAlmostEqual(self.line.now, 20.0, delta=1)

    def test_silence_after_much(self) -> None:
        """Who sends almost all at once may be silent for `read_timeout` then, and no longer.

        What went wrong: 10 MiB that came at once paid for 160 seconds of silence, which kept their room from others.
        """
        with self.assertRaises(RequestTimeout):
            self.body(160 * BODY_RATE, [(1.0, 160 * BODY_RATE - 1)])
        self.assertAlmostEqual(self.line.now, 11.0, delta=0.1)

    def test_nothing_comes(self) -> None:
        """A body that is only announced is waited for during `read_timeout`, chunked or not."""
        for framing in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
            made = self.reader((0, b"POST /infer HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n"))
            with self.assertRaises(RequestTimeout):
                self.read_body(made)
            self.assertEqual(self.line.now, 10.0)
            self.assertFalse(made.body_read)

    def test_what_is_there_is_taken(self) -> None:
        """A body that was there in time is taken, however late its thread gets to look.

        What went wrong: of eight bodies of 9.6 MB at once, some were told 408. While the others' JSON was parsed, their
        threads did not run for longer than the deadline, which was looked at before the socket was.
        """
        self.assertEqual(len(self.body(3000, [(1, 1000), (2, 1000), (3, 1000)], late=25.0)), 3000)

    def test_late_thread_does_not_wait_on(self) -> None:
        """Once the deadline is over, what is not there is not waited for."""
        with self.assertRaises(RequestTimeout):
            self.body(3000, [(1, 1000), (100, 1000), (101, 1000)], late=25.0)
        self.assertEqual(self.line.now, 75.0)  # it looked three times: at the head, at a piece, at nothing

    def test_cut_off(self) -> None:
        """Who leaves in the middle of a body is not answered."""
        with self.assertRaises(ClientGone):
            self.body(1000, [(1, 10), (2, 0)])

    def test_too_large(self) -> None:
        """More than what is asked for is refused when it is announced, or when that much has come in chunks."""
        with self.assertRaises(ContentTooLarge):
            self.body(SETTINGS.max_body + 1, [])
        head = b"POST /infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        with self.assertRaises(ContentTooLarge):
            self.read_body(self.reader((0, head + b"%x\r\n" % (SETTINGS.max_body + 1))))
        with self.assertRaises(ContentTooLarge):
            self.read_body(self.reader((0, head + b"3\r\nabc\r\n3\r\n")), 5)


if __name__ == "__main__":
    unittest.main()
