"""What a client sends, read as requests: heads and bodies, each by its deadline. Knows no sockets, only a connection.

Runs on the handler thread, but for `end_if_waiting`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from . import http1
from .budget import Hold
from .config import Settings
from .connection import ClientGone, Connection
from .errors import RequestTimeout
from .http1 import Request
from .weights import READING

# Bytes a second that a body must come at on average, after `read_timeout`: half of what a poor mobile connection sends
# (1 Mbit/s), and enough for the largest body, 10 MiB, to be there in three minutes.
BODY_RATE = 64 * 1024


class Reader:
    """Reads the requests of one connection one after the other.

    `waiting` is True while nothing of the next request has come, which is when a drain may end the connection;
    `body_read` says whether the last request was read to its end, so that another may follow.
    """

    def __init__(self, connection: Connection, settings: Settings, draining: Callable[[], bool]) -> None:
        self.connection = connection
        self.settings = settings
        self.waiting = False
        self.body_read = False
        self._draining = draining
        self._unread = bytearray()
        self._heads = 0  # how many have been read
        self._first_deadline = math.inf

    def start(self) -> None:
        """Begin: a new connection's first head must have come in `read_timeout` from now, a TLS handshake included.

        Raises ClientGone.
        """
        self._first_deadline = time.monotonic() + self.settings.read_timeout
        self.waiting = True
        self.connection.start(self._first_deadline)

    def end_if_waiting(self, *, new: bool = False) -> None:
        """End a connection that waits for a request, for its first only if `new`: its next read finds the end.

        Runs on the main thread. If a request comes at this very moment, it is served, but a stream that it follows
        breaks, because the end looks like the client's; the client comes back for it.
        """
        if self.waiting and (new or self._heads):
            self.connection.end_reading()

    def read_head(self) -> Request | None:
        """Read a request head; None if the client ended the connection, or was silent, between two requests.

        Raises a ShimError for one that is malformed or late.
        """
        self.body_read = False
        self.waiting = not self._unread
        if not self._unread and not self._receive_first():
            return None
        self.waiting = False
        deadline = time.monotonic() + self.settings.read_timeout if self._heads else self._first_deadline
        searched = 0
        while (length := http1.find_head(self._unread, searched)) is None:
            searched = len(self._unread)
            try:
                if not self._receive(deadline):
                    return None
            except TimeoutError:
                # An empty line alone, as some clients send after a body, is no request that is late (RFC 9112 §2.2).
                if not self._unread.strip(b"\r\n"):
                    return None
                raise RequestTimeout("The head of the request did not come in time.") from None
        request = http1.parse_head(bytes(self._unread[:length]))
        del self._unread[:length]
        self._heads += 1
        # What follows a POST that names no body may be one all the same.
        self.body_read = request.framing.kind is http1.Kind.NONE and request.method != "POST"
        return request

    @property
    def head_only(self) -> bool:
        """Whether the answer to a head that could not be read has no content."""
        return http1.asks_for_head(self._unread)

    def read_body(self, request: Request, hold: Hold, most: int) -> bytes:
        """Read the body that follows a head, and ask for it if the client waits for that (RFC 9110 §10.1.1).

        `hold` takes room for what has come, not for what is announced: who sends slowly takes it from nobody. Raises a
        ShimError for a body that is over `most` bytes, malformed or late, or has no room, ClientGone if it is cut off.
        """
        decoder = http1.BodyDecoder(request.framing, most)
        has_begun = bool(self._unread)
        decoder.feed(self._unread)
        if not decoder.done:
            hold.require(request.framing.length * READING)
            if request.expects_continue and not has_begun:
                self.connection.send_all(http1.CONTINUE)
        deadline = time.monotonic() + self.settings.read_timeout
        hold.cover(len(decoder.body) * READING)
        while not decoder.done:
            try:
                if not self._receive(deadline):
                    raise ClientGone("in the middle of a body")
            except TimeoutError:
                raise RequestTimeout("The body of the request did not come in time.") from None
            # What came fast earns no right to long silence.
            latest = time.monotonic() + self.settings.read_timeout
            deadline = min(deadline + len(self._unread) / BODY_RATE, latest)
            decoder.feed(self._unread)
            hold.cover(len(decoder.body) * READING)
        self.body_read = True
        return bytes(decoder.body)

    def _receive_first(self) -> bool:
        """Wait for the first bytes of a request; False if none come. A drain waits for a connection's first alone."""
        deadline = self._first_deadline
        if self._heads:
            # Looked at after `waiting` was set: either this sees the drain, or the drain sees that.
            if self._draining():
                return False
            deadline = time.monotonic() + self.settings.idle_timeout
        try:
            return self._receive(deadline)
        except TimeoutError:
            return False

    def _receive(self, deadline: float) -> bool:
        """Add what has come to the unread bytes; False at the end of the connection. Raises TimeoutError.

        The deadline ends waiting, not reading: what is there is taken, however late this thread gets to look.
        """
        data = self.connection.receive(deadline - time.monotonic())
        self._unread += data
        return bool(data)
