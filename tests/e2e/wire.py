"""What stands between a client and a server in these tests: a gate for events, a proxy that watches and cuts."""

from __future__ import annotations

import os
import re
import selectors
import socket
import socketserver
import struct
import tempfile
import threading
import unittest
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from tests import support
from tests.support import ServerProcess

GATED = Path(__file__).with_name("gated")
T = TypeVar("T")
CUT = re.compile(rb"^x-cut: *(\d+)", re.IGNORECASE | re.MULTILINE)


def need(found: object, reason: str) -> None:
    """Skip the test if what it needs is not there; fail it where nothing may be missing (E2E_ALL=1, as in CI)."""
    if not found:
        if os.environ.get("E2E_ALL"):
            raise AssertionError(f"E2E_ALL is set, but {reason}")
        raise unittest.SkipTest(reason)


class TestCase(support.TestCase):
    """With the `enterContext` of Python 3.11, for 3.10."""

    def hold(self, context: AbstractContextManager[T]) -> T:
        """Enter a context until the test is over."""
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    @classmethod
    def hold_for_class(cls, context: AbstractContextManager[T]) -> T:
        """Enter a context until all tests of the class are over."""
        value = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)
        return value


@contextmanager
def served(model: Path, *flags: str, patience: float = support.PATIENCE, **environment: str) -> Iterator[ServerProcess]:
    """Serve an app folder in a process of its own, which ends with the context even if it never gets ready."""
    server = ServerProcess(model, *flags, environment=environment)
    try:
        server.wait_until_ready(patience)
        yield server
    finally:
        server.__exit__()


class Gate:
    """The file that an app of `gated` waits for: as many events are let through as it holds bytes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, events: int) -> None:
        """Let this many events through in all; one more than there are lets the stream end."""
        if events > os.path.getsize(self.path):
            os.truncate(self.path, events)

    def shut(self) -> None:
        os.truncate(self.path, 0)


@contextmanager
def gate() -> Iterator[Gate]:
    with tempfile.NamedTemporaryFile() as file:
        yield Gate(file.name)


class Serving(socketserver.ThreadingTCPServer):
    """A server on a free port of this machine, `port`, that runs on a thread of its own inside its context."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.port: int = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self: T) -> T:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class Proxy(Serving):
    """A TCP proxy to `port` on this machine. `received` is all that came down through it.

    A request with the field `X-Cut: n` has its connection cut after n bytes of the response: by a close if n is even,
    by a reset if it is odd. `watch` is called with `received` whenever it grew, before the client has the news.
    """

    def __init__(self, port: int, watch: Callable[[bytes], None] = lambda received: None) -> None:
        super().__init__(Carrier)
        self.server_port = port
        self.watch = watch
        self.received = b""
        self.lock = threading.Lock()  # guards received

    def note(self, data: bytes) -> None:
        with self.lock:
            self.received += data
            self.watch(self.received)


class Carrier(socketserver.BaseRequestHandler):
    """One connection through the proxy."""

    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.server_port)) as upstream:
            try:
                self._carry(self.request, upstream)
            except OSError:
                pass  # either side went away: both connections end here

    def _carry(self, client: socket.socket, upstream: socket.socket) -> None:
        for sock in (client, upstream):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left: int | None = None  # how many bytes still go down before the cut
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(upstream, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is client:  # a request, whole: these clients send no bodies, and wait for answers
                        cut = CUT.search(data)
                        left = int(cut[1]) if cut else None
                        upstream.sendall(data)
                        continue
                    down = data if left is None else data[:left]
                    self.server.note(down)
                    client.sendall(down)
                    if left is not None:
                        left -= len(down)
                        if left == 0:
                            self._cut(client, int(cut[1]) if cut else 0)
                            return

    def _cut(self, client: socket.socket, after: int) -> None:
        if after % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def finish(self) -> None:
        self.request.close()  # before socketserver says goodbye with a FIN, which would come ahead of the reset
