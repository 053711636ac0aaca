"""Behind nginx, which asks over HTTP/1.0 unless it is told otherwise: event by event, cut and resumed, left, broken."""

from __future__ import annotations

import json
import unittest
from typing import Any

from tests.e2e.proxies import Nginx, UnixClient
from tests.e2e.wire import GATED, TestCase, gate, served
from tests.support import Client, Event, Response, ask, eventually

SENT = [{"OUT": word} for word in ("To", " boil", " an", " egg")]


class ThroughNginx(TestCase):
    settings = ""

    def serve(self, *flags: str) -> None:
        self.server = self.hold(served(GATED, *flags))
        self.nginx = self.hold(Nginx([self.server.port], self.settings))
        self.gate = self.hold(gate())
        self.body = {"TEXT": json.dumps(SENT), "GATE": self.gate.path}

    def connect(self) -> Client:
        return self.hold(UnixClient(self.nginx.socket))

    def read_events(self, response: Response, number: int) -> list[Event]:
        """Read until this many events have come."""
        chunks = response.chunks()
        while len(response.events) < number:
            self.assertIsNotNone(next(chunks, None), "the stream ended early")
        return response.events

    def start(self) -> tuple[Client, Response]:
        client = self.connect()
        response = client.request("POST", "/infer", self.body)
        self.assertEqual(response.status, 200)
        return client, response

    def resume(self, method: str, target: str, last: str, body: Any = None) -> tuple[Client, Response]:
        client = self.connect()
        return client, client.request(method, target, body, {"Last-Event-ID": last})

    def test_stream_arrives_event_by_event(self) -> None:
        """Each event reaches the client before the app may send the next one."""
        self.serve()
        _, response = self.start()
        for number, sent in enumerate(SENT, start=1):
            self.gate.open(number)
            self.assertEqual(self.read_events(response, number)[-1].data, sent)
        self.gate.open(len(SENT) + 1)
        response.read()
        self.assertTrue(response.complete)
        self.assertEqual([event.event for event in response.events], [None] * len(SENT) + ["done"])

    def test_stream_is_cut_and_resumed(self) -> None:
        """A client that is cut twice comes back, on the same POST and on GET /streams/<id>, and misses nothing."""
        self.serve()
        self.gate.open(1)
        client, response = self.start()
        (first,) = self.read_events(response, 1)
        client.sock.close()

        self.gate.open(2)
        client, response = self.resume("POST", "/infer", str(first.id), self.body)
        (second,) = self.read_events(response, 1)
        client.sock.close()

        self.gate.open(len(SENT) + 1)
        target = response.fields["content-location"]
        _, response = self.resume("GET", target, str(second.id))
        rest = response.read().events
        self.assertTrue(response.complete)
        events = [first, second, *rest]
        self.assertEqual([event.data for event in events[:-1]], SENT)
        self.assertEqual([event.number for event in events], list(range(1, len(SENT) + 2)))
        self.assertEqual(events[-1].event, "done")

        _, response = self.resume("GET", target, str(events[-1].id))
        self.assertEqual(response.status, 204)

    def test_client_that_leaves_is_a_disconnect(self) -> None:
        """A client that leaves nginx has left the server: after linger the stream is cancelled."""
        self.serve("--linger", "100ms")
        self.gate.open(1)
        client, response = self.start()
        self.read_events(response, 1)
        stream = response.fields["stream-id"]
        client.sock.close()
        # 400 while that event is yet to come, 204 as soon as none can come any more; HEAD does not follow the stream.
        probe = {"Last-Event-ID": f"{stream}-{len(SENT)}"}
        eventually(
            lambda: ask(self.server.port, "HEAD", f"/streams/{stream}", fields=probe).status == 204,
            what="the stream is cancelled",
        )
        self.assertEqual(ask(self.server.port, "GET", f"/streams/{stream}").events[-1].data["code"], "cancelled")

    def test_broken_stream_is_not_taken_for_a_finished_one(self) -> None:
        """When the server dies in mid-stream, nginx's client is not given a proper end."""
        self.serve()
        self.gate.open(1)
        _, response = self.start()
        self.read_events(response, 1)
        self.server.process.kill()
        response.read()
        self.assertFalse(response.complete)


class Http10Test(ThroughNginx):
    """nginx as it comes: HTTP/1.0 towards the server, buffering on but for `X-Accel-Buffering: no`."""


class Http11UnbufferedTest(ThroughNginx):
    """nginx as manuals set it up for streams."""

    settings = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;'


del ThroughNginx  # or its tests would run a third time

if __name__ == "__main__":
    unittest.main()
