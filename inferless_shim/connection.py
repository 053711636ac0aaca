"""A client's connection as bytes: received, sent and ended, with a bound on every wait. Plain TCP here; no HTTP.

Its handler thread alone uses it, but for two things: while it follows a stream, that stream's producing thread calls
`send` under the stream's lock, and the main thread calls `end_reading`. The socket is non-blocking for all of its life:
what waits is a `poll` with a deadline.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from .pace import Pace

RECEIVE = 64 * 1024
# An autotuned buffer hides a slow client for minutes (Linux grows it to 4 MiB).
SEND_BUFFER = 64 * 1024
# How long and how much of an unread body is thrown away before a close, so that the reply is not lost to a reset.
LINGER_TIME, LINGER_BYTES = 2.0, 1024 * 1024
LONGEST_WAIT = 3600.0
# How many times `stall` a client's system may acknowledge nothing. Not once: Linux also counts the time in which a slow
# reader's window is as good as shut, however steadily it reads, and what is too slow `pace` decides.
VANISHED = 10


class ClientGone(Exception):
    """The client closed, or took nothing for too long: there is nobody to answer."""


class Stalled(ClientGone):
    """It took nothing, or too little, of what was sent to it."""


class Connection:
    """A connected TCP socket. `stall` bounds how slowly a client may take what is sent to it (see pace.Pace).

    `address` is the client's, as text; `secure` says whether it is encrypted, `pulled` whether its own handler thread
    alone may send on it. `send` takes what fits now, and says how many bytes; it raises BlockingIOError if none do.
    """

    secure = False
    pulled = False

    def __init__(self, sock: socket.socket, address: str, stall: float) -> None:
        self.sock = sock
        self.address = address
        self.stall = stall
        self.send: Callable[[Any], int] = sock.send
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._polled = select.POLLIN
        self._attached = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def start(self, deadline: float) -> None:
        """Do what comes before the first request: nothing. Raises ClientGone at the deadline (time.monotonic)."""

    # ---- Reading

    def receive(self, timeout: float) -> bytes:
        """Return what has come, b"" at the end of the connection. Raises TimeoutError if nothing comes in time.

        What is there already is taken even if there is no time left.
        """
        deadline = time.monotonic() + timeout
        while self._wait(select.POLLIN, deadline):
            with contextlib.suppress(BlockingIOError):  # poll may be wrong
                return self.sock.recv(RECEIVE)
        raise TimeoutError("nothing came in time")

    def end_reading(self) -> None:
        """Let the next read find the end. Any thread, as long as the connection is not closed."""
        with contextlib.suppress(OSError):
            # Of the descriptor alone: an SSLSocket's own shutdown would change it under its thread's feet.
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    # ---- While a stream is followed

    def attach(self) -> None:
        """Make ready to follow a stream: given up by the kernel when the client has vanished without a word."""
        if self._attached:
            return
        if hasattr(socket, "TCP_USER_TIMEOUT") and self.sock.family != getattr(socket, "AF_UNIX", None):
            vanished = max(self.stall, min(self.stall * VANISHED, LONGEST_WAIT))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(vanished * 1000)))
        self._attached = True

    def awaited(self, *, writable: bool) -> int:
        """Return the events of `poll` that mean something is to be done; `writable` if it lags.

        Bytes that come are the next request, and stay where they are.
        """
        return select.POLLOUT if writable else 0

    def take_in(self, events: int) -> bool:
        """Read what has to be read now, if `events` say that it has come; return False if that was the client's end."""
        return True

    def begin_stream(self, *, chunked: bool) -> None:
        """Let whatever ends the connection from now on look like what it is, a stream that is not whole.

        HTTP/1.0 has no final chunk to leave out: an ordinary end is what a client, or a proxy, takes for success. So it
        is a reset, which the kernel does even if the process is killed.
        """
        if not chunked:
            self._reset_on_close(True)

    def end_stream(self, *, chunked: bool) -> None:
        """The stream is whole."""
        if not chunked:
            self._reset_on_close(False)

    # ---- Sending

    def send_all(self, data: bytes) -> None:
        """Send all of it. Raises Stalled if the client takes it too slowly."""
        left, pace = memoryview(data), None
        while True:
            try:
                sent = self.send(left)
            except BlockingIOError:
                sent = 0
            if sent == len(left):
                return
            left = left[sent:]
            pace = pace or Pace(self.stall)
            pace.took(sent)
            if pace.left <= 0:
                raise Stalled("it took its answer too slowly")
            # At the deadline, too, it is tried: poll calls a socket writable only when a third of its buffer is free.
            self.take_in(self._wait(self.awaited(writable=True), pace.deadline))

    # ---- The end

    def close_gently(self) -> None:
        """Say that no more comes, and read on for a moment: a reset now could destroy the reply on its way."""
        with contextlib.suppress(OSError):
            self._say_end()
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            deadline, left = time.monotonic() + LINGER_TIME, LINGER_BYTES
            while left > 0 and self._wait(select.POLLIN, deadline):
                # As the bytes that they are, whatever they carry.
                data = socket.socket.recv(self.sock, RECEIVE)
                if not data:
                    return
                left -= len(data)

    def close(self) -> None:
        """Runs on the handler thread, once no other thread knows the connection any more."""
        self._say_end()
        self.sock.close()

    def _say_end(self) -> None:
        """Say that what was sent is whole, where TCP's own end does not count."""

    def _reset_on_close(self, reset: bool) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))

    def _wait(self, events: int, deadline: float) -> int:
        """Wait until the socket is ready for one of `events`, or has failed; return what it is, 0 at the deadline."""
        if events != self._polled:
            self._poll.modify(self.sock, events)
            self._polled = events
        timeout = min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT)
        ready = self._poll.poll(timeout * 1000)
        return ready[0][1] if ready else 0


def peer_address(address: Any) -> str:
    """Return the host of what `accept` told; an IPv4 client of an IPv6 socket has its IPv4 address (RFC 4291 §2.5.5).

    It is "" where the family has no addresses.
    """
    return str(address[0]).removeprefix("::ffff:").partition("%")[0] if isinstance(address, tuple) else ""
