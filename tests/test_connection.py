"""A connection's bytes: what is received and sent, what ends each wait, and how it ends."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import unittest
from typing import Any
from unittest import mock

from inferless_shim import connection, pace
from inferless_shim.connection import SEND_BUFFER, Connection, Stalled, peer_address
from tests.support import MS, TestCase, eventually

NEVER = 60.0  # seconds: a wait that a test expects to end for another reason


class ConnectionTestCase(TestCase):
    def setUp(self) -> None:
        self.connect()

    def connect(self, stall: float = NEVER) -> None:
        """Make a connection over TCP; the last one until this is called again."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.theirs = socket.create_connection(listener.getsockname())
            ours, address = listener.accept()
        self.theirs.settimeout(NEVER)
        self.connection = Connection(ours, peer_address(address), stall)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.connection.close)

    def theirs_read_all(self) -> bytes:
        received = b""
        while data := self.theirs.recv(65536):
            received += data
        return received


class ReceiveTests(ConnectionTestCase):
    def test_receive(self) -> None:
        """What has come is returned at once; then the end, again and again."""
        self.theirs.send(b"ab")
        self.assertEqual(self.connection.receive(NEVER), b"ab")
        threading.Timer(5 * MS, self.theirs.send, [b"c"]).start()
        self.assertEqual(self.connection.receive(NEVER), b"c")
        self.theirs.close()
        self.assertEqual([self.connection.receive(NEVER) for _ in range(2)], [b"", b""])

    def test_receive_nothing(self) -> None:
        """Silence is a TimeoutError, when its time is over or was before."""
        for timeout in (MS, 0, -5):
            with self.assertRaises(TimeoutError):
                self.connection.receive(timeout)

    def test_receive_what_is_there(self) -> None:
        """What is there is taken even if there is no time left."""
        self.theirs.send(b"ab")
        eventually(lambda: self.connection.sock.recv(1, socket.MSG_PEEK))
        self.assertEqual(self.connection.receive(-5), b"ab")

    def test_poll_that_is_wrong(self) -> None:
        """A socket that poll calls readable and that has nothing after all is waited for again."""
        sock = mock.Mock(wraps=self.connection.sock)
        sock.recv.side_effect = [BlockingIOError, BlockingIOError, b"ab"]
        sock.fileno = self.connection.sock.fileno
        self.theirs.send(b"ab")
        with mock.patch.object(self.connection, "sock", sock):
            self.assertEqual(self.connection.receive(NEVER), b"ab")

    def test_end_reading(self) -> None:
        """Another thread can end a read that waits; what is sent still arrives."""
        threading.Timer(5 * MS, self.connection.end_reading).start()
        self.assertEqual(self.connection.receive(NEVER), b"")
        self.connection.send_all(b"bye")
        self.assertEqual(self.theirs.recv(10), b"bye")
        self.theirs.close()
        self.connection.end_reading()


class SlowSocket(socket.socket):
    """One that takes at most `takes` bytes at a time, and `refuses` every other time."""

    takes = 1000
    refuses = False
    asked = 0

    def send(self, data: Any, *_: Any) -> int:
        self.asked += 1
        if self.refuses and self.asked % 2:
            raise BlockingIOError
        return super().send(data[: self.takes])


class SendTests(ConnectionTestCase):
    def test_send_all(self) -> None:
        """More than the socket takes at once is sent on as the client reads, in order."""
        sent = bytes(range(256)) * 16384
        sender = threading.Thread(target=self.connection.send_all, args=(sent,))
        sender.start()
        received = bytearray()
        while len(received) < len(sent):
            received += self.theirs.recv(100_000)
        sender.join()
        self.assertEqual(received, sent)

    def test_large_answer_to_a_slow_client(self) -> None:
        """A large answer is sent as long as the client takes it: the stall bounds no more than a pause.

        What went wrong: `sendall` counts its timeout for the whole of the data, so a megabyte over a slow line was cut
        after `--stall` seconds, although it moved all the time.
        """
        for refuses in (False, True):
            self.connect()
            slow = SlowSocket(fileno=self.connection.sock.detach())
            slow.refuses = refuses
            with mock.patch.object(connection.socket.socket, "sendall", side_effect=TimeoutError("timed out")):
                made = Connection(slow, "", NEVER)
                sent = bytes(range(256)) * 256
                made.send_all(sent)
            made.close()
            self.assertEqual(self.theirs_read_all(), sent)

    def test_send_all_to_one_that_stalls(self) -> None:
        """A client that takes nothing for `stall` is left."""
        self.connect(stall=20 * MS)
        with self.assertRaises(Stalled):
            self.connection.send_all(bytes(8 << 20))

    def sends(self, size: int, *takes: int) -> float:
        """Send `size` bytes to a socket that takes so many each time it is tried, 0 for none; return the seconds.

        Nothing ever wakes the sender before its deadline, and time is only what it has waited.
        """
        clock = mock.Mock(now=0.0)
        clock.monotonic = lambda: clock.now
        taken = iter(takes)

        def send(data: Any) -> int:
            count = next(taken)
            if not count:
                raise BlockingIOError
            return count

        def wait(events: int, deadline: float) -> int:
            clock.now = min(deadline, clock.now + 29)
            return 0

        with (
            mock.patch.object(pace, "time", clock),
            mock.patch.object(self.connection, "send", send),
            mock.patch.object(self.connection, "_wait", wait),
        ):
            try:
                self.connection.send_all(bytes(size))
            except Stalled:
                return -float(clock.now)
        return float(clock.now)

    def test_send_all_to_one_that_trickles(self) -> None:
        """One that takes a byte every 29 seconds is left as one that takes nothing; it held a thread for ever."""
        self.connect(stall=30)
        self.assertAlmostEqual(self.sends(1 << 20, 1, 1, 0), -30, delta=1)
        self.assertEqual(self.sends(1 << 20, 100_000, 0, 0), -30)

    def test_send_all_at_the_deadline(self) -> None:
        """What went wrong: one that had taken a little was left, as poll calls a socket writable only much later."""
        self.connect(stall=30)
        self.assertEqual(self.sends(90_000, 10_000, 0, 40_000, 0, 40_000), 60)

    def test_send_to_one_that_is_gone(self) -> None:
        """Sending to nobody is an OSError, which ends the connection."""
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()
        with self.assertRaises(OSError):
            for _ in range(10):
                self.connection.send_all(bytes(1 << 20))

    def test_attach(self) -> None:
        """A send buffer that does not grow; given up by the kernel after ten times the stall."""
        # 0 would be the system's default: minutes.
        for stall, milliseconds in ((1.5, 15_000), (1000, 3_600_000), (1e6, 10**9), (0.00001, 1)):
            self.connect(stall)
            sock = self.connection.sock
            self.connection.attach()
            self.assertEqual(sock.gettimeout(), 0)
            self.assertLessEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 2 * SEND_BUFFER)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), milliseconds)
            with mock.patch.object(self.connection, "sock", None):
                self.connection.attach()  # the next stream on this connection finds it done


class EndTests(ConnectionTestCase):
    def ends(self) -> type[BaseException] | bytes:
        """Close, and return what the client reads, or the error that it gets."""
        self.connection.close()
        try:
            return self.theirs_read_all()
        except OSError as error:
            return type(error)

    def test_close(self) -> None:
        """An ordinary end."""
        self.connection.send_all(b"ab")
        self.assertEqual(self.ends(), b"ab")

    def test_stream_that_is_not_whole(self) -> None:
        """Without chunks a stream that is not whole ends in a reset; with them its last chunk is what is missing."""
        self.connection.begin_stream(chunked=False)
        self.assertIs(self.ends(), ConnectionResetError)
        self.connect()
        self.connection.begin_stream(chunked=True)
        self.assertEqual(self.ends(), b"")

    def test_stream_that_is_whole(self) -> None:
        """A whole one ends as anything does."""
        for chunked in (False, True):
            self.connect()
            self.connection.begin_stream(chunked=chunked)
            self.connection.end_stream(chunked=chunked)
            self.assertEqual(self.ends(), b"")

    def test_close_gently(self) -> None:
        """What the client still sends is read and thrown away, so that no reset destroys the reply."""
        self.theirs.send(bytes(200_000))
        self.connection.send_all(b"no")
        closer = threading.Thread(target=self.connection.close_gently)
        closer.start()
        self.assertEqual(self.theirs.recv(10), b"no")
        self.assertEqual(self.theirs.recv(10), b"")
        self.theirs.send(bytes(200_000))
        self.theirs.shutdown(socket.SHUT_WR)
        closer.join()
        self.connection.close()
        self.assertEqual(self.theirs.recv(10), b"")

    def test_close_gently_is_bounded(self) -> None:
        """By a time and by a number of bytes, whatever the client does."""
        with mock.patch.object(connection, "LINGER_TIME", 10 * MS):
            self.connection.close_gently()
        self.connect()
        with mock.patch.object(connection, "LINGER_BYTES", 100_000):
            closer = threading.Thread(target=self.connection.close_gently)
            closer.start()
            eventually(lambda: self.send_more() or not closer.is_alive())

    def send_more(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.send(bytes(10_000))


class PeerAddressTests(unittest.TestCase):
    def test_peer_address(self) -> None:
        """An IPv4 client is one, whichever socket it came by; a zone is no part of who somebody is."""
        for told, expected in (
            (("192.0.2.1", 1), "192.0.2.1"),
            (("::ffff:192.0.2.1", 1, 0, 0), "192.0.2.1"),
            (("2001:db8::1", 1, 0, 0), "2001:db8::1"),
            (("fe80::1%eth0", 1, 0, 2), "fe80::1"),
            ("", ""),
            (b"", ""),
        ):
            with self.subTest(told):
                self.assertEqual(peer_address(told), expected)


if __name__ == "__main__":
    unittest.main()
