"""A connection follows a stream: what its handler thread does between the head and the last byte.

The producing thread sends on it, too, under the stream's lock and without blocking, unless it is pulled. The handler
thread waits in one `poll`, never with the lock: for the client to go, for the socket to take bytes when the client
lags, and for `wake`, which the producing thread writes when there is something that only this thread can do.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from enum import Enum, auto

from . import sse
from .connection import LONGEST_WAIT, Connection
from .http1 import chunk
from .outputs import encode
from .pace import Pace
from .stream import Stream
from .subscriber import Progress, Subscriber

# Where the system lacks it (not Linux), a client that is gone is noticed at the next write.
GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL
# How often a waiting client that asked for its place in the queue is told of a change.
QUEUE_POLL = 0.25
ONE = struct.pack("=Q", 1)  # what an eventfd is written
# How soon what a hurrying producer held back before it paused is sent.
HURRY_POLL = 0.005


class Waker:
    """Ends the handler thread's `poll` from another thread."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.reader = self.writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.reader, self.writer = os.pipe()
            os.set_blocking(self.reader, False)
            os.set_blocking(self.writer, False)

    def wake(self) -> None:
        """Any thread, until the stream is detached from."""
        try:
            os.write(self.writer, ONE)
        except BlockingIOError:
            pass  # a pipe that is full wakes, too

    def clear(self) -> None:
        try:
            os.read(self.reader, 4096)
        except BlockingIOError:
            pass  # nobody woke us

    def close(self) -> None:
        for descriptor in {self.reader, self.writer}:
            os.close(descriptor)


class Wait(Enum):
    GONE = auto()
    WOKEN = auto()
    TIMED_OUT = auto()


class Link:
    """A connection and a waker in one `poll`. Its handler thread alone uses it, but for `waker.wake`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.waker = Waker()
        self._poll = select.poll()
        self._poll.register(self.waker.reader, select.POLLIN)
        self._poll.register(connection, GONE)
        self._awaited = 0

    def wait(self, timeout: float, *, writable: bool = False) -> Wait:
        """Wait until the client is gone, somebody wakes us, or (if asked) the socket takes bytes."""
        awaited = self.connection.awaited(writable=writable)
        if awaited != self._awaited:
            self._poll.modify(self.connection, GONE | awaited)
            self._awaited = awaited
        ready = dict(self._poll.poll(min(max(0.0, timeout), LONGEST_WAIT) * 1000))
        events = ready.get(self.connection.fileno(), 0)
        if events & GONE or not self.connection.take_in(events):
            return Wait.GONE
        if self.waker.reader in ready:
            self.waker.clear()
        return Wait.WOKEN if ready else Wait.TIMED_OUT

    def close(self) -> None:
        self.waker.close()


class Follower:
    """A subscriber's handler thread at work.

    A comment goes out after `heartbeat` seconds of silence; a client that lags and takes too little is left (`stall`
    bounds that, see pace.Pace).
    `place` tells the stream's place in the queue; with `progress` a change of it is an event, else heartbeats say it.
    """

    def __init__(
        self,
        stream: Stream,
        subscriber: Subscriber,
        link: Link,
        *,
        heartbeat: float,
        stall: float,
        place: Callable[[], int | None] = lambda: None,
        progress: bool = False,
    ) -> None:
        self.stream = stream
        self.subscriber = subscriber
        self.link = link
        self.heartbeat = heartbeat
        self.stall = stall
        self.place = place
        self.progress = progress
        self.stalled = False  # whether it was left because it took nothing
        self._place_told: int | None = None
        self._sent_at = time.monotonic()
        self._pace: Pace | None = None  # while it lags
        self._sent = 0  # bytes, when that was last looked at

    def follow(self) -> Progress:
        """Stay until all is sent (ENDED), the client is gone or stalled (BROKEN), or it fell too far behind (OVERRUN).

        Runs on the handler thread, which is the caller of `detach`.
        """
        while True:
            progress = self.advance()
            if progress is Progress.CAUGHT_UP:
                self._pace = None
                if not self._wait_for_events():
                    return Progress.BROKEN
            elif progress is Progress.LAGGING:
                if not self._wait_for_room():
                    return Progress.BROKEN
            else:
                return progress

    def advance(self) -> Progress:
        """Send until the subscriber is caught up, lags, or is done."""
        while (progress := self.stream.advance(self.subscriber)) is Progress.MORE:
            self._sent_at = time.monotonic()
        return progress

    def _wait_for_events(self) -> bool:
        """Wait for something to do; return False if the client is gone."""
        waits = self.progress and self.stream.started is None
        timeout = HURRY_POLL if self.stream.hurries else QUEUE_POLL if waits else LONGEST_WAIT
        if self.link.wait(min(timeout, self._silence_left())) is Wait.GONE:
            return False
        if waits and self._tell_place():
            return True
        if self._silence_left() <= 0:
            place = self.place() if self.stream.started is None else None
            self.stream.interject(self.subscriber, self._framed(sse.heartbeat(place)))
        return True

    def _silence_left(self) -> float:
        """Return in how many seconds a heartbeat is due."""
        return max(self._sent_at, self.stream.appended) + self.heartbeat - time.monotonic()

    def _tell_place(self) -> bool:
        place = self.place()
        if place is None or place == self._place_told:
            return False
        frame = self._framed(sse.body(encode({"position": place}), "queued"))
        if not self.stream.interject(self.subscriber, frame, only_before_first=True):
            return False
        self._place_told = place
        return True

    def _wait_for_room(self) -> bool:
        """Wait until a lagging client may take more; return False if it is gone, or has taken it too slowly.

        At the deadline, too, `advance` comes first: poll calls a socket writable only when a third of its buffer is
        free.
        """
        sent = self.subscriber.sent
        self._pace = self._pace or Pace(self.stall)
        self._pace.took(sent - self._sent)
        self._sent = sent
        if self._pace.left <= 0:
            self.stalled = True
            return False
        return self.link.wait(self._pace.left, writable=True) is not Wait.GONE

    def _framed(self, lines: bytes) -> bytes:
        return chunk(lines) if self.subscriber.chunked else lines
