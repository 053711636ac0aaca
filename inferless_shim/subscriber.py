"""Who follows a stream: a `send`, a position in the log, and what its handler thread does next."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any


class Progress(Enum):
    """What a subscriber's handler thread does next."""

    MORE = auto()  # advance again: there is more to send
    CAUGHT_UP = auto()  # wait for the next event; the producing thread sends it
    LAGGING = auto()  # wait until the socket takes bytes
    ENDED = auto()  # all is sent and the stream is over
    OVERRUN = auto()  # what comes next was forgotten before it was sent
    BROKEN = auto()  # the socket failed


class Subscriber:
    """A `send`, a position in the log, and at most one pending frame from outside it.

    `send` never blocks: it returns how many bytes it took or raises BlockingIOError. `wake` ends the handler thread's
    wait. A pulled subscriber is sent to by its handler thread alone (TLS, HTTP/1.0). One that is not chunked gets
    payloads without the log's chunk framing (HTTP/1.0), and is always pulled.
    """

    __slots__ = ("ahead", "aside", "began", "broken", "chunked", "pending", "position", "pulled", "send", "wake")

    def __init__(
        self,
        send: Callable[[Any], int],
        wake: Callable[[], None],
        *,
        head: bytes = b"",
        pulled: bool = False,
        chunked: bool = True,
    ) -> None:
        self.send = send
        self.wake = wake
        self.pending = head
        self.position = self.began = 0
        self.ahead: int | None = None  # the event that it has seen, if its log here has not come to that yet
        self.aside = 0  # bytes sent of what was pending
        self.pulled = pulled or not chunked
        self.chunked = chunked
        self.broken = False

    @property
    def sent(self) -> int:
        """How many bytes were sent to it, the head included. Any thread."""
        return self.aside + self.position - self.began if self.chunked else self.aside
