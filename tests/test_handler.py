"""One connection as its client sees it: requests in a row, refusals, streams that end, break, lag or lose a reader."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from inferless_shim.app import Server
from inferless_shim.budget import SMALL
from inferless_shim.follow import Follower, Link, Wait
from tests.support import (
    MS,
    Client,
    Puppet,
    Response,
    SharedServer,
    TestCase,
    ask,
    eventually,
    parse_events,
    request_bytes,
    serving,
    words,
)

# More than the socket buffers of both ends hold together: whoever does not read it, lags.
FILLER = "x" * 1000
MANY = 1000
SMALL_BUFFER = 4096


def filler(inputs: dict[str, Any], handler: Any) -> None:
    """Send a megabyte."""
    for number in range(MANY):
        handler.send_streamed_output({"N": number, "FILLER": FILLER})


def texts(response: Response) -> list[Any]:
    """Return the data of a stream's events, but for the last one: done or error."""
    return [event.data for event in response.events if event.event is None and event.data]


def still_good(client: Client) -> bool:
    """Tell whether a connection serves another request."""
    return client.request("GET", "/v2/health/live").read().json == {"live": True}


def is_closed(client: Client) -> bool:
    """Wait for the server to close a connection; tell whether it came without another byte."""
    with contextlib.suppress(ConnectionResetError):
        return client.read_some() == b""
    return True


def connections(server: Server) -> int:
    return len(server._handlers)


def only_stream(server: Server) -> Any:
    (stream,) = eventually(lambda: list(server.service.store._streams.values()))
    return stream


class ConnectionTests(SharedServer):
    """Requests one after the other."""

    def test_connection_serves_requests_one_after_the_other(self) -> None:
        """A finished stream, a JSON answer, a 204 and a 404 leave the connection good for the next request."""
        with Client(self.port) as client:
            for text in ("a b", "c"):
                response = client.request("POST", "/infer", {"TEXT": text}).read()
                self.assertEqual([each["OUT"] for each in texts(response)], text.split())
                self.assertTrue(response.complete)
                self.assertTrue(still_good(client))
                target = response.fields["content-location"]
                last = response.events[-1].id or ""
                self.assertEqual(client.request("GET", target, fields={"Last-Event-ID": last}).read().status, 204)
                self.assertEqual(client.request("DELETE", target).read().status, 204)

    def test_connection_pipelined(self) -> None:
        """Requests that are sent together are answered in their order, streams included."""
        with Client(self.port) as client:
            client.send(
                request_bytes("POST", "/infer", {"TEXT": "a b"})
                + request_bytes("GET", "/nothing")
                + request_bytes("POST", "/infer", {"TEXT": "c"})
                + request_bytes("GET", "/v2")
            )
            first, second, third, fourth = (Response(client).read() for _ in range(4))
        self.assertEqual(texts(first), [{"OUT": "a"}, {"OUT": "b"}])
        self.assertEqual(second.status, 404)
        self.assertEqual(texts(third), [{"OUT": "c"}])
        self.assertEqual(fourth.json["name"], "inferless-shim")

    def test_connection_byte_by_byte(self) -> None:
        """However a request is cut up on its way, it is one request."""
        with Client(self.port) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request_bytes("POST", "/infer", {"TEXT": "a"}):
                client.send(bytes([byte]))
            self.assertEqual(texts(Response(client).read()), [{"OUT": "a"}])
            chunked = b"POST /infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            for byte in chunked + b'5;x=y\r\n{"TEX\r\n8\r\nT": "b"}\r\n0\r\nTrailer: z\r\n\r\n':
                client.send(bytes([byte]))
            self.assertEqual(texts(Response(client).read()), [{"OUT": "b"}])
            self.assertTrue(still_good(client))

    def test_connection_close_is_honoured(self) -> None:
        """Connection: close, and HTTP/1.0, get their answer, are told close, and are closed."""
        for version, fields in (("1.1", {"Connection": "close"}), ("1.0", {}), ("1.0", {"Connection": "keep-alive"})):
            for target, body in (("/infer", {"TEXT": "a"}), ("/v2", None), ("/nothing", None)):
                with self.subTest(version=version, target=target), Client(self.port) as client:
                    response = client.request("POST" if body else "GET", target, body, fields, version).read()
                    self.assertEqual(response.fields["connection"], "close")
                    self.assertTrue(response.complete)
                    self.assertTrue(is_closed(client))

    def test_http_1_0_stream(self) -> None:
        """HTTP/1.0 knows no chunks: the stream comes bare, and its end is the connection's."""
        response = ask(self.port, "POST", "/infer", {"TEXT": "a b"}, version="1.0")
        self.assertNotIn("transfer-encoding", response.fields)
        self.assertEqual(response.fields["connection"], "close")
        self.assertTrue(response.body.startswith(b"id: " + response.fields["stream-id"].encode() + b"-1\n"))
        self.assertEqual([event.event for event in response.events], [None, None, "done"])
        response = ask(self.port, "GET", "/infer?TEXT=a", version="1.0")
        self.assertEqual([event.number for event in response.events], [0, 1, 2])

    def test_head_has_no_body(self) -> None:
        """HEAD is GET without the body, and the connection goes on; a stream's length is not made up."""
        for target in ("/", "/v2", "/v2/models/fake", "/nothing", "/infer"):
            with self.subTest(target), Client(self.port) as client:
                head = client.request("HEAD", target).read()
                if target == "/infer":
                    self.assertNotIn("content-length", head.fields)
                    self.assertEqual(head.fields["content-type"], "text/event-stream; charset=utf-8")
                else:
                    got = client.request("GET", target).read()
                    self.assertEqual(head.status, got.status)
                    self.assertEqual(head.fields["content-length"], str(len(got.body)))
                    self.assertEqual(head.fields["content-type"], got.fields["content-type"])
                self.assertTrue(still_good(client))

    def test_request_id(self) -> None:
        """Every answer names its request: by the client's own id if it can stand in a head, else by a new one."""
        requests = [
            ("GET", "/v2", None),
            ("POST", "/infer", {"TEXT": "a"}),
            ("POST", "/infer", {"WORD": "a"}),
            ("GET", "/nothing", None),
            ("OPTIONS", "/infer", None),
        ]
        for method, target, body in requests:
            with self.subTest(target):
                response = ask(self.port, method, target, body, {"X-Request-Id": "my own: 7"})
                self.assertEqual(response.fields["x-request-id"], "my own: 7")
                made = ask(self.port, method, target, body).fields["x-request-id"]
                self.assertRegex(made, "^[0-9a-f]{16}$")
                self.assertNotEqual(ask(self.port, method, target, body).fields["x-request-id"], made)
        for unusable in ("x" * 129, "caf\xe9", ""):
            with self.subTest(unusable):
                response = ask(self.port, "GET", "/v2", fields={"X-Request-Id": unusable})
                self.assertRegex(response.fields["x-request-id"], "^[0-9a-f]{16}$")
        with Client(self.port) as client:
            client.send(b"nonsense\r\n\r\n")
            self.assertRegex(Response(client).fields["x-request-id"], "^[0-9a-f]{16}$")

    def test_head_of_a_stream(self) -> None:
        """A stream's head keeps caches, proxies and their buffers away, and says where the stream is kept."""
        response = ask(self.port, "POST", "/infer", {"TEXT": "a"})
        self.assertEqual(response.fields["content-type"], "text/event-stream; charset=utf-8")
        self.assertEqual(response.fields["cache-control"], "no-cache, no-transform")
        self.assertEqual(response.fields["x-accel-buffering"], "no")
        self.assertEqual(response.fields["transfer-encoding"], "chunked")
        self.assertRegex(response.fields["stream-id"], "^[0-9a-f]{32}$")
        self.assertEqual(response.fields["content-location"], "/streams/" + response.fields["stream-id"])
        self.assertRegex(response.fields["date"], r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")
        self.assertNotIn("server", response.fields)

    def test_content_fault_keeps_the_connection(self) -> None:
        """A 400 whose body was read to its end, and a 404 or 405 that has none, cost no connection."""
        with Client(self.port) as client:
            for method, target, body, status in (
                ("POST", "/infer", b"{", 400),
                ("POST", "/infer", {"WORD": "a"}, 400),
                ("GET", "/infer?WORD=a", None, 400),
                ("GET", "/nothing", None, 404),
                ("GET", "/favicon.ico", None, 404),
                ("GET", "/v2/models/fake/infer", None, 405),
                ("PUT", "/infer", None, 405),
                ("GET", "/streams/unknown", None, 404),
            ):
                with self.subTest(target=target, method=method):
                    response = client.request(method, target, body).read()
                    self.assertEqual(response.status, status)
                    self.assertNotIn("connection", response.fields)
                    self.assertIn("error", response.json)
        with Client(self.port) as client:
            client.request("POST", "/infer", b"{").read()
            self.assertEqual(texts(client.request("POST", "/infer", {"TEXT": "a"}).read()), [{"OUT": "a"}])

    def test_unread_body_closes_the_connection(self) -> None:
        """What was not read to its end could be taken for a request: the connection is closed, after the answer."""
        for method, target in (("POST", "/nothing"), ("PUT", "/infer"), ("POST", "/v2/models/other/infer")):
            with self.subTest(target=target), Client(self.port) as client:
                smuggled = request_bytes("GET", "/v2")
                client.send(request_bytes(method, target, smuggled))
                response = Response(client).read()
                self.assertIn(response.status, (404, 405))
                self.assertEqual(response.fields["connection"], "close")
                client.half_close()
                self.assertTrue(is_closed(client))

    def test_options_of_the_server(self) -> None:
        """OPTIONS * asks about the server as a whole (RFC 9110 §9.3.7) and is no unknown path."""
        response = ask(self.port, "OPTIONS", "*")
        self.assertEqual(response.status, 204)

    def test_body_of_get_is_read(self) -> None:
        """A body that a GET has no use for is read all the same, or it would be the next request."""
        with Client(self.port) as client:
            response = client.request("GET", "/v2", b"GET /infer HTTP/1.1\r\n\r\n").read()
            self.assertEqual(response.status, 200)
            self.assertTrue(still_good(client))

    def test_body_of_no_use_is_small(self) -> None:
        """Where nothing is made of a body, none over 64 KiB is read: who has no key could fill the memory with it."""
        size = SMALL + 1
        chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size
        for method, path in (
            ("GET", "/"), ("HEAD", "/v2/health/live"), ("OPTIONS", "/infer"), ("DELETE", "/streams/x"),
            ("GET", "/infer"), ("POST", "/v2/repository/index"),
        ):  # fmt: skip
            for framing in (b"Content-Length: %d\r\n\r\n" % size, chunked):
                with self.subTest(path, framing=framing), Client(self.port) as client:
                    client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + framing)
                    head = client.read_until(b"\r\n\r\n")
                    self.assertTrue(head.startswith(b"HTTP/1.1 413 "), head)
                    self.assertIn(b"\r\nConnection: close\r\n", head)
        with Client(self.port) as client:
            self.assertEqual(client.request("GET", "/", b"x" * SMALL).read().status, 200)
            self.assertTrue(still_good(client))

    def test_endpoint_that_fails(self) -> None:
        """A mistake of ours is a 500 in JSON that tells nothing, and a traceback in the log; the connection goes on."""
        with (
            mock.patch("inferless_shim.answers.server_metadata", side_effect=RuntimeError("/secret/path")),
            self.assertLogs("inferless_shim.handler", "ERROR") as logs,
            Client(self.port) as client,
        ):
            response = client.request("GET", "/v2").read()
            self.assertEqual(response.status, 500)
            self.assertNotIn("secret", response.body.decode())
            self.assertTrue(still_good(client))
        self.assertIn("/secret/path", logs.output[0])

    def test_endpoint_that_fails_names_no_stream(self) -> None:
        """The log has no more of a stream's id than anywhere else: without keys the id is all it takes to follow it."""
        stream = "0123456789abcdef" * 2
        with (
            mock.patch("inferless_shim.store.Store.get", side_effect=RuntimeError("no")),
            self.assertLogs("inferless_shim.handler", "ERROR") as logs,
        ):
            self.assertEqual(ask(self.port, "GET", f"/streams/{stream}").status, 500)
        self.assertIn("GET /streams/01234567… failed", logs.records[0].getMessage())
        self.assertNotIn(stream, logs.output[0])


class ExhaustionTests(TestCase):
    def test_no_descriptor_left_to_wait_with(self) -> None:
        """A request that could not be waited for is told 503 and starts nothing; it was dropped without a word."""
        server = self.serve(words)
        with mock.patch("inferless_shim.handler.Link", side_effect=OSError(24, "EMFILE")):
            response = ask(server.port, "POST", "/infer", {"TEXT": "a"})
            self.assertEqual(response.status, 503)
            self.assertEqual(len(server.service.store), 0)


class ContinueTests(TestCase):
    """Expect: 100-continue (RFC 9110 §10.1.1)."""

    FIELDS = b"Host: localhost\r\nExpect: 100-continue\r\n"

    def setUp(self) -> None:
        self.port = self.serve(words, max_body=1000).port

    def test_continue_before_the_body(self) -> None:
        """A client that holds its body back is told to go on."""
        with Client(self.port) as client:
            client.send(b"POST /infer HTTP/1.1\r\n" + self.FIELDS + b"Content-Length: 13\r\n\r\n")
            self.assertEqual(client.read_until(b"\r\n\r\n"), b"HTTP/1.1 100 Continue\r\n\r\n")
            client.send(b'{"TEXT": "a"}')
            self.assertEqual(texts(Response(client).read()), [{"OUT": "a"}])
            self.assertTrue(still_good(client))

    def test_continue_is_not_said_to_a_body_that_came(self) -> None:
        """Who has sent the body already needs no leave."""
        with Client(self.port) as client:
            client.send(b"POST /infer HTTP/1.1\r\n" + self.FIELDS + b'Content-Length: 13\r\n\r\n{"TEXT": "a"}')
            self.assertEqual(Response(client).status, 200)

    def test_refused_before_continue(self) -> None:
        """A body that would be refused is not asked for."""
        for line, length, status in (
            (b"POST /infer HTTP/1.1", b"1001", 413),
            (b"POST /nothing HTTP/1.1", b"10", 404),
            (b"PUT /infer HTTP/1.1", b"10", 405),
            (b"POST /infer HTTP/1.1\r\nOrigin: http://evil.example", b"10", 403),
        ):
            with self.subTest(line), Client(self.port) as client:
                client.send(line + b"\r\n" + self.FIELDS + b"Content-Length: " + length + b"\r\n\r\n")
                self.assertEqual(Response(client).status, status)


class DeadlineTests(SharedServer):
    """How long a client may keep its handler thread waiting."""

    settings: ClassVar[dict[str, Any]] = {"read_timeout": 150 * MS, "idle_timeout": 150 * MS}

    def test_slow_head(self) -> None:
        """A head that does not come to its end in time is told 408 and the connection closed."""
        with Client(self.port) as client:
            client.send(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-")
            response = Response(client).read()
            self.assertEqual(response.status, 408)
            self.assertEqual(response.fields["connection"], "close")
            self.assertIn("error", response.json)

    def test_slow_body(self) -> None:
        """A body that does not come to its end in time is told 408 and the connection closed."""
        for body in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
            with self.subTest(body), Client(self.port) as client:
                client.send(b"POST /infer HTTP/1.1\r\nHost: localhost\r\n" + body)
                response = Response(client).read()
                self.assertEqual(response.status, 408)
                self.assertEqual(response.fields["connection"], "close")

    def test_trickling_head(self) -> None:
        """A byte now and then does not move the deadline (slow loris)."""
        with Client(self.port) as client, contextlib.suppress(ConnectionError):
            client.sock.settimeout(10 * MS)
            client.send(b"GET /v2 HTTP/1.1\r\nX: ")

            def trickle() -> bytes:
                with contextlib.suppress(TimeoutError):
                    return client.sock.recv(12)
                client.send(b"x")
                return b""

            self.assertEqual(eventually(trickle), b"HTTP/1.1 408")

    def test_silent_connection(self) -> None:
        """A connection that says nothing, at first or between two requests, is closed without a word."""
        with Client(self.port) as client:
            self.assertTrue(is_closed(client))
        with Client(self.port) as client:
            client.request("GET", "/v2").read()
            self.assertTrue(is_closed(client))

    def test_client_that_leaves_in_a_request(self) -> None:
        """A head or body that is cut off by its own client is no request, and nobody is answered."""
        whole = request_bytes("POST", "/infer", {"TEXT": "a"})
        for size in (10, len(whole) - 2):
            with self.subTest(size), Client(self.port) as client:
                client.send(whole[:size])
                client.half_close()
                self.assertTrue(is_closed(client))
        self.assertEqual(len(self.server.service.store), 0)


class AnswerTests(TestCase):
    """Answers that are not streams, on the wire."""

    def test_refusal_of_a_large_body_arrives(self) -> None:
        """A client that is still sending when it is refused reads the answer, not a reset."""
        with serving(words, max_body=100_000) as server, Client(server.port) as client:
            client.send(request_bytes("POST", "/infer", b"x" * 900_000))
            response = Response(client).read()
            self.assertEqual(response.status, 413)
            self.assertIn("100000", response.json["error"])

    def test_client_gone_cancels(self) -> None:
        """An answer that is not a stream is for one client: when that has gone, its job is dropped and forgotten."""
        release = threading.Event()
        self.addCleanup(release.set)
        calls: list[str] = []

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            calls.append(inputs["TEXT"])
            release.wait(30)
            return {"OUT": inputs["TEXT"]}

        with serving(infer, streaming=False, queue=1) as server:
            port = server.port
            with Client(port) as running, Client(port) as waiting:
                running.send(request_bytes("POST", "/infer", {"TEXT": "running"}))
                eventually(lambda: calls)
                stream = only_stream(server)
                waiting.send(request_bytes("POST", "/infer", {"TEXT": "waiting"}))
                eventually(lambda: len(server.service.store) == 2)
                self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "refused"}).status, 503)
            eventually(lambda: len(server.service.store) == 0)
            self.assertEqual(stream.failure[0], "cancelled")
            release.set()
            self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "next"}).json, {"OUT": "next"})
        self.assertEqual(calls, ["running", "next"])


class BrokenStreamTests(TestCase):
    """A stream that is not whole must not look whole."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_stall_closes(self) -> None:
        """A client that takes nothing for `--stall` is closed; over HTTP/1.1 by a body without end, else by a reset."""
        for version in ("1.1", "1.0"):
            with (
                self.subTest(version),
                serving(filler, stall=100 * MS, linger=60) as server,
                Client(server.port, receive_buffer=SMALL_BUFFER) as client,
            ):
                response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                eventually(lambda server=server: connections(server) == 0)
                response.read()
                self.assertFalse(response.complete)
                self.assertLess(len(response.events), MANY)
                last = response.events[-1].id if response.events else f"{response.fields['stream-id']}-0"
                rest = ask(server.port, "POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": last or ""})
                numbers = [each["N"] for each in texts(response) + texts(rest)]
                self.assertEqual(numbers, list(range(MANY)))
                self.assertTrue(rest.complete)

    def test_trickle_closes(self) -> None:
        """So is one that takes a byte now and then, of a stream or of another answer: it held a thread for ever."""

        def large(inputs: dict[str, Any]) -> dict[str, Any]:
            return {"OUT": FILLER * MANY * 8}

        for infer, streaming in ((filler, True), (large, False)):
            with (
                self.subTest(streaming=streaming),
                serving(infer, streaming=streaming, stall=100 * MS, linger=60) as server,
                Client(server.port, receive_buffer=SMALL_BUFFER) as client,
            ):
                response = client.request("POST", "/infer", {"TEXT": ""})

                def is_left(server: Server = server, client: Client = client) -> bool:
                    client._buffer += client.sock.recv(1)
                    return connections(server) == 0

                eventually(is_left)
                with contextlib.suppress(EOFError, OSError):
                    response.read()
                self.assertFalse(response.complete)

    def test_overrun_closes(self) -> None:
        """A client that falls behind what is kept gets no end, and 410 when it comes back for what is forgotten."""
        for version in ("1.1", "1.0"):
            with (
                self.subTest(version),
                serving(filler, log_cap=50_000, linger=60) as server,
                Client(server.port, receive_buffer=SMALL_BUFFER) as client,
            ):
                port = server.port
                response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                stream = only_stream(server)
                eventually(lambda stream=stream: not stream.is_open)
                response.read()
                self.assertFalse(response.complete)
                last = response.events[-1].id if response.events else f"{stream.id}-0"
                back = ask(port, "POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": last})
                self.assertEqual(back.status, 410)
                self.assertIn("no longer kept", back.json["error"])
                newest = ask(port, "GET", f"/streams/{stream.id}", fields={"Last-Event-ID": f"{stream.id}-{MANY - 1}"})
                self.assertEqual([event.event for event in newest.events], [None, "done"])

    def test_failed_stream_ends_cleanly(self) -> None:
        """An app that raises breaks nothing: the error is an event, the body has its end, the connection goes on."""
        with serving(self.puppet.infer) as server, Client(server.port) as client:
            self.puppet.send(OUT="a")
            self.puppet.fail(ValueError("no more"))
            with self.assertLogs("inferless_shim.run", "ERROR"):
                response = client.request("POST", "/infer", {"TEXT": ""}).read()
            self.assertTrue(response.complete)
            self.assertEqual(response.events[-1].event, "error")
            self.assertTrue(still_good(client))


class SlowClientTests(TestCase):
    """Who lags catches up from the log, at its own pace."""

    def test_catches_up_byte_exact(self) -> None:
        """A client that reads nothing while the app runs gets, later, every byte that one that kept up got."""
        for version in ("1.1", "1.0"):
            with (
                self.subTest(version),
                serving(filler) as server,
                Client(server.port, receive_buffer=SMALL_BUFFER) as client,
            ):
                response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                stream = only_stream(server)
                eventually(lambda stream=stream: not stream.is_open)
                self.assertEqual(connections(server), 1)
                response.read()
                self.assertTrue(response.complete)
                replay = ask(server.port, "GET", f"/streams/{stream.id}")
                self.assertEqual(response.body, replay.body)
                self.assertEqual([each["N"] for each in texts(response)], list(range(MANY)))

    def test_does_not_hold_the_app_up(self) -> None:
        """The app never waits for a client: it comes to its end while the client has not read a byte."""
        ended = threading.Event()

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            filler(inputs, handler)
            ended.set()

        with serving(infer) as server, Client(server.port, receive_buffer=SMALL_BUFFER) as client:
            client.send(request_bytes("POST", "/infer", {"TEXT": ""}))
            self.assertTrue(ended.wait(30))

    def test_two_followers_at_their_own_pace(self) -> None:
        """One that reads and one that does not follow the same stream, and both get all of it."""
        puppet = Puppet()
        with (
            serving(puppet.infer) as server,
            Client(server.port) as quick,
            Client(server.port, receive_buffer=SMALL_BUFFER) as slow,
        ):
            first = quick.request("POST", "/infer", {"TEXT": ""})
            second = slow.request("GET", first.fields["content-location"])
            for number in range(MANY):
                puppet.send(N=number, FILLER=FILLER)
            puppet.end()
            first.read()
            self.assertEqual(second.read().body, first.body)
            self.assertEqual([each["N"] for each in texts(first)], list(range(MANY)))


class DisconnectTests(TestCase):
    """A client that has gone is noticed, whether it closed, was reset, or only closed its half."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_disconnect_is_noticed(self) -> None:
        """While the app is silent, too; the stream goes on, and what the client missed is there when it comes back."""

        def close(client: Client) -> None:
            client.sock.close()

        def half_close(client: Client) -> None:
            client.half_close()

        def reset(client: Client) -> None:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sock.close()

        with serving(self.puppet.infer, linger=60) as server:
            port = server.port
            for version in ("1.1", "1.0"):
                for leave in (close, half_close, reset):
                    with self.subTest(leave.__name__, version=version), Client(port) as client:
                        response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                        self.puppet.send(OUT="a")
                        next(response.chunks())
                        stream = server.service.store.running()[0]
                        leave(client)
                        eventually(lambda: connections(server) == 0)
                        self.assertIsNotNone(stream.unfollowed)
                        self.puppet.send(OUT="b")
                        self.puppet.end()
                        rest = ask(port, "POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": f"{stream.id}-1"})
                        self.assertEqual(texts(rest), [{"OUT": "b"}])

    def test_disconnect_while_queued(self) -> None:
        """A queued request whose client has gone leaves the queue at once; the client may come back to it."""
        with serving(self.puppet.infer, queue=1, linger=60) as server:
            port = server.port
            with Client(port) as running, Client(port) as third:
                running.request("POST", "/infer", {"TEXT": "first"})
                eventually(lambda: self.puppet.inputs)
                with Client(port) as second:
                    gone = second.request("POST", "/infer", {"TEXT": "second"}).fields["stream-id"]
                    self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "third"}).status, 503)
                eventually(lambda: server.service.store.get(gone).unfollowed)
                self.assertEqual(third.request("POST", "/infer", {"TEXT": "third"}).status, 200)
                for _ in range(3):
                    self.puppet.end()
                eventually(lambda: self.puppet.ended == 2)
                self.assertEqual([each["TEXT"] for each in self.puppet.inputs], ["first", "third"])
                back = ask(port, "POST", "/infer", {"TEXT": "second"}, {"Last-Event-ID": f"{gone}-0"})
                self.assertEqual([event.event for event in back.events], ["done"])
            self.assertEqual(self.puppet.inputs[-1], {"TEXT": "second"})

    def test_pipelined_request_is_no_disconnect(self) -> None:
        """Bytes that come while a stream runs are the next request, and wait for their turn."""
        with serving(self.puppet.infer) as server, Client(server.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: self.puppet.inputs)
            client.send(request_bytes("GET", "/v2"))
            self.puppet.send(OUT="a")
            self.puppet.end()
            self.assertEqual(texts(response.read()), [{"OUT": "a"}])
            self.assertEqual(Response(client).status, 200)


@unittest.skipUnless(Path("/proc/self/fd").is_dir(), "counts descriptors by Linux's /proc")
class LeakTests(TestCase):
    """Every way out of a connection gives back its thread, its descriptors, and its place in the queue."""

    def exits(self, port: int) -> Iterator[tuple[str, bytes, bool]]:
        """Yield (name, what is sent, whether the client then leaves without reading)."""
        stream = ask(port, "POST", "/infer", {"TEXT": "a"}).fields["stream-id"]
        post = request_bytes("POST", "/infer", {"TEXT": "a"})
        yield "a stream to its end", post, False
        yield "a stream over 1.0", request_bytes("POST", "/infer", {"TEXT": "a"}, version="1.0"), False
        yield "a stream that is left", post, True
        yield "a replay", request_bytes("GET", f"/streams/{stream}"), False
        yield "204", request_bytes("GET", f"/streams/{stream}", fields={"Last-Event-ID": f"{stream}-2"}), False
        yield "400", request_bytes("POST", "/infer", b"{"), False
        yield "a bad head", b"nonsense\r\n\r\n", False
        yield "422", request_bytes("POST", "/infer", {"TEXT": "b"}, {"Idempotency-Key": "k"}), False
        yield "a replay by key", request_bytes("POST", "/infer", {"TEXT": "a"}, {"Idempotency-Key": "k"}), False
        yield "detached", request_bytes("POST", "/infer", {"TEXT": "a"}, {"Prefer": "respond-async"}), False
        yield "an answer", request_bytes("POST", "/v2/models/fake/generate", {"TEXT": "a"}), False
        yield "an answer that is left", request_bytes("POST", "/v2/models/fake/generate", {"TEXT": "a"}), True
        yield "half a head", post[:30], True
        yield "half a body", post[:-1], True
        yield "nothing", b"", True

    def test_nothing_is_left_behind(self) -> None:
        with serving(words, queue=1, linger=50 * MS) as server:
            port = server.port
            ask(port, "POST", "/infer", {"TEXT": "a"}, {"Idempotency-Key": "k"})
            for name, data, leave in self.exits(port):
                with self.subTest(name):
                    eventually(lambda: connections(server) == 0)
                    before = len(os.listdir("/proc/self/fd"))
                    for _ in range(5):
                        with Client(port) as client:
                            client.send(data)
                            if not leave:
                                Response(client).read()
                    eventually(lambda: connections(server) == 0)
                    eventually(lambda before=before: len(os.listdir("/proc/self/fd")) <= before)
                    self.assertEqual(server.service.engine._backlog.reserved, 0)
                    eventually(lambda: not server.service.engine.busy and not server.service.store.running())
            last = ask(port, "POST", "/infer", {"TEXT": "a b"})
            self.assertEqual((last.status, texts(last)), (200, [{"OUT": "a"}, {"OUT": "b"}]))
        eventually(lambda: not [each for each in threading.enumerate() if each.name == "handler"])

    def test_attach_that_fails(self) -> None:
        """If the socket cannot be made ready to follow, an answer that nobody else can ask for is dropped at once."""
        release = threading.Event()
        self.addCleanup(release.set)

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            release.wait(30)
            return {}

        with serving(infer, streaming=False) as server:
            with mock.patch("inferless_shim.connection.Connection.attach", side_effect=OSError("out of order")):
                with Client(server.port) as client:
                    client.send(request_bytes("POST", "/infer", {"TEXT": ""}))
                    self.assertTrue(is_closed(client))
                eventually(lambda: connections(server) == 0)
            self.assertEqual(len(server.service.store), 0)


class CrossOriginTests(TestCase):
    """Pages elsewhere cannot run the model on localhost, unless they are allowed to."""

    ALLOWED = "https://chat.example"

    def setUp(self) -> None:
        self.puppet = Puppet()
        self.port = self.serve(self.puppet.infer, cors=(self.ALLOWED,)).port

    def test_refused(self) -> None:
        """An Origin that is neither ours nor allowed, or a cross-site request without one, is 403 on every route."""
        for fields in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:1"},
            {"Origin": "https://chat.example.evil.example"},
            {"Origin": "http://chat.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        ):
            for method, target, body in (
                ("POST", "/infer", {"TEXT": ""}),
                ("GET", "/infer?TEXT=", None),
                ("GET", "/", None),
                ("DELETE", "/streams/x", None),
                ("OPTIONS", "/infer", None),
            ):
                with self.subTest(fields=fields, target=target):
                    response = ask(self.port, method, target, body, fields)
                    self.assertEqual(response.status, 403)
                    self.assertIn("--cors", response.json["error"])
                    self.assertNotIn("access-control-allow-origin", response.fields)
        self.assertEqual(self.puppet.inputs, [])

    def test_refused_without_host(self) -> None:
        """What went wrong: over HTTP/1.0 without Host, as some proxies speak, `Origin: null` passed for our own."""
        for origin in (b"null", b"evil.example", b"http://"):
            with self.subTest(origin), Client(self.port) as client:
                client.send(b"GET /v2 HTTP/1.0\r\nOrigin: " + origin + b"\r\n\r\n")
                self.assertEqual(Response(client).status, 403)

    def test_refused_before_the_body(self) -> None:
        """The answer comes while the body is still on its way."""
        with Client(self.port) as client:
            client.send(b"POST /infer HTTP/1.1\r\nHost: localhost\r\nOrigin: http://b\r\nContent-Length: 1000\r\n\r\n")
            self.assertEqual(Response(client).read().status, 403)

    def test_own_pages(self) -> None:
        """Our own pages, links from nowhere, and programs that send no Origin are let in."""
        for fields in (
            {"Origin": "http://localhost"},
            {"Origin": "https://LOCALHOST"},
            {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "same-site"},
            {},
        ):
            with self.subTest(fields):
                response = ask(self.port, "GET", "/v2", None, fields)
                self.assertEqual(response.status, 200)
                self.assertNotIn("access-control-allow-origin", response.fields)

    def test_allowed(self) -> None:
        """An allowed origin may read the answer, a stream, an error and a 204, and the headers that it needs."""
        self.puppet.end()
        origin = {"Origin": self.ALLOWED, "Sec-Fetch-Site": "cross-site"}
        stream = ask(self.port, "POST", "/infer", {"TEXT": ""}, origin)
        path = stream.fields["content-location"]
        for response in (
            stream,
            ask(self.port, "GET", "/v2", None, origin),
            ask(self.port, "POST", "/infer", b"{", origin),
            ask(self.port, "GET", path, None, {**origin, "Last-Event-ID": f"{stream.fields['stream-id']}-1"}),
            ask(self.port, "DELETE", path, None, origin),
            ask(self.port, "GET", "/nothing", None, origin),
        ):
            with self.subTest(response.status):
                self.assertEqual(response.fields["access-control-allow-origin"], self.ALLOWED)
                self.assertNotIn("access-control-allow-credentials", response.fields)
                self.assertEqual(response.fields["vary"], "Origin")
                exposed = {each.strip() for each in response.fields["access-control-expose-headers"].split(",")}
                self.assertEqual(exposed, {"Stream-Id", "Content-Location", "Location", "Retry-After", "X-Request-Id"})
        self.assertEqual(ask(self.port, "GET", "/v2").fields["vary"], "Origin")

    def test_preflight(self) -> None:
        """A preflight allows what our routes take: the methods, and the fields that resuming needs."""
        asked = {"Origin": self.ALLOWED, "Access-Control-Request-Method": "DELETE"}
        for target in ("/infer", "/streams/x", "/v2/models/fake/generate_stream"):
            with self.subTest(target):
                response = ask(self.port, "OPTIONS", target, None, asked)
                self.assertEqual(response.status, 204)
                self.assertEqual(response.fields["access-control-allow-origin"], self.ALLOWED)
                methods = re.split(r",\s*", response.fields["access-control-allow-methods"])
                self.assertLessEqual({"GET", "POST", "DELETE"}, set(methods))
                fields = re.split(r",\s*", response.fields["access-control-allow-headers"])
                self.assertLessEqual(
                    {"authorization", "content-type", "last-event-id", "idempotency-key", "prefer"}, set(fields)
                )
        refused = ask(self.port, "OPTIONS", "/infer", None, {**asked, "Origin": "https://evil.example"})
        self.assertEqual(refused.status, 403)

    def test_no_cors_says_nothing(self) -> None:
        """Without --cors no answer speaks of origins."""
        with serving(words) as server:
            response = ask(server.port, "GET", "/v2", None, {"Origin": "http://localhost"})
            self.assertFalse([name for name in response.fields if name.startswith("access-control") or name == "vary"])


class HeartbeatTests(TestCase):
    """`: ka` and one newline, when nothing else was sent for a while, and never inside a block."""

    def test_heartbeat_only_in_silence(self) -> None:
        """A silent stream is kept alive before its first event and between two, over both versions of HTTP."""
        puppet = Puppet()
        with serving(puppet.infer, heartbeat=20 * MS) as server:
            for version in ("1.1", "1.0"):
                with self.subTest(version), Client(server.port) as client:
                    response = client.request("POST", "/infer", {"TEXT": ""}, version=version)
                    pieces = response.chunks()
                    while response.body.count(b": ka\n") < 2:
                        next(pieces)
                    # On a busy machine the first one may come before infer has begun.
                    self.assertRegex(response.body, rb"^(: ka, place 1 in the queue\n)*(: ka\n){2,}$")
                    puppet.send(OUT="a")
                    while not response.body.endswith(b": ka\n") or b"data:" not in response.body:
                        next(pieces)
                    puppet.send(OUT="b")
                    puppet.end()
                    for _ in pieces:
                        pass
                    self.assertTrue(response.complete)
                    blocks = [re.sub("(: ka.*\n)+", "", "\n".join(event.lines) + "\n") for event in response.events]
                    self.assertEqual(len(blocks), 3)
                    for block in blocks:
                        self.assertRegex(block, r"^id: \S+\n(retry: 2000\n)?(event: done\n)?data: \{.*\}\n$")

    def test_no_heartbeat_while_events_flow(self) -> None:
        """Events are signs of life enough."""
        with serving(words, heartbeat=60) as server:
            response = ask(server.port, "POST", "/infer", {"TEXT": "a " * 1000})
        self.assertNotIn(b": ka", response.body)

    def test_no_heartbeat_for_an_answer(self) -> None:
        """An answer that is not a stream has no place for one."""
        release = threading.Event()

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            release.wait(100 * MS)
            return {"OUT": 1}

        with serving(infer, streaming=False, heartbeat=5 * MS) as server:
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}).json, {"OUT": 1})

    def test_no_heartbeat_to_one_that_lags(self) -> None:
        """A client that has a frame half sent gets the other half before anything else."""
        wait, rounds = Link.wait, []
        follow: Any = Follower.follow
        followers: list[Follower] = []

        def impatient(link: Link, timeout: float, *, writable: bool = False) -> Wait:
            rounds.append(writable)
            return wait(link, min(timeout, 5 * MS), writable=writable)

        def noted(follower: Follower) -> Any:
            followers.append(follower)
            return follow(follower)

        with (
            mock.patch.object(Link, "wait", impatient),
            mock.patch.object(Follower, "follow", noted),
            serving(filler) as server,
            Client(server.port, receive_buffer=SMALL_BUFFER) as client,
        ):
            response = client.request("POST", "/infer", {"TEXT": ""})
            stream = only_stream(server)
            eventually(lambda: not stream.is_open)
            followers[0].heartbeat = 5 * MS  # not before it lags: one is right while the app has not begun
            rounds.clear()
            eventually(lambda: len(rounds) > 5)  # it would be due in all but the first
            self.assertTrue(all(rounds))
            self.assertNotIn(b": ka", response.read().body)
            self.assertEqual(len(parse_events(response.body.decode())), MANY + 1)


if __name__ == "__main__":
    unittest.main()
