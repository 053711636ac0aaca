"""Behind nginx and haproxy: what a proxy sees as one request is one to us, and a drain behind it loses nothing.

Every case of the corpus goes through a proxy that shares its connections to us among its clients. The proxy puts an id
of its own into each request that it sees; what goes over each connection to us is recorded, and each id must have one
answer, in its place. An id that is not the proxy's would be a request that only we saw.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import socket
import socketserver
import threading
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from tests.corpus import CASES, Case
from tests.e2e.proxies import Haproxy, Nginx, ProxyProcess, UnixClient
from tests.e2e.wire import Serving, TestCase, served
from tests.fuzz import reference
from tests.support import PATIENCE, ROOT, eventually, serving
from tests.test_corpus import Answer, NoAnswerError, parse_answers

AT_ONCE = 8  # connections
PROXY_ID = re.compile(rb"px-[0-9a-f-]{32,36}")
SILENCE = "1s"  # how long a proxy waits for the rest of what a client sends


class Recorder(Serving):
    """Carries bytes between a proxy and `port`, and keeps what went up and what came down, connection by connection."""

    def __init__(self, port: int) -> None:
        super().__init__(Carrier)
        self.server_port = port
        self.records: list[tuple[bytearray, bytearray]] = []
        self.running = 0
        self.lock = threading.Lock()  # guards running


class Carrier(socketserver.BaseRequestHandler):
    """One connection of the proxy's to us."""

    server: Recorder

    def handle(self) -> None:
        up, down = bytearray(), bytearray()
        self.server.records.append((up, down))
        with self.server.lock:
            self.server.running += 1
        with socket.create_connection(("127.0.0.1", self.server.server_port)) as sock:
            other = threading.Thread(target=self._copy, args=(sock, self.request, down), daemon=True)
            other.start()
            self._copy(self.request, sock, up)
            other.join()
        with self.server.lock:
            self.server.running -= 1

    def _copy(self, source: socket.socket, target: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                record += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def converse(path: str, data: bytes) -> bytes:
    """Send data to a proxy and the end of the connection; return all that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                received += part
        return received


class Differential(TestCase):
    """The corpus through one proxy; its subclasses say which."""

    proxy: ClassVar[Callable[[int], ProxyProcess]]
    shares = True  # whether the proxy uses a connection to us for several requests

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.hold_for_class(serving(lambda inputs: {"OUT": inputs["TEXT"]}, streaming=False))
        cls.recorder = cls.hold_for_class(Recorder(cls.server.port))
        cls.process = cls.hold_for_class(cls.proxy(cls.recorder.port))
        numbers = itertools.count()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            cls.victims = list(pool.map(lambda case: cls.attack(case, next(numbers)), CASES))
        cls.process.process.terminate()
        cls.process.process.wait(PATIENCE)
        eventually(lambda: cls.recorder.running == 0, what="the proxy's connections end")
        cls.seen = sum(len(PROXY_ID.findall(up)) for up, _ in cls.recorder.records)

    @classmethod
    def attack(cls, case: Case, number: int) -> tuple[str, bytes, bytes]:
        """Send a case, then somebody else's request; return the latter's path and answer."""
        converse(cls.process.socket, case.data)
        path = b"/victim-%d" % number
        head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
        return case.name, path, converse(cls.process.socket, head)

    def test_one_request_is_one_request(self) -> None:
        """On each connection each of the proxy's requests has one answer, in its place, and nothing else has any."""
        for up, down in self.recorder.records:
            with self.subTest(up=bytes(up[:400]), down=bytes(down[:400])):
                sent = [identity.decode() for identity in PROXY_ID.findall(up)]
                answers = self.answers_on(bytes(up), bytes(down))
                ids = [answer.fields["x-request-id"] for answer in answers]
                # What could not be read has an id of ours; its answer is the last.
                unread = bool(answers) and not ids[-1].startswith("px-") and answers[-1].status >= 400
                self.assertEqual(ids[: len(ids) - unread], sent[: len(ids) - unread])
                self.assertLessEqual(len(answers), len(sent))

    def test_the_reference_agrees(self) -> None:
        """What the proxy sends is to the second reader as many requests as to the proxy."""
        for up, _ in self.recorder.records:
            with self.subTest(up=bytes(up[:400])):
                requests, end = reference.read_requests(bytes(up), 2**60)
                if end == "incomplete":
                    started = len(PROXY_ID.findall(up[requests[-1].end if requests else 0 :]))
                    self.assertEqual(len(requests) + started, len(PROXY_ID.findall(up)))
                    self.assertLessEqual(started, 1)

    def test_nobody_else_is_hurt(self) -> None:
        """After each case another client's request gets its own answer."""
        for name, path, received in self.victims:
            with self.subTest(name):
                (answer,) = parse_answers(received)
                self.assertEqual(answer.status, 404)
                self.assertIn(path, answer.body)

    def test_it_was_a_test(self) -> None:
        """Much of the corpus gets through the proxy, and where it shares connections, they were shared."""
        self.assertGreater(self.seen, len(CASES) * 1.2)
        if self.shares:
            self.assertLess(len(self.recorder.records), self.seen * 0.7)

    def answers_on(self, up: bytes, down: bytes) -> list[Answer]:
        """Return the final answers on a connection; which are to HEAD, the requests say, each in front of its id."""
        requests, _ = reference.read_requests(up, 2**60)
        heads = {place for place, request in enumerate(requests) if request.method == b"HEAD"}
        if up[requests[-1].end if requests else 0 :].startswith(b"HEAD "):
            heads.add(len(requests))
        try:
            return [answer for answer in parse_answers(down, heads) if answer.status >= 200]
        except NoAnswerError as error:
            return self.fail(str(error))


NGINX = (
    "proxy_set_header X-Request-Id px-$request_id; proxy_next_upstream off; client_max_body_size 0; "
    f"proxy_ignore_client_abort on; client_body_timeout {SILENCE}; lingering_timeout {SILENCE}; "
)


class NginxTests(Differential):
    """nginx as it comes: HTTP/1.0 towards us, a connection for each request."""

    shares = False

    @staticmethod
    def proxy(port: int) -> ProxyProcess:
        return Nginx([port], NGINX)


class NginxKeepaliveTests(Differential):
    """nginx over HTTP/1.1, on connections that it keeps; bodies are passed on as they come, chunked ones in chunks."""

    @staticmethod
    def proxy(port: int) -> ProxyProcess:
        settings = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off; '
        return Nginx([port], NGINX + settings, keepalive=4)


class HaproxyTests(Differential):
    """haproxy as it comes, but that any client's request may go over any connection."""

    settings = "http-reuse always"

    @classmethod
    def proxy(cls, port: int) -> ProxyProcess:
        return Haproxy([port], cls.settings, rules="http-request set-header X-Request-Id px-%[uuid]", timeout=SILENCE)


class LenientHaproxyTests(HaproxyTests):
    """haproxy that is told to pass on what it would refuse."""

    settings = "http-reuse always\n    option accept-invalid-http-request"


del Differential  # or its tests would run without a proxy


class DrainTests(TestCase):
    """Two servers behind nginx, of which one is told to end."""

    SETTINGS = (
        "proxy_next_upstream error timeout http_503 non_idempotent; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_buffering off;'
    )

    def test_drain_loses_nothing(self) -> None:
        """While one of two servers drains and ends, every request is answered in full by one of them."""
        servers = [self.hold(served(ROOT / "models" / "echo", "--drain", "30s")) for _ in range(2)]
        nginx = self.hold(Nginx([server.port for server in servers], self.SETTINGS, keepalive=8))
        done: list[tuple[int, bool, str | None]] = []

        def post(number: int) -> None:
            body = {"TEXT": f"request {number} has some words", "PAUSE_MS": 5}
            with UnixClient(nginx.socket) as client:
                response = client.request("POST", "/infer", body).read()
            last = response.events[-1].event if response.status == 200 else None
            done.append((response.status, response.complete, last))

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(post, number) for number in range(150)]
            eventually(lambda: len(done) >= 30, what="a fifth is done")
            servers[0].process.send_signal(signal.SIGTERM)
            for future in asked:
                future.result()
        self.assertEqual(done, [(200, True, "done")] * 150)
        self.assertEqual(servers[0].process.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
