"""What is said and counted of each request: one line, whatever becomes of it, and no value of its query."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import unittest
from typing import Any
from unittest import mock

from inferless_shim.access import Access, Traffic
from inferless_shim.stream import Stream
from tests.support import MS, Client, Puppet, TestCase, ask, eventually, request_bytes, words

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Lines(logging.Handler):
    """Keeps the fields of each access line."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.fields: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.args, dict)
        self.fields.append({name: value for name, value in record.args.items() if value is not None})


class AccessTest(TestCase):
    def setUp(self) -> None:
        self.lines = Lines()
        log = logging.getLogger("inferless_shim.access")
        level = log.level
        log.addHandler(self.lines)
        log.setLevel(logging.INFO)
        self.addCleanup(log.setLevel, level)
        self.addCleanup(log.removeHandler, self.lines)

    def line(self, number: int = 1) -> dict[str, Any]:
        """Return the last line, once there are so many; without what differs each time."""
        eventually(lambda: len(self.lines.fields) >= number, what=f"{number} access lines")
        self.assertEqual(len(self.lines.fields), number)
        fields = dict(self.lines.fields[-1])
        self.assertGreaterEqual(fields.pop("seconds"), 0)
        return fields


class Requests(AccessTest):
    """One line for each, when its answer is over."""

    def test_reply(self) -> None:
        """Who, what, how much, and by what id the client knows it."""
        server = self.serve(words)
        response = ask(server.port, "GET", "/v2?x=1", fields={"X-Request-Id": "r 1", "traceparent": TRACEPARENT})
        self.assertEqual(self.line(), {
            "method": "GET", "path": "/v2", "status": 200, "client": "127.0.0.1", "route": "/v2",
            "bytes": len(response.body), "request": "r 1", "trace": TRACE,
        })  # fmt: skip

    def test_head_has_no_body(self) -> None:
        """The bytes are those sent, not those that a GET would be sent."""
        server = self.serve(words)
        ask(server.port, "HEAD", "/v2")
        self.assertEqual((self.line()["method"], self.line()["bytes"]), ("HEAD", 0))

    def test_stream(self) -> None:
        """A stream's line says which it is, how many events it had, and that the client has all of them."""
        for number, version in enumerate(("1.1", "1.0"), 1):
            with self.subTest(version):
                server = self.serve(words)
                with Client(server.port) as client:
                    client.send(request_bytes("POST", "/infer", {"TEXT": "a b c"}, version=version))
                    head = client.read_until(b"\r\n\r\n")
                    end = b"\n\n\r\n0\r\n\r\n" if version == "1.1" else b'"seconds"'
                    body = client.read_until(end)
                    fields = self.line(number)
                    if version == "1.0":
                        body += client.read_some()
                    else:
                        body = body.removesuffix(b"0\r\n\r\n")
                self.assertEqual(fields["bytes"], len(body))
                self.assertEqual((fields["status"], fields["end"], fields["events"]), (200, "to its end", 3))
                self.assertIn(f"Stream-Id: {fields['stream']}".encode(), head)
                self.assertEqual(len(fields["stream"]), 8)

    def test_answer_is_no_stream(self) -> None:
        """An answer's stream is our own affair."""
        server = self.serve(lambda inputs: {"OUT": 1}, streaming=False)
        ask(server.port, "POST", "/infer", {"TEXT": "a"})
        self.assertEqual(self.line().keys() & {"stream", "events", "end", "cause"}, set())
        self.assertEqual(self.line()["bytes"], len(b'{"OUT":1}'))

    def test_refused(self) -> None:
        """What the client was told is told here, without the values that it sent in its query."""
        server = self.serve(words)
        cases = [
            ("GET", "/nope?x=SECRET", 404, "other", "There is nothing at /nope"),
            ("PATCH", "/infer", 405, "/infer", "not allowed"),
            ("GET", "/infer?TEXT=a&TEXT=SECRET", 400, "/infer", "TEXT"),
            ("GET", "/infer?TEXT=a&last_event_id=SECRET", 400, "/infer", "malformed"),
            ("GET", "/streams/x?last_event_id=SECRET&token=SECRET", 404, "/streams/<stream>", "no such stream"),
            ("GET", "/v2/models/other/versions/1/ready", 404, "/v2/models/<model>/ready", "no model other"),
        ]
        for number, (method, target, status, route, words_in_it) in enumerate(cases, 1):
            with self.subTest(target):
                self.assertEqual(ask(server.port, method, target).status, status)
                fields = self.line(number)
                self.assertEqual((fields["status"], fields["route"]), (status, route))
                self.assertIn(words_in_it, fields["error"])
                self.assertNotIn("SECRET", str(fields))

    def test_id_of_a_stream_is_cut(self) -> None:
        """Without keys who knows a stream's id may follow and cancel it: no line has one, whatever path it is in."""
        server = self.serve(words)
        stream = ask(server.port, "POST", "/infer", {"TEXT": "a"}).fields["stream-id"]
        self.line()
        paths = ("/streams/{}", "/streams/{}/x", "/streams/{}0", "/{}", "/v2/models/{}")
        for number, path in enumerate((each.format(stream) for each in paths), 2):
            with self.subTest(path):
                ask(server.port, "GET", path)
                fields = self.line(number)
                self.assertEqual(fields["path"], path.replace(stream, f"{stream[:8]}…"))
                self.assertNotIn(stream, str(fields))
        ask(server.port, "DELETE", f"/streams/{stream}")
        self.assertNotIn(stream, str(self.line(7)))

    def test_id_first_is_body(self) -> None:
        """What GET /infer is sent in front of its events, for the stream's id alone, is body."""
        for number, version in enumerate(("1.1", "1.0"), 1):
            with self.subTest(version):
                server = self.serve(words)
                with Client(server.port) as client:
                    client.send(request_bytes("GET", "/infer?TEXT=a", version=version))
                    client.read_until(b"\r\n\r\n")
                    if version == "1.1":
                        body = client.read_until(b"\n\n\r\n0\r\n\r\n").removesuffix(b"0\r\n\r\n")
                    else:
                        body = b"".join(iter(client.read_some, b""))
                self.assertEqual(self.line(number)["bytes"], len(body))
                self.assertEqual(server.service.traffic.read()[1], len(body))

    def test_no_request(self) -> None:
        """What is no request has a line, too."""
        server = self.serve(words)
        with Client(server.port) as client:
            client.send(b"GET  / HTTP/1.1\r\n\r\n")
            client.read_until(b"\r\n\r\n")
        fields = self.line()
        self.assertEqual(
            (fields["method"], fields["path"], fields["route"], fields["status"]), ("-", "-", "other", 400)
        )
        self.assertEqual(server.service.traffic.requests.read(), {("other", "other", "400"): 1})

    def test_body_id(self) -> None:
        """The body's id is what the app sees and is told beside the request's own, if they differ."""
        seen = []
        server = self.serve(lambda inputs, handler: seen.append((handler.request_id, handler.traceparent)))
        cases = [("b-1", "r-1", "b-1"), ("same", "same", None), (None, "r-2", None), ("b\n2", "r-3", None)]
        for number, (body_id, request_id, told) in enumerate(cases, 1):
            with self.subTest(body_id):
                body = {"TEXT": "a"} | ({"id": body_id} if body_id else {})
                fields = {"X-Request-Id": request_id, "traceparent": TRACEPARENT if number == 1 else "00-0-0-0"}
                response = ask(server.port, "POST", "/infer", body, fields)
                self.assertEqual(response.fields["x-request-id"], request_id)
                line = self.line(number)
                self.assertEqual((line["request"], line.get("body_id")), (request_id, told))
                self.assertEqual(seen[-1], (told or request_id, TRACEPARENT if number == 1 else None))


class Ends(AccessTest):
    """How a stream ended for the client, and how the stream itself did."""

    def setUp(self) -> None:
        super().setUp()
        self.puppet = Puppet()

    def follow(self, port: int, **options: Any) -> Client:
        client = Client(port, **options)
        self.addCleanup(client.sock.close)
        client.request("POST", "/infer", {"TEXT": "a"})
        return client

    def test_client_left(self) -> None:
        """A client that closes has left; so has one that resets."""
        server = self.serve(self.puppet.infer)
        for number, linger in enumerate((0, 1), 1):
            client = self.follow(server.port)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger, 0))
            client.sock.close()
            self.assertEqual(self.line(number)["end"], "client left")

    def test_client_left_before_its_answer(self) -> None:
        """Nothing was answered, so there is no status; it is counted as none."""
        server = self.serve(lambda inputs: self.puppet.infer(inputs, CANCELLABLE), streaming=False)
        self.addCleanup(self.puppet.end)
        client = Client(server.port)
        client.send(request_bytes("POST", "/infer", {"TEXT": "a"}))
        eventually(lambda: self.puppet.inputs)
        client.sock.close()
        fields = self.line()
        self.assertEqual((fields.get("status"), fields["end"]), (None, "client left"))
        self.assertEqual(server.service.traffic.requests.read(), {("/infer", "POST", "none"): 1})

    def test_stalled(self) -> None:
        """A client that takes nothing has stalled, and that is counted."""
        server = self.serve(self.puppet.infer, stall=0.1)
        self.follow(server.port, receive_buffer=4096)
        for _ in range(30):
            self.puppet.send(OUT="x" * 100_000)
        self.assertEqual(self.line()["end"], "stalled")
        self.assertEqual(server.service.traffic.faults.read()[("stalled",)], 1)

    def test_fell_behind(self) -> None:
        """What it was to be sent next was forgotten."""
        server = self.serve(self.puppet.infer, log_cap=100_000)
        client = self.follow(server.port, receive_buffer=4096)
        stream = server.service.store.running()[0]
        self.puppet.send(OUT="x" * 1_000_000)
        for _ in range(3):
            self.puppet.send(OUT="x" * 90_000)
        eventually(lambda: stream.log.last >= 4)
        while client.sock.recv(1 << 20):
            pass
        self.assertEqual(self.line()["end"], "fell behind")

    def test_shut_down(self) -> None:
        """A stream that we ended is one."""
        server = self.serve(self.puppet.infer)
        client = self.follow(server.port)
        for stream in server.service.store.running():
            stream.fail("shutting_down", "bye")
        client.read_until(b"0\r\n\r\n")
        fields = self.line()
        self.assertEqual((fields["end"], fields["cause"]), ("shut down", "shutting_down"))

    def test_follower_that_fails(self) -> None:
        """Whatever goes wrong once a client is attached, its stream lets go of it before the connection is closed."""
        server = self.serve(self.puppet.infer)
        self.addCleanup(self.puppet.end)
        with (
            mock.patch("inferless_shim.access.Access.follows", side_effect=RuntimeError("no")),
            mock.patch("inferless_shim.stream.Stream.detach", autospec=True, side_effect=Stream.detach) as detach,
            self.assertLogs("inferless_shim.app", "ERROR"),
            Client(server.port) as client,
        ):
            client.send(request_bytes("POST", "/infer", {"TEXT": "a"}))
            self.assertEqual(client.read_some(), b"")
            self.line()
        self.assertEqual(detach.call_count, 1)

    def test_cause(self) -> None:
        """A stream that failed was followed to its end, and the cause is told."""
        server = self.serve(self.puppet.infer)
        client = self.follow(server.port)
        with self.assertLogs("inferless_shim.run", "ERROR"):
            self.puppet.fail(ValueError("no"))
            client.read_until(b"0\r\n\r\n")
        fields = self.line()
        self.assertEqual((fields["end"], fields["cause"]), ("to its end", "app_error"))


class Late(AccessTest):
    def test_late(self) -> None:
        """A head and a body that do not come are two faults."""
        server = self.serve(words, read_timeout=50 * MS)
        faults = server.service.traffic.faults
        body = b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        for number, (sent, fault) in enumerate([(b"GET / HT", "head_timeout"), (body, "body_timeout")], 1):
            with self.subTest(fault), Client(server.port) as client:
                client.send(sent)
                self.assertIn(b" 408 ", client.read_until(b"\r\n\r\n"))
                client.sock.close()  # or its last words are waited for
                self.assertEqual(self.line(number)["status"], 408)
                self.assertEqual(faults.read()[(fault,)], 1)


class TrafficTest(TestCase):
    def test_methods_are_few(self) -> None:
        """A method that nobody knows is counted as another, so that clients cannot fill our memory with labels."""
        traffic = Traffic()
        for _ in range(50):
            access = Access("", "r")
            access.method = os.urandom(4).hex()
            traffic.begin(access)
            traffic.end(access)
        self.assertEqual(traffic.requests.read(), {("other", "other", "none"): 50})

    def test_bytes_are_never_less_than_before(self) -> None:
        """What a request was sent is counted while it lasts and after, once."""
        traffic = Traffic()
        readings = []
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                live, sent = traffic.read()
                readings.append(sent + sum(each.bytes for each in live))

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(3000):
            access = Access("", "r")
            traffic.begin(access)
            access.replied = 10
            traffic.end(access)
        over.set()
        reader.join()
        self.assertEqual(readings, sorted(readings))
        self.assertEqual(traffic.read(), ([], 30_000))


class Cancellable:
    """What a puppet asks of a handler, for an app that has none."""

    cancelled = False


CANCELLABLE = Cancellable()


if __name__ == "__main__":
    unittest.main()
