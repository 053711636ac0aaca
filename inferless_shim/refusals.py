"""Connections for which there is no room: each is told so, and closed a moment later.

The accept thread alone uses this, and nothing here waits.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque

from .connection import RECEIVE

# Seconds until one is closed. A close at once would be a reset if its request had come, or came a moment later, and
# the reset could destroy the reply on its way (RFC 9112 §9.6).
STAY = 1.0
# How many stay at once; they are among the descriptors that app.DESCRIPTORS_SPARE keeps free.
MOST = 32


class Refusals:
    """Those that were told and are not closed yet, the oldest first."""

    def __init__(self) -> None:
        self._told: deque[tuple[float, socket.socket]] = deque()

    def add(self, sock: socket.socket, reply: bytes) -> None:
        """Tell a client `reply`, nothing if that is empty, and keep its socket from now on."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it may have left again
            if reply:
                sock.send(reply)
            sock.shutdown(socket.SHUT_WR)
        self._told.append((time.monotonic() + STAY, sock))
        if len(self._told) > MOST:
            self._close(self._told.popleft()[1])

    def sweep(self, now: float) -> None:
        """Read on, so that the client can go on to read; close those that have gone, or have stayed long enough."""
        for _ in range(len(self._told)):
            due, sock = self._told.popleft()
            if now >= due or not has_more(sock):
                self._close(sock)
            else:
                self._told.append((due, sock))

    def close(self) -> None:
        """Close all of them now."""
        while self._told:
            self._close(self._told.popleft()[1])

    def _close(self, sock: socket.socket) -> None:
        has_more(sock)
        sock.close()


def has_more(sock: socket.socket) -> bool:
    """Throw away what has come; return whether more may follow."""
    try:
        return bool(sock.recv(RECEIVE))
    except BlockingIOError:
        return True
    except OSError:
        return False
