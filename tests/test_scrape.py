"""/metrics tells what happened: each figure moves when what it counts happens, and counters only grow."""

from __future__ import annotations

import threading
import unittest
from itertools import pairwise
from typing import Any

from inferless_shim.engine import State as EngineState
from inferless_shim.metrics import CONTENT_TYPE
from inferless_shim.service import Phase
from tests.support import (
    MS,
    Client,
    FakeApp,
    Metric,
    Puppet,
    TestCase,
    ask,
    eventually,
    read_metrics,
    serving_app,
    words,
)


class ScrapeTest(TestCase):
    puppet: Puppet
    port: int

    def start(self, infer: Any = None, **settings: Any) -> Any:
        self.puppet = Puppet()
        server = self.serve(infer or self.puppet.infer, **settings)
        self.port = server.port
        return server

    def scrape(self) -> dict[str, Metric]:
        response = ask(self.port, "GET", "/metrics")
        self.assertEqual(response.status, 200)
        return read_metrics(response.body.decode())

    def value(self, name: str, **labels: str) -> float:
        return self.scrape()[name].value(**labels)

    def comes_to(self, expected: float, name: str, **labels: str) -> None:
        """Wait until a figure is this."""
        eventually(lambda: self.value(name, **labels) == expected, what=f"{name} {labels} is {expected}")

    def follow(self, **fields: str) -> Client:
        client = Client(self.port)
        self.addCleanup(client.sock.close)
        self.stream_id = client.request("POST", "/infer", {"TEXT": "a"}, fields).fields["stream-id"]
        return client


class Route(ScrapeTest):
    def test_get_and_head(self) -> None:
        """Text of version 0.0.4, which a strict reader reads; HEAD says how long it is and no more."""
        self.start(words)
        got = ask(self.port, "GET", "/metrics")
        self.assertEqual((got.status, got.fields["content-type"]), (200, CONTENT_TYPE))
        self.assertEqual(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")
        self.assertGreater(len(read_metrics(got.body.decode())), 30)
        head = ask(self.port, "HEAD", "/metrics")
        self.assertEqual((head.status, head.body, head.fields["content-type"]), (200, b"", CONTENT_TYPE))
        self.assertEqual(ask(self.port, "POST", "/metrics", {}).status, 405)

    def test_while_loading(self) -> None:
        """It answers in every phase, as liveness does."""
        server = self.start(words)
        server.service.phase = Phase.LOADING
        self.assertEqual(self.value("shim_state", state="loading"), 1)
        server.service.phase = Phase.SERVING

    def test_no_label_is_a_clients(self) -> None:
        """Whatever is asked for, a route is one of ours or `other`, and a method is a known one or `other`."""
        self.start(words)
        before = len(self.scrape()["shim_requests_total"].samples)
        for n in range(30):
            ask(self.port, f"X{n}", f"/x{n}")
            ask(self.port, "GET", f"/streams/{n}")
            ask(self.port, "GET", f"/v2/models/{n}/versions/{n}/ready")
        self.comes_to(30, "shim_requests_total", route="/streams/<stream>", method="GET", status="404")
        self.comes_to(30, "shim_requests_total", route="/v2/models/<model>/ready", method="GET", status="404")
        self.comes_to(30, "shim_requests_total", route="other", method="other", status="404")
        requests = self.scrape()["shim_requests_total"]
        self.assertLessEqual(len(requests.samples), before + 4)

    def test_templates(self) -> None:
        """Every path that is served has its template, without groups, escapes or what may be left out."""
        routes = self.start(words).routes
        templates = [route.template for route in routes.table]
        self.assertEqual(len(templates), len(set(templates)))
        for template in templates:
            self.assertRegex(template, r"\*|/([a-z0-9_]+|<[a-z]+>)?(/([a-z0-9_]+|<[a-z]+>))*")
        cases = {
            "/": "/",
            "*": "*",
            "/v2/": "/v2",
            "/v2/models/m/versions/1/infer": "/v2/models/<model>/infer",
            "/v2/repository/models/m/load": "/v2/repository/models/<model>/load",
            "/streams/a/b": None,
        }
        for path, template in cases.items():
            with self.subTest(path):
                self.assertEqual(routes.template(path), template)


class Streams(ScrapeTest):
    def test_a_streams_life(self) -> None:
        """Open and followed, then finished and kept, then forgotten; its events and bytes are counted all the while."""
        server = self.start()
        client = self.follow()
        self.assertEqual(self.value("shim_streams", state="open"), 1)
        self.assertEqual(self.value("shim_subscribers"), 1)
        self.assertEqual(self.value("shim_first_event_seconds", le="+Inf"), 0)
        self.puppet.send(OUT="a")
        self.comes_to(1, "shim_events_total")
        self.puppet.send(OUT="b")
        self.comes_to(2, "shim_events_total")
        figures = self.scrape()
        self.assertEqual(figures["shim_first_event_seconds"].value(le="+Inf"), 1)
        self.assertEqual(figures["shim_event_gap_seconds"].value(le="+Inf"), 1)
        stream = server.service.store.running()[0]
        self.assertEqual(figures["shim_logged_bytes_total"].value(), stream.log.end)
        self.puppet.end()
        body = client.read_until(b"0\r\n\r\n")
        self.comes_to(0, "shim_subscribers")
        figures = self.scrape()
        self.assertEqual(figures["shim_streams"].value(state="open"), 0)
        self.assertEqual(figures["shim_streams"].value(state="finished"), 1)
        self.assertEqual(figures["shim_streams_ended_total"].value(state="finished"), 1)
        self.assertEqual(figures["shim_events_total"].value(), 2)
        self.assertEqual(figures["shim_log_bytes"].value(), len(body) - len(b"0\r\n\r\n"))
        self.assertEqual(figures["shim_streams_forgotten_total"].value(), 0)
        del stream  # or somebody still reads it
        ask(self.port, "DELETE", f"/streams/{self.stream_id}")
        self.comes_to(0, "shim_log_bytes")  # although its client's connection is still there
        figures = self.scrape()
        self.assertEqual(figures["shim_streams"].value(state="finished"), 0)
        self.assertEqual(figures["shim_streams_forgotten_total"].value(), 1)
        self.assertEqual(figures["shim_streams_started_total"].value(), 1)
        self.assertEqual(figures["shim_events_total"].value(), 2)

    def test_sent_bytes(self) -> None:
        """Bytes of body are counted while a stream runs; a resumed part is counted again, because it is sent again."""
        self.start()
        client = self.follow()
        before = self.value("shim_sent_bytes_total")
        self.puppet.send(OUT="x" * 5000)
        client.read_until(b"\n\n\r\n")
        eventually(lambda: self.value("shim_sent_bytes_total") > before + 5000)
        self.puppet.end()
        client.read_until(b"0\r\n\r\n")
        self.comes_to(1, "shim_requests_total", route="/infer")
        before = self.value("shim_sent_bytes_total")
        replay = ask(self.port, "GET", f"/streams/{self.stream_id}", fields={"Last-Event-ID": f"{self.stream_id}-0"})
        self.comes_to(1, "shim_requests_total", route="/streams/<stream>")
        self.assertGreater(self.value("shim_sent_bytes_total"), before + len(replay.body))

    def test_lagging(self) -> None:
        """A client that does not read what was sent lags; one that does, does not."""
        self.start()
        with Client(self.port, receive_buffer=4096) as slow:
            slow.request("POST", "/infer", {"TEXT": "a"})
            self.assertEqual(self.value("shim_subscribers_lagging"), 0)
            for _ in range(10):
                self.puppet.send(OUT="x" * 300_000)
            self.comes_to(1, "shim_subscribers_lagging")
            self.assertEqual(self.value("shim_subscribers"), 1)
            self.puppet.end()
            slow.read_until(b"0\r\n\r\n")
        self.comes_to(0, "shim_subscribers_lagging")

    def test_cancels(self) -> None:
        """Each way that a stream is cut short is counted by its cause."""
        self.start(linger=0.0, infer_timeout=30.0)
        self.follow()
        ask(self.port, "DELETE", f"/streams/{self.stream_id}")
        self.comes_to(1, "shim_cancels_total", cause="deleted")
        self.follow().sock.close()
        self.comes_to(1, "shim_cancels_total", cause="unfollowed")
        self.comes_to(1, "shim_slots", state="free")  # or another takes the next step
        self.follow()
        with self.assertLogs("inferless_shim.run", "ERROR"):
            self.puppet.fail(ValueError("no"))
            self.comes_to(1, "shim_cancels_total", cause="app")
        self.assertEqual(self.value("shim_cancels_total", cause="timeout"), 0)
        self.assertEqual(self.value("shim_cancels_total", cause="shutdown"), 0)
        self.assertEqual(self.value("shim_streams_ended_total", state="cancelled"), 2)
        self.assertEqual(self.value("shim_streams_ended_total", state="failed"), 1)

    def test_timeout_and_shutdown(self) -> None:
        """The other two causes."""
        server = self.start(infer_timeout=50 * MS)
        self.follow()
        self.comes_to(1, "shim_cancels_total", cause="timeout")
        server.service.settings.__dict__["infer_timeout"] = 30.0  # frozen, but not for a test
        self.follow()
        for stream in server.service.store.running():
            stream.fail("shutting_down", "bye")
        self.comes_to(1, "shim_cancels_total", cause="shutdown")

    def test_resumes(self) -> None:
        """How each attempt to come back ended, wherever it was made; the first GET of a stream is one."""
        self.start(log_cap=1000)
        client = self.follow()
        for each in "xy":
            self.puppet.send(OUT=each * 2000)
            client.read_until(b'"}\n\n\r\n')
        own = f"{self.stream_id}-"
        follow, infer = f"/streams/{self.stream_id}", "/infer"
        with Client(self.port) as other:
            other.request("GET", follow, fields={"Last-Event-ID": own + "1"})
        cases = [
            ("GET", follow, own + "0", 410, "410"),
            ("GET", follow, own + "9", 400, "400"),
            ("GET", "/streams/0", None, 404, "404"),
            ("POST", infer, "malformed", 400, "400"),
            ("POST", infer, "0" * 32 + "-1", 404, "404"),
        ]
        for method, target, last_event_id, status, outcome in cases:
            with self.subTest(target, id=last_event_id):
                before = self.value("shim_resumes_total", outcome=outcome)
                fields = {"Last-Event-ID": last_event_id} if last_event_id else {}
                body = {"TEXT": "a"} if method == "POST" else None
                self.assertEqual(ask(self.port, method, target, body, fields).status, status)
                self.comes_to(before + 1, "shim_resumes_total", outcome=outcome)
        self.puppet.end()
        client.read_until(b"0\r\n\r\n")
        self.assertEqual(ask(self.port, "GET", follow, fields={"Last-Event-ID": own + "3"}).status, 204)
        self.comes_to(1, "shim_resumes_total", outcome="204")
        self.comes_to(1, "shim_resumes_total", outcome="followed")
        before = self.scrape()["shim_resumes_total"]
        ask(self.port, "HEAD", follow)
        ask(self.port, "POST", infer, {})
        self.comes_to(1, "shim_requests_total", route="/streams/<stream>", method="HEAD")
        self.comes_to(2, "shim_requests_total", route="/infer", status="400", method="POST")
        self.assertEqual(self.scrape()["shim_resumes_total"], before)


class Running(ScrapeTest):
    def test_queue_and_slots(self) -> None:
        """One runs, two wait; then all have waited, each once, and infer has run as often."""
        self.start()
        clients = [self.follow() for _ in range(3)]
        self.comes_to(2, "shim_queue_depth")
        figures = self.scrape()
        self.assertEqual([figures["shim_slots"].value(state=each) for each in ("busy", "free", "stuck")], [1, 0, 0])
        self.assertEqual(figures["shim_queue_wait_seconds"].value(le="+Inf"), 1)
        self.assertEqual(figures["shim_infer_seconds"].value(le="+Inf"), 0)
        for client in clients:
            self.puppet.end()
            client.read_until(b"0\r\n\r\n")
        self.comes_to(3, "shim_infer_seconds", le="+Inf")
        figures = self.scrape()
        self.assertEqual(figures["shim_queue_wait_seconds"].value(le="+Inf"), 3)
        self.assertEqual([figures["shim_slots"].value(state=each) for each in ("busy", "free", "stuck")], [0, 1, 0])
        self.assertEqual(figures["shim_batch_size"].value(le="+Inf"), 0)

    def test_batches(self) -> None:
        """The size of each batch; what is run again because its batch raised has been counted."""

        def infer(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if len(batch) > 1:
                raise ValueError("one at a time, please")
            return [{"OUT": 1} for _ in batch]

        app = FakeApp(infer, streaming=False, batch_size=2, batch_window=60_000)
        context = serving_app(app)
        server = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        self.port = server.port
        with self.assertLogs("inferless_shim.run", "ERROR"), Client(self.port) as one, Client(self.port) as two:
            body = b'{"TEXT": ["a"]}'
            for client in (one, two):
                head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                client.send(head.encode() + body)
            self.assertIn(b" 200 ", one.read_until(b"\r\n\r\n"))
            self.assertIn(b" 200 ", two.read_until(b"\r\n\r\n"))
        figures = self.scrape()
        self.assertEqual(figures["shim_batch_size"].value(le="1"), 0)
        self.assertEqual(figures["shim_batch_size"].value(le="2"), 1)
        self.assertEqual(figures["shim_queue_wait_seconds"].value(le="+Inf"), 2)
        self.assertEqual(figures["shim_infer_seconds"].value(le="+Inf"), 3)

    def test_stuck_slot(self) -> None:
        """An infer that does not end is a lost slot, not a busy one."""
        end = threading.Event()
        self.addCleanup(end.set)
        with self.assertLogs("inferless_shim", "WARNING"):
            self.start(lambda inputs, handler: end.wait(), infer_timeout=10 * MS, stuck_grace=0.0)
            self.follow()
            self.comes_to(1, "shim_slots", state="stuck")
            self.assertEqual(self.value("shim_slots", state="busy"), 0)
            self.assertEqual(self.value("shim_state", state="stuck"), 1)
            end.set()
            self.comes_to(1, "shim_slots", state="free")


class Connections(ScrapeTest):
    def test_connections(self) -> None:
        """How many are open, have been, and were refused because there were too many."""
        server = self.start(words, max_connections=2)
        with Client(self.port) as one:
            ask_on(one)
            figures = self.scrape()
            self.assertEqual(figures["shim_connections"].value(), 2)
            eventually(lambda: len(server._handlers) == 1, what="the scrape's connection has made room")
            with Client(self.port) as two:
                ask_on(two)
                with Client(self.port) as three:
                    self.assertIn(b" 503 ", three.read_until(b"\r\n\r\n"))
                one.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = one.read_until(b"\r\n\r\n").decode()
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
                figures = read_metrics(one.read(length).decode())
        self.assertEqual(figures["shim_connections_refused_total"].value(), 1)
        self.assertEqual(figures["shim_connections_accepted_total"].value(), 3)
        eventually(lambda: not server._handlers, what="all are closed")
        eventually(lambda: server.service.traffic.connections.read()[("ended",)] == 3)
        self.assertEqual(self.value("shim_connections"), 1)


class Health(ScrapeTest):
    """/v2/health/ready and /metrics tell the same truth, with the reason."""

    def check(self, state: str, reason: str) -> None:
        for path in ("/v2/health/ready", "/v2/models/fake/ready"):
            for accept in ("application/json", "text/event-stream"):
                response = ask(self.port, "GET", path, fields={"Accept": accept, "X-Request-Id": "r-1"})
                if state == "ready":
                    self.assertEqual((response.status, response.json), (200, {"ready": True}))
                    continue
                self.assertEqual((response.status, response.json["state"]), (503, state))
                self.assertEqual(set(response.json), {"error", "state", "request_id"})
                self.assertIn(reason, response.json["error"])
                self.assertEqual(response.json["request_id"], "r-1")
                self.assertIn("retry-after", response.fields)
        live = ask(self.port, "GET", "/v2/health/live")
        self.assertEqual((live.status, live.json), (200, {"live": True}))
        states = self.scrape()["shim_state"]
        self.assertEqual([dict(labels)["state"] for (_, labels), n in states.samples.items() if n], [state])

    def test_phases(self) -> None:
        """Loading, ready, draining: live in each, ready in one."""
        server = self.start(words)
        for phase, state, reason in (
            (Phase.LOADING, "loading", "still loading"),
            (Phase.SERVING, "ready", ""),
            (Phase.DRAINING, "draining", "shutting down"),
        ):
            with self.subTest(state):
                server.service.phase = phase
                self.check(state, reason)

    def test_engine(self) -> None:
        """A model that is unloaded, being unloaded or loaded again is not ready; nor is one that lost its slots."""
        engine = self.start(words).service.engine
        for engine_state, state, reason in (
            (EngineState.LOADING, "loading", "still loading"),
            (EngineState.UNLOADED, "unloaded", "/load brings it back"),
            (EngineState.READY, "ready", ""),
        ):
            with self.subTest(state):
                engine.state = engine_state
                self.check(state, reason)
        engine._slots[0].stuck = True
        self.check("stuck", "Every slot is held by an infer that does not end")
        engine._slots[0].stuck = False

    def test_unloading(self) -> None:
        """While what runs is let end, the model is being unloaded; then it is unloaded; after a load it is ready."""
        self.start()
        client = self.follow()
        eventually(lambda: self.puppet.inputs)
        unload = threading.Thread(target=ask, args=(self.port, "POST", "/v2/repository/models/fake/unload"))
        unload.start()
        self.comes_to(1, "shim_state", state="unloading")
        self.check("unloading", "is being unloaded")
        self.puppet.end()
        client.read_until(b"0\r\n\r\n")
        unload.join()
        self.check("unloaded", "is unloaded")
        self.assertEqual(ask(self.port, "POST", "/v2/repository/models/fake/load").status, 200)
        self.check("ready", "")


class Growing(ScrapeTest):
    def test_counters_only_grow(self) -> None:
        """While clients come, leave, resume and cancel, no counter and no bucket is below that of the scrape before."""
        self.start(words, max_streams=5, retention=0.0)
        scrapes: list[dict[str, Metric]] = []
        over = threading.Event()

        def scrape() -> None:
            while not over.is_set():
                scrapes.append(self.scrape())

        def work() -> None:
            for n in range(12):
                stream = ask(self.port, "POST", "/infer", {"TEXT": "a b c d " * 20}).fields.get("stream-id", "0")
                ask(self.port, "GET", f"/streams/{stream}")
                ask(self.port, "DELETE" if n % 2 else "HEAD", f"/streams/{stream}")

        scraper = threading.Thread(target=scrape)
        workers = [threading.Thread(target=work) for _ in range(3)]
        for each in (scraper, *workers):
            each.start()
        for each in workers:
            each.join()
        over.set()
        scraper.join()
        self.comes_to(36, "shim_requests_total", route="/infer")
        scrapes.append(self.scrape())
        self.assertGreater(len(scrapes), 3)
        for before, after in pairwise(scrapes):
            for name, metric in before.items():
                if metric.kind != "gauge":
                    for key, value in metric.samples.items():
                        self.assertGreaterEqual(after[name].samples.get(key, -1), value, (key, name))


def ask_on(client: Client) -> None:
    assert client.request("GET", "/v2/health/live").read().status == 200


if __name__ == "__main__":
    unittest.main()
