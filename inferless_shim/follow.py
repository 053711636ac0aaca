"""A client's socket follows a stream: what its handler thread does between the head and the last byte.

The socket is non-blocking while it is attached, because the producing thread sends to it under the stream's lock. The
handler thread waits in one `poll`, never with the lock: for the client to go, for the socket to take bytes when the
client lags, and for `wake`, which the producing thread writes when there is something that only this thread can do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from enum import Enum, auto

from . import sse
from .http1 import chunk
from .outputs import encode
from .stream import Stream
from .subscriber import Progress, Subscriber

# Where the system lacks it (not Linux), a client that is gone is noticed at the next write.
GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL
# An autotuned buffer hides a slow client for minutes (Linux grows it to 4 MiB).
SEND_BUFFER = 64 * 1024
# How often a waiting client that asked for its place in the queue is told of a change.
QUEUE_POLL = 0.25
ONE = struct.pack("=Q", 1)  # what an eventfd is written
# How soon what a hurrying producer held back before it paused is sent.
HURRY_POLL = 0.005
LONGEST_WAIT = 3600.0


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
    """A socket and a waker in one `poll`. Its handler thread alone uses it, but for `waker.wake`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waker = Waker()
        self._poll = select.poll()
        self._poll.register(self.waker.reader, select.POLLIN)
        self._poll.register(sock, GONE)
        self._writable = False

    def wait(self, timeout: float, *, writable: bool = False) -> Wait:
        """Wait until the client is gone, somebody wakes us, or (if asked) the socket takes bytes."""
        if writable is not self._writable:
            self._poll.modify(self.sock, GONE | (select.POLLOUT if writable else 0))
            self._writable = writable
        ready = self._poll.poll(min(max(0.0, timeout), LONGEST_WAIT) * 1000)
        if any(descriptor == self.sock.fileno() and what & GONE for descriptor, what in ready):
            return Wait.GONE
        if any(descriptor == self.waker.reader for descriptor, _ in ready):
            self.waker.clear()
        return Wait.WOKEN if ready else Wait.TIMED_OUT

    def close(self) -> None:
        self.waker.close()


def prepare(sock: socket.socket, stall: float) -> None:
    """Set a socket up to be attached: non-blocking, with a small buffer, given up by the kernel when it stalls."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(stall * 1000)))


class Follower:
    """A subscriber's handler thread at work.

    A comment goes out after `heartbeat` seconds of silence; a client that takes nothing for `stall` seconds is left.
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
        self._place_told: int | None = None
        self._sent_at = time.monotonic()

    def follow(self) -> Progress:
        """Stay until all is sent (ENDED), the client is gone or stalled (BROKEN), or it fell too far behind (OVERRUN).

        Runs on the handler thread, which is the caller of `detach`.
        """
        while True:
            progress = self.advance()
            if progress is Progress.CAUGHT_UP:
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
        """Wait until a lagging client has taken something; return False if it is gone, or took nothing for `stall`."""
        before = self._taken()
        deadline = time.monotonic() + self.stall
        while (left := deadline - time.monotonic()) > 0:
            outcome = self.link.wait(left, writable=True)
            if outcome is Wait.GONE:
                return False
            # At the deadline, too: poll calls a socket writable only when a third of its buffer is free.
            if self.advance() is not Progress.LAGGING or self._taken() != before:
                return True
        return False

    def _taken(self) -> tuple[int, int]:
        return self.subscriber.position, -len(self.subscriber.pending)

    def _framed(self, lines: bytes) -> bytes:
        return lines if self.subscriber.pulled else chunk(lines)
