"""A socket follows a stream: what ends the wait, what is sent meanwhile, and that no wake-up is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import select
import socket
import sys
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from inferless_shim import follow, pace
from inferless_shim.connection import Connection
from inferless_shim.follow import Follower, Link, Wait, Waker
from inferless_shim.outputs import Native
from inferless_shim.stream import Progress, Stream, Subscriber
from tests.support import MS, TestCase, eventually

NEVER = 60.0  # seconds: a wait that a test expects to end for another reason
SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))


def make_stream(log_cap: int = 1 << 22) -> Stream:
    return Stream(Native(), log_cap=log_cap, retry=2)


def event(text: str = "x") -> bytes:
    return Native().event({"OUT": text})


class WakerTests(TestCase):
    """A descriptor that any thread can make readable."""

    def wakers(self) -> list[Waker]:
        eventfd = Waker()
        with mock.patch.object(follow.os, "eventfd", create=True):
            del follow.os.eventfd
            pipe = Waker()
        self.assertNotEqual(pipe.reader, pipe.writer)
        for waker in (eventfd, pipe):
            self.addCleanup(waker.close)
        return [eventfd, pipe]

    def readable(self, waker: Waker) -> bool:
        poll = select.poll()
        poll.register(waker.reader, select.POLLIN)
        return bool(poll.poll(0))

    def test_wake_and_clear(self) -> None:
        """However often it was woken, one clear makes it quiet again; clearing a quiet one does nothing."""
        for waker in self.wakers():
            self.assertFalse(self.readable(waker))
            waker.clear()
            for _ in range(3):
                waker.wake()
            self.assertTrue(self.readable(waker))
            waker.clear()
            self.assertFalse(self.readable(waker))

    def test_wake_never_blocks(self) -> None:
        """A producer may wake as often as it likes while nobody looks: a full pipe wakes, too."""
        for waker in self.wakers():
            for _ in range(10_000):
                waker.wake()
            self.assertTrue(self.readable(waker))

    def test_close(self) -> None:
        """All of its descriptors are given back."""
        waker = self.wakers()[1]
        descriptors = {waker.reader, waker.writer}
        with mock.patch.object(follow.os, "close") as close:
            waker.close()
        self.assertEqual({call.args[0] for call in close.call_args_list}, descriptors)


class LinkTestCase(TestCase):
    def setUp(self) -> None:
        self.connect()

    def connect(self) -> None:
        """Make a connection with a link on our side; the last one until this is called again."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.theirs = socket.create_connection(listener.getsockname())
        self.ours, _ = listener.accept()
        listener.close()
        self.connection = Connection(self.ours, "127.0.0.1", NEVER)
        self.link = Link(self.connection)
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.link.close)


class LinkTests(LinkTestCase):
    """What ends a wait."""

    def test_time_is_up(self) -> None:
        """Nothing happens: TIMED_OUT; a time in the past does not block."""
        self.assertIs(self.link.wait(MS), Wait.TIMED_OUT)
        self.assertIs(self.link.wait(-1), Wait.TIMED_OUT)
        self.link.waker.wake()
        self.assertIs(self.link.wait(float("inf")), Wait.WOKEN)

    def test_woken(self) -> None:
        """A wake ends the wait, also one that came before it; once."""
        self.link.waker.wake()
        self.assertIs(self.link.wait(NEVER), Wait.WOKEN)
        self.assertIs(self.link.wait(0), Wait.TIMED_OUT)
        threading.Timer(MS, self.link.waker.wake).start()
        self.assertIs(self.link.wait(NEVER), Wait.WOKEN)

    def test_gone(self) -> None:
        """A close, a half-close and a reset are all GONE, whatever else there is to do, and stay so."""
        ends: list[Callable[[], None]] = [
            lambda: self.theirs.shutdown(socket.SHUT_WR),
            lambda: self.theirs.close(),
        ]
        for end in ends:
            self.link.waker.wake()
            self.theirs.send(b"unread bytes of a next request")
            end()
            for writable in (False, True, False):
                eventually(lambda writable=writable: self.link.wait(0, writable=writable) is Wait.GONE)
            self.connect()
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.theirs.close()
        self.assertIs(self.link.wait(NEVER), Wait.GONE)

    def test_unread_bytes_are_no_end(self) -> None:
        """A pipelined request does not end the wait, nor make it spin."""
        self.theirs.send(b"GET / HTTP/1.1\r\n\r\n")
        self.assertIs(self.link.wait(20 * MS), Wait.TIMED_OUT)

    def test_writable(self) -> None:
        """Room in the socket ends the wait only if it was asked for."""
        self.connection.attach()
        self.assertIs(self.link.wait(0), Wait.TIMED_OUT)
        self.assertIs(self.link.wait(NEVER, writable=True), Wait.WOKEN)
        self.assertIs(self.link.wait(0), Wait.TIMED_OUT)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.ours.send(bytes(65536))
        self.assertIs(self.link.wait(0, writable=True), Wait.TIMED_OUT)

        def read_on() -> None:
            with contextlib.suppress(OSError):
                while self.theirs.recv(1 << 20):
                    pass

        reader = threading.Thread(target=read_on)
        reader.start()
        self.assertIs(self.link.wait(NEVER, writable=True), Wait.WOKEN)
        self.ours.shutdown(socket.SHUT_WR)
        reader.join()


class FollowerTests(LinkTestCase):
    """A follower on its own thread."""

    def start(
        self, stream: Stream, number: int = 0, *, head: bytes = b"", bare: bool = False, **options: Any
    ) -> threading.Thread:
        """Follow `stream` on a thread; `self.progress` is how that ended."""
        self.connection.attach()
        subscriber = Subscriber(self.ours.send, self.link.waker.wake, head=head, chunked=not bare)
        self.assertTrue(stream.attach(subscriber, number))
        options = {"heartbeat": NEVER, "stall": NEVER, **options}
        follower = Follower(stream, subscriber, self.link, **options)

        def run() -> None:
            try:
                self.progress = follower.follow()
            finally:
                stream.detach(subscriber)

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(stream.fail, "cancelled", "the test is over")
        return thread

    def receive(self, until: Callable[[bytes], Any]) -> bytes:
        received = b""
        self.theirs.settimeout(30)
        while not until(received):
            data = self.theirs.recv(65536)
            self.assertTrue(data, received)
            received += data
        return received

    def test_whole_stream(self) -> None:
        """Head, events and end come in this order, and ENDED says that all is sent."""
        stream = make_stream()
        thread = self.start(stream, head=b"HEAD")
        stream.append(event("a"))
        stream.finish()
        thread.join()
        self.assertIs(self.progress, Progress.ENDED)
        self.assertRegex(self.theirs.recv(65536), rb'(?s)^HEAD.*"a".*event: done')

    def test_client_gone(self) -> None:
        """A client that goes while nothing happens is noticed at once: BROKEN."""
        thread = self.start(make_stream())
        self.theirs.close()
        thread.join()
        self.assertIs(self.progress, Progress.BROKEN)

    def test_client_gone_while_lagging(self) -> None:
        """So is one that goes while it lags."""
        stream = make_stream()
        for _ in range(100):
            stream.append(event("x" * 10_000))
        thread = self.start(stream)
        self.receive(lambda received: len(received) > 1000)
        self.theirs.close()
        thread.join()
        self.assertIs(self.progress, Progress.BROKEN)

    def test_stall(self) -> None:
        """A client that takes nothing of what waits for it for `stall` is left: BROKEN."""
        stream = make_stream()
        for _ in range(100):
            stream.append(event("x" * 10_000))
        thread = self.start(stream, stall=20 * MS)
        thread.join()
        self.assertIs(self.progress, Progress.BROKEN)

    def trickle(self, takes: int, size: int) -> tuple[Progress, bool, float]:
        """Follow `size` bytes with a socket that takes so many every 29 seconds; tell how that ended, and when."""
        clock = mock.Mock(now=0.0, due=0.0)
        clock.monotonic = lambda: clock.now

        def wait(left: float, *, writable: bool) -> Wait:
            assert writable
            clock.now = min(clock.now + left, clock.due)
            return Wait.WOKEN

        def send(data: bytes) -> int:
            if clock.now < clock.due:
                raise BlockingIOError
            clock.due += 29
            return min(takes, len(data))

        stream = make_stream()
        stream.append(event("x" * size))
        stream.finish()
        subscriber = Subscriber(send, lambda: None)
        stream.attach(subscriber, 0)
        with mock.patch.object(pace, "time", clock):
            follower = Follower(stream, subscriber, mock.Mock(wait=wait), heartbeat=NEVER, stall=30)
            return follower.follow(), follower.stalled, clock.now

    def test_trickle(self) -> None:
        """So is one that takes a byte every 29 seconds, which held a thread for ever; one at 1 KiB/s is not."""
        progress, stalled, seconds = self.trickle(1, 10_000)
        self.assertEqual((progress, stalled), (Progress.BROKEN, True))
        self.assertAlmostEqual(seconds, 30, delta=1)
        progress, stalled, seconds = self.trickle(29 * 1024, 1_000_000)
        self.assertEqual((progress, stalled), (Progress.ENDED, False))
        self.assertGreater(seconds, 900)

    def test_silence_is_no_stall(self) -> None:
        """A client for which nothing waits may be silent as long as it likes."""
        stream = make_stream()
        thread = self.start(stream, stall=MS, heartbeat=5 * MS)
        self.receive(lambda received: received.count(b": ka\n") >= 5)
        self.assertTrue(thread.is_alive())
        stream.finish()
        thread.join()
        self.assertIs(self.progress, Progress.ENDED)

    def test_overrun(self) -> None:
        """A client whose next byte is forgotten is left: OVERRUN."""
        for bare in (False, True):
            with self.subTest(bare=bare):
                stream = make_stream(log_cap=50_000)
                thread = self.start(stream, bare=bare)
                for _ in range(200):
                    stream.append(event("x" * 10_000))
                self.theirs.settimeout(MS)
                while thread.is_alive():
                    with contextlib.suppress(TimeoutError):
                        self.theirs.recv(4096)
                self.assertIs(self.progress, Progress.OVERRUN)
                self.connect()

    def test_heartbeat_framing(self) -> None:
        """A heartbeat is one comment line with one newline: in a chunk of its own, or bare over HTTP/1.0."""
        for bare, expected in ((False, b"5\r\n: ka\n\r\n"), (True, b": ka\n")):
            with self.subTest(bare=bare):
                stream = make_stream()
                thread = self.start(stream, heartbeat=5 * MS, bare=bare)
                received = self.receive(lambda received, expected=expected: len(received) >= 3 * len(expected))
                self.assertEqual(received.replace(expected, b""), b"")
                stream.finish()
                thread.join()
                self.connect()

    def test_place(self) -> None:
        """Its place is told when it changes, until infer begins, to a client that asked for it."""
        stream = make_stream()
        places = iter([None, 3, 3, 2, 2, None, 1, 1])

        def place() -> int | None:
            found = next(places, -1)
            if found == -1:
                stream.started = time.monotonic()
                return 1
            return found

        with mock.patch.object(follow, "QUEUE_POLL", MS):
            thread = self.start(stream, place=place, progress=True)
            eventually(lambda: stream.started)
            stream.append(event("a"))
            stream.finish()
            thread.join()
        received = self.theirs.recv(65536).decode()
        self.assertEqual(re.findall(r'position":(\d)', received), ["3", "2", "1"])
        self.assertLess(received.rindex("position"), received.index('"a"'))

    def test_place_that_could_not_be_told(self) -> None:
        """A place that comes while something else is under way is told afterwards, not lost."""
        stream = make_stream()
        interject, refusals = stream.interject, iter([True, True])

        def busy_at_first(*args: Any, **kwargs: Any) -> bool:
            return not next(refusals, False) and interject(*args, **kwargs)

        with (
            mock.patch.object(follow, "QUEUE_POLL", MS),
            mock.patch.object(stream, "interject", busy_at_first),
        ):
            self.start(stream, place=lambda: 7, progress=True)
            self.receive(lambda received: b'{"position":7}' in received)

    def test_heartbeat_of_a_waiting_stream_tells_its_place(self) -> None:
        """While its request waits, each heartbeat says where; once infer has begun it says nothing."""
        stream = make_stream()
        places = iter([3, 3, 2])
        self.start(stream, place=lambda: next(places, None), heartbeat=2 * MS)
        received = self.receive(lambda received: received.endswith(b": ka\n\r\n"))
        self.assertEqual(re.findall(rb": ka, place (\d) in the queue\n\r\n", received), [b"3", b"3", b"2"])
        stream.started = time.monotonic()

    def test_no_wake_up_is_lost(self) -> None:
        """However producer and handler thread interleave, every event arrives without a heartbeat's help."""
        schedule = random.Random(SEED)
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        for bare in (False, True):
            stream = make_stream()
            thread = self.start(stream, bare=bare)
            sent = 0
            for _ in range(60):
                burst = schedule.choice([1, 2, 5, 9, 30])
                for _ in range(burst):
                    stream.append(event())
                    sent += 1
                    if schedule.random() < 0.1:
                        time.sleep(schedule.choice([0, 0.1 * MS, 3 * MS]))
                # Nothing more is sent until all of this has come.
                last = b"-%d\n" % sent
                received = b""
                self.theirs.settimeout(20)
                try:
                    while last not in received:
                        received += self.theirs.recv(1 << 20)
                except TimeoutError:
                    self.fail(f"event {sent} never came (SEED={SEED}, bare={bare})")
            stream.finish()
            thread.join()
            self.assertIs(self.progress, Progress.ENDED)
            self.connect()

    def test_end_at_any_moment(self) -> None:
        """Whenever the stream ends, the handler thread finds out."""
        for delay in itertools.chain([0] * 20, (number * 0.1 * MS for number in range(20))):
            stream = make_stream()
            thread = self.start(stream)
            time.sleep(delay)
            stream.finish()
            thread.join(20)
            self.assertFalse(thread.is_alive())
            self.assertIs(self.progress, Progress.ENDED)


if __name__ == "__main__":
    unittest.main()
