"""TLS: what a certificate may be, handshakes that fail, how streams end, and all that plain connections do, again."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import app
from inferless_shim.app import Server
from inferless_shim.config import Settings
from inferless_shim.errors import StartupError
from inferless_shim.tls import EARLY, RECORD, Certificate, TlsConnection, read_certificate
from tests import test_app, test_handler, test_resume
from tests.certificates import NEEDED, OPENSSL, OverTls, Pair, make_pair, openssl, shared_pair, trusting
from tests.support import (
    MS,
    ROOT,
    Client,
    FakeApp,
    Puppet,
    Response,
    ServerProcess,
    TestCase,
    ask,
    eventually,
    request_bytes,
    serving,
    words,
)

NEVER = 60.0  # seconds: a wait that a test expects to end for another reason


@unittest.skipUnless(OPENSSL, NEEDED)
class CertificateTests(TestCase):
    """What may be in the two files, and what is said of what may not."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.pair = shared_pair()

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def refused(self, chain: Path | None, key: Path | None) -> str:
        """Return what is said at the start."""
        with self.assertRaises(StartupError) as raised:
            read_certificate(Settings(tls_cert=chain, tls_key=key))
        told = str(raised.exception)
        for path in (chain, key):
            if path is not None and path.is_file():
                for line in path.read_text("latin-1").splitlines():
                    self.assertNotIn(line or "nothing", told)
        return told

    def test_good(self) -> None:
        """Any PEM pair: a chain of several, a key of an old form, both in one file."""
        both = self.write("both.pem", self.pair.key.read_bytes() + self.pair.chain.read_bytes())
        other = make_pair(self.folder, "other")
        chain = self.write("chain.pem", self.pair.chain.read_bytes() + other.chain.read_bytes())
        old = self.folder / "old.key"
        openssl("ec", "-in", self.pair.key, "-out", old)
        for pair in (self.pair, Pair(both, both), Pair(chain, self.pair.key), Pair(self.pair.chain, old)):
            read_certificate(Settings(tls_cert=pair.chain, tls_key=pair.key))

    def test_one_alone(self) -> None:
        """One flag without the other is a mistake, which plain HTTP in its place would hide."""
        for chain, key in ((self.pair.chain, None), (None, self.pair.key)):
            self.assertIn("belong together", self.refused(chain, key))

    def test_unreadable(self) -> None:
        """A file that is not there, or that cannot be read, is named with its flag and the reason."""
        nowhere = self.folder / "nowhere"
        self.assertRegex(self.refused(nowhere, self.pair.key), "--tls-cert: cannot read .*nowhere: No such file")
        self.assertRegex(self.refused(self.pair.chain, nowhere), "--tls-key: cannot read .*nowhere: No such file")
        self.assertRegex(self.refused(self.pair.chain, self.folder), "--tls-key: cannot read .*: Is a directory")
        with mock.patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Permission denied")):
            self.assertRegex(self.refused(self.pair.chain, self.pair.key), "cannot read .*: Permission denied")

    def test_exchanged(self) -> None:
        """A file that holds something else than it is for is named."""
        self.assertIn("--tls-cert: there is no certificate in", self.refused(self.pair.key, self.pair.chain))
        self.assertIn("--tls-key: there is no private key in", self.refused(self.pair.chain, self.pair.chain))
        empty = self.write("empty", b"")
        self.assertIn("--tls-key: there is no private key in", self.refused(self.pair.chain, empty))

    def test_damaged(self) -> None:
        """What looks like PEM and is none is refused."""
        for at in (0, 1):
            files = [path.read_bytes() for path in self.pair]
            lines = files[at].splitlines(keepends=True)
            files[at] = b"".join([lines[0], lines[1].swapcase(), *lines[2:]])
            paths = [self.write(f"{at}{number}", content) for number, content in enumerate(files)]
            self.assertIn("OpenSSL takes neither", self.refused(*paths))

    def test_mismatch(self) -> None:
        """Another certificate's key is refused."""
        other = make_pair(self.folder, "other")
        self.assertIn("is not the key of the certificate", self.refused(self.pair.chain, other.key))

    def test_encrypted_key(self) -> None:
        """A key with a password is refused with the remedy; OpenSSL would ask for it on the terminal and wait."""
        locked = self.folder / "locked.key"
        openssl("pkey", "-in", self.pair.key, "-aes256", "-passout", "pass:secret", "-out", locked)
        self.assertRegex(self.refused(self.pair.chain, locked), "is encrypted; .*openssl pkey")

    def test_server_does_not_start(self) -> None:
        """The server says so before it listens."""
        with self.assertRaisesRegex(StartupError, "belong together"):
            Server(Settings(port=0, tls_cert=self.pair.chain), FakeApp(words))  # type: ignore[arg-type]

    def test_reload(self) -> None:
        """New files are for new connections; those that are there go on with the old ones."""
        first, second = make_pair(self.folder, "first"), make_pair(self.folder, "second")
        live = Pair(self.write("live.pem", first.chain.read_bytes()), self.write("live.key", first.key.read_bytes()))
        with serving(words, tls_cert=live.chain, tls_key=live.key) as server:
            (reload,) = server.service.reload
            with mock.patch.object(Client, "tls", trusting(first.chain)), Client(server.port) as old:
                self.assertEqual(old.request("GET", "/v2").read().status, 200)
                live.chain.write_bytes(second.chain.read_bytes())
                with self.assertLogs("inferless_shim.tls", "ERROR") as logs:
                    reload()  # between the two copies of somebody who renews
                self.assertRegex(logs.output[0], "old certificate stays .* is not the key")
                self.assertEqual(ask(server.port, "GET", "/v2").status, 200)
                live.key.write_bytes(second.key.read_bytes())
                with self.assertLogs("inferless_shim.tls", "INFO"):
                    reload()
                with self.assertRaises(ssl.SSLCertVerificationError):
                    Client(server.port)
                self.assertEqual(old.request("GET", "/v2").read().status, 200)
            with mock.patch.object(Client, "tls", trusting(second.chain)):
                self.assertEqual(ask(server.port, "GET", "/v2").status, 200)

    def test_curl_flags(self) -> None:
        """curl is told to trust the certificate where that is for this address, and else not to look."""
        self.assertEqual(Certificate(*self.pair).curl_flags("127.0.0.1"), ["--cacert", str(self.pair.chain)])
        self.assertEqual(Certificate(*self.pair).curl_flags("::1"), ["--insecure"])
        other = make_pair(self.folder, "other", names="DNS:example.org")
        self.assertEqual(Certificate(*other).curl_flags("127.0.0.1"), ["--insecure"])


class TlsTestCase(OverTls, TestCase):
    def raw(self, server: Server) -> socket.socket:
        """Connect without TLS."""
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=NEVER)
        self.addCleanup(sock.close)
        return sock


class HandshakeTests(TlsTestCase):
    def test_plain_http(self) -> None:
        """A plain request is closed without a reset, with one line in the log that says what to do instead."""
        server = self.serve(words)
        sock = self.raw(server)
        with self.assertLogs("inferless_shim", logging.DEBUG) as logs:
            sock.sendall(request_bytes("POST", "/infer", {"TEXT": "x" * 100_000}))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass  # an alert
        (told,) = [record for record in logs.records if record.levelno >= logging.INFO]
        self.assertEqual((told.levelno, told.exc_info), (logging.INFO, None))
        self.assertRegex(told.getMessage(), "127.0.0.1: it speaks plain HTTP; call https://")

    def test_garbage(self) -> None:
        """So is whatever else is no TLS; nothing of it is in the log."""
        server = self.serve(words)
        for garbage in (b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00nonsense" + bytes(600)):
            with self.subTest(garbage[:10]), self.assertLogs("inferless_shim.tls", logging.INFO) as logs:
                sock = self.raw(server)
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass  # an alert
            self.assertEqual(len(logs.output), 1)
            self.assertNotIn("nonsense", logs.output[0])

    def test_probe(self) -> None:
        """Who only looks whether the port is open is not worth a line."""
        server = self.serve(words)
        for reset in (False, True):
            with self.assertLogs("inferless_shim", logging.DEBUG) as logs:
                sock = self.raw(server)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                eventually(lambda logs=logs: "connection ended" in "".join(logs.output))
            self.assertEqual([line for line in logs.output if not line.startswith("DEBUG")], [])

    def test_deadline(self) -> None:
        """A handshake that does not come, or not to its end, holds a thread for `read_timeout`, and nobody else."""
        server = self.serve(words, read_timeout=100 * MS)
        for begin in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with self.subTest(begin), self.assertLogs("inferless_shim.tls", logging.INFO) as logs:
                sock = self.raw(server)
                sock.sendall(begin)
                self.assertEqual(sock.recv(10), b"")
            self.assertIn("handshake did not come in time", logs.output[0])

    def test_silence_after_it(self) -> None:
        """The first head has what the handshake has left of `read_timeout`."""
        server = self.serve(words, read_timeout=100 * MS)
        with Client(server.port) as client:
            self.assertEqual(client.read_some(), b"")

    def test_drain(self) -> None:
        """A drain does not wait for a handshake."""
        server = self.serve(words, read_timeout=NEVER)
        sock = self.raw(server)
        eventually(lambda: [handler for handler in server._handlers if handler.reader.waiting])
        with mock.patch.object(app, "FLUSH_TIME", NEVER):
            server.drain()
        self.assertEqual(sock.recv(10), b"")

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 are spoken, and nothing before (RFC 8996)."""
        port = self.serve(words).port
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(shared_pair().chain)
            context.minimum_version = context.maximum_version = version
            with mock.patch.object(Client, "tls", context):
                response = ask(port, "POST", "/infer", {"TEXT": "a b"})
                self.assertEqual([event.event for event in response.events], [None, None, "done"])
        context = trusting(shared_pair().chain)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with self.assertWarns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with mock.patch.object(Client, "tls", context), self.assertRaises((ssl.SSLError, ConnectionError)):
            Client(port)

    def test_alpn(self) -> None:
        """A client that also speaks HTTP/2 is told that this is HTTP/1.1."""
        context = trusting(shared_pair().chain)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with mock.patch.object(Client, "tls", context), Client(self.serve(words).port) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            self.assertEqual(client.sock.selected_alpn_protocol(), "http/1.1")
            self.assertIsNone(client.sock.compression())

    def test_url(self) -> None:
        """The server's address says https, and what curl needs."""
        server = self.serve(words)
        self.assertEqual(server.url, f"https://127.0.0.1:{server.port}")
        self.assertEqual(server.curl_flags, ["--cacert", str(shared_pair().chain)])

    def test_cap(self) -> None:
        """Past the cap a connection is closed without a word: a word would take a handshake."""
        server = self.serve(words, max_connections=1)
        with Client(server.port) as client:
            client.request("GET", "/v2").read()
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                Client(server.port)
            self.assertEqual(client.request("GET", "/v2").read().status, 200)


class EndTests(TlsTestCase):
    """close_notify says that all has come, and nothing else does (RFC 8446 §6.1)."""

    def ends_well(self, client: Client) -> bool:
        """Read to the end; tell whether it was said to be one."""
        try:
            while client.sock.recv(65536):
                pass
        except (ssl.SSLError, ConnectionError):
            return False
        return True

    def test_whole(self) -> None:
        """A reply, a refusal, and a stream that is whole, over both versions of HTTP."""
        port = self.serve(words).port
        close = {"Connection": "close"}
        for request in (
            request_bytes("GET", "/v2", None, close),
            request_bytes("GET", "/nothing", None, close),
            request_bytes("POST", "/nothing", b"x" * 100_000),
            request_bytes("POST", "/infer", {"TEXT": "a"}, close),
            request_bytes("POST", "/infer", {"TEXT": "a"}, version="1.0"),
        ):
            with self.subTest(request[:40]), Client(port) as client:
                client.send(request)
                self.assertTrue(self.ends_well(client))

    def test_broken(self) -> None:
        """A stream that is not whole has no close_notify; over HTTP/1.0, where the end is all there is, it is reset."""
        puppet = Puppet()
        server = self.serve(puppet.infer, stall=50 * MS)
        for version in ("1.1", "1.0"):
            with self.subTest(version), Client(server.port) as client:
                response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                puppet.send(OUT="a")
                next(response.chunks())
                (handler,) = server._handlers
                handler.reader.end_if_waiting(new=True)  # nothing: it doesn't wait
                handler.connection.end_reading()  # as if the client had gone
                if version == "1.0":
                    with self.assertRaises(ConnectionResetError):
                        while socket.socket.recv(client.sock, 65536):  # OpenSSL may call a reset something else
                            pass
                else:
                    self.assertFalse(self.ends_well(client))
                puppet.end()
                eventually(lambda: not server._handlers)

    def test_client_says_goodbye(self) -> None:
        """A client's close_notify while a stream runs means that it has gone, as its TCP end does."""
        puppet = Puppet()
        server = self.serve(puppet.infer)
        with Client(server.port) as client:
            client.request("POST", "/infer", {"TEXT": ""})
            assert isinstance(client.sock, ssl.SSLSocket)
            client.sock.setblocking(False)
            with contextlib.suppress(ssl.SSLError):  # the server's own is not waited for, and does not come
                client.sock.unwrap()
            eventually(lambda: not server._handlers)

    def test_next_requests_while_a_stream_runs(self) -> None:
        """What comes meanwhile is bounded, is answered afterwards, in order, and does not keep the thread busy."""
        puppet = Puppet()
        server = self.serve(puppet.infer)
        with Client(server.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            bodies = [b"%d" % number + b" " * 100_000 for number in range(3)]
            more = b"".join(request_bytes("PUT", "/v2", body) for body in bodies) + request_bytes("GET", "/v2")
            half = len(more) // 4
            client.send(more[:half])
            (handler,) = server._handlers
            connection = handler.connection
            assert isinstance(connection, TlsConnection)
            eventually(lambda: len(connection._early) == EARLY)
            self.assertEqual(connection.awaited(writable=False), 0)
            puppet.send(OUT="a")
            puppet.end()
            self.assertTrue(response.read().complete)
            client.send(more[half:])
            self.assertEqual(Response(client).read().status, 405)


class FakeTls:
    """An SSLSocket that does what its script says: a number of bytes taken, or an error; then it takes all."""

    def __init__(self, *script: int | Exception) -> None:
        self.script = list(script)
        self.given: list[bytes] = []
        self.sent = b""

    def send(self, data: bytes) -> int:
        self.given.append(data)
        step = self.script.pop(0) if self.script else len(data)
        if isinstance(step, Exception):
            raise step
        self.sent += data[:step]
        return step

    def recv(self, size: int) -> bytes:
        step = self.script.pop(0) if self.script else ssl.SSLWantReadError()
        if isinstance(step, Exception):
            raise step
        return b"x" * min(step, size)

    def pending(self) -> int:
        return 0

    def unwrap(self) -> None:
        self.sent += b"close_notify"

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class SendTests(TestCase):
    """What OpenSSL asks of who sends on a socket that does not block."""

    def connection(self, *script: int | Exception) -> TlsConnection:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        made = TlsConnection(ours, "", NEVER, None)  # type: ignore[arg-type]
        self.fake = made.sock = FakeTls(*script)  # type: ignore[assignment]
        return made

    def test_records(self) -> None:
        """More than a record is sent in several of at most 16 KiB, all in one go if they fit."""
        made = self.connection()
        data = os.urandom(3 * RECORD + 5)
        self.assertEqual(made.send(data), len(data))
        self.assertEqual(self.fake.sent, data)
        self.assertEqual([len(each) for each in self.fake.given], [RECORD] * 3 + [5])

    def test_same_bytes_again(self) -> None:
        """After a refusal the very same object is tried first, whatever is given: another corrupts the record."""
        made = self.connection(RECORD, ssl.SSLWantWriteError(), ssl.SSLWantWriteError())
        data = os.urandom(2 * RECORD)
        self.assertEqual(made.send(data), RECORD)
        with self.assertRaises(BlockingIOError):
            made.send(memoryview(data)[RECORD:])
        longer = bytearray(data[RECORD:] + b"more")
        self.assertEqual(made.send(longer), RECORD + 4)
        _, *again, last = self.fake.given
        self.assertEqual({id(each) for each in again}, {id(again[0])})
        self.assertEqual((len(again), bytes(last)), (3, b"more"))
        self.assertEqual(self.fake.sent, data + b"more")

    def test_what_is_waited_for(self) -> None:
        """A refusal says what must come before the next try; once that is over, room to write."""
        made = self.connection(ssl.SSLWantReadError(), ssl.SSLWantWriteError())
        for error, expected in ((True, 0), (True, select.POLLOUT), (False, select.POLLOUT)):
            with contextlib.suppress(BlockingIOError):
                made.send(b"x")
                self.assertFalse(error)
            self.assertEqual(made.awaited(writable=True), select.POLLIN | expected)
            self.assertEqual(made.awaited(writable=False), select.POLLIN)

    def test_no_end_in_the_middle(self) -> None:
        """A close in the middle of a record says nothing of an end; nor does one of a stream that is not whole."""
        made = self.connection(ssl.SSLWantWriteError())
        made._whole = True
        with contextlib.suppress(BlockingIOError):
            made.send(b"x")
        made.close()
        self.assertEqual(self.fake.sent, b"")
        made = self.connection()
        made.end_stream(chunked=True)
        made.begin_stream(chunked=True)
        made.close()
        self.assertEqual(self.fake.sent, b"")
        made.end_stream(chunked=True)
        made.close()
        made.close()
        self.assertEqual(self.fake.sent, b"close_notify")

    def test_take_in(self) -> None:
        """What comes while a stream is followed is kept up to a bound, and read before anything else."""
        made = self.connection(1000, 2000, ssl.SSLWantReadError(), EARLY)
        self.assertTrue(made.take_in(0))
        self.assertTrue(made.take_in(select.POLLIN))
        self.assertEqual(len(made._early), 3000)
        self.assertTrue(made.take_in(select.POLLIN))
        self.assertEqual(made.awaited(writable=False), 0)
        self.assertEqual(made.receive(0), b"x" * EARLY)
        self.assertEqual(made.awaited(writable=False), select.POLLIN)
        with self.assertRaises(TimeoutError):
            made.receive(0)

    def test_take_in_of_the_end(self) -> None:
        """An end, an error, and bytes that could only be read to send on are the client's end; it is told once."""
        for step in (0, ssl.SSLError(), ConnectionResetError()):
            made = self.connection(10, step)
            self.assertFalse(made.take_in(select.POLLIN))
            self.assertEqual(made.awaited(writable=False), 0)
            self.assertEqual(made.receive(0), b"x" * 10)
        made = self.connection(ssl.SSLWantReadError(), EARLY)
        with self.assertRaises(BlockingIOError):
            made.send(b"x")
        self.assertFalse(made.take_in(select.POLLIN))


@unittest.skipUnless(OPENSSL, NEEDED)
class ProcessTests(TestCase):
    """A server in a process of its own."""

    def test_start(self) -> None:
        """It prints an https address and a curl line that works; SIGHUP has the certificate read again."""
        with tempfile.TemporaryDirectory() as folder:
            pair = make_pair(Path(folder))
            flags = ("--tls-cert", str(pair.chain), "--tls-key", str(pair.key))
            with ServerProcess(ROOT / "models" / "echo", *flags) as server:
                self.assertIn("is ready on https://127.0.0.1:", server.log)
                line = eventually(lambda: server.log.partition("try:  ")[2].partition("\n")[0])
                if shutil.which("curl"):
                    done = subprocess.run(line, shell=True, capture_output=True, timeout=NEVER, check=False)
                    self.assertEqual((done.returncode, b"event: done" in done.stdout), (0, True), done.stderr)
                other = make_pair(Path(folder))
                server.process.send_signal(signal.SIGHUP)
                eventually(lambda: "the certificate was read again" in server.log)
                with mock.patch.object(Client, "tls", trusting(other.chain)):
                    self.assertEqual(ask(server.port, "GET", "/v2").status, 200)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(NEVER), 0)

    def test_start_that_fails(self) -> None:
        """A key that cannot be used is exit 2 with a sentence, and no traceback."""
        with self.assertRaises(AssertionError) as raised:
            ServerProcess(ROOT / "models" / "echo", "--tls-cert", str(shared_pair().chain)).__enter__()
        self.assertIn("error: --tls-cert and --tls-key belong together", str(raised.exception))
        self.assertNotIn("Traceback", str(raised.exception))


# ---- What plain connections do, again


class ConnectionTests(OverTls, test_handler.ConnectionTests):
    pass


class ContinueTests(OverTls, test_handler.ContinueTests):
    pass


class DeadlineTests(OverTls, test_handler.DeadlineTests):
    pass


class AnswerTests(OverTls, test_handler.AnswerTests):
    pass


class BrokenStreamTests(OverTls, test_handler.BrokenStreamTests):
    pass


class SlowClientTests(OverTls, test_handler.SlowClientTests):
    pass


class DisconnectTests(OverTls, test_handler.DisconnectTests):
    pass


class LeakTests(OverTls, test_handler.LeakTests):
    pass


class HeartbeatTests(OverTls, test_handler.HeartbeatTests):
    pass


class DrainTests(OverTls, test_app.DrainTests):
    pass


class ResumeTests(OverTls, test_resume.ResumeTests):
    pass


class EveryByteTests(OverTls, test_resume.EveryByteTests):
    pass


if __name__ == "__main__":
    unittest.main()
