"""Connections past a cap: what they are told, and that they are closed a moment later without a reset."""

from __future__ import annotations

import socket
import time
import unittest

from inferless_shim.refusals import MOST, STAY, Refusals
from tests.support import TestCase, eventually


class RefusalsTests(TestCase):
    def setUp(self) -> None:
        self.refusals = Refusals()
        self.addCleanup(self.refusals.close)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        theirs = socket.create_connection(self.listener.getsockname())
        theirs.settimeout(30)
        ours, _ = self.listener.accept()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        return ours, theirs

    def read(self, sock: socket.socket) -> bytes:
        """Read to the end. Raises ConnectionResetError if that was none."""
        received = b""
        while data := sock.recv(65536):
            received += data
        return received

    def test_told_and_closed(self) -> None:
        """The client has its reply at once, and goes on to read it while it sends; nothing of that is a reset."""
        ours, theirs = self.connect()
        theirs.sendall(b"before")
        self.refusals.add(ours, b"full")
        theirs.sendall(bytes(30_000))
        self.refusals.sweep(time.monotonic())
        self.assertNotEqual(ours.fileno(), -1)
        theirs.sendall(bytes(30_000))
        self.refusals.sweep(time.monotonic() + STAY)
        self.assertEqual(ours.fileno(), -1)
        self.assertEqual(self.read(theirs), b"full")

    def test_closed_when_the_client_is_gone(self) -> None:
        """One that has left is closed at the next look."""
        ours, theirs = self.connect()
        self.refusals.add(ours, b"full")
        theirs.close()
        eventually(lambda: self.refusals.sweep(0) or ours.fileno() == -1)

    def test_left_before(self) -> None:
        """One that left before it could be told costs no error."""
        ours, theirs = socket.socketpair()
        theirs.close()
        self.refusals.add(ours, b"full")
        self.refusals.sweep(0)
        self.assertEqual(ours.fileno(), -1)

    def test_bounded(self) -> None:
        """When there are too many, the oldest goes, whatever its time."""
        pairs = [self.connect() for _ in range(MOST + 3)]
        for ours, _ in pairs:
            self.refusals.add(ours, b"full")
        self.assertEqual([ours.fileno() == -1 for ours, _ in pairs], [True] * 3 + [False] * MOST)
        self.refusals.close()
        self.assertEqual({ours.fileno() for ours, _ in pairs}, {-1})
        self.assertEqual({self.read(theirs) for _, theirs in pairs}, {b"full"})

    def test_told_nothing(self) -> None:
        """Over TLS there are no words."""
        ours, theirs = self.connect()
        self.refusals.add(ours, b"")
        self.assertEqual(self.read(theirs), b"")


if __name__ == "__main__":
    unittest.main()
