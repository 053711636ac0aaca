"""CONTRACT.md §8 on the wire: what each route answers, for apps that stream and apps that do not."""

from __future__ import annotations

import json
import re
import threading
import unittest
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

from inferless_shim import answers
from inferless_shim.engine import State
from inferless_shim.errors import AppFailed, ShimError, Unavailable
from inferless_shim.protocol import HEADER_LENGTH
from inferless_shim.service import Phase
from tests.support import (
    MS,
    PATIENCE,
    Client,
    Event,
    Puppet,
    Response,
    SharedServer,
    TestCase,
    ask,
    eventually,
    parse_events,
    request_bytes,
    words,
)

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("bare keys", {"TEXT": "a b"}),
    ("the envelope", {"parameters": {"TEXT": "a b"}}),
    ("tensors", {"inputs": [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["a b"]}]}),
]
V2 = "/v2/models/fake"
EVENTS = "text/event-stream; charset=utf-8"
JSON = "application/json; charset=utf-8"


def shout(inputs: dict[str, Any]) -> dict[str, Any]:
    """An app that does not stream."""
    return {"OUT": inputs["TEXT"].upper(), "LENGTH": len(inputs["TEXT"])}


def data(response: Response) -> list[Any]:
    return [event.data for event in response.events]


class StreamingRouteTests(SharedServer):
    """The routes of an app that streams."""

    def test_native(self) -> None:
        """POST /infer: `data:` is exactly the app's dict, and `done` says how many events there were."""
        for form, body in FORMS:
            with self.subTest(form):
                response = ask(self.port, "POST", "/infer", body)
                self.assertEqual((response.status, response.fields["content-type"]), (200, EVENTS))
                self.assertEqual(data(response)[:2], [{"OUT": "a"}, {"OUT": "b"}])
                last = response.events[-1]
                self.assertEqual((last.event, last.data["events"]), ("done", 2))
                self.assertGreaterEqual(last.data["seconds"], 0)
                self.assertEqual(set(last.data), {"events", "seconds"})
                self.assertTrue(response.complete)

    def test_native_bytes(self) -> None:
        """To the byte: id, then `retry:` in the first block alone, then the data; LF; a blank line after each block."""
        response = ask(self.port, "POST", "/infer", {"TEXT": "é b"})
        stream = response.fields["stream-id"]
        seconds = response.events[-1].data["seconds"]
        expected = (
            f'id: {stream}-1\nretry: 2000\ndata: {{"OUT":"é"}}\n\n'
            f'id: {stream}-2\ndata: {{"OUT":"b"}}\n\n'
            f'id: {stream}-3\nevent: done\ndata: {{"events":2,"seconds":{json.dumps(seconds)}}}\n\n'
        )
        self.assertEqual(response.body.decode(), expected)

    def test_query(self) -> None:
        """GET /infer is the same stream after a block with an id alone, from which even a cut at once is resumable."""
        response = ask(self.port, "GET", "/infer?TEXT=a+b")
        stream = response.fields["stream-id"]
        self.assertTrue(response.body.startswith(f"id: {stream}-0\n\nid: {stream}-1\nretry: 2000\n".encode()))
        self.assertEqual([event.number for event in response.events], [0, 1, 2, 3])
        self.assertEqual(data(response)[1:3], [{"OUT": "a"}, {"OUT": "b"}])
        again = ask(self.port, "GET", "/infer?TEXT=a+b", fields={"Last-Event-ID": f"{stream}-0"})
        self.assertEqual(again.body, response.body)
        later = ask(self.port, "GET", "/infer?TEXT=a+b", fields={"Last-Event-ID": f"{stream}-1"})
        self.assertEqual([event.number for event in later.events], [2, 3])

    def test_protocol(self) -> None:
        """The v2 infer route and generate_stream name the model in every event; nothing follows the last one."""
        for target in ("/infer", "/generate_stream", "/versions/1/infer", "/versions/1/generate_stream"):
            for form, body in FORMS:
                with self.subTest(target, form=form):
                    response = ask(self.port, "POST", V2 + target, body)
                    self.assertEqual((response.status, response.fields["content-type"]), (200, EVENTS))
                    named = {"model_name": "fake", "model_version": "1"}
                    self.assertEqual(data(response), [{"OUT": "a", **named}, {"OUT": "b", **named}])
                    self.assertEqual([event.number for event in response.events], [1, 2])
                    self.assertEqual([event.event for event in response.events], [None, None])
                    self.assertTrue(response.complete)

    def test_generate(self) -> None:
        """POST …/generate is one JSON answer: strings joined in order, other keys from the last event."""
        for target in ("/generate", "/versions/1/generate"):
            for form, body in FORMS:
                with self.subTest(target, form=form):
                    response = ask(self.port, "POST", V2 + target, {**body, "id": "seven"})
                    self.assertEqual((response.status, response.fields["content-type"]), (200, JSON))
                    expected = {"OUT": "ab", "model_name": "fake", "model_version": "1", "id": "seven"}
                    self.assertEqual(response.json, expected)
                    self.assertNotIn("stream-id", response.fields)

    def test_accept_is_not_consulted(self) -> None:
        """The route alone decides the kind of answer."""
        for accept in ("application/json", "text/event-stream", "image/png", "*/*"):
            fields = {"Accept": accept}
            with self.subTest(accept):
                self.assertEqual(ask(self.port, "POST", "/infer", {"TEXT": "a"}, fields).fields["content-type"], EVENTS)
                generate = ask(self.port, "POST", V2 + "/generate", {"TEXT": "a"}, fields)
                self.assertEqual(generate.fields["content-type"], JSON)

    def test_content_type_is_not_looked_at(self) -> None:
        """curl's -d calls everything a form."""
        for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=latin-1"):
            response = ask(self.port, "POST", "/infer", {"TEXT": "a"}, {"Content-Type": content_type})
            self.assertEqual(response.status, 200)

    def test_head_starts_nothing(self) -> None:
        """HEAD tells what GET would say, and starts, follows and changes nothing."""
        kept = len(self.server.service.store)
        self.assertEqual(ask(self.port, "HEAD", "/infer?TEXT=a").status, 200)
        self.assertEqual(len(self.server.service.store), kept)
        stream = ask(self.port, "POST", "/infer", {"TEXT": "a"}).fields["stream-id"]
        for last, status in ((None, 200), (1, 200), (2, 204)):
            fields = {} if last is None else {"Last-Event-ID": f"{stream}-{last}"}
            head = ask(self.port, "HEAD", f"/streams/{stream}", None, fields)
            self.assertEqual((head.status, head.fields["stream-id"]), (status, stream))
        self.assertEqual(ask(self.port, "HEAD", "/streams/unknown").status, 404)


class PlainRouteTests(SharedServer):
    """The routes of an app that does not stream."""

    infer = staticmethod(shout)
    settings: ClassVar[dict[str, Any]] = {"streaming": False}

    def test_native(self) -> None:
        """POST /infer, and GET with a query, answer with the app's dict as JSON."""
        for form, body in FORMS:
            with self.subTest(form):
                response = ask(self.port, "POST", "/infer", body)
                self.assertEqual((response.status, response.fields["content-type"]), (200, JSON))
                self.assertEqual(response.body, b'{"OUT":"A B","LENGTH":3}')
                self.assertNotIn("stream-id", response.fields)
        self.assertEqual(ask(self.port, "GET", "/infer?TEXT=a%20b").body, b'{"OUT":"A B","LENGTH":3}')
        self.assertEqual(ask(self.port, "HEAD", "/infer?TEXT=a").fields["content-type"], JSON)

    def test_v2(self) -> None:
        """POST …/infer answers with output tensors, and echoes the request's id."""
        for target in ("/infer", "/versions/1/infer"):
            for form, body in FORMS:
                with self.subTest(target, form=form):
                    response = ask(self.port, "POST", V2 + target, {"id": "seven", **body})
                    self.assertEqual((response.status, response.fields["content-type"]), (200, JSON))
                    self.assertEqual(
                        response.json,
                        {
                            "model_name": "fake",
                            "model_version": "1",
                            "id": "seven",
                            "outputs": [
                                {"name": "OUT", "datatype": "BYTES", "shape": [1], "data": ["A B"]},
                                {"name": "LENGTH", "datatype": "INT64", "shape": [1], "data": [3]},
                            ],
                        },
                    )

    def test_v2_outputs(self) -> None:
        """Only the outputs that were asked for come back; one that the app does not have is the client's fault: 400."""
        body = {**FORMS[2][1], "outputs": [{"name": "LENGTH"}]}
        self.assertEqual(
            [each["name"] for each in ask(self.port, "POST", V2 + "/infer", body).json["outputs"]], ["LENGTH"]
        )
        response = ask(self.port, "POST", V2 + "/infer", {**body, "outputs": [{"name": "SIZE"}]})
        self.assertEqual(response.status, 400)
        self.assertIn('"SIZE" is not an output', response.json["error"])

    def test_generate(self) -> None:
        """POST …/generate answers with the dict, flat, with the model's name and version."""
        response = ask(self.port, "POST", V2 + "/generate", {"TEXT": "a"})
        self.assertEqual(response.json, {"OUT": "A", "LENGTH": 1, "model_name": "fake", "model_version": "1"})

    def test_generate_stream(self) -> None:
        """POST …/generate_stream is a stream of one event."""
        for form, body in FORMS:
            with self.subTest(form):
                response = ask(self.port, "POST", V2 + "/generate_stream", body)
                self.assertEqual(response.fields["content-type"], EVENTS)
                expected = {"OUT": "A B", "LENGTH": 3, "model_name": "fake", "model_version": "1"}
                self.assertEqual(data(response), [expected])
                last = {"Last-Event-ID": response.events[-1].id or ""}
                self.assertEqual(ask(self.port, "POST", V2 + "/generate_stream", body, last).status, 204)

    def test_prefer_respond_async(self) -> None:
        """Any app can be asked to answer later: its dict is then a stream of one event, in the route's dialect."""
        named = {"model_name": "fake", "model_version": "1"}
        for target, extra in (("/infer", {}), (V2 + "/infer", named), (V2 + "/generate", named)):
            with self.subTest(target):
                response = ask(self.port, "POST", target, {"TEXT": "a"}, {"Prefer": "respond-async"})
                self.assertEqual(response.status, 202)
                followed = ask(self.port, "GET", response.fields["location"])
                self.assertEqual(data(followed)[0], {"OUT": "A", "LENGTH": 1, **extra})
                self.assertEqual([event.event for event in followed.events[1:]], [] if extra else ["done"])

    def test_answers_are_no_streams(self) -> None:
        """Nothing is left of an answer once it was given: it is no stream that could be followed."""
        ask(self.port, "POST", "/infer", {"TEXT": "a"})
        eventually(lambda: all(each.dialect for each in self.server.service.store._streams.values()))

    def test_whatever_the_app_returns(self) -> None:
        """A bare value, a list, None: native sends it as the JSON that it is; elsewhere it is called `result`."""
        for value in (["a", 1], "text", None, True, 1.5, {}, {"nested": {"a": [1, None]}}):
            with self.subTest(repr(value)):
                port = self.serve(lambda inputs, value=value: value, streaming=False).port
                self.assertEqual(ask(port, "POST", "/infer", {"TEXT": ""}).json, value)
                self.assertEqual(ask(port, "POST", V2 + "/infer", {"TEXT": ""}).status, 200)
                generate = ask(port, "POST", V2 + "/generate", {"TEXT": ""}).json
                named = {"model_name": "fake", "model_version": "1"}
                self.assertEqual(generate, {**(value if isinstance(value, dict) else {"result": value}), **named})


class WhereTests(SharedServer):
    """Paths and methods."""

    def test_method_not_allowed(self) -> None:
        """Another method is 405, as JSON, and Allow names those that are taken."""
        for target, allow in (
            ("/", "GET, HEAD, OPTIONS"),
            ("/infer", "GET, POST, HEAD, OPTIONS"),
            ("/streams/x", "GET, DELETE, HEAD, OPTIONS"),
            ("/v2", "GET, HEAD, OPTIONS"),
            ("/v2/health/live", "GET, HEAD, OPTIONS"),
            ("/v2/health/ready", "GET, HEAD, OPTIONS"),
            (V2, "GET, HEAD, OPTIONS"),
            (V2 + "/versions/1", "GET, HEAD, OPTIONS"),
            (V2 + "/ready", "GET, HEAD, OPTIONS"),
            (V2 + "/versions/1/config", "GET, HEAD, OPTIONS"),
            (V2 + "/infer", "POST, OPTIONS"),
            (V2 + "/generate", "POST, OPTIONS"),
            ("/v2/repository/index", "POST, OPTIONS"),
            ("/v2/repository/models/fake/load", "POST, OPTIONS"),
            ("/v2/repository/models/fake/unload", "POST, OPTIONS"),
            (V2 + "/versions/1/generate_stream", "POST, OPTIONS"),
        ):
            with self.subTest(target):
                allowed = set(allow.split(", "))
                for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW", "get"} - allowed:
                    if (method, target) == ("POST", "/"):
                        continue
                    response = ask(self.port, method, target)
                    self.assertEqual(response.status, 405, method)
                    self.assertEqual(set(response.fields["allow"].split(", ")), allowed)
                    if method != "HEAD":
                        self.assertIn(method, response.json["error"])
                response = ask(self.port, "OPTIONS", target)
                self.assertEqual((response.status, response.body), (204, b""))
                self.assertEqual(set(response.fields["allow"].split(", ")), allowed)

    def test_post_to_the_page(self) -> None:
        """POST / is 404, with or without a body, and says where to POST."""
        for body in (None, {"TEXT": "a"}, b"x" * 100):
            response = ask(self.port, "POST", "/", body)
            self.assertEqual(response.status, 404)
            self.assertIn("POST inputs to /infer", response.json["error"])

    def test_no_versions(self) -> None:
        """No header tells the name or the version of anything that runs here."""
        for method, target, body in (("GET", "/", None), ("POST", "/infer", {"TEXT": "a"}), ("GET", "/x", None)):
            response = ask(self.port, method, target, body)
            self.assertFalse({"server", "x-powered-by", "via", "x-runtime"} & set(response.fields))
            for name, value in response.fields.items():
                self.assertNotRegex(value.lower(), r"python|inferless|shim|triton|\bv?\d+\.\d+\.\d+", name)

    def test_not_found(self) -> None:
        """An unknown path, model or version is 404, as JSON that says what there is."""
        for target, words_in_it in (
            ("/nothing", "GET /"),
            ("/infer/", "/infer/"),
            ("/v2/health", "/v2/health"),
            ("/v2/models", "/v2/models"),
            ("/v2/models/other", "this server runs fake"),
            ("/v2/models/other/infer", "no model other"),
            ("/v2/models/fake/versions/2", "the only one is 1"),
            ("/v2/models/fake/versions/2/infer", "no version 2"),
            ("/v2/models/fake/versions/01/ready", "no version 01"),
            ("/v2/models/fake/versions", "/versions"),
            ("/v2/models/fake/versions/2/config", "no version 2"),
            ("/v2/models/fake/stats", "/stats"),
            ("/v2/repository", "/v2/repository"),
            ("/v2/repository/models/other/load", "no model other"),
            ("/v2/repository/models/other/unload", "no model other"),
            ("/streams/", "/streams/"),
            ("/streams/unknown", "no such stream"),
            ("/INFER", "/INFER"),
            ("//infer", "//infer"),
            ("/" + "x" * 5000, "xxx"),
        ):
            for method in ("GET", "POST"):
                if method == "POST" and target == "/streams/unknown":
                    continue
                with self.subTest(target[:50], method=method):
                    response = ask(self.port, method, target)
                    self.assertEqual((response.status, response.fields["content-type"]), (404, JSON))
                    self.assertIn(words_in_it, response.json["error"])
                    self.assertLess(len(response.body), 500)

    def test_escaped_path(self) -> None:
        """%66ake is fake (RFC 3986 §6.2.2.2)."""
        self.assertEqual(ask(self.port, "GET", "/v2/models/%66ake").json["name"], "fake")
        self.assertEqual(ask(self.port, "GET", "/v2/").json["name"], "inferless-shim")

    def test_metadata(self) -> None:
        """GET /v2 and /v2/models/<name>, with and without version, describe the server and the app."""
        self.assertEqual(set(ask(self.port, "GET", "/v2").json), {"name", "version", "extensions"})
        for target in (V2, V2 + "/versions/1"):
            described = ask(self.port, "GET", target).json
            self.assertEqual((described["name"], described["versions"]), ("fake", ["1"]))
            self.assertEqual(described["inputs"], [{"name": "TEXT", "datatype": "BYTES", "shape": [1]}])

    def test_index(self) -> None:
        """GET / says what runs here and how to call it, with a curl line for the address that was asked."""
        response = ask(self.port, "GET", "/")
        self.assertEqual((response.status, response.fields["content-type"]), (200, "text/plain; charset=utf-8"))
        text = response.body.decode()
        for words_in_it in ("fake is ready. It", "TEXT", "curl -N http://localhost/infer", "/v2/models/fake/generate"):
            self.assertIn(words_in_it, text)
        told = re.findall(r"(?<=\s)/[^\s,?]+", text)
        for route in self.server.routes.table[2:]:  # after * and the page itself
            self.assertTrue(any(map(route.pattern.fullmatch, told)), route.template)


class EventTests(TestCase):
    """What a stream's events say, and how they are numbered."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def error_of(self, target: str, *steps: Any, **settings: Any) -> Event:
        server = self.serve(self.puppet.infer, **settings)
        for step in steps:
            self.puppet.do(step)
        response = ask(server.port, "POST", target, {"TEXT": ""})
        self.assertEqual(response.status, 200)
        self.assertTrue(response.complete)
        self.assertEqual([event.number for event in response.events], list(range(1, len(response.events) + 1)))
        return response.events[-1]

    def test_error_native(self) -> None:
        """What the app raises is `event: error` with the next number, a sentence and a code; before any event, too."""

        def send(handler: Any) -> None:
            handler.send_streamed_output({"OUT": "a"})

        def fail(handler: Any) -> None:
            raise ValueError("the \ud800 model\nfell over")

        for number, steps in ((2, (send, fail)), (1, (fail,))):
            with self.assertLogs("inferless_shim.run", "ERROR"):
                event = self.error_of("/infer", *steps)
            self.assertEqual((event.number, event.event), (number, "error"))
            self.assertEqual(set(event.data), {"error", "code"})
            self.assertEqual(event.data["code"], "app_error")
            self.assertIn("model fell over", event.data["error"])
            self.assertNotIn("Traceback", event.data["error"])

    def test_error_protocol(self) -> None:
        """In the protocol dialect an error is `data: {"error": …}` inside the 200, with no event name."""

        def fail(handler: Any) -> None:
            raise ValueError("fell over")

        with self.assertLogs("inferless_shim.run", "ERROR"):
            event = self.error_of(V2 + "/generate_stream", fail)
        self.assertIsNone(event.event)
        self.assertEqual(set(event.data), {"error"})
        self.assertIn("fell over", event.data["error"])

    def test_timeout(self) -> None:
        """An infer that takes too long ends its stream with the code `timeout`."""
        event = self.error_of("/infer", infer_timeout=20 * MS)
        self.assertEqual((event.event, event.data["code"]), ("error", "timeout"))

    def test_schema_changed(self) -> None:
        """An event with other keys or types than the first raises in the app's face and ends the stream."""
        raised = []

        def first(handler: Any) -> None:
            handler.send_streamed_output({"OUT": "a"})

        def second(handler: Any) -> None:
            try:
                handler.send_streamed_output({"OUT": 1})
            except ValueError as error:
                raised.append(str(error))

        event = self.error_of("/infer", first, second)
        self.assertEqual((event.number, event.data["code"]), (2, "schema_changed"))
        self.assertIn("'OUT' changed from string to integer", event.data["error"])
        self.assertEqual(len(raised), 1)

    def test_cancelled(self) -> None:
        """A stream that is deleted tells its followers so, and ends cleanly."""
        server = self.serve(self.puppet.infer)
        self.puppet.send(OUT="a")
        with Client(server.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            next(response.chunks())
            ask(server.port, "DELETE", response.fields["content-location"])
            response.read()
        self.assertTrue(response.complete)
        self.assertEqual((response.events[-1].event, response.events[-1].data["code"]), ("error", "cancelled"))

    def test_own_names_win(self) -> None:
        """An app's own model_name is not overwritten."""

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            handler.send_streamed_output({"model_name": "mine", "OUT": 1})

        port = self.serve(infer).port
        response = ask(port, "POST", V2 + "/generate_stream", {"TEXT": ""})
        self.assertEqual(data(response), [{"model_name": "mine", "OUT": 1, "model_version": "1"}])
        self.assertEqual(ask(port, "POST", V2 + "/generate", {"TEXT": ""}).json["model_name"], "mine")

    def test_stream_without_events(self) -> None:
        """An app that sends nothing makes a stream of `done` alone, or in the protocol dialect an empty one."""
        port = self.serve(lambda inputs, handler: None).port
        native = ask(port, "POST", "/infer", {"TEXT": ""})
        self.assertEqual([(event.number, event.data["events"]) for event in native.events], [(1, 0)])
        self.assertIn("retry: 2000", native.events[0].lines)
        empty = ask(port, "POST", V2 + "/infer", {"TEXT": ""})
        self.assertEqual((empty.status, empty.body, empty.complete), (200, b"", True))
        self.assertEqual(ask(port, "GET", empty.fields["content-location"]).status, 204)
        self.assertEqual(ask(port, "POST", V2 + "/generate", {"TEXT": ""}).json["model_name"], "fake")

    def test_answer_that_fails(self) -> None:
        """In an answer that is not a stream, what the app raises is 500, a timeout 504, and the connection goes on."""
        release = threading.Event()
        self.addCleanup(release.set)

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            if inputs["TEXT"] == "slow":
                release.wait(30)
            if inputs["TEXT"] == "NaN":
                return {"OUT": float("nan")}
            raise KeyError("fell over")

        server = self.serve(infer, streaming=False, infer_timeout=200 * MS)
        with Client(server.port) as client, self.assertLogs("inferless_shim.run", "ERROR"):
            for target in ("/infer", V2 + "/infer", V2 + "/generate"):
                response = client.request("POST", target, {"TEXT": ""}).read()
                self.assertEqual((response.status, response.fields["content-type"]), (500, JSON))
                self.assertIn("fell over", response.json["error"])
                response = client.request("POST", target, {"TEXT": "NaN"}).read()
                self.assertEqual(response.status, 500)
                self.assertIn("'OUT'", response.json["error"])
            self.assertEqual(client.request("POST", "/infer", {"TEXT": "slow"}).read().status, 504)


class ResumeTests(TestCase):
    """Last event ids: which are followed, and what the others are told."""

    def setUp(self) -> None:
        self.puppet = Puppet()
        self.server = self.serve(self.puppet.infer, linger=60)
        self.port = self.server.port

    def finished(self, target: str = "/infer") -> str:
        for text in "ab":
            self.puppet.send(OUT=text)
        self.puppet.end()
        return ask(self.port, "POST", target, {"TEXT": ""}).fields["stream-id"]

    def everywhere(self, last_event_id: str) -> Iterator[Response]:
        """Send a last event id in every way that there is."""
        stream = last_event_id.rpartition("-")[0]
        header = {"Last-Event-ID": last_event_id}
        yield ask(self.port, "POST", "/infer", {"TEXT": ""}, header)
        yield ask(self.port, "POST", V2 + "/generate_stream", {"TEXT": ""}, header)
        yield ask(self.port, "POST", f"/infer?last_event_id={last_event_id}", {"TEXT": ""})
        yield ask(self.port, "GET", "/infer?TEXT=", None, header)
        yield ask(self.port, "GET", f"/infer?TEXT=&last_event_id={last_event_id}")
        yield ask(self.port, "GET", f"/streams/{stream}", None, header)
        yield ask(self.port, "GET", f"/streams/{stream}?last_event_id={last_event_id}")

    def test_no_resume_where_the_route_answers_with_json(self) -> None:
        """A last event id does not turn …/generate into a stream: the route decides, not a header."""
        stream = self.finished()
        self.puppet.send(OUT="new")
        self.puppet.end()
        response = ask(self.port, "POST", V2 + "/generate", {"TEXT": ""}, {"Last-Event-ID": f"{stream}-1"})
        self.assertEqual((response.fields["content-type"], response.json["OUT"]), (JSON, "new"))

    def test_empty_last_event_id_is_none(self) -> None:
        """An empty header or query value, which polyfills send, is that of a client that has seen nothing yet."""
        stream = self.finished()
        for target, fields in (
            (f"/streams/{stream}?last_event_id=", {}),
            (f"/streams/{stream}", {"Last-Event-ID": ""}),
        ):
            with self.subTest(target):
                self.assertEqual(len(ask(self.port, "GET", target, None, fields).events), 3)

    def test_resume_from_each_event(self) -> None:
        """From every event on, every route gives what followed it, and no other route changes the stream's dialect."""
        for target in ("/infer", V2 + "/infer"):
            stream = self.finished(target)
            whole = ask(self.port, "GET", f"/streams/{stream}")
            self.assertEqual(whole.fields["stream-id"], stream)
            for number in range(len(whole.events)):
                for response in self.everywhere(f"{stream}-{number}"):
                    with self.subTest(target, number=number):
                        self.assertEqual(response.status, 200)
                        events = response.events[1:] if response.events[0].number == 0 else response.events
                        self.assertEqual(events, whole.events[number:])
                        self.assertTrue(response.complete)
        self.assertEqual(len(self.puppet.inputs), 2)

    def test_nothing_follows(self) -> None:
        """204 once a stream has ended and nothing follows: at its last event, and past it."""
        for target, last in (("/infer", 3), (V2 + "/infer", 2)):
            stream = self.finished(target)
            for number in (last, last + 1, 10**19):
                for response in self.everywhere(f"{stream}-{number}"):
                    with self.subTest(target, number=number):
                        self.assertEqual((response.status, response.body), (204, b""))
                        self.assertNotIn("content-length", response.fields)
                        self.assertNotIn("content-type", response.fields)

    def test_ahead_of_a_running_stream(self) -> None:
        """A number that a running stream has not reached is 400, and says what it has reached."""
        self.puppet.send(OUT="a")
        with Client(self.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            next(response.chunks())
            stream = response.fields["stream-id"]
            for ahead in self.everywhere(f"{stream}-2"):
                self.assertEqual(ahead.status, 400)
                self.assertIn("whose last event is 1", ahead.json["error"])
            self.puppet.end()
            response.read()

    def test_malformed(self) -> None:
        """What is no event id of ours in form is 400 in a sentence that says how one looks."""
        stream = self.finished()
        for malformed in (stream, f"{stream}-", f"{stream}-x", f"{stream}-1.5", "7", "-1", f"{stream}/1",
                          "x" * 200 + "-1", f"{stream}-1, {stream}-2", f"{stream}-{10**30}", "caf\xe9-1"):  # fmt: skip
            header, query = {"Last-Event-ID": malformed}, "last_event_id=" + urllib.parse.quote(malformed)
            for response in (
                ask(self.port, "POST", "/infer", {"TEXT": ""}, header),
                ask(self.port, "POST", "/infer?" + query, {"TEXT": ""}),
                ask(self.port, "GET", f"/streams/{stream}", None, header),
                ask(self.port, "GET", f"/streams/{stream}?" + query),
                ask(self.port, "GET", "/infer?TEXT=&" + query),
            ):
                with self.subTest(malformed):
                    self.assertEqual(response.status, 400)
                    self.assertIn("malformed", response.json["error"])

    def test_unknown(self) -> None:
        """A stream that never was is 404; one that was deleted after its end is 410."""
        for response in self.everywhere("0" * 32 + "-1"):
            self.assertEqual(response.status, 404)
        stream = self.finished()
        ask(self.port, "DELETE", f"/streams/{stream}")
        for response in self.everywhere(f"{stream}-1"):
            self.assertEqual(response.status, 410)
            self.assertIn("no longer kept", response.json["error"])

    def test_forgotten_after_retention(self) -> None:
        """What is past its retention is 410."""
        server = self.serve(words, retention=0)
        stream = ask(server.port, "POST", "/infer", {"TEXT": "a"}).fields["stream-id"]
        eventually(lambda: len(server.service.store) == 0)
        self.assertEqual(ask(server.port, "GET", f"/streams/{stream}").status, 410)

    def test_another_stream(self) -> None:
        """GET /streams/<id> with the id of another stream's event is 400."""
        one, other = self.finished(), self.finished()
        response = ask(self.port, "GET", f"/streams/{one}", None, {"Last-Event-ID": f"{other}-1"})
        self.assertEqual(response.status, 400)

    def test_empty_is_none(self) -> None:
        """An empty Last-Event-ID says nothing (WHATWG HTML 9.2.3): on POST and GET alike a new stream begins."""
        for method, target, body in (("POST", "/infer", {"TEXT": ""}), ("GET", "/infer?TEXT=", None)):
            self.puppet.end()
            response = ask(self.port, method, target, body, {"Last-Event-ID": ""})
            self.assertEqual(response.status, 200)
        self.assertEqual(len(self.puppet.inputs), 2)

    def test_header_wins_over_query(self) -> None:
        """An EventSource repeats its URL and moves its header on: the header wins."""
        stream = self.finished()
        newer, older = f"{stream}-2", f"{stream}-0"
        for method, target, body in (
            ("GET", f"/streams/{stream}?last_event_id={older}", None),
            ("GET", f"/infer?TEXT=&last_event_id={older}", None),
            ("POST", f"/infer?last_event_id={older}", {"TEXT": ""}),
        ):
            with self.subTest(target):
                response = ask(self.port, method, target, body, {"Last-Event-ID": newer})
                self.assertEqual([event.number for event in response.events], [3])

    def test_last_event_id_wins_over_key(self) -> None:
        """Header and query both win over an Idempotency-Key."""
        stream = self.finished()
        for target, fields in (("/infer", {"Last-Event-ID": f"{stream}-2"}), (f"/infer?last_event_id={stream}-2", {})):
            response = ask(self.port, "POST", target, {"TEXT": "x"}, {**fields, "Idempotency-Key": "k"})
            self.assertEqual([event.number for event in response.events], [3])
        self.assertEqual(len(self.puppet.inputs), 1)

    def test_follow_while_running(self) -> None:
        """Many can follow a stream while it runs, from wherever they are; each gets every event once."""
        with Client(self.port) as first, Client(self.port) as second, Client(self.port) as third:
            one = first.request("POST", "/infer", {"TEXT": ""})
            stream = one.fields["stream-id"]
            two = second.request("GET", f"/streams/{stream}")
            self.puppet.send(OUT="a")
            next(one.chunks())
            three = third.request("POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": f"{stream}-1"})
            self.puppet.send(OUT="b")
            self.puppet.end()
            self.assertEqual([event.number for event in one.read().events], [1, 2, 3])
            self.assertEqual(two.read().events, one.events)
            self.assertEqual(three.read().events, one.events[1:])

    def test_interrupted_by_nobody(self) -> None:
        """A stream that failed is replayed with its error, and then answered 204, like any other."""
        self.puppet.send(OUT="a")
        self.puppet.fail(ValueError("fell over"))
        with self.assertLogs("inferless_shim.run", "ERROR"):
            stream = ask(self.port, "POST", "/infer", {"TEXT": ""}).fields["stream-id"]
        replay = ask(self.port, "GET", f"/streams/{stream}")
        self.assertEqual([event.event for event in replay.events], [None, "error"])
        response = ask(self.port, "GET", f"/streams/{stream}", None, {"Last-Event-ID": f"{stream}-2"})
        self.assertEqual(response.status, 204)


class DeleteTests(TestCase):
    """DELETE /streams/<id>."""

    def setUp(self) -> None:
        self.puppet = Puppet()
        self.server = self.serve(self.puppet.infer)
        self.port = self.server.port

    def test_running(self) -> None:
        """A running stream is cancelled: infer ends; its followers are told; what there was can still be read."""
        with Client(self.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            path = response.fields["content-location"]
            eventually(lambda: self.puppet.inputs)
            deleted = ask(self.port, "DELETE", path)
            self.assertEqual((deleted.status, deleted.body), (204, b""))
            eventually(lambda: self.puppet.ended)
            self.assertEqual(response.read().events[-1].data["code"], "cancelled")
        self.assertEqual(ask(self.port, "GET", path).body, response.body)

    def test_finished(self) -> None:
        """A finished stream is forgotten: 204, then 410 for everybody; again, too."""
        self.puppet.end()
        path = ask(self.port, "POST", "/infer", {"TEXT": ""}).fields["content-location"]
        self.assertEqual(ask(self.port, "DELETE", path).status, 204)
        self.assertEqual(ask(self.port, "GET", path).status, 410)
        self.assertEqual(ask(self.port, "DELETE", path).status, 410)

    def test_unknown(self) -> None:
        """A stream that never was is 404."""
        self.assertEqual(ask(self.port, "DELETE", "/streams/unknown").status, 404)

    def test_queued(self) -> None:
        """A queued stream never runs, and its place is free at once."""
        server = self.serve(self.puppet.infer, queue=1)
        with Client(server.port) as running, Client(server.port) as waiting, Client(server.port) as third:
            running.request("POST", "/infer", {"TEXT": "running"})
            eventually(lambda: self.puppet.inputs)
            response = waiting.request("POST", "/infer", {"TEXT": "waiting"})
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}).status, 503)
            ask(server.port, "DELETE", response.fields["content-location"])
            self.assertEqual(response.read().events[-1].data["code"], "cancelled")
            response = third.request("POST", "/infer", {"TEXT": "third"})
            self.puppet.end()
            self.puppet.end()
            self.assertEqual(response.read().events[-1].event, "done")
        self.assertEqual([each["TEXT"] for each in self.puppet.inputs], ["running", "third"])


class PreferTests(TestCase):
    """Prefer: respond-async (RFC 7240 §4.1)."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_accepted(self) -> None:
        """202 at once, with where to follow and that the preference was applied; the stream has the route's dialect."""
        port = self.serve(self.puppet.infer).port
        for target, prefer in (
            ("/infer", "respond-async"),
            (V2 + "/infer", "wait=10, Respond-Async; x=y"),
            (V2 + "/generate_stream", "respond-async"),
            (V2 + "/generate", "respond-async"),
        ):
            with self.subTest(target):
                response = ask(port, "POST", target, {"TEXT": ""}, {"Prefer": prefer})
                self.assertEqual(response.status, 202)
                self.assertEqual(response.fields["preference-applied"], "respond-async")
                location = response.fields["location"]
                self.assertEqual(location, f"/streams/{response.fields['stream-id']}")
                self.assertEqual(response.json["location"], location)
                self.puppet.send(OUT="a")
                self.puppet.end()
                followed = ask(port, "GET", location)
                self.assertEqual(data(followed)[0]["OUT"], "a")
                self.assertEqual("model_name" in data(followed)[0], target != "/infer")

    def test_runs_before_anybody_follows(self) -> None:
        """It waits for its first follower without lingering; after that one has left, it lingers like any other."""
        server = self.serve(self.puppet.infer, linger=20 * MS)
        location = ask(server.port, "POST", "/infer", {"TEXT": ""}, {"Prefer": "respond-async"}).fields["location"]
        (stream,) = server.service.store.running()
        eventually(lambda: self.puppet.inputs)
        sweeps = mock.Mock(wraps=server.service.store.sweep)
        with mock.patch.object(server.service.store, "sweep", sweeps):
            eventually(lambda: sweeps.call_count >= 3)
        self.assertTrue(stream.is_open)
        with Client(server.port) as client:
            client.request("GET", location)
        eventually(lambda: not stream.is_open)
        self.assertEqual(ask(server.port, "GET", location).events[-1].data["code"], "cancelled")

    def test_bounded_by_the_inference_timeout(self) -> None:
        """A detached stream that nobody ever follows ends all the same."""
        server = self.serve(self.puppet.infer, infer_timeout=20 * MS)
        location = ask(server.port, "POST", "/infer", {"TEXT": ""}, {"Prefer": "respond-async"}).fields["location"]
        eventually(lambda: not server.service.store.running())
        self.assertEqual(ask(server.port, "GET", location).events[-1].data["code"], "timeout")

    def test_other_preferences(self) -> None:
        """What we do not know is ignored."""
        port = self.serve(words).port
        response = ask(port, "POST", "/infer", {"TEXT": "a"}, {"Prefer": "return=minimal, wait=1"})
        self.assertEqual(response.status, 200)
        self.assertNotIn("preference-applied", response.fields)

    def test_with_key(self) -> None:
        """A repeated POST with the same key gets the same location."""
        port = self.serve(words).port
        fields = {"Prefer": "respond-async", "Idempotency-Key": "k"}
        first, second = (ask(port, "POST", "/infer", {"TEXT": "a"}, fields) for _ in range(2))
        self.assertEqual((second.status, second.fields["location"]), (202, first.fields["location"]))

    def test_refused(self) -> None:
        """Faults and a full queue are told at once, as without it."""
        server = self.serve(self.puppet.infer, queue=0)
        fields = {"Prefer": "respond-async"}
        self.assertEqual(ask(server.port, "POST", "/infer", {"WORD": ""}, fields).status, 400)
        self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}, fields).status, 202)
        self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}, fields).status, 503)


class IdempotencyTests(TestCase):
    """Idempotency-Key: a repeated POST never generates twice."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_replay(self) -> None:
        """The same POST again gets the same stream from its start: while it runs, and after it has ended."""
        port = self.serve(self.puppet.infer).port
        with Client(port) as client:
            first = client.request("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
            with Client(port) as other:
                second = other.request("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
                self.puppet.send(OUT="a")
                self.puppet.end()
                self.assertEqual(second.read().body, first.read().body)
        third = ask(port, "POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
        self.assertEqual(third.body, first.body)
        self.assertEqual(third.fields["stream-id"], first.fields["stream-id"])
        self.assertEqual(len(self.puppet.inputs), 1)

    def test_other_request(self) -> None:
        """Another body or another route under the same key is 422, and the key still means what it meant."""
        port = self.serve(words).port
        key = {"Idempotency-Key": "k"}
        first = ask(port, "POST", "/infer", {"TEXT": "a"}, key)
        for target, body in (
            ("/infer", {"TEXT": "b"}),
            (V2 + "/infer", {"TEXT": "a"}),
            (V2 + "/generate", {"TEXT": "a"}),
        ):
            response = ask(port, "POST", target, body, key)
            self.assertEqual(response.status, 422)
            self.assertIn("Idempotency-Key", response.json["error"])
        self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "a"}, key).body, first.body)
        self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "b"}, {"Idempotency-Key": "k2"}).status, 200)

    def test_race(self) -> None:
        """Twenty POSTs at once with one key start one infer, and all get all of it."""
        server = self.serve(self.puppet.infer)
        request = request_bytes("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
        clients = [Client(server.port) for _ in range(20)]
        senders = [threading.Thread(target=client.send, args=(request,)) for client in clients]
        for sender in senders:
            sender.start()
        for word in "abc":
            self.puppet.send(OUT=word)
        self.puppet.end()
        bodies = set()
        for client in clients:
            with client:
                bodies.add(Response(client).read().body)
        for sender in senders:
            sender.join()
        self.assertEqual(len(bodies), 1)
        self.assertEqual([event.number for event in parse_events(bodies.pop().decode())], [1, 2, 3, 4])
        self.assertEqual(len(self.puppet.inputs), 1)
        self.assertEqual(server.service.engine._backlog.reserved, 0)

    def test_queue_full(self) -> None:
        """A POST that is sent again finds its stream, even when the queue has no place for a new one."""
        server = self.serve(self.puppet.infer, queue=1)
        with Client(server.port) as running, Client(server.port) as waiting:
            running.request("POST", "/infer", {"TEXT": "running"})
            eventually(lambda: self.puppet.inputs)
            first = waiting.request("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "y"}).status, 503)
            with Client(server.port) as again:
                second = again.request("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
                self.assertEqual((second.status, second.fields["stream-id"]), (200, first.fields["stream-id"]))
                self.puppet.end()
                self.puppet.end()
                self.assertEqual(second.read().body, first.read().body)

    def test_race_for_the_last_place(self) -> None:
        """What went wrong: of two POSTs with one key at once, the second was refused when the first had taken the last
        place in the queue, but had not opened its stream yet. It waits for that moment, and follows."""
        server = self.serve(self.puppet.infer, queue=0)
        service = server.service
        reserved, go_on, claims = threading.Event(), threading.Event(), []
        self.addCleanup(go_on.set)
        reserve, claim = service.engine.reserve, service.store.claim

        def slow_reserve() -> None:
            reserve()
            reserved.set()
            go_on.wait(PATIENCE)

        def noted_claim(key: Any) -> Any:
            claims.append(key)
            return claim(key)

        request = request_bytes("POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
        with (
            mock.patch.object(service.engine, "reserve", slow_reserve),
            mock.patch.object(service.store, "claim", noted_claim),
            Client(server.port) as one,
            Client(server.port) as two,
        ):
            one.send(request)
            self.assertTrue(reserved.wait(PATIENCE))
            two.send(request)
            eventually(lambda: len(claims) == 2)
            # Another key and no key are refused meanwhile, and wait for nobody.
            with mock.patch.object(service.engine, "reserve", reserve):
                for fields in ({}, {"Idempotency-Key": "other"}):
                    self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "x"}, fields).status, 503)
            go_on.set()
            self.puppet.send(OUT="a")
            self.puppet.end()
            first, second = Response(one).read(), Response(two).read()
        self.assertEqual((first.status, second.status, second.body), (200, 200, first.body))
        self.assertEqual(len(self.puppet.inputs), 1)
        self.assertEqual(service.engine._backlog.reserved, 0)

    def test_answers(self) -> None:
        """It works for answers that are not streams: while the first is on its way, and after it."""
        release, calls = threading.Event(), []
        self.addCleanup(release.set)

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            calls.append(1)
            release.wait(30)
            return {"OUT": len(calls)}

        port = self.serve(infer, streaming=False).port
        key = {"Idempotency-Key": "k"}
        for target in ("/infer", V2 + "/infer", V2 + "/generate"):
            with self.subTest(target), Client(port) as one, Client(port) as two:
                release.clear()
                calls.clear()
                key = {"Idempotency-Key": target}
                for client in (one, two):
                    client.send(request_bytes("POST", target, {"TEXT": ""}, key))
                eventually(lambda: calls)
                release.set()
                first, second = Response(one).read(), Response(two).read()
                third = ask(port, "POST", target, {"TEXT": ""}, key)
                self.assertEqual((first.status, second.body, third.body), (200, first.body, first.body))
                self.assertEqual(len(calls), 1)

    def test_answer_whose_client_left(self) -> None:
        """A client that lost its answer on the way asks again with its key, and gets that answer."""
        release, calls = threading.Event(), []
        self.addCleanup(release.set)

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            calls.append(1)
            release.wait(30)
            return {"OUT": 1}

        server = self.serve(infer, streaming=False, linger=60)
        request = request_bytes("POST", "/infer", {"TEXT": ""}, {"Idempotency-Key": "k"})
        with Client(server.port) as client:
            client.send(request)
            eventually(lambda: calls)
        eventually(lambda: server.service.store.running()[0].unfollowed)
        release.set()
        self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}, {"Idempotency-Key": "k"}).json, {"OUT": 1})
        self.assertEqual(len(calls), 1)

    def test_refused_leaves_the_key_free(self) -> None:
        """A POST that was told 503 or 400 started nothing: its key can be used again, for another body, too."""
        server = self.serve(self.puppet.infer, queue=0)
        with Client(server.port) as client:
            client.request("POST", "/infer", {"TEXT": "running"})
            eventually(lambda: self.puppet.inputs)
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"}).status, 503)
            self.assertEqual(ask(server.port, "POST", "/infer", {"WORD": "x"}, {"Idempotency-Key": "k"}).status, 400)
            self.puppet.end()
            eventually(lambda: not server.service.engine.busy)
        self.puppet.end()
        response = ask(server.port, "POST", "/infer", {"TEXT": "y"}, {"Idempotency-Key": "k"})
        self.assertEqual(response.status, 200)

    def test_too_many_streams_leaves_all_free(self) -> None:
        """503 because all streams kept are running gives the place in the queue back, and the key."""
        server = self.serve(self.puppet.infer, max_streams=1, queue=5)
        with Client(server.port) as client:
            client.request("POST", "/infer", {"TEXT": "running"})
            eventually(lambda: self.puppet.inputs)
            for _ in range(20):
                response = ask(server.port, "POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "k"})
                self.assertEqual(response.status, 503)
                self.assertIn("--max-streams", response.json["error"])
                self.assertEqual(response.fields["retry-after"], "2")
            self.assertEqual(server.service.engine._backlog.reserved, 0)
            self.puppet.end()
            eventually(lambda: not server.service.engine.busy)
        self.puppet.end()
        self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "y"}, {"Idempotency-Key": "k"}).status, 200)

    def test_malformed(self) -> None:
        """An empty or overlong key is 400."""
        port = self.serve(words).port
        for value in ("", "k" * 256, "caf\x01"):
            with self.subTest(value):
                response = ask(port, "POST", "/infer", {"TEXT": "a"}, {"Idempotency-Key": value})
                self.assertEqual(response.status, 400)

    def test_forgotten_with_its_stream(self) -> None:
        """The key lives as long as the stream: when that is forgotten, the same POST starts anew."""
        port = self.serve(words).port
        key = {"Idempotency-Key": "k"}
        first = ask(port, "POST", "/infer", {"TEXT": "a"}, key)
        ask(port, "DELETE", first.fields["content-location"])
        second = ask(port, "POST", "/infer", {"TEXT": "a"}, key)
        self.assertNotEqual(second.fields["stream-id"], first.fields["stream-id"])

    def test_nothing_follows(self) -> None:
        """A replay of a stream without any event is 204, like every answer after which nothing comes."""
        port = self.serve(lambda inputs, handler: None).port
        for status in (200, 204):
            response = ask(port, "POST", V2 + "/infer", {"TEXT": ""}, {"Idempotency-Key": "k"})
            self.assertEqual(response.status, status)


class LingerTests(TestCase):
    """Disconnect is not cancel."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_cancelled_after_linger(self) -> None:
        """A stream that nobody follows for `--linger` is cancelled: infer ends, and who comes back later is told."""
        server = self.serve(self.puppet.infer, linger=50 * MS)
        with Client(server.port) as client:
            stream = client.request("POST", "/infer", {"TEXT": ""}).fields["stream-id"]
            eventually(lambda: self.puppet.inputs)
        eventually(lambda: self.puppet.ended)
        back = ask(server.port, "POST", "/infer", {"TEXT": ""}, {"Last-Event-ID": f"{stream}-0"})
        self.assertEqual([(event.event, event.data["code"]) for event in back.events], [("error", "cancelled")])
        self.assertEqual(len(self.puppet.inputs), 1)

    def test_followed_is_kept(self) -> None:
        """As long as anybody follows, it goes on, whoever started it."""
        server = self.serve(self.puppet.infer, linger=20 * MS)
        with Client(server.port) as second:
            with Client(server.port) as first:
                path = first.request("POST", "/infer", {"TEXT": ""}).fields["content-location"]
                response = second.request("GET", path)
            sweeps = mock.Mock(wraps=server.service.store.sweep)
            with mock.patch.object(server.service.store, "sweep", sweeps):
                eventually(lambda: sweeps.call_count >= 3)
            self.puppet.send(OUT="a")
            self.puppet.end()
            self.assertEqual(response.read().events[-1].event, "done")


class QueueTests(TestCase):
    """Whoever does not get a place is told at once; whoever waits can ask for his place."""

    def setUp(self) -> None:
        self.puppet = Puppet()

    def test_full(self) -> None:
        """Past the queue a request is 503 in JSON with Retry-After on every inference route; the connection goes on."""
        server = self.serve(self.puppet.infer, queue=1)
        with Client(server.port) as running, Client(server.port) as waiting, Client(server.port) as client:
            running.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: self.puppet.inputs)
            waiting.request("POST", "/infer", {"TEXT": ""})
            for target in ("/infer", V2 + "/infer", V2 + "/generate", V2 + "/generate_stream"):
                response = client.request("POST", target, {"TEXT": ""}).read()
                self.assertEqual(response.status, 503)
                self.assertRegex(response.fields["retry-after"], "^[0-9]+$")
                self.assertIn("queue is full", response.json["error"])
            self.assertEqual(client.request("GET", "/v2/health/ready").read().status, 200)

    def test_no_queue(self) -> None:
        """--queue 0: a free slot is taken, a second request is refused."""
        server = self.serve(self.puppet.infer, queue=0)
        for _ in range(3):
            with Client(server.port) as client:
                response = client.request("POST", "/infer", {"TEXT": ""})
                self.assertEqual(response.status, 200)
                self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}).status, 503)
                self.puppet.end()
                response.read()
                eventually(lambda: not server.service.engine.busy)

    def test_queued_event(self) -> None:
        """`?progress=1` tells the place in the queue, before event 1 only, without an id, and it is not kept."""
        server = self.serve(self.puppet.infer)
        for target, body in (("/infer", {"TEXT": ""}), (V2 + "/infer", {"TEXT": ""}), ("/infer?TEXT=", None)):
            method = "POST" if body else "GET"
            for version in ("1.1", "1.0"):
                with self.subTest(target, version=version), Client(server.port) as one, Client(server.port) as two:
                    begun = len(self.puppet.inputs)
                    one.request("POST", "/infer", {"TEXT": ""})
                    eventually(lambda begun=begun: len(self.puppet.inputs) > begun)
                    asked = target + ("&" if "?" in target else "?") + "progress=1"
                    waiting = two.request(method, asked, body, version=version)
                    pieces = waiting.chunks()
                    while b"queued" not in waiting.body:
                        next(pieces)
                    self.puppet.end()
                    self.puppet.send(OUT="a")
                    self.puppet.end()
                    for _ in pieces:
                        pass
                    self.assertTrue(waiting.complete)
                    events = [event for event in waiting.events if event.number != 0]
                    self.assertEqual((events[0].id, events[0].event, events[0].data), (None, "queued", {"position": 1}))
                    self.assertNotIn("retry", "".join(events[0].lines))
                    self.assertEqual(events[1].number, 1)
                    replay = ask(server.port, "GET", waiting.fields["content-location"])
                    self.assertEqual(replay.events, events[1:])

    def test_place_moves_up(self) -> None:
        """Each new place is told once."""
        server = self.serve(self.puppet.infer)
        with Client(server.port) as one, Client(server.port) as two, Client(server.port) as three:
            one.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: self.puppet.inputs)
            two.request("POST", "/infer", {"TEXT": ""})
            response = three.request("POST", "/infer?progress=1", {"TEXT": ""})
            pieces = response.chunks()
            while b'{"position":2}' not in response.body:
                next(pieces)
            self.puppet.end()
            while b'{"position":1}' not in response.body:
                next(pieces)
            self.puppet.end()
            self.puppet.end()
            for _ in pieces:
                pass
        self.assertEqual(data(response)[:2], [{"position": 2}, {"position": 1}])
        self.assertEqual([event.event for event in response.events], ["queued", "queued", "done"])

    def test_no_queued_event_unasked(self) -> None:
        """Nobody is told who did not ask, nor who came back to a stream."""
        server = self.serve(self.puppet.infer, heartbeat=5 * MS)
        with Client(server.port) as one, Client(server.port) as two, Client(server.port) as three:
            one.request("POST", "/infer", {"TEXT": ""})
            response = two.request("POST", "/infer", {"TEXT": ""})
            stream = response.fields["stream-id"]
            back = three.request("POST", "/infer?progress=1", {"TEXT": ""}, {"Last-Event-ID": f"{stream}-0"})
            for each in (response, back):
                pieces = each.chunks()
                while each.body.count(b": ka") < 3:
                    next(pieces)
            self.puppet.end()
            self.puppet.end()
            self.assertNotIn(b"queued", response.read().body)
            self.assertNotIn(b"queued", back.read().body)


class NotNowTests(TestCase):
    """Loading, draining, stuck, busy: POST is 503, and an EventSource is asked to come back."""

    def setUp(self) -> None:
        self.puppet = Puppet()
        self.server = self.serve(self.puppet.infer, queue=0)
        self.port = self.server.port

    def assert_come_back(self, target: str = "/infer?TEXT=") -> None:
        for accept in ("text/event-stream", "text/event-stream, */*;q=0.5", "Text/Event-Stream;charset=utf-8"):
            with Client(self.port) as client:
                response = client.request("GET", target, None, {"Accept": accept}).read()
                self.assertEqual((response.status, response.body), (200, b"retry: 2000\n"))
                self.assertEqual(response.fields["content-type"], EVENTS)
                self.assertEqual(response.fields["connection"], "close")
                self.assertEqual(client.read_some(), b"")

    def assert_unavailable(self, because: str) -> None:
        for method, target in (
            ("POST", "/infer"),
            ("GET", "/infer?TEXT="),
            ("POST", V2 + "/infer"),
            ("POST", V2 + "/generate"),
            ("POST", V2 + "/generate_stream"),
        ):
            response = ask(self.port, method, target, {"TEXT": ""} if method == "POST" else None)
            self.assertEqual(response.status, 503, target)
            self.assertIn("retry-after", response.fields)
            self.assertIn(because, response.json["error"])

    def assert_not_ready(self, because: str) -> None:
        for target in ("/v2/health/ready", V2 + "/ready", V2 + "/versions/1/ready"):
            # Whatever it accepts: a readiness probe that gets a 200 sends traffic here.
            for accept in ({}, {"Accept": "text/event-stream"}):
                response = ask(self.port, "GET", target, None, accept)
                self.assertEqual(response.status, 503)
                self.assertIn(because, response.json["error"])
        self.assertEqual(ask(self.port, "GET", "/v2/health/live").status, 200)
        for target in ("/", "/v2", V2):
            self.assertEqual(ask(self.port, "GET", target).status, 200)

    def test_ready(self) -> None:
        """When all is well: live and ready."""
        for target in ("/v2/health/live", "/v2/health/ready", V2 + "/ready", V2 + "/versions/1/ready"):
            self.assertEqual(ask(self.port, "GET", target).status, 200)

    def test_loading(self) -> None:
        """While the app loads, the server is live and described, not ready, and takes no work."""
        self.server.service.phase = Phase.LOADING
        self.assert_not_ready("loading")
        self.assert_unavailable("loading")
        self.assert_come_back()
        self.assertIn("fake is loading", ask(self.port, "GET", "/").body.decode())

    def test_busy(self) -> None:
        """With the queue full: ready, because that is no fault of the server; but 503 for new work."""
        with Client(self.port) as client:
            client.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: self.puppet.inputs)
            self.assert_unavailable("queue is full")
            self.assert_come_back()
            self.assertEqual(ask(self.port, "GET", "/v2/health/ready").status, 200)

    def test_draining(self) -> None:
        """In a drain no new work is taken, but what runs can be followed."""
        with Client(self.port) as client:
            response = client.request("POST", "/infer", {"TEXT": ""})
            eventually(lambda: self.puppet.inputs)
            self.server.service.phase = Phase.DRAINING
            self.assert_not_ready("shutting down")
            self.assert_unavailable("shutting down")
            self.assert_come_back()
            refused = ask(self.port, "POST", "/infer", {"TEXT": ""})
            self.assertEqual(refused.fields["connection"], "close")
            with Client(self.port) as other:
                resumed = other.request("GET", response.fields["content-location"])
                self.puppet.send(OUT="a")
                self.puppet.end()
                self.assertEqual(resumed.read().body, response.read().body)
            self.assertEqual(len(response.events), 2)

    def test_page(self) -> None:
        """The page at / says what the model is at, too."""
        for state in (State.LOADING, State.UNLOADED, State.READY):
            with self.subTest(state), mock.patch.object(self.server.service.engine, "state", state):
                self.assertIn(f"fake is {state.value}. It answers", ask(self.port, "GET", "/").body.decode())

    def test_stuck(self) -> None:
        """When an infer does not come back, and has all slots, the server is not ready and says why."""
        release = threading.Event()
        self.addCleanup(release.set)
        self.server = self.serve(lambda *_: release.wait(30), infer_timeout=10 * MS, stuck_grace=0)
        self.port = self.server.port
        with self.assertLogs("inferless_shim", "ERROR"):
            self.assertEqual(ask(self.port, "POST", "/infer", {"TEXT": ""}).events[-1].data["code"], "timeout")
            eventually(lambda: self.server.service.engine.stuck)
        self.assert_not_ready("does not end")
        self.assert_unavailable("does not end")
        self.assertIn("fake is stuck. It answers", ask(self.port, "GET", "/").body.decode())
        release.set()
        eventually(lambda: ask(self.port, "GET", "/v2/health/ready").status == 200)

    def test_retry_is_the_setting(self) -> None:
        """--retry is what every `retry:` says."""
        self.server = self.serve(words, retry=0.25)
        self.port = self.server.port
        self.assertIn(b"\nretry: 250\n", ask(self.port, "POST", "/infer", {"TEXT": "a"}).body)
        self.server.service.phase = Phase.LOADING
        response = ask(self.port, "GET", "/infer?TEXT=a", None, {"Accept": "text/event-stream"})
        self.assertEqual(response.body, b"retry: 250\n")

    def test_faults_come_first(self) -> None:
        """A request that is wrong is told so, whatever the server is doing."""
        self.server.service.phase = Phase.LOADING
        self.assertEqual(ask(self.port, "POST", "/infer", {"WORD": ""}).status, 400)
        self.assertEqual(ask(self.port, "POST", "/v2/models/other/infer", {"TEXT": ""}).status, 404)

    def test_drain_that_begins_meanwhile(self) -> None:
        """What went wrong: a stream opened just when a drain began was seen by nobody, and cut off at the exit."""
        service = self.server.service
        opened = service.store.open

        def open_late(*args: Any, **kwargs: Any) -> Any:
            service.phase = Phase.DRAINING  # after the look at the phase, before the drain looks for streams
            return opened(*args, **kwargs)

        with mock.patch.object(service.store, "open", open_late):
            response = ask(self.port, "POST", "/infer", {"TEXT": ""}, {"Idempotency-Key": "k"})
        self.assertEqual(response.status, 503)
        self.assertEqual(service.store.running(), [])
        self.assertEqual(service.engine._backlog.reserved, 0)
        self.assertEqual(self.puppet.inputs, [])


class BinaryTests(TestCase):
    """Triton's binary tensor data extension over HTTP."""

    TENSOR: ClassVar[dict[str, Any]] = {
        "name": "TEXT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}
    }  # fmt: skip
    DATA = b"\3\0\0\0a b"

    def post(self, port: int, target: str, *, name: str = HEADER_LENGTH, key: str = "", **beside: Any) -> Response:
        head = json.dumps({"inputs": [self.TENSOR], **beside}).encode()
        fields = {name: str(len(head))} | ({"Idempotency-Key": key} if key else {})
        return ask(port, "POST", target, head + self.DATA, fields)

    def test_infer(self) -> None:
        """Binary data in and out: sizes in the JSON, whose own size is a field, whatever the case of its name."""
        port = self.serve(shout, streaming=False).port
        for name in (HEADER_LENGTH, HEADER_LENGTH.lower(), HEADER_LENGTH.upper()):
            response = self.post(port, V2 + "/infer", name=name, id="seven", parameters={"binary_data_output": True})
            self.assertEqual((response.status, response.fields["content-type"]), (200, "application/octet-stream"))
            length = int(response.fields[HEADER_LENGTH.lower()])
            self.assertEqual(
                json.loads(response.body[:length]),
                {
                    "model_name": "fake",
                    "model_version": "1",
                    "id": "seven",
                    "outputs": [
                        {"name": "OUT", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
                        {"name": "LENGTH", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
                    ],
                },
            )
            self.assertEqual(response.body[length:], b"\3\0\0\0A B" + b"\3" + bytes(7))

    def test_outputs(self) -> None:
        """Each output goes out as it was asked for; none in binary is JSON; an unknown one is 400."""
        port = self.serve(shout, streaming=False).port
        response = self.post(port, V2 + "/infer")
        self.assertEqual(response.fields["content-type"], JSON)
        self.assertNotIn(HEADER_LENGTH.lower(), response.fields)
        wanted = [{"name": "LENGTH"}, {"name": "OUT", "parameters": {"binary_data": True}}]
        response = self.post(port, V2 + "/infer", outputs=wanted)
        head = json.loads(response.body[: int(response.fields[HEADER_LENGTH.lower()])])
        self.assertEqual(head["outputs"][0], {"name": "LENGTH", "datatype": "INT64", "shape": [1], "data": [3]})
        self.assertTrue(response.body.endswith(b"}]}\3\0\0\0A B"))
        response = self.post(port, V2 + "/infer", outputs=[{"name": "SIZE", "parameters": {"binary_data": True}}])
        self.assertEqual((response.status, response.fields["content-type"]), (400, JSON))

    def test_every_route_reads_it(self) -> None:
        """A body is read the same on every route; the route alone decides the answer."""
        port = self.serve(words).port
        for target in ("/infer", V2 + "/infer", V2 + "/generate_stream"):
            self.assertEqual([each["OUT"] for each in data(self.post(port, target))[:2]], ["a", "b"])
        self.assertEqual(self.post(port, V2 + "/generate").json["OUT"], "ab")

    def test_replay(self) -> None:
        """With an Idempotency-Key the answer comes again as it was, field and all."""
        port = self.serve(shout, streaming=False).port
        beside = {"parameters": {"binary_data_output": True}}
        first, again = (self.post(port, V2 + "/infer", key="k", **beside) for _ in range(2))
        self.assertEqual(again.body, first.body)
        for name in (HEADER_LENGTH.lower(), "content-type"):
            self.assertEqual(again.fields[name], first.fields[name])

    def test_faults(self) -> None:
        """A length that is wrong is 400 in JSON, and the connection goes on."""
        port = self.serve(shout, streaming=False).port
        with Client(port) as client:
            for length in ("x", "1000", "3", ""):
                response = client.request("POST", V2 + "/infer", {"TEXT": "a"}, {HEADER_LENGTH: length}).read()
                self.assertEqual((response.status, response.fields["content-type"]), (400, JSON))
            self.assertEqual(client.request("POST", V2 + "/infer", {"TEXT": "a"}).read().status, 200)


class DescriptionTests(TestCase):
    """Metadata and configuration, before and after the app's first answer."""

    OUTPUTS: ClassVar[list[Any]] = [
        {"name": "OUT", "datatype": "BYTES", "shape": [1]},
        {"name": "LENGTH", "datatype": "INT64", "shape": [1]},
    ]

    def outputs(self, port: int) -> list[Any]:
        outputs = ask(port, "GET", V2).json["outputs"]
        config = ask(port, "GET", V2 + "/config").json["output"]
        self.assertEqual([each["dims"] for each in config], [each["shape"] for each in outputs])
        return list(outputs)

    def test_learned_from_an_answer(self) -> None:
        """The outputs are those of the first answer, on whatever route it was given."""
        for target in ("/infer", V2 + "/infer", V2 + "/generate", V2 + "/generate_stream"):
            with self.subTest(target):
                port = self.serve(shout, streaming=False).port
                self.assertEqual(self.outputs(port), [])
                self.assertEqual(ask(port, "POST", target, {"TEXT": "a"}).status, 200)
                self.assertEqual(self.outputs(port), self.OUTPUTS)

    def test_learned_from_an_event(self) -> None:
        """Those of an app that streams are its first event's; no later one is looked at."""
        for target in ("/infer", V2 + "/infer", V2 + "/generate", V2 + "/generate_stream"):
            with self.subTest(target):
                server = self.serve(words)
                self.assertEqual(self.outputs(server.port), [])
                with mock.patch.object(answers, "learn", wraps=answers.learn) as learn:
                    for _ in range(2):
                        ask(server.port, "POST", target, {"TEXT": "a b c"})
                self.assertEqual(self.outputs(server.port), self.OUTPUTS[:1])
                self.assertEqual(learn.call_count, 1)

    def test_learned_later(self) -> None:
        """An output that says nothing at first, or is not there, is learned when it is."""
        results = [{"A": None}, {"A": None, "B": [1]}, {"A": 0.5, "B": "x"}]
        port = self.serve(lambda inputs: results.pop(0), streaming=False).port
        for known in ([], [("B", [-1])], [("B", [-1]), ("A", [1])]):
            ask(port, "POST", "/infer", {"TEXT": ""})
            self.assertEqual([(each["name"], each["shape"]) for each in self.outputs(port)], known)

    def test_nothing_from_a_failure(self) -> None:
        """What could not be sent teaches nothing."""
        port = self.serve(lambda inputs: {"X": float("nan")}, streaming=False).port
        with self.assertLogs("inferless_shim", "ERROR"):
            self.assertEqual(ask(port, "POST", "/infer", {"TEXT": ""}).status, 500)
        self.assertEqual(self.outputs(port), [])

    def test_config(self) -> None:
        """GET …/config says it in Triton's words, with BATCH_SIZE and whether the app streams."""
        server = self.serve(words)
        for target in (V2 + "/config", V2 + "/versions/1/config"):
            config = ask(server.port, "GET", target).json
            self.assertEqual((config["name"], config["max_batch_size"]), ("fake", 0))
            self.assertEqual(config["model_transaction_policy"], {"decoupled": True})
            text = {"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1], "optional": False}
            self.assertEqual(config["input"], [text])

    def test_unknown_before_it_is_loaded(self) -> None:
        """An app that declares its inputs in code is not described, and takes nothing, before that has run: 503."""
        server = self.serve(words)
        service = server.service
        schema, service.app.schema, service.phase = service.app.schema, None, Phase.LOADING
        for method, target in (
            ("GET", V2),
            ("GET", V2 + "/config"),
            ("GET", "/infer?TEXT=a"),
            ("GET", "/infer?TEXT=a&progress=1"),
            ("POST", "/infer"),
            ("POST", V2 + "/infer"),
            ("POST", V2 + "/generate"),
            ("POST", V2 + "/generate_stream"),
        ):
            response = ask(server.port, method, target, {"TEXT": "a"} if method == "POST" else None)
            self.assertEqual((response.status, "retry-after" in response.fields), (503, True), target)
            self.assertIn("loading", response.json["error"])
        for fields, target in (({"Last-Event-ID": "x-1"}, "/infer"), ({}, "/infer?last_event_id=x-1")):
            self.assertEqual(ask(server.port, "GET", target, None, fields).status, 404)
        service.app.schema, service.phase = schema, Phase.SERVING
        self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "a"}).status, 200)


class FakeEngine:
    """What the repository's routes ask of an engine."""

    def __init__(self) -> None:
        self.state = State.READY
        self.reason = ""
        self.error: ShimError | None = None

    def load(self) -> None:
        self._become(State.READY)

    def unload(self) -> None:
        self._become(State.UNLOADED)

    def _become(self, state: State) -> None:
        if self.error is not None:
            raise self.error
        self.state = state


class RepositoryTests(TestCase):
    """The model repository extension, of one model."""

    def setUp(self) -> None:
        self.server = self.serve(words)
        self.port = self.server.port
        self.engine = FakeEngine()

    def fake(self) -> Any:
        return mock.patch.object(self.server.service, "engine", self.engine)

    def control(self, action: str, body: Any = b"") -> Response:
        return ask(self.port, "POST", f"/v2/repository/models/fake/{action}", body)

    def test_index(self) -> None:
        """The index has the one model, in its state; or, if asked for, only if it is ready."""
        for state, told in (
            (State.LOADING, "LOADING"),
            (State.READY, "READY"),
            (State.UNLOADING, "UNLOADING"),
            (State.UNLOADED, "UNAVAILABLE"),
        ):
            with self.subTest(state), self.fake():
                self.engine.state, self.engine.reason = state, "because"
                entry = {"name": "fake", "version": "1", "state": told, "reason": "because"}
                for body, listed in (
                    (b"", True),
                    ({}, True),
                    ({"ready": False}, True),
                    ({"ready": True}, told == "READY"),
                ):
                    response = ask(self.port, "POST", "/v2/repository/index", body)
                    self.assertEqual((response.status, response.json), (200, [entry] if listed else []))

    def test_load_and_unload(self) -> None:
        """Either is 200 when it is over, with a body or without; again is as good as once."""
        with self.fake():
            for action, state in (("unload", State.UNLOADED), ("load", State.READY)):
                for body in (b"", {}, {"parameters": {}}, {"parameters": {"unload_dependents": True}}):
                    response = self.control(action, body)
                    self.assertEqual((response.status, response.json), (200, {}))
                    self.assertIs(self.engine.state, state)

    def test_faults(self) -> None:
        """What cannot be done is refused before anything is: another configuration, other files, a bad body."""
        with self.fake():
            for action in ("load", "unload"):
                for body in (
                    {"parameters": {"config": "{}"}},
                    {"parameters": {"file:a": ""}},
                    [],
                    b"{",
                    {"parameters": 1},
                ):
                    self.assertEqual(self.control(action, body).status, 400)
            self.assertIs(self.engine.state, State.READY)
        self.assertEqual(ask(self.port, "POST", "/v2/repository/index", {"ready": "yes"}).status, 400)

    def test_failure(self) -> None:
        """What the engine raises is the answer: a model that cannot be loaded is 500, one that will not end 503."""
        with self.fake():
            for error in (AppFailed("fake could not be loaded: no"), Unavailable("fake cannot be unloaded: no")):
                self.engine.error = error
                for action in ("load", "unload"):
                    response = self.control(action)
                    self.assertEqual((response.status, response.json["error"]), (error.status, error.message))

    def test_draining(self) -> None:
        """A server that is shutting down loads nothing."""
        with self.fake():
            self.engine.state = State.UNLOADED
            self.server.service.phase = Phase.DRAINING
            self.assertEqual(self.control("load").status, 503)
            self.assertIs(self.engine.state, State.UNLOADED)
        self.server.service.phase = Phase.SERVING

    def test_cross_origin(self) -> None:
        """A page from elsewhere cannot unload the model on localhost."""
        with self.fake():
            fields = {"Origin": "http://elsewhere.example"}
            for action in ("load", "unload"):
                response = ask(self.port, "POST", f"/v2/repository/models/fake/{action}", b"", fields)
                self.assertEqual(response.status, 403)
            self.assertIs(self.engine.state, State.READY)

    def test_round_trip(self) -> None:
        """Unloaded, the model is not ready and takes no work, and is described all the same; load brings it back."""
        self.assertEqual(self.control("unload").status, 200)
        self.assertEqual(ask(self.port, "POST", "/v2/repository/index", b"").json[0]["state"], "UNAVAILABLE")
        for method, target in (("POST", "/infer"), ("POST", V2 + "/infer"), ("GET", V2 + "/ready")):
            self.assertEqual(ask(self.port, method, target, {"TEXT": "a"} if method == "POST" else None).status, 503)
        for target in (V2, V2 + "/config", "/v2/health/live"):
            self.assertEqual(ask(self.port, "GET", target).status, 200)
        self.assertEqual(self.control("load").status, 200)
        self.assertEqual(ask(self.port, "GET", V2 + "/ready").status, 200)
        self.assertEqual(ask(self.port, "POST", "/infer", {"TEXT": "a"}).events[0].data, {"OUT": "a"})


class QueryTests(TestCase):
    """Query names that are not inputs."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        name: {"datatype": "STRING", "required": False, "shape": [1]} for name in ("progress", "last_event_id")
    }

    def test_declared_names_are_inputs(self) -> None:
        """An app's own input called `last_event_id` or `progress` is an input in GET's query."""
        seen: list[dict[str, Any]] = []
        port = self.serve(lambda inputs, handler: seen.append(inputs), self.SCHEMA).port
        self.assertEqual(ask(port, "GET", "/infer?progress=1&last_event_id=x").status, 200)
        self.assertEqual(seen, [{"progress": "1", "last_event_id": "x"}])

    def test_query_faults(self) -> None:
        """What is no input of the app, comes twice, or does not fit, is 400."""
        schema = {
            "TEXT": {"datatype": "STRING", "required": True, "shape": [1]},
            "N": {"datatype": "INT32", "required": False, "shape": [1]},
            "B": {"datatype": "BOOL", "required": False, "shape": [1]},
        }
        seen: list[dict[str, Any]] = []
        port = self.serve(lambda inputs, handler: seen.append(inputs), schema).port
        for query in ("", "TEXT=a&TEXT=b", "WORD=a&TEXT=a", "TEXT=%FF", "TEXT=%", "TEXT=a&N=1.5", "TEXT=a&N=x",
                      "TEXT=a&B=yes", "TEXT=a&B=TRUE", "TEXT=a&progress=1&progress=2"):  # fmt: skip
            with self.subTest(query):
                response = ask(port, "GET", "/infer?" + query)
                self.assertEqual((response.status, response.fields["content-type"]), (400, JSON))
                self.assertTrue(re.search(r"[A-Za-z]", response.json["error"]))
        self.assertEqual(seen, [])
        self.assertEqual(ask(port, "GET", "/infer?TEXT=a%26+b&N=-7&B=1&token=x&progress=1").status, 200)
        self.assertEqual(seen, [{"TEXT": "a& b", "N": -7, "B": True}])


if __name__ == "__main__":
    unittest.main()
