"""A stream and its subscribers: who gets which bytes when, whatever the sockets and the threads do.

The clients are fakes: a `send` that takes, cuts, refuses or fails by a seeded schedule, and a handler thread played
step by step, which looks at the stream when it has a reason to, and only then: a wake-up that is lost is a test that
stands still.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

from inferless_shim import sse
from inferless_shim.errors import BadRequest, Gone
from inferless_shim.outputs import Answer, Dialect, Generate, Native
from inferless_shim.stream import READ_SIZE, Cancelled, Progress, State, Stream, Subscriber
from tests.support import MS, PATIENCE, Clock, TestCase, about

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
CAP = 4 * 1024 * 1024


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def subscriber() -> Subscriber:
    return Subscriber(len, lambda: None)


class Untimed(Native):
    """The native dialect with a last event that can be foretold."""

    def done(self, events: int, seconds: float) -> bytes | None:
        return super().done(events, 0.0)


def made(cap: int = CAP, dialect: Dialect | None = None, **options: Any) -> Stream:
    return Stream(dialect or Untimed(), log_cap=cap, retry=2.0, **options)


def answer_stream(**options: Any) -> Stream:
    return Stream(None, log_cap=CAP, retry=2.0, **options)


class Events:
    """All events that a stream was given, and the bytes that they must become."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.payloads: list[bytes] = []

    def wrote(self, lines: bytes | None) -> None:
        """Note an event's lines after its id."""
        if lines is not None:
            number = len(self.payloads) + 1
            first = b"retry: 2000\n" if number == 1 else b""
            self.payloads.append(b"id: %b-%d\n" % (self.stream.id.encode(), number) + first + lines)

    def append(self, lines: bytes) -> None:
        self.wrote(lines)
        self.stream.append(lines)

    def finish(self) -> None:
        assert self.stream.dialect is not None
        self.wrote(self.stream.dialect.done(len(self.payloads), 0.0))
        self.stream.finish()

    def fail(self, code: str, message: str) -> None:
        assert self.stream.dialect is not None
        self.wrote(self.stream.dialect.error(code, message))
        self.stream.fail(code, message)

    def frames(self, bare: bool = False) -> list[bytes]:
        return self.payloads if bare else [chunk(payload) for payload in self.payloads]


def noted(cap: int = CAP, dialect: Dialect | None = None) -> tuple[Stream, Events]:
    stream = made(cap, dialect)
    return stream, Events(stream)


class Client:
    """A client and its handler thread, played step by step: direct, `pulled` (TLS), or `bare` (HTTP/1.0)."""

    def __init__(
        self, stream: Stream, number: int = 0, *, bare: bool = False, pulled: bool = False, head: bytes = HEAD
    ) -> None:
        self.stream = stream
        self.number = number
        self.bare = bare
        self.received = bytearray()
        self.head = head
        self.woken = False
        self.calls = 0
        self.progress: Progress | None = None
        self.doing = "look"
        self.subscriber = Subscriber(self.send, self.wake, head=head, pulled=pulled, chunked=not bare)

    def attach(self) -> bool:
        return self.stream.attach(self.subscriber, self.number)

    # ---- What the stream calls

    def take(self, size: int) -> int:
        """How many of `size` bytes the socket takes; raises what the socket raises."""
        return size

    def send(self, data: bytes) -> int:
        assert self.stream.lock.locked(), "a send outside the lock"
        assert data, "a send of nothing"
        assert type(data) in (bytes, bytearray)
        self.calls += 1
        taken = self.take(len(data))
        self.received += data[:taken]
        return taken

    def wake(self) -> None:
        self.woken = True

    # ---- The handler thread, as `follow.Follower` is

    def look(self) -> Progress:
        """Advance until there is a reason to wait."""
        while (progress := self.stream.advance(self.subscriber)) is Progress.MORE:
            pass
        self.progress = progress
        return progress

    def step(self) -> bool:
        """Do the next thing the handler thread would do; return False if it waits for a wake-up, or is over."""
        if self.doing in ("asleep", "polling", "blocked"):
            if self.doing == "asleep" and not self.woken:
                return False
            self.woken = False
            self.doing = "look"
        elif self.doing == "decide":
            self.doing = "polling" if self.stream.hurries else "asleep"
        elif self.doing == "look":
            states = {Progress.CAUGHT_UP: "decide", Progress.LAGGING: "blocked", Progress.MORE: "look"}
            self.progress = self.stream.advance(self.subscriber)
            self.doing = states.get(self.progress, "over")
        return self.doing != "over"

    def heartbeat(self) -> None:
        """Try to put a heartbeat in, which is refused where it would not be between two frames."""
        frame = sse.heartbeat() if self.bare else chunk(sse.heartbeat())
        if self.doing != "over" and self.stream.interject(self.subscriber, frame):
            self.woken = True

    def run(self) -> Progress:
        """Step until nothing moves any more."""
        for _ in range(100_000):
            if self.doing == "polling" and self.progress is Progress.CAUGHT_UP and not self.stream._held:
                break  # it would look again until the producer goes on
            if not self.step():
                break
        assert self.progress is not None
        return self.progress


AnyClient = TypeVar("AnyClient", bound=Client)


def following(client: AnyClient) -> AnyClient:
    """Attach a client, and send it all there is."""
    assert client.attach()
    client.look()
    return client


class Scripted(Client):
    """A client whose socket does what is asked for, then takes everything: a number of bytes, or an error."""

    def __init__(self, stream: Stream, *script: int | OSError, **options: Any) -> None:
        super().__init__(stream, **options)
        self.script = list(script)

    def take(self, size: int) -> int:
        what = self.script.pop(0) if self.script else size
        if isinstance(what, OSError):
            raise copy.copy(what)
        return min(size, what)


# Raised as copies: an error that is raised again keeps the frames of each time, and with them all that they hold.
BLOCKED = BlockingIOError(11, "Resource temporarily unavailable")
RESET = ConnectionResetError(104, "Connection reset by peer")


class Erratic(Client):
    """A client whose socket takes some, nothing, or fails, by chance."""

    def __init__(self, stream: Stream, chance: random.Random, number: int, *, failing: float, **options: Any) -> None:
        super().__init__(stream, number, **options)
        self.chance = chance
        self.failing = failing
        self.slow = chance.choice([0.1, 0.5, 0.9])

    def take(self, size: int) -> int:
        if self.chance.random() < self.failing:
            errors = [RESET, BrokenPipeError(32, "Broken pipe"), OSError(9, "Bad file descriptor")]
            raise copy.copy(self.chance.choice(errors))
        if self.chance.random() < self.slow:
            if self.chance.random() < 0.5:
                raise copy.copy(BLOCKED)
            return self.chance.randrange(1, size + 1)
        return size


def read_frames(client: Client, events: Events) -> tuple[int, bytes]:
    """Check that a client received its head, then frames from its start on, whole and in order, heartbeats between.

    Return the number of its last whole event, and the bytes of what comes after the last whole frame.
    """
    received = bytes(client.received)
    if len(received) < len(client.head):
        assert client.head.startswith(received), received
        return client.number, received
    rest = received[len(client.head) :]
    frames = events.frames(client.bare)
    beat = sse.heartbeat() if client.bare else chunk(sse.heartbeat())
    number = client.number
    while rest:
        if rest.startswith(beat):
            rest = rest[len(beat) :]
        elif number < len(frames) and rest.startswith(frames[number]):
            rest = rest[len(frames[number]) :]
            number += 1
        else:
            upcoming = frames[number] if number < len(frames) else b""
            assert beat.startswith(rest) or upcoming.startswith(rest), (number, rest[:200], upcoming[:200])
            break
    return number, rest


def blocks(received: bytes, chunked: bool) -> list[tuple[str, str]]:
    """Read what a client got as SSE: (id, data) of each event that is complete, by blank lines alone."""
    body = received.partition(b"\r\n\r\n")[2]
    if chunked:
        body = unchunked(body)
    found = []
    for block in body.decode("utf-8", "replace").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        found.append((fields["id"], fields["data"]))
    return found


def unchunked(body: bytes) -> bytes:
    """Take the payloads out of chunks, of one that was cut what is there."""
    payload = b""
    while body:
        size, found, rest = body.partition(b"\r\n")
        if not found:
            break
        payload += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return payload


def line(text: str) -> bytes:
    return sse.body(json.dumps({"OUT": text}).encode())


class Append(TestCase):
    def test_append_bytes(self) -> None:
        """An event goes out in one chunk with its id; `retry` rides in the first; the last tells the count."""
        stream = made()
        client = following(Client(stream, head=b""))
        stream.append(line("To"))
        stream.append(line("é"))
        stream.finish()
        client.run()
        payloads = unchunked(bytes(client.received)).split(b"\n\n")
        name = stream.id.encode()
        self.assertEqual(payloads[0], b"id: %b-1\nretry: 2000\n" % name + b'data: {"OUT": "To"}')
        self.assertEqual(payloads[1], b"id: %b-2\n" % name + b'data: {"OUT": "\\u00e9"}')
        self.assertRegex(payloads[2], rb'\Aid: %b-3\nevent: done\ndata: {"events":2,"seconds":[0-9.]+}\Z' % name)
        self.assertEqual(payloads[3], b"")

    def test_append_sends_at_once(self) -> None:
        """The producing thread sends to everyone caught up, one send an event, without waking anybody."""
        stream, events = noted()
        clients = [following(Client(stream)) for _ in range(3)]
        for number in range(1, 4):
            events.append(line(str(number)))
            for client in clients:
                self.assertEqual(read_frames(client, events), (number, b""))
                self.assertEqual((client.calls, client.woken), (1 + number, False))

    def test_append_wakes_the_pulled(self) -> None:
        """To a pulled subscriber nothing is sent by the producing thread; it is woken once, until it has looked."""
        for kind in ({"pulled": True}, {"bare": True}):
            stream = made()
            client = following(Client(stream, **kind))
            stream.append(line("a"))
            self.assertEqual((client.received, client.woken), (HEAD, True), kind)
            client.woken = False
            stream.append(line("b"))
            self.assertFalse(client.woken, kind)

    def test_append_not_before_the_head(self) -> None:
        """Nothing of the log goes out before the head, however long that takes."""
        stream = made()
        client = Scripted(stream, BLOCKED, 5)
        client.attach()
        stream.append(line("a"))
        self.assertEqual(client.received, b"")
        self.assertEqual(stream.advance(client.subscriber), Progress.LAGGING)
        stream.append(line("b"))
        self.assertEqual(stream.advance(client.subscriber), Progress.LAGGING)
        self.assertEqual(client.received, HEAD[:5])
        self.assertEqual(client.look(), Progress.CAUGHT_UP)
        self.assertEqual([data for _, data in blocks(bytes(client.received), True)], ['{"OUT": "a"}', '{"OUT": "b"}'])

    def test_append_partial_send(self) -> None:
        """What a socket did not take of an event is sent by its handler thread, which is woken for it."""
        for taken in (1, 10, 60):
            with self.subTest(taken):
                stream, events = noted()
                client = following(Scripted(stream, len(HEAD), taken))
                events.append(line("a"))
                self.assertTrue(client.woken)
                self.assertEqual(client.received, HEAD + events.frames()[0][:taken])
                events.append(line("b"))  # not to one that lags
                self.assertEqual(len(client.received), len(HEAD) + taken)
                client.run()
                self.assertEqual(read_frames(client, events), (2, b""))

    def test_append_to_a_broken_socket(self) -> None:
        """A socket that fails ends its subscriber, not the stream, nor the others; nothing is sent to it again."""
        stream, events = noted()
        broken, fine = following(Scripted(stream, len(HEAD), RESET)), following(Client(stream))
        events.append(line("a"))
        self.assertTrue(broken.woken)
        events.append(line("b"))
        self.assertEqual(broken.run(), Progress.BROKEN)
        self.assertEqual(stream.advance(broken.subscriber), Progress.BROKEN)
        self.assertEqual(broken.calls, 2)
        self.assertEqual(read_frames(fine, events), (2, b""))

    def test_advance_on_a_broken_socket(self) -> None:
        """A socket that fails under its own handler thread stays failed: it is not tried again."""
        stream = made()
        client = Scripted(stream, RESET)
        client.attach()
        self.assertEqual(stream.advance(client.subscriber), Progress.BROKEN)
        self.assertEqual(stream.advance(client.subscriber), Progress.BROKEN)
        self.assertEqual(client.calls, 1)

    def test_append_large(self) -> None:
        """An event larger than one send may take under the lock goes out whole, in several."""
        stream, events = noted()
        for bare in (False, True):
            client = following(Client(stream, len(events.payloads), bare=bare))
            events.append(line("x" * (3 * READ_SIZE)))
            events.append(line("y"))
            client.run()
            self.assertEqual(read_frames(client, events), (len(events.payloads), b""))

    def test_append_after_the_end(self) -> None:
        """A send after the app's own finalise raises RuntimeError; where nobody wants it any more, Cancelled."""
        table: list[tuple[str, Callable[[Stream], bool], type[BaseException]]] = [
            ("finished", lambda stream: stream.finish(), RuntimeError),
            ("cancelled", lambda stream: stream.fail("cancelled", "c"), Cancelled),
            ("timed out", lambda stream: stream.fail("timeout", "t"), Cancelled),
            ("failed", lambda stream: stream.fail("app_error", "e"), Cancelled),
            ("shutting down", lambda stream: stream.fail("shutting_down", "s"), Cancelled),
        ]
        for name, end, error in table:
            for stream in (made(), made(dialect=Generate("m")), answer_stream()):
                with self.subTest(name):
                    stream.check_open()
                    self.assertTrue(end(stream))
                    size = stream.log.end
                    self.assertRaises(error, stream.append, line("late"))
                    self.assertRaises(error, stream.check_open)
                    self.assertEqual(stream.log.end, size)
        self.assertFalse(issubclass(Cancelled, Exception), "an app that swallows every Exception would go on")


class End(TestCase):
    def test_end_once(self) -> None:
        """A stream ends once; what comes later changes neither its state nor a byte."""
        ends: dict[str, Callable[[Stream], bool]] = {
            "finish": lambda stream: stream.finish(Answer(b"other")),
            "fail": lambda stream: stream.fail("app_error", "it broke"),
            "cancel": lambda stream: stream.fail("cancelled", "gone"),
        }
        states = {"finish": State.FINISHED, "fail": State.FAILED, "cancel": State.CANCELLED}
        for first, end in ends.items():
            for second, again in ends.items():
                with self.subTest(first=first, second=second):
                    stream = made()
                    stream.append(line("a"))
                    self.assertIsNone(stream.ended)
                    self.assertTrue(end(stream))
                    before = (stream.log.end, stream.ended, stream.failure, stream.answer)
                    self.assertFalse(again(stream))
                    self.assertEqual((stream.log.end, stream.ended, stream.failure, stream.answer), before)
                    self.assertIs(stream.state, states[first])
                    self.assertFalse(stream.is_open)

    def test_end_wakes_everyone(self) -> None:
        """Everybody attached is woken at the end: caught up, lagging, pulled, and of a dialect without a last event."""
        for dialect in (Native(), Generate("m")):
            stream = made(dialect=dialect)
            clients = [
                Client(stream),
                Client(stream, bare=True),
                Scripted(stream, 5),
                Client(stream, head=b""),
            ]
            for client in clients:
                client.attach()
                client.look()
                client.woken = False
            stream.finish()
            for client in clients:
                self.assertTrue(client.woken)
                self.assertEqual(client.look(), Progress.ENDED)
                self.assertEqual(client.look(), Progress.ENDED)

    def test_fail_tells(self) -> None:
        """A failure is an event with the next number, and is kept for who asks."""
        stream, events = noted()
        client = following(Client(stream))
        events.append(line("a"))
        stream.fail("timeout", "infer took\n too long")
        events.wrote(b'event: error\ndata: {"error":"infer took too long","code":"timeout"}\n\n')
        client.run()
        self.assertEqual(read_frames(client, events), (2, b""))
        self.assertEqual(stream.failure, ("timeout", "infer took\n too long"))

    def test_fail_unless_followed(self) -> None:
        """A stream that somebody came back to in the last moment is not cancelled for lack of followers.

        The sweep looked at `unfollowed`, then cancelled: who attached in between saw their stream end.
        """
        stream = made()
        client = Client(stream)
        client.attach()
        self.assertFalse(stream.fail("cancelled", "c", if_unfollowed_since=time.monotonic() + 1))
        stream.detach(client.subscriber)
        assert stream.unfollowed is not None
        self.assertFalse(stream.fail("cancelled", "c", if_unfollowed_since=stream.unfollowed - 1))
        self.assertTrue(stream.is_open)
        self.assertTrue(stream.fail("cancelled", "c", if_unfollowed_since=stream.unfollowed))
        self.assertIs(stream.state, State.CANCELLED)

    def test_finish_counts_right(self) -> None:
        """Where another thread sends meanwhile, `done` still tells the number of events before it."""

        class Meddler(Native):
            """While the count is being written, another thread gets an event in, five times."""

            meddling = 5

            def done(self, events: int, seconds: float) -> bytes | None:
                if self.meddling:
                    self.meddling -= 1
                    stream.append(line("meanwhile"))
                return super().done(events, seconds)

        stream = made(dialect=Meddler())
        self.assertTrue(stream.finish())
        self.assertEqual(stream.log.last, 6)
        self.assertIn(b'"events":5,', stream.log.read(0, 10_000))

    def test_finish_seconds(self) -> None:
        """`done` tells the seconds since infer began; waiting in the queue is not in them."""
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            for started, seconds in ((None, b'"seconds":7.5}'), (1005.0, b'"seconds":2.5}')):
                clock.now = 1000.0
                stream = made(dialect=Native())
                stream.started = started
                clock.now = 1007.5
                stream.finish()
                self.assertIn(seconds, stream.log.read(0, 1000))

    def test_answer(self) -> None:
        """An answer that is not a stream has no events: its follower waits for the end and finds the body."""
        stream = answer_stream()
        client = Client(stream, head=b"", bare=True)
        client.attach()
        self.assertEqual(client.run(), Progress.CAUGHT_UP)
        stream.finish(Answer(b'{"a":1}'))
        self.assertEqual(client.run(), Progress.ENDED)
        self.assertEqual((client.received, stream.answer.body, stream.kept), (b"", b'{"a":1}', 7))
        stream = answer_stream()
        stream.fail("timeout", "late")
        self.assertEqual((stream.answer.body, stream.failure, stream.kept), (b"", ("timeout", "late"), 0))


class Attach(TestCase):
    def test_attach_numbers(self) -> None:
        """Who may attach after which event, while a stream runs and after every end (CONTRACT.md §8 "Numbers")."""
        yes, no = "attached", "nothing follows"
        native, protocol = Untimed(), Generate("m")
        # dialect, events, whether only the newest is kept, end -> what becomes of which number
        table: list[tuple[Dialect | None, int, bool, str, dict[int, Any]]] = [
            (native, 0, False, "", {0: yes, 1: BadRequest, 10**20: BadRequest}),
            (native, 3, False, "", {0: yes, 2: yes, 3: yes, 4: BadRequest}),
            (native, 3, False, "finish", {0: yes, 3: yes, 4: no, 5: no, 10**20: no}),
            (native, 3, False, "fail", {0: yes, 3: yes, 4: no, 9: no}),
            (native, 0, False, "finish", {0: yes, 1: no}),
            (protocol, 3, False, "", {0: yes, 3: yes, 4: BadRequest}),
            (protocol, 3, False, "finish", {0: yes, 2: yes, 3: no, 4: no}),
            (protocol, 3, False, "fail", {3: yes, 4: no}),
            (protocol, 0, False, "finish", {0: no, 1: no}),
            (native, 3, True, "", {0: Gone, 1: Gone, 2: yes, 3: yes, 4: BadRequest}),
            (native, 3, True, "finish", {0: Gone, 2: Gone, 3: yes, 4: no, 5: no}),
            (protocol, 3, True, "finish", {0: Gone, 1: Gone, 2: yes, 3: no}),
            (None, 0, False, "", {0: yes, 1: BadRequest}),
            (None, 0, False, "finish", {0: no, 1: no}),
            (None, 0, False, "fail", {0: no, 1: no}),
        ]
        for dialect, events, newest, end, cases in table:
            stream = Stream(dialect, log_cap=1 if newest else CAP, retry=2.0)
            for _ in range(events):
                stream.append(line("a"))
            if end:
                self.assertTrue(stream.finish() if end == "finish" else stream.fail("cancelled", "c"))
            for number, expected in cases.items():
                with self.subTest(type(dialect).__name__, events=events, newest=newest, end=end, number=number):
                    follower = subscriber()
                    if isinstance(expected, type):
                        self.assertRaises(expected, stream.can_follow, number)
                        self.assertRaises(expected, stream.attach, follower, number)
                    else:
                        self.assertEqual(stream.can_follow(number), expected is yes)
                        self.assertEqual(stream.attach(follower, number), expected is yes)
                    self.assertEqual(follower in stream._subscribers, expected is yes)

    def test_attach_sentences(self) -> None:
        """The sentences of 400 and 410 name the number at fault and what is there instead."""
        stream = made(cap=1)
        stream.append(line("a"))
        stream.append(line("b"))
        with self.assertRaises(BadRequest) as ahead:
            stream.can_follow(3)
        self.assertIn("last event is 2", ahead.exception.message)
        with self.assertRaises(Gone) as gone:
            stream.can_follow(0)
        self.assertIn("Event 1 is no longer kept; the oldest kept is 2", gone.exception.message)

    def test_attach_does_not_count_before_it_worked(self) -> None:
        """Who could not attach has not followed: linger goes on."""
        stream = made()
        since = stream.unfollowed
        self.assertRaises(BadRequest, stream.attach, subscriber(), 5)
        stream.can_follow(0)
        self.assertEqual((stream.unfollowed, stream.followed), (since, False))

    def test_unfollowed(self) -> None:
        """`unfollowed` is None while somebody follows, and the time since when nobody has otherwise."""
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            stream = made()
            self.assertEqual((stream.unfollowed, stream.followed), (1000.0, False))
            first, second = Client(stream), Client(stream)
            first.attach()
            second.attach()
            self.assertEqual((stream.unfollowed, stream.followed), (None, True))
            clock.now = 1001.0
            stream.detach(first.subscriber)
            self.assertIsNone(stream.unfollowed)
            clock.now = 1002.0
            stream.detach(second.subscriber)
            self.assertEqual((stream.unfollowed, stream.followed), (1002.0, True))
            clock.now = 1003.0
            stream.detach(second.subscriber)  # again: it had left
            self.assertEqual(stream.unfollowed, 1002.0)
            first.attach()
            self.assertIsNone(stream.unfollowed)

    def test_unfollowed_detached(self) -> None:
        """A detached stream runs without a follower; its linger begins when the first one leaves."""
        stream = made(detached=True)
        self.assertEqual((stream.unfollowed, stream.followed), (None, False))
        client = Client(stream)
        client.attach()
        stream.detach(client.subscriber)
        self.assertIsNotNone(stream.unfollowed)

    def test_unfollowed_since(self) -> None:
        """It is asked for without the lock, and holds where somebody attaches in the middle of the question."""
        stream = made()
        for values, since in (([5.0, None], True), ([None, 5.0], False), ([9.0, None], False)):
            with mock.patch.object(Stream, "unfollowed", mock.PropertyMock(side_effect=values), create=True):
                self.assertEqual(stream.unfollowed_since(7.0), since)

    def test_detach(self) -> None:
        """After `detach` nothing is sent to a subscriber, nor is it woken: its socket may be closed."""
        for bare in (False, True):
            stream = made()
            client = following(Client(stream, bare=bare))
            stream.detach(client.subscriber)
            stream.append(line("a"))
            stream.finish()
            self.assertEqual((client.received, client.woken), (HEAD, False))

    def test_replay(self) -> None:
        """A finished stream is replayed from any event, byte by byte the same, as often as asked."""
        stream, events = noted()
        for text in "abcd":
            events.append(line(text))
        events.finish()
        for bare in (False, True):
            for number in range(5):
                with self.subTest(number=number, bare=bare):
                    client = Client(stream, number, bare=bare)
                    client.attach()
                    self.assertEqual(client.run(), Progress.ENDED)
                    self.assertEqual(client.received, HEAD + b"".join(events.frames(bare)[number:]))


class Interject(TestCase):
    def test_interject_only_when_caught_up(self) -> None:
        """A frame from outside the log goes to nobody who has something to send, or to receive, before it."""
        stream = made()
        beat = chunk(sse.heartbeat())
        client = Scripted(stream, BLOCKED, len(HEAD), 3)
        self.assertFalse(stream.interject(client.subscriber, beat))  # not attached
        client.attach()
        self.assertFalse(stream.interject(client.subscriber, beat))  # the head is not out
        client.look()
        self.assertFalse(stream.interject(client.subscriber, beat))  # the socket is full
        client.look()
        stream.append(line("a"))
        self.assertFalse(stream.interject(client.subscriber, beat))  # in the middle of an event
        client.look()
        self.assertTrue(stream.interject(client.subscriber, beat))
        self.assertFalse(stream.interject(client.subscriber, beat))  # one at a time
        client.look()
        self.assertTrue(stream.interject(client.subscriber, beat))
        self.assertEqual(client.received.count(beat), 1)

    def test_interject_is_whole(self) -> None:
        """A heartbeat that has been started is finished before the next event; one that was not is not in between."""
        beat = chunk(sse.heartbeat())
        for taken in range(len(beat) + 1):
            for bare in (False, True):
                with self.subTest(taken=taken, bare=bare):
                    stream, events = noted()
                    frame = sse.heartbeat() if bare else beat
                    script: list[int | OSError] = [len(HEAD), taken if taken else BLOCKED]
                    client = following(Scripted(stream, *script, bare=bare))
                    self.assertTrue(stream.interject(client.subscriber, frame))
                    events.append(line("a"))  # not sent: something is pending
                    self.assertEqual(client.received, HEAD)
                    client.look()
                    events.append(line("b"))
                    client.look()
                    client.look()
                    self.assertEqual(client.received, HEAD + frame + b"".join(events.frames(bare)))

    def test_interject_before_the_first_event_only(self) -> None:
        """`queued` comes before event 1 or not at all."""
        stream = made()
        client = following(Client(stream))
        self.assertTrue(stream.interject(client.subscriber, chunk(b"queued"), only_before_first=True))
        client.look()
        stream.append(line("a"))
        self.assertFalse(stream.interject(client.subscriber, chunk(b"queued"), only_before_first=True))
        self.assertTrue(stream.interject(client.subscriber, chunk(sse.heartbeat())))

    def test_interject_after_the_end(self) -> None:
        """Nothing follows the last event.

        A handler thread whose heartbeat was due when the stream ended could still put one behind `done`.
        """
        for dialect in (Native(), Generate("m")):
            stream = made(dialect=dialect)
            client = following(Client(stream))
            stream.finish()
            self.assertFalse(stream.interject(client.subscriber, chunk(sse.heartbeat())))
            self.assertEqual(client.look(), Progress.ENDED)
            self.assertNotIn(sse.heartbeat(), client.received)


class Overrun(TestCase):
    def test_overrun(self) -> None:
        """Who falls behind what is kept is told so, in the middle of an event too, and gets no wrong byte."""
        for taken in (0, 1, 40):
            for bare in (False, True):
                with self.subTest(taken=taken, bare=bare):
                    stream, events = noted(cap=300)
                    client = following(Scripted(stream, len(HEAD), taken or BLOCKED, bare=bare))
                    events.append(line("a"))
                    client.look() if bare else None
                    for _ in range(20):
                        events.append(line("b"))
                    self.assertEqual(client.look(), Progress.OVERRUN)
                    number, _ = read_frames(client, events)
                    self.assertLessEqual(number, 1)

    def test_overrun_ends_a_started_frame(self) -> None:
        """A heartbeat that was under way is finished before its client is told that it was overrun."""
        stream = made(cap=100)
        beat = chunk(sse.heartbeat())
        client = following(Scripted(stream, len(HEAD), 3, BLOCKED))
        stream.interject(client.subscriber, beat)
        client.look()
        for _ in range(5):
            stream.append(line("a"))
        self.assertEqual(client.look(), Progress.LAGGING)
        self.assertEqual(client.look(), Progress.OVERRUN)
        self.assertEqual(client.received, HEAD + beat)

    def test_overrun_never_who_keeps_up(self) -> None:
        """Who is caught up gets every event, however small the cap, however fast they come.

        What was held back from a client, to go out together, could be forgotten before it went out: it got the bytes
        of other events instead.
        """
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            for cap in (0, 1, 100, 1000, 5000, 20_000):
                with self.subTest(cap):
                    stream, events = noted(cap=cap)
                    client = following(Client(stream))
                    chance = random.Random(cap)
                    for _ in range(500):
                        events.append(line("x" * chance.choice([1, 1, 1, 500, 3000])))
                        clock.now += chance.choice([0.0, 0.0, 0.1 * MS])
                    events.finish()
                    self.assertEqual(client.look(), Progress.ENDED)
                    self.assertEqual(read_frames(client, events), (501, b""))

    def test_kept_while_it_grows(self) -> None:
        """What a stream keeps is asked for without its lock, and never less than nothing.

        The end was read before the start: if a whole log's worth came in between, the accept thread died of it.
        """

        class Racing:
            """A log that has moved on whenever one looks."""

            moved = 0

            @property
            def start(self) -> int:
                self.moved += 1000
                return self.moved - 10

            @property
            def end(self) -> int:
                self.moved += 1000
                return self.moved

            def __len__(self) -> int:
                return self.end - self.start

        stream = made()
        stream.log = Racing()  # type: ignore[assignment]
        self.assertGreaterEqual(stream.kept, 0)

    def test_shrink(self) -> None:
        """A stream that must shrink forgets its oldest events at once, and keeps to it."""
        stream = made()
        for _ in range(1000):
            stream.append(line("a"))
        before = stream.kept
        stream.shrink(before * 2)
        self.assertEqual(stream.kept, before)
        stream.shrink(before // 2)
        self.assertLessEqual(stream.kept, before // 2)
        self.assertGreater(stream.log.first, 1)
        self.assertRaises(Gone, stream.can_follow, 0)
        for _ in range(1000):
            stream.append(line("a"))
        self.assertEqual(stream.log.last, 2000)


class Hurry(TestCase):
    """Events that come very fast may go out together; none may be left behind when the producer pauses."""

    def test_hurry_paces(self) -> None:
        """However fast or slowly events come, a client that is asleep has all of them, or was woken.

        The last event of a fast row that was sent at once woke nobody, the next was held back, and its client slept on
        it until the heartbeat; the same befell a client whose thread was slow to ask whether the stream hurries.
        """
        paces = [0.0, 0.1 * MS, 0.9 * MS, 1.1 * MS, 1.9 * MS, 2.1 * MS, 3.9 * MS, 4.1 * MS, 50 * MS]
        for seed in range(400):
            chance = random.Random(seed)
            clock = Clock()
            with mock.patch("inferless_shim.stream.time", clock):
                stream, events = noted(cap=chance.choice([100, CAP]))
                clients = [Client(stream, bare=chance.random() < 0.3) for _ in range(chance.randrange(1, 4))]
                for client in clients:
                    client.attach()
                usual = chance.choice(paces)
                for _ in range(60):
                    if chance.random() < 0.7:
                        events.append(line("x" * chance.choice([1, 1, 5000])))
                    clock.now += usual if chance.random() < 0.8 else chance.choice(paces)
                    for client in clients:
                        while chance.random() < 0.4:
                            client.step()
                        if client.doing == "asleep" and not client.woken:
                            self.assertEqual(read_frames(client, events)[0], len(events.payloads), f"seed {seed}")

    def test_hurry_and_shrink(self) -> None:
        """What was held back is out before a shrink forgets it.

        It was forgotten first, and the client was sent bytes from elsewhere in the log.
        """
        with mock.patch("inferless_shim.stream.time", Clock()):
            stream, events = noted(cap=20_000)
            client = following(Client(stream))
            for _ in range(60):
                events.append(line("x" * 100))
            self.assertLess(client.subscriber.position, stream.log.end)
            stream.shrink(1)
            self.assertGreater(stream.log.first, 1)
            self.assertEqual(read_frames(client, events)[0], 60)

    def test_hurry_is_over(self) -> None:
        """When a producer has paused, everybody gets what was held back, and then sleeps: nobody looks for ever."""
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            stream, events = noted()
            clients = [following(Client(stream)), following(Client(stream, bare=True))]
            for _ in range(50):
                events.append(line("a"))
                clock.now += 0.01 * MS
            self.assertTrue(stream.hurries)
            clock.now += 5 * MS
            for client in clients:
                client.look()
                self.assertEqual(read_frames(client, events), (50, b""))
            self.assertFalse(stream.hurries)

    def test_hurry_sends_together(self) -> None:
        """Events that come fast go out many in a send, at least once in a millisecond and every 16 KiB."""
        for length, at_most in ((1, 60), (5000, 300)):
            clock = Clock()
            with mock.patch("inferless_shim.stream.time", clock):
                stream, events = noted()
                client = following(Client(stream))
                for _ in range(1000):
                    clock.now += 0.02 * MS
                    events.append(line("x" * length))
                events.finish()
                client.look()
                self.assertEqual(read_frames(client, events), (1001, b""))
                self.assertLess(client.calls, at_most)

    def test_hurry_and_a_heartbeat(self) -> None:
        """A heartbeat never lands in an event that was held back and has gone out in part.

        A client from which something is held back counted as caught up while its own thread sent it.
        """
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            stream, events = noted()
            client = following(Client(stream))
            while not stream._held:
                events.append(line("a"))
                clock.now += 0.01 * MS
            client.take = lambda size: 5  # type: ignore[method-assign]
            self.assertEqual(stream.advance(client.subscriber), Progress.LAGGING)
            self.assertFalse(stream.interject(client.subscriber, chunk(sse.heartbeat())))

    def test_hurry_at_a_readers_pace(self) -> None:
        """Events as fast as one reads go out at once, each in a send of its own."""
        clock = Clock()
        with mock.patch("inferless_shim.stream.time", clock):
            stream, events = noted()
            client = following(Client(stream))
            for number in range(1, 100):
                clock.now += 5 * MS
                events.append(line("a"))
                self.assertEqual(read_frames(client, events), (number, b""))
            self.assertEqual((client.calls, client.woken), (100, False))


class Schedules(TestCase):
    """Seeded play of a producer and many clients of all kinds, who come, stall, break, leave and come back."""

    def test_schedules(self) -> None:
        """Every client receives exactly the log's bytes from its start on, heartbeats between frames alone, or OVERRUN.

        Who slept at the end would stand still for ever: no wake-up is lost.
        """
        overrun = ended = resumed = 0
        for seed in range(300):
            play = Play(seed)
            play.run()
            with self.subTest(seed=seed):
                for client in play.everyone:
                    number, rest = read_frames(client, play.events)
                    if client.progress is Progress.ENDED:
                        self.assertEqual((number, rest), (len(play.events.payloads), b""))
                        ended += 1
                    overrun += client.progress is Progress.OVERRUN
                    resumed += client.number > 0
                for client in play.clients:
                    self.assertIn(client.progress, (Progress.ENDED, Progress.OVERRUN, Progress.BROKEN))
        self.assertGreater(min(overrun, ended, resumed), 100, "the schedules reach every case")


class Play:
    """One seeded schedule. `clients` are those who stay, `everyone` also those who left."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.cap = self.chance.choice([1, 300, 2000, CAP])
        self.failing = self.chance.choice([0.0, 0.0, 0.02])
        self.pace = self.chance.choice([0.0, 0.5 * MS, 3 * MS, 100 * MS])
        with mock.patch("inferless_shim.stream.time", self.clock):
            self.stream, self.events = noted(self.cap, Untimed() if self.chance.random() < 0.5 else Generate("m"))
        self.clients: list[Client] = []
        self.everyone: list[Client] = []

    def run(self) -> None:
        with mock.patch("inferless_shim.stream.time", self.clock):
            self.come(0)
            acts = [
                self.append,
                self.append,
                self.step,
                self.step,
                self.step,
                self.step,
                self.beat,
                self.coming,
                self.leave,
            ]
            for _ in range(self.chance.randrange(50, 250)):
                self.chance.choice(acts)()
            if self.chance.random() < 0.5:
                self.events.finish()
            else:
                self.events.fail("timeout", "too long")
            for client in self.clients:
                for _ in range(10_000):
                    if not client.step():
                        break

    def append(self) -> None:
        self.clock.now += self.pace
        self.events.append(line("x" * self.chance.choice([0, 1, 5, 20, 100, 700])))

    def step(self) -> None:
        if self.clients:
            self.chance.choice(self.clients).step()

    def beat(self) -> None:
        if self.clients:
            self.chance.choice(self.clients).heartbeat()

    def coming(self) -> None:
        """Somebody attaches: from the start, the end, or where somebody who left had come to."""
        log = self.stream.log
        places = [log.first - 1, log.last, self.chance.randrange(log.first - 1, log.last + 1)]
        for client in self.everyone:
            if client not in self.clients:
                places.append(read_frames(client, self.events)[0])
        number = self.chance.choice(places)
        if number >= log.first - 1:
            self.come(number)

    def come(self, number: int) -> None:
        bare, pulled = self.chance.choice([(False, False), (False, False), (False, True), (True, True)])
        client = Erratic(self.stream, self.chance, number, failing=self.failing, bare=bare, pulled=pulled)
        assert client.attach()
        self.clients.append(client)
        self.everyone.append(client)

    def leave(self) -> None:
        if len(self.clients) > 1 and self.chance.random() < 0.3:
            client = self.chance.choice(self.clients)
            self.stream.detach(client.subscriber)
            self.clients.remove(client)
            if client.progress is Progress.ENDED:
                client.progress = None


class Cut(Client):
    """A client whose connection breaks after so many bytes."""

    def __init__(self, stream: Stream, after: int, number: int = 0, *, bare: bool = False) -> None:
        super().__init__(stream, number, bare=bare)
        self.left = after

    def take(self, size: int) -> int:
        if not self.left:
            raise copy.copy(RESET)
        taken = min(size, self.left)
        self.left -= taken
        return taken


class CutAndResume(TestCase):
    def test_cut_after_every_byte(self) -> None:
        """A client that is cut off after any byte and resumes from its last event misses none, and gets none twice."""
        texts = ["a", "é漢", "\n\n", "", "data: x"]
        for bare in (False, True):
            for running in (False, True):
                size = None
                cut = 0
                while size is None or cut <= size:
                    with about(cut=cut, bare=bare, running=running):
                        stream = made()
                        got, size = self.play(stream, texts, cut, bare, running)
                        self.assertEqual(
                            [key for key, _ in got], [f"{stream.id}-{n}" for n in range(1, len(texts) + 2)]
                        )
                        self.assertEqual([json.loads(data)["OUT"] for _, data in got[:-1]], texts)
                    cut += 1
                self.assertGreater(cut, 400)

    def play(
        self, stream: Stream, texts: list[str], cut: int, bare: bool, running: bool
    ) -> tuple[list[tuple[str, str]], int]:
        """Follow a stream while it runs, or afterwards; return the events that came in two connections.

        Also return the size of the whole stream.
        """
        first = Cut(stream, cut, bare=bare)
        first.attach()
        for text in texts:
            stream.append(line(text))
            if running:
                first.run()
        stream.finish()
        first.run()
        stream.detach(first.subscriber)
        whole = Client(stream, bare=bare)
        whole.attach()
        whole.run()
        got = blocks(bytes(first.received), not bare)
        number = sse.parse_event_id(got[-1][0]).number if got else 0
        second = Client(stream, number, bare=bare)
        if second.attach():
            self.assertEqual(second.run(), Progress.ENDED)
            got += blocks(bytes(second.received), not bare)
        return got, len(whole.received)


class Thread(threading.Thread):
    """A thread whose error is raised where it is joined."""

    def __init__(self, target: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.work = target
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = PATIENCE) -> None:
        super().join(timeout)
        assert not self.is_alive(), "a thread hangs"
        if self.error is not None:
            raise self.error


def together(*targets: Callable[[], None]) -> None:
    threads = [Thread(target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Threaded(Erratic):
    """A client with a real handler thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.event = threading.Event()

    def wake(self) -> None:
        self.event.set()

    def follow(self) -> None:
        while (progress := self.look()) in (Progress.CAUGHT_UP, Progress.LAGGING):
            if progress is Progress.LAGGING:
                self.event.wait(0.1 * MS)
            elif self.stream.hurries:
                self.event.wait(5 * MS)
            else:
                assert self.event.wait(PATIENCE), "nobody woke a client that was caught up"
            self.event.clear()
            if self.chance.random() < 0.1:
                self.stream.interject(self.subscriber, sse.heartbeat() if self.bare else chunk(sse.heartbeat()))
        self.stream.detach(self.subscriber)


class Threads(TestCase):
    def test_threads(self) -> None:
        """The same with real threads: a producer in bursts, handler threads, clients that come and go."""
        for seed in range(6):
            chance = random.Random(seed)
            stream, events = noted(cap=chance.choice([2000, CAP]))
            clients = [
                Threaded(
                    stream,
                    random.Random(seed * 100 + n),
                    0,
                    failing=0.001 * (n % 3),
                    pulled=n // 2 == 1,
                    bare=n // 2 == 2,
                )
                for n in range(6)
            ]
            for client in clients:
                client.attach()

            def produce(chance: random.Random = chance, events: Events = events) -> None:
                for _ in range(1500):
                    events.append(line("x" * chance.choice([1, 30, 900])))
                    if chance.random() < 0.02:
                        time.sleep(chance.choice([0, MS, 3 * MS]))
                events.finish()

            together(produce, *[client.follow for client in clients])
            with self.subTest(seed=seed):
                for client in clients:
                    number, rest = read_frames(client, events)
                    if client.progress is Progress.ENDED:
                        self.assertEqual((number, rest), (1501, b""))
                    else:
                        self.assertIn(client.progress, (Progress.OVERRUN, Progress.BROKEN))
                self.assertIsNotNone(stream.unfollowed)
                self.assertFalse(stream._subscribers or stream._ready)

    def test_threads_end_once(self) -> None:
        """Of many threads that end a stream while others send to it one does; the log ends there, and counts right."""
        for seed in range(20):
            stream = made()
            sent: list[int] = []
            ended: list[str] = []
            started = threading.Barrier(6)

            def send(stream: Stream = stream, sent: list[int] = sent, started: threading.Barrier = started) -> None:
                started.wait(PATIENCE)
                try:
                    while True:
                        stream.append(line("a"))
                        sent.append(1)
                except (RuntimeError, Cancelled):
                    pass

            def end(
                how: str, stream: Stream = stream, ended: list[str] = ended, started: threading.Barrier = started
            ) -> None:
                started.wait(PATIENCE)
                if stream.finish() if how == "finish" else stream.fail("cancelled", "c"):
                    ended.append(how)

            together(send, send, send, *[functools.partial(end, how) for how in ("finish", "fail", "finish")])
            with self.subTest(seed=seed):
                self.assertEqual(len(ended), 1)
                self.assertEqual(stream.log.last, len(sent) + 1)
                last = stream.log.read(stream.log.position_after(len(sent)) or 0, 10_000)
                if ended == ["finish"]:
                    self.assertIs(stream.state, State.FINISHED)
                    self.assertIn(b'"events":%d,' % len(sent), last)
                else:
                    self.assertIs(stream.state, State.CANCELLED)
                    self.assertIn(b"event: error", last)

    def test_finish_is_not_starved(self) -> None:
        """A finish comes through while other threads of the app send as fast as they can."""
        stream = made(cap=1000)
        going = threading.Event()

        def send() -> None:
            try:
                while True:
                    stream.append(line("a"))
                    going.set()
            except RuntimeError:
                pass

        def finish() -> None:
            going.wait(PATIENCE)
            self.assertTrue(stream.finish())

        together(send, send, send, finish)

    def test_attach_and_detach_while_sending(self) -> None:
        """Clients may come and go as fast as they like while events are sent: after `detach` nothing is sent."""
        stream = made(cap=10_000)
        over = threading.Event()

        class Leaving(Client):
            left = False

            def send(self, data: bytes) -> int:
                assert not self.left, "a send after detach"
                return super().send(data)

        def come_and_go() -> None:
            while not over.is_set():
                client = Leaving(stream, stream.log.last)
                try:
                    client.attach()
                except Gone:
                    continue
                client.look()
                stream.detach(client.subscriber)
                client.left = True

        def produce() -> None:
            for _ in range(3000):
                stream.append(line("a"))
            over.set()

        together(produce, come_and_go, come_and_go)
        self.assertFalse(stream._subscribers or stream._ready)


if __name__ == "__main__":
    unittest.main()
