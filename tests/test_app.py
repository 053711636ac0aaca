"""The server as a whole: where it listens, how many it lets in, how it keeps time, and how it drains."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
import unittest
from typing import Any
from unittest import mock

from inferless_shim import app, refusals
from inferless_shim.app import Server, fit_descriptors, wait_until
from inferless_shim.config import Settings
from inferless_shim.errors import StartupError
from inferless_shim.service import Phase
from inferless_shim.values import networks
from tests.support import (
    MS,
    Client,
    FakeApp,
    Puppet,
    Response,
    TestCase,
    ask,
    eventually,
    request_bytes,
    serving,
    words,
)
from tests.test_store import FakeArchive


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


class ListenTests(TestCase):
    """Where it listens."""

    def make(self, **settings: Any) -> Server:
        server = Server(Settings(**settings), FakeApp(words))  # type: ignore[arg-type]
        self.addCleanup(server.server_close)
        return server

    def test_free_port(self) -> None:
        """Port 0 is one that the system chooses; the URL names it."""
        server = self.make(port=0)
        self.assertGreater(server.port, 0)
        self.assertEqual(server.url, f"http://127.0.0.1:{server.port}")

    def test_url_of_every_address(self) -> None:
        """An address that is every address is called by the loopback's."""
        server = self.make(host="0.0.0.0", port=0)
        self.assertEqual(server.url, f"http://127.0.0.1:{server.port}")

    @unittest.skipUnless(has_ipv6(), "needs IPv6")
    def test_ipv6(self) -> None:
        """`::` takes IPv4 and IPv6; a URL has its address in brackets."""
        with serving(words, host="::") as server:
            self.assertEqual(server.url, f"http://[::1]:{server.port}")
            self.assertEqual(ask(server.port, "GET", "/v2").status, 200)
            with socket.create_connection(("::1", server.port)) as sock:
                sock.sendall(request_bytes("GET", "/v2"))
                self.assertTrue(sock.recv(100).startswith(b"HTTP/1.1 200 OK"))
        self.assertEqual(self.make(host="::1", port=0).url[:13], "http://[::1]:")

    def test_taken_port(self) -> None:
        """A port in use is said so, with the remedy, before anything is loaded."""
        port = self.make(port=0).port
        with self.assertRaisesRegex(StartupError, rf"Cannot listen on 127\.0\.0\.1 port {port}: .*--port"):
            self.make(port=port)

    def test_bad_address(self) -> None:
        """An address that is none is said so; what went wrong: some failed with a UnicodeError and a traceback."""
        for host in ("nowhere.invalid", "203.0.113.1", "a..b", "x" * 70, "", "b\xfccher.invalid", "::1::"):
            with self.subTest(host), self.assertRaisesRegex(StartupError, "Cannot listen on .*--host"):
                self.make(host=host, port=0)

    def test_who_is_connected_when_the_listener_closes(self) -> None:
        """What went wrong: who had connected, but was not accepted yet, had a POST reset that might have been begun."""
        server = self.serve(words)
        server.shutdown()  # nobody accepts any more
        port = server.port
        with Client(port) as first, Client(port) as second:
            for client in (first, second):
                client.send(request_bytes("GET", "/v2/health/live"))
            server.server_close()
            for client in (first, second):
                self.assertEqual(Response(client).status, 200)
        with self.assertRaises(ConnectionRefusedError):
            Client(port)

    def test_no_name_lookup(self) -> None:
        """Listening asks no name server who we are (http.server does, which can take half a minute)."""
        with (
            mock.patch("socket.getfqdn", side_effect=AssertionError),
            mock.patch("socket.gethostbyaddr", side_effect=AssertionError),
        ):
            self.make(port=0)


class ConnectionTests(TestCase):
    """How many it lets in."""

    def test_cap(self) -> None:
        """Past --max-connections a connection is told 503 in JSON, with Retry-After, and closed; then there is room."""
        with serving(words, max_connections=2) as server:
            with Client(server.port) as one, Client(server.port) as two:
                for client in (one, two):
                    client.request("GET", "/v2").read()
                for _ in range(3):
                    with Client(server.port) as client:
                        response = Response(client).read()  # at once: it need not even ask
                        self.assertEqual(response.status, 503)
                        self.assertEqual(response.fields["connection"], "close")
                        self.assertEqual(response.fields["retry-after"], "2")
                        self.assertIn("--max-connections", response.json["error"])
                        self.assertEqual(client.read_some(), b"")
                self.assertEqual(one.request("GET", "/v2").read().status, 200)
            eventually(lambda: not server._handlers)
            self.assertEqual(ask(server.port, "GET", "/v2").status, 200)

    def test_cap_and_a_client_that_asks_at_once(self) -> None:
        """A client that has sent its request reads the 503, not a reset: what it sent was read before the close.

        What went wrong: closed with a request unread, a socket resets, and that destroyed the reply on its way.
        """
        for rounds in range(3):
            with (
                serving(words, max_connections=1) as server,
                Client(server.port) as client,
                mock.patch.object(refusals, "STAY", 60 if rounds else 20 * MS),
                mock.patch.object(refusals, "MOST", 3),
            ):
                client.request("GET", "/v2").read()
                others = [Client(server.port) for _ in range(8)]
                for other in others:
                    other.send(request_bytes("POST", "/infer", {"TEXT": "x" * 10_000}))
                for other in others:
                    with other:
                        self.assertEqual(Response(other).read().status, 503)
                        self.assertEqual(other.read_some(), b"")
            self.assertEqual(len(server._refusals._told), 0)

    def test_cap_for_each_client(self) -> None:
        """Past --max-connections-per-client an address is told 503 and closed, and another is let in."""
        with serving(words, max_connections_per_client=2) as server:
            with Client(server.port) as one, Client(server.port) as two, Client(server.port) as three:
                for client in (one, two):
                    client.request("GET", "/v2").read()
                response = Response(three).read()
                self.assertEqual((response.status, response.fields["connection"]), (503, "close"))
                self.assertIn("--max-connections-per-client", response.json["error"])
                with socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0)) as other:
                    other.sendall(request_bytes("GET", "/v2"))
                    self.assertTrue(other.recv(100).startswith(b"HTTP/1.1 200 OK"))
            eventually(lambda: not server.service.clients._present)
            self.assertEqual(ask(server.port, "GET", "/v2").status, 200)

    def test_cap_for_each_client_of_a_proxy(self) -> None:
        """A trusted proxy has as many connections as it likes; who it speaks for has so many requests at once."""
        puppet = Puppet()
        proxy = networks("127.0.0.1")
        with serving(puppet.infer, max_connections_per_client=1, trusted_proxy=proxy) as server:
            port = server.port
            with Client(port) as first, Client(port) as second:
                known = {"X-Forwarded-For": "192.0.2.1"}
                stream = first.request("POST", "/infer", {"TEXT": ""}, known)
                refused = second.request("GET", "/v2", None, known).read()
                self.assertEqual(refused.status, 503)
                self.assertIn("--max-connections-per-client", refused.json["error"])
                self.assertEqual(
                    second.request("GET", "/v2", None, {"X-Forwarded-For": "192.0.2.2"}).read().status, 200
                )
                puppet.end()
                self.assertTrue(stream.read().complete)
                # The end of an answer is read before the server has noted it.
                eventually(lambda: second.request("GET", "/v2", None, known).read().status == 200)
            eventually(lambda: not server.service.clients._present)

    def test_cap_and_a_client_that_left(self) -> None:
        """Whoever has left before he could be told costs no traceback."""
        with serving(words, max_connections=1) as server, Client(server.port) as client:
            client.request("GET", "/v2").read()
            ours, theirs = socket.socketpair()
            theirs.close()
            quiet = self.assertNoLogs("inferless_shim.app", "WARNING")
            with mock.patch.object(app.socket, "IPPROTO_TCP", socket.SOL_SOCKET), quiet:
                server.process_request(ours, "")
            eventually(lambda: ours.fileno() == -1)

    def test_thread_that_does_not_start(self) -> None:
        """A connection for which there is no thread is dropped with a line in the log, and does not count for ever."""
        with serving(words, max_connections=1) as server:
            with (
                mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
                self.assertLogs("inferless_shim.app", "WARNING") as logs,
                Client(server.port) as client,
            ):
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(client.read_some(), b"")
                eventually(lambda: logs.output)
            self.assertEqual(ask(server.port, "GET", "/v2").status, 200)

    def test_no_descriptors_left(self) -> None:
        """Without descriptors it pauses between two tries, says so once, and goes on when there are some."""
        exhausted = OSError(errno.EMFILE, "Too many open files")
        with serving(words) as server:
            accept = server.socket
            failing = mock.Mock(wraps=accept)
            failing.accept.side_effect = exhausted
            failing.fileno = accept.fileno
            with (
                mock.patch.object(server, "socket", failing),
                mock.patch.object(app.time, "sleep", wraps=time.sleep) as sleep,
                self.assertLogs("inferless_shim.app", "ERROR") as logs,
                Client(server.port) as client,
            ):
                client.send(request_bytes("GET", "/v2"))
                eventually(lambda: failing.accept.call_count >= 3)
                server.socket = accept
                self.assertEqual(Response(client).status, 200)
            self.assertEqual(len(logs.output), 1)
            self.assertIn("Too many open files", logs.output[0])
            self.assertGreaterEqual(sleep.call_count, 3)

    def test_no_delay(self) -> None:
        """Small events are not held back for 40 ms by Nagle and delayed acknowledgements."""
        with serving(words) as server, Client(server.port) as client:
            client.request("GET", "/v2").read()
            (handler,) = server._handlers
            self.assertTrue(handler.connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_handler_that_fails(self) -> None:
        """A mistake in a handler ends its connection, with a traceback in the log, and no other."""
        with serving(words) as server, Client(server.port) as other:
            other.request("GET", "/v2").read()
            (handler,) = server._handlers
            eventually(lambda: handler.reader.waiting)
            with (
                mock.patch("inferless_shim.handler.Handler._serve_one", side_effect=RuntimeError("oh")),
                self.assertLogs("inferless_shim.app", "ERROR"),
                Client(server.port) as client,
            ):
                self.assertEqual(client.read_some(), b"")
            eventually(lambda: len(server._handlers) == 1)
            self.assertEqual(other.request("GET", "/v2").read().status, 200)


@unittest.skipIf(app.resource is None, "needs the resource module")
class DescriptorTests(TestCase):
    """As many connections as there are descriptors for."""

    def fit(self, connections: int, soft: int, hard: int, refuses: bool = False) -> tuple[int, tuple[int, int] | None]:
        """Return how many fit, and what the limit was set to."""
        fake = mock.Mock(RLIM_INFINITY=app.resource.RLIM_INFINITY, RLIMIT_NOFILE=7)
        fake.getrlimit.return_value = (soft, hard)
        if refuses:
            fake.setrlimit.side_effect = ValueError("not allowed to raise maximum limit")
        with mock.patch.object(app, "resource", fake):
            fitting = fit_descriptors(connections)
        return fitting, fake.setrlimit.call_args.args[1] if fake.setrlimit.called else None

    def test_raised(self) -> None:
        """The soft limit is raised to the hard one; what then fits is all that is asked for."""
        with self.assertNoLogs():
            self.assertEqual(self.fit(1024, 1024, 1 << 20), (1024, (1 << 20, 1 << 20)))

    def test_lowered_to_fit(self) -> None:
        """Where that is not enough, fewer connections are let in, and a line says so."""
        with self.assertLogs("inferless_shim.app", "WARNING") as logs:
            self.assertEqual(self.fit(1024, 256, 1024), (448, (1024, 1024)))
        self.assertIn("448", logs.output[0])
        with self.assertLogs("inferless_shim.app", "WARNING"):
            self.assertEqual(self.fit(1024, 10, 20)[0], 1)
        with self.assertLogs("inferless_shim.app", "WARNING"):
            self.assertEqual(self.fit(1024, 1000, 1 << 20, refuses=True)[0], 436)

    def test_unlimited(self) -> None:
        """Without a hard limit the soft one is raised to what is needed, and a higher or absent one left alone."""
        infinity = app.resource.RLIM_INFINITY
        self.assertEqual(self.fit(1024, 256, infinity), (1024, (2176, infinity)))
        self.assertEqual(self.fit(1024, 10_000, infinity)[0], 1024)
        self.assertIn(self.fit(1024, 10_000, infinity)[1], (None, (10_000, infinity)))
        self.assertEqual(self.fit(1024, infinity, infinity)[0], 1024)
        self.assertIn(self.fit(1024, infinity, infinity)[1], (None, (infinity, infinity)))


class PhaseTests(TestCase):
    def test_live_while_loading(self) -> None:
        """It listens before the app is loaded: live, not ready, no work."""
        loading = threading.Event()
        self.addCleanup(loading.set)
        fake = FakeApp(words)
        fake.load = loading.wait  # type: ignore[method-assign,assignment]
        server = Server(Settings(port=0), fake)  # type: ignore[arg-type]
        server.start()
        try:
            self.assertEqual(ask(server.port, "GET", "/v2/health/live").status, 200)
            self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 503)
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "a"}).status, 503)
            loading.set()
            server.service.engine.loaded.wait()
            server.ready()
            self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "a"}).status, 200)
        finally:
            server.drain()

    def test_live_while_the_archive_is_read(self) -> None:
        """What an earlier process left may take long to read: live, and 503 to who asks for a stream of it."""
        reading = threading.Event()
        self.addCleanup(reading.set)
        archive = FakeArchive()
        archive.start = reading.wait  # type: ignore[attr-defined]
        server = Server(Settings(port=0), FakeApp(words), archive)  # type: ignore[arg-type]
        starting = threading.Thread(target=server.start)
        starting.start()
        try:
            self.assertEqual(ask(server.port, "GET", "/v2/health/live").status, 200)
            self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 503)
            self.assertEqual(ask(server.port, "GET", f"/streams/{'0' * 32}").status, 503)
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "a"}, {"Idempotency-Key": "k"}).status, 503)
            reading.set()
            starting.join()
            server.service.engine.loaded.wait()
            server.ready()
            self.assertEqual(ask(server.port, "GET", f"/streams/{'0' * 32}").status, 404)
        finally:
            server.drain()

    def test_sweeps(self) -> None:
        """The accept thread sweeps the store and looks at timeouts, busy or not."""
        with serving(words) as server:
            store, engine = server.service.store, server.service.engine
            with mock.patch.object(store, "sweep") as sweep, mock.patch.object(engine, "tick") as tick:
                eventually(lambda: sweep.call_count >= 2 and tick.call_count >= 2)


class DrainTests(TestCase):
    """After a SIGTERM: nothing that runs is lost, nothing new begins."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def drain(self, server: Server) -> threading.Thread:
        """Drain on a thread; wait until that has begun. `self.finalized` is what it returned."""

        def run() -> None:
            self.finalized = server.drain()

        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: server.service.phase is Phase.DRAINING)
        return thread

    def running(self, server: Server, client: Client, version: str = "1.1") -> Response:
        """Start a stream and wait for its first event."""
        response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
        self.puppet.send(OUT="a")
        next(response.chunks())
        return response

    def test_running_stream_finishes(self) -> None:
        """A running stream goes on to its own end; then finalize runs, the listener is closed, and drain is over."""
        server = self.serve(self.puppet.infer)
        port = server.port
        with Client(port) as client:
            response = self.running(server, client)
            thread = self.drain(server)
            self.puppet.send(OUT="b")
            self.puppet.end()
            response.read()
            self.assertTrue(response.complete)
            self.assertEqual([event.event for event in response.events], [None, None, "done"])
            thread.join()
        self.assertTrue(self.finalized)
        self.assertEqual(server.service.app.finalized, 1)  # type: ignore[attr-defined]
        with self.assertRaises(ConnectionRefusedError):
            Client(port)
        self.assertEqual(len(server._handlers), 0)

    def test_resumes_are_served(self) -> None:
        """What went wrong: in a drain every new connection was closed unread, so that a client that was cut off then
        could not come back, and new work got no 503 but a reset."""
        server = self.serve(self.puppet.infer)
        with Client(server.port) as client, Client(server.port) as back:
            response = self.running(server, client)
            stream = response.fields["stream-id"]
            thread = self.drain(server)
            client.sock.close()
            resumed = back.request("POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": f"{stream}-1"})
            self.assertEqual(resumed.status, 200)
            self.assertEqual(resumed.fields["connection"], "close")
            refused = ask(server.port, "POST", "/infer", {"TEXT": ""})
            self.assertEqual((refused.status, refused.fields["connection"]), (503, "close"))
            source = ask(server.port, "GET", "/infer?TEXT=", None, {"Accept": "text/event-stream"})
            self.assertEqual((source.status, source.body), (200, b"retry: 2000\n"))
            self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 503)
            self.assertEqual(ask(server.port, "GET", "/v2/health/live").status, 200)
            self.assertEqual(ask(server.port, "DELETE", "/streams/unknown").status, 404)
            self.puppet.send(OUT="b")
            self.puppet.end()
            self.assertEqual([event.number for event in resumed.read().events], [2, 3])
            self.assertTrue(resumed.complete)
            thread.join()

    def test_queued_requests_run(self) -> None:
        """What was accepted before runs, too."""
        server = self.serve(self.puppet.infer)
        with Client(server.port) as one, Client(server.port) as two:
            first = self.running(server, one)
            second = two.request("POST", "/infer", {"TEXT": "second"})
            thread = self.drain(server)
            self.puppet.end()
            self.puppet.send(OUT="b")
            self.puppet.end()
            self.assertEqual(first.read().events[-1].event, "done")
            self.assertEqual([event.event for event in second.read().events], [None, "done"])
            thread.join()
        self.assertTrue(self.finalized)

    def test_idle_connections_are_ended(self) -> None:
        """A keep-alive connection that waits for nothing does not hold the exit, nor does one that never asked."""
        server = self.serve(self.puppet.infer, idle_timeout=600, read_timeout=600)
        with Client(server.port) as idle, Client(server.port) as silent:
            idle.request("GET", "/v2").read()
            eventually(lambda: len(server._handlers) == 2)
            began = time.monotonic()
            thread = self.drain(server)
            self.assertEqual(idle.read_some(), b"")
            self.assertEqual(silent.read_some(), b"")
            thread.join()
            self.assertLess(time.monotonic() - began, app.FLUSH_TIME)

    def test_new_connection_is_heard(self) -> None:
        """One that was accepted just before may still say what it wants, and is told that there is no new work."""
        server = self.serve(self.puppet.infer)
        with Client(server.port) as client, Client(server.port) as new:
            response = self.running(server, client)
            eventually(lambda: len(server._handlers) == 2)
            thread = self.drain(server)
            self.assertEqual(new.request("POST", "/infer", {"TEXT": ""}).read().status, 503)
            self.puppet.end()
            response.read()
            thread.join()

    def test_connection_closes_after_its_answer(self) -> None:
        """A connection whose stream began before the drain is closed when that has ended, whatever its head said."""
        server = self.serve(self.puppet.infer)
        with Client(server.port) as client:
            response = self.running(server, client)
            self.assertNotIn("connection", response.fields)
            thread = self.drain(server)
            self.puppet.end()
            self.assertTrue(response.read().complete)
            self.assertEqual(client.read_some(), b"")
            thread.join()

    def test_deadline(self) -> None:
        """What has not finished at the deadline ends cleanly with `shutting_down`, over both versions of HTTP."""
        server = self.serve(self.puppet.infer, drain=50 * MS)
        with Client(server.port) as one, Client(server.port) as two, Client(server.port) as answer:
            running = self.running(server, one)
            queued = two.request("POST", "/infer", {"TEXT": ""}, version="1.0")
            answer.send(request_bytes("POST", "/v2/models/fake/generate", {"TEXT": ""}))
            eventually(lambda: len(server.service.store) == 3)
            thread = self.drain(server)
            for response in (running, queued):
                response.read()
                self.assertTrue(response.complete)
                self.assertEqual(
                    (response.events[-1].event, response.events[-1].data["code"]), ("error", "shutting_down")
                )
            self.assertEqual(Response(answer).read().status, 503)
            thread.join()
        self.assertTrue(self.finalized)

    def test_stream_that_nobody_follows(self) -> None:
        """A stream whose client may come back is waited for like any other, within its linger."""
        server = self.serve(self.puppet.infer, linger=50 * MS)
        with Client(server.port) as client:
            self.running(server, client)
        thread = self.drain(server)
        thread.join()
        self.assertEqual(self.puppet.ended, 1)
        self.assertTrue(self.finalized)

    def test_stuck_infer(self) -> None:
        """An infer that does not come back does not hold the exit for longer than its grace; drain says so."""
        release = threading.Event()
        self.addCleanup(release.set)
        server = self.serve(lambda *_: release.wait(30), drain=20 * MS, stuck_grace=20 * MS)
        with Client(server.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            thread = self.drain(server)
            self.assertEqual(response.read().events[-1].data["code"], "shutting_down")
            thread.join()
        self.assertFalse(self.finalized)
        release.set()

    def test_slow_client_gets_the_rest(self) -> None:
        """A client that lags behind a finished stream is waited for, so that what was made is not lost."""

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            for number in range(1000):
                handler.send_streamed_output({"N": number, "FILLER": "x" * 1000})

        server = self.serve(infer)
        with Client(server.port, receive_buffer=4096) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: not server.service.store.running())
            thread = self.drain(server)
            self.assertEqual(len(response.read().events), 1001)
            self.assertTrue(response.complete)
            thread.join()

    def test_connection_that_comes_late(self) -> None:
        """While the last bytes are written, a silent connection does not hold the exit, and a new one is refused.

        What went wrong: silent connections were ended once, before the wait for those that still write; and new ones
        were accepted all the while, and cut without an answer.
        """

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            for number in range(1000):
                handler.send_streamed_output({"N": number, "FILLER": "x" * 1000})

        server = self.serve(infer, read_timeout=600)
        with (
            mock.patch.object(app, "FLUSH_TIME", 600),
            Client(server.port, receive_buffer=4096) as client,
            mock.patch.object(server, "_is_deserted", wraps=server._is_deserted) as look,
            contextlib.ExitStack() as opened,
        ):
            response = client.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: not server.service.store.running())
            port, silent = server.port, opened.enter_context(Client(server.port))
            eventually(lambda: len(server._handlers) == 2)
            thread = self.drain(server)
            eventually(lambda: look.called)
            with self.assertRaises(ConnectionRefusedError):
                Client(port).__enter__()
            self.assertEqual(silent.read_some(), b"")
            self.assertTrue(response.read().complete)
            thread.join()

    def test_wait_until(self) -> None:
        """It is over when the condition is true, or when its time is."""
        self.assertTrue(wait_until(lambda: True, 0))
        self.assertFalse(wait_until(lambda: False, MS))
        answers = iter([False, False, True])
        self.assertTrue(wait_until(lambda: next(answers), 60))


if __name__ == "__main__":
    unittest.main()
