"""Who may, on the wire: keys, whose streams they have, tokens, names of the server, pages and proxies."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, ClassVar

from inferless_shim.values import networks
from tests.support import (
    Client,
    Puppet,
    Response,
    SharedServer,
    TestCase,
    ask,
    eventually,
    request_bytes,
    words,
)

ALICE, BOB, CAROL = "alice-0123456789abcdef", "bob-0123456789abcdef", "carol-0123456789abcdef"
PAGE = "https://chat.example"
V2 = "/v2/models/fake"
UNKNOWN = "0" * 32


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def said(response: Response) -> tuple[Any, ...]:
    """All of a response but what differs between any two."""
    body = dict(response.json) if response.body else None
    if body is not None:
        body.pop("request_id", None)
    fields = {name: value for name, value in response.fields.items() if name not in ("date", "x-request-id")}
    length = int(fields.get("content-length", 0)) - len(response.fields["x-request-id"])
    return response.status, response.reason, {**fields, "content-length": length}, body


class KeyFile:
    """A file of keys, of which the first two are Alice's and Bob's."""

    def __init__(self, test: Any) -> None:
        folder = tempfile.TemporaryDirectory()
        test(folder.cleanup)
        self.path = Path(folder.name, "keys")
        self.write(f"alice:{ALICE}\nbob:{BOB}\n")

    def write(self, text: str) -> None:
        self.path.touch(0o600)
        self.path.write_text(text)


class KeyTests(SharedServer):
    """With --api-key-file, nothing is told to whom it does not know."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.settings = {"api_key_file": KeyFile(cls.addClassCleanup).path, "cors": (PAGE,), "open_metrics": True}
        super().setUpClass()

    def refused(self, response: Response, *, invalid: bool = False) -> None:
        self.assertEqual(response.status, 401)
        expected = 'Bearer realm="inference"' + (', error="invalid_token"' if invalid else "")
        self.assertEqual(response.fields["www-authenticate"], expected)

    def test_every_route_needs_a_key(self) -> None:
        """Without a key every path is 401, in the same words whether it exists or not."""
        answers = set()
        for method, target, body in (
            ("GET", "/infer?TEXT=a", None), ("POST", "/infer", {"TEXT": "a"}), ("POST", "/infer", b"{"),
            ("POST", "/infer", None), ("GET", "/streams/x", None), ("DELETE", "/streams/x", None), ("GET", "/v2", None),
            ("GET", V2, None), ("GET", V2 + "/config", None), ("GET", V2 + "/ready", None), ("GET", "/v2/health", None),
            ("POST", V2 + "/infer", {"TEXT": "a"}), ("POST", V2 + "/generate_stream", {"TEXT": "a"}),
            ("POST", "/v2/repository/index", b""), ("POST", "/v2/repository/models/fake/unload", b""),
            ("GET", "/v2/models/other", None), ("GET", "/nothing", None), ("BREW", "/infer", None), ("POST", "/", b""),
            ("DELETE", "/", None), ("OPTIONS", "/infer", None), ("OPTIONS", "*", None), ("POST", "/metrics", b""),
            ("GET", "/%2e/v2/health/live", None), ("GET", "//v2/health/live", None), ("GET", "/metrics/x", None),
        ):  # fmt: skip
            with self.subTest(method=method, target=target, body=body):
                response = ask(self.port, method, target, body)
                self.refused(response)
                answers.add(response.json["error"])
        self.assertEqual(len(answers), 1)
        self.refused(ask(self.port, "HEAD", "/infer"))
        self.assertEqual(ask(self.port, "HEAD", "/infer").body, b"")
        self.assertEqual(len(self.server.service.store), 0)

    def test_open_routes(self) -> None:
        """The page, health, and /metrics if it is to be, are open to all; a wrong key closes none of them."""
        for fields in ({}, bearer("wrong"), bearer(ALICE)):
            for method in ("GET", "HEAD"):
                for target in ("/", "/v2/health/live", "/v2/health/ready", "/metrics"):
                    with self.subTest(method=method, target=target, fields=fields):
                        self.assertEqual(ask(self.port, method, target, None, fields).status, 200)
            self.assertEqual(ask(self.port, "GET", "/v2/health/other", None, fields).status, 404)
            self.assertEqual(ask(self.port, "GET", "/v2/health/../models/fake", None, fields).status, 404)

    def test_key(self) -> None:
        """`Authorization: Bearer KEY`, whatever the case of the scheme and however many spaces."""
        for value in (f"Bearer {ALICE}", f"bearer {BOB}", f"BEARER   {BOB}"):
            self.assertEqual(ask(self.port, "GET", "/v2", None, {"Authorization": value}).status, 200)
        self.assertEqual(ask(self.port, "POST", "/infer", {"TEXT": "a"}, bearer(BOB)).status, 200)
        self.assertEqual(ask(self.port, "GET", "/nothing", None, bearer(BOB)).status, 404)

    def test_wrong_key(self) -> None:
        """A wrong key is 401 and called that; another scheme is as good as no key (RFC 6750 §3.1)."""
        for key in (ALICE[:-1], ALICE + "x", f"alice:{ALICE}", "alice", ALICE.upper(), f"{ALICE},{BOB}", "\xe9" * 20):
            with self.subTest(key):
                self.refused(ask(self.port, "GET", "/v2", None, bearer(key)), invalid=True)
        for value in ("", ALICE, f"Basic {ALICE}", f"Bearer{ALICE}", "Bearer", f"ApiKey {ALICE}"):
            with self.subTest(value):
                self.refused(ask(self.port, "GET", "/v2", None, {"Authorization": value}))
        for field in ("X-Api-Key", "Cookie", "Proxy-Authorization"):
            self.refused(ask(self.port, "GET", "/v2", None, {field: f"Bearer {ALICE}"}))
        self.refused(ask(self.port, "GET", f"/infer?TEXT=a&access_token={ALICE}&token={ALICE}"))

    def test_before_the_body(self) -> None:
        """The answer comes while the body is still on its way, and no `100 Continue` asks for it."""
        with Client(self.port) as client:
            client.send(b"POST /infer HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
            response = Response(client).read()
        self.refused(response)
        self.assertEqual(response.fields["connection"], "close")

    def test_connection_goes_on(self) -> None:
        """Where no body was left unread the client may ask again on the same connection, with its key."""
        with Client(self.port) as client:
            self.refused(client.request("GET", "/v2").read())
            self.assertEqual(client.request("GET", "/v2", None, bearer(ALICE)).read().status, 200)

    def test_preflight(self) -> None:
        """A preflight, which never has a key, is answered alike for every path; it needs an allowed origin."""
        fields = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answers = set()
        for target in ("/infer", "/nothing", "/streams/x", "/v2/models/other"):
            response = ask(self.port, "OPTIONS", target, None, fields)
            self.assertEqual(response.fields["access-control-allow-origin"], PAGE)
            self.assertIn("authorization", response.fields["access-control-allow-headers"])
            answers.add((response.status, response.body))
        self.assertEqual(answers, {(204, b"")})
        self.refused(ask(self.port, "OPTIONS", "/infer", None, {"Access-Control-Request-Method": "POST"}))
        self.refused(ask(self.port, "OPTIONS", "/infer", None, {**fields, "Origin": "http://localhost"}))
        self.refused(ask(self.port, "GET", "/infer?TEXT=a", None, fields))

    def test_refusals_are_readable_by_pages(self) -> None:
        """A page that may call may also read why it was refused."""
        for response in (
            ask(self.port, "GET", "/v2", None, {"Origin": PAGE}),
            ask(self.port, "GET", f"/streams/{UNKNOWN}", None, {"Origin": PAGE, **bearer(ALICE)}),
            ask(self.port, "GET", "/v2", None, {"Origin": PAGE, "Host": "localhost"}, version="1.0"),
        ):
            self.assertEqual(response.fields.get("access-control-allow-origin", PAGE), PAGE)
            self.assertEqual(response.fields["vary"], "Origin")
            self.assertNotIn("access-control-allow-credentials", response.fields)

    def test_page_shows_where_the_key_goes(self) -> None:
        """The curl line of the page has a place for the key, and no key."""
        page = ask(self.port, "GET", "/").body.decode()
        self.assertIn('-H "Authorization: Bearer $KEY"', page)
        self.assertNotIn(ALICE, page)


class OwnedTest(TestCase):
    """A server with Alice's and Bob's keys."""

    def setUp(self) -> None:
        self.file = KeyFile(self.addCleanup)
        self.puppet = Puppet()
        self.server = self.serve(self.puppet.infer, api_key_file=self.file.path)
        self.port = self.server.port

    def reload(self) -> None:
        with self.assertLogs("inferless_shim.auth", "INFO"):
            for each in self.server.service.reload:
                each()


class OwnerTests(OwnedTest):
    """A stream belongs to the key that started it; to any other it is a stream that there is not."""

    def ask_of(self, stream: str, method: str, target: str, body: Any, fields: dict[str, str]) -> Response:
        """Ask, with `stream` wherever it says STREAM."""
        fields = {name: value.replace("STREAM", stream) for name, value in fields.items()}
        return ask(self.port, method, target.replace("STREAM", stream), body, fields)

    def ended(self, key: str, **fields: str) -> Response:
        self.puppet.send(OUT="a")
        self.puppet.end()
        return ask(self.port, "POST", "/infer", {"TEXT": "x"}, {**bearer(key), **fields})

    def test_another_key(self) -> None:
        """Every way to a stream answers another key what it answers for an unknown id, but for Date and request id."""
        stream = self.ended(ALICE).fields["stream-id"]
        self.assertEqual(len(stream), len(UNKNOWN))
        for state in ("kept", "forgotten"):
            if state == "forgotten":
                self.assertEqual(ask(self.port, "DELETE", f"/streams/{stream}", None, bearer(ALICE)).status, 204)
            for number in (0, 1, 2, 99):
                event = f"STREAM-{number}"
                for method, target, body, fields in (
                    ("GET", "/streams/STREAM", None, {}),
                    ("HEAD", "/streams/STREAM", None, {}),
                    ("GET", "/streams/STREAM", None, {"Last-Event-ID": event}),
                    ("GET", "/streams/STREAM?last_event_id=" + event, None, {}),
                    ("DELETE", "/streams/STREAM", None, {}),
                    ("POST", "/infer", {"TEXT": "y"}, {"Last-Event-ID": event}),
                    ("POST", V2 + "/infer", {"TEXT": "y"}, {"Last-Event-ID": event}),
                    ("POST", "/infer?last_event_id=" + event, {"TEXT": "y"}, {}),
                    ("GET", "/infer?TEXT=y", None, {"Last-Event-ID": event}),
                    ("GET", "/infer?TEXT=y&last_event_id=" + event, None, {}),
                ):
                    with self.subTest(state, method=method, target=target, number=number):
                        bobs, unknown = (
                            self.ask_of(each, method, target, body, {**fields, **bearer(BOB)})
                            for each in (stream, UNKNOWN)
                        )
                        self.assertEqual(bobs.status, 404)
                        self.assertEqual(said(bobs), said(unknown))
            status = ask(self.port, "GET", f"/streams/{stream}", None, bearer(ALICE)).status
            self.assertEqual(status, 200 if state == "kept" else 410)
        self.assertEqual(len(self.puppet.inputs), 1)

    def test_idempotency_key(self) -> None:
        """Two keys may use the same Idempotency-Key: each has its own stream, and neither learns of the other's."""
        mine = self.ended(ALICE, **{"Idempotency-Key": "k"})
        theirs = self.ended(BOB, **{"Idempotency-Key": "k"})
        self.assertNotEqual(mine.fields["stream-id"], theirs.fields["stream-id"])
        other = {"TEXT": "other"}
        self.assertEqual(ask(self.port, "POST", "/infer", other, {**bearer(ALICE), "Idempotency-Key": "k"}).status, 422)
        again = ask(self.port, "POST", "/infer", {"TEXT": "x"}, {**bearer(ALICE), "Idempotency-Key": "k"})
        self.assertEqual(again.body, mine.body)
        self.assertEqual(len(self.puppet.inputs), 2)

    def test_key_and_not_name(self) -> None:
        """A new key under an old name has none of the old one's streams; the old key has them still, renamed or not."""
        stream = self.ended(ALICE).fields["stream-id"]
        self.file.write(f"alice:{CAROL}\nsomebody:{ALICE}\n")
        self.reload()
        self.assertEqual(ask(self.port, "GET", f"/streams/{stream}", None, bearer(CAROL)).status, 404)
        self.assertEqual(ask(self.port, "GET", f"/streams/{stream}", None, bearer(ALICE)).status, 200)
        self.assertEqual(ask(self.port, "GET", f"/streams/{stream}", None, bearer(BOB)).status, 401)


class TokenTests(OwnedTest):
    """`Prefer: respond-async` hands out a URL that an EventSource, which cannot set headers, can follow."""

    def setUp(self) -> None:
        super().setUp()
        self.puppet.send(OUT="a")
        self.puppet.end()
        response = self.start(ALICE)
        self.location, self.stream = response.fields["location"], response.fields["stream-id"]
        self.path, _, self.token = self.location.partition("?token=")
        eventually(lambda: not self.server.service.store.running())

    def start(self, key: str, **fields: str) -> Response:
        response = ask(self.port, "POST", "/infer", {"TEXT": "x"}, {**bearer(key), "Prefer": "respond-async", **fields})
        self.assertEqual(response.status, 202)
        return response

    def refused(self, target: str, method: str = "GET", fields: dict[str, str] | None = None) -> Response:
        response = ask(self.port, method, target, None if method != "POST" else {"TEXT": "y"}, fields)
        self.assertEqual(response.status, 401)
        return response

    def test_location(self) -> None:
        """Location and body have the token, Content-Location has not; an idempotent retry gets it again."""
        key = {"Idempotency-Key": "k"}
        self.puppet.end()
        first, second = self.start(ALICE, **key), self.start(ALICE, **key)
        stream = first.fields["stream-id"]
        self.assertRegex(first.fields["location"], rf"^/streams/{stream}\?token=[0-9A-Za-z_-]{{43}}$")
        self.assertEqual(first.json, {"stream": stream, "location": first.fields["location"]})
        self.assertEqual(first.fields["content-location"], f"/streams/{stream}")
        self.assertEqual(second.fields["location"], first.fields["location"])

    def test_follow(self) -> None:
        """The URL alone follows the stream, from the start and from where an EventSource was; 204 makes that stop."""
        response = ask(self.port, "GET", self.location)
        self.assertEqual(response.status, 200)
        self.assertEqual([event.number for event in response.events], [1, 2])
        self.assertEqual(ask(self.port, "HEAD", self.location).status, 200)
        later = ask(self.port, "GET", self.location, None, {"Last-Event-ID": f"{self.stream}-1"})
        self.assertEqual([event.number for event in later.events], [2])
        self.assertEqual(ask(self.port, "GET", f"{self.location}&last_event_id={self.stream}-2").status, 204)

    def test_only_to_read_this_stream(self) -> None:
        """The token is for GET and HEAD of its stream: it cancels nothing, starts nothing, and opens no other path."""
        other = self.start(ALICE).fields["stream-id"]
        bobs = self.start(BOB).fields["stream-id"]
        for method, target in (
            ("DELETE", self.path),
            ("POST", self.path),
            ("OPTIONS", self.path),
            ("GET", f"/streams/{other}"),
            ("GET", f"/streams/{bobs}"),
            ("GET", f"/streams/{UNKNOWN}"),
            ("GET", f"{self.path}/"),
            ("GET", "/v2"),
            ("GET", "/metrics"),
            ("POST", "/infer"),
        ):
            with self.subTest(method=method, target=target):
                self.refused(f"{target}?token={self.token}", method)
        self.refused(f"/infer?TEXT=a&token={self.token}")
        self.refused(f"/infer?TEXT=a&token={self.token}&last_event_id={self.stream}-0")
        fields = {"Last-Event-ID": f"{other}-0"}
        self.assertEqual(ask(self.port, "GET", self.location, None, fields).status, 400)  # nor by the back door

    def test_refused_alike(self) -> None:
        """A token that is wrong, for whatever reason, is answered word for word as no key is."""
        nothing = said(self.refused(self.path))
        self.assertEqual(said(self.refused(f"/streams/{UNKNOWN}")), nothing)
        ask(self.port, "GET", "/v2", None, bearer(ALICE))
        for target in (
            f"{self.path}?token=",
            f"{self.path}?token={self.token[:-1]}",
            f"{self.path}?token={self.token}=",
            f"{self.path}?token={self.token}&token={self.token}",
            f"{self.path}?token={self.token}&%ff=1",
            f"{self.path}?token=%",
            f"{self.path}?Token={self.token}",
            f"{self.path}?token=%F0%9F%98%80",
            f"{self.path}?last_event_id={self.stream}-1",
            f"/streams/{UNKNOWN}?token={self.token}",
            f"/streams/%20?token={self.token}",
        ):
            with self.subTest(target):
                self.assertEqual(said(self.refused(target)), nothing)

    def test_forgotten(self) -> None:
        """When the stream is forgotten its token is worth nothing, while its key is told that it is gone: 410."""
        self.assertEqual(ask(self.port, "DELETE", self.path, None, bearer(ALICE)).status, 204)
        self.assertEqual(said(self.refused(self.location)), said(self.refused(f"/streams/{UNKNOWN}?token=x")))
        self.assertEqual(ask(self.port, "GET", self.location, None, bearer(ALICE)).status, 410)

    def test_header_wins(self) -> None:
        """A key in the header is what counts: a right one without a look at the token, a wrong one in spite of it."""
        wrong = f"{self.path}?token=wrong"
        self.assertEqual(ask(self.port, "GET", wrong, None, bearer(ALICE)).status, 200)
        self.assertEqual(ask(self.port, "GET", self.location, None, bearer(BOB)).status, 404)
        for value in (f"Bearer {CAROL}", "Basic x", ""):
            self.refused(self.location, fields={"Authorization": value})

    def test_dies_with_its_key(self) -> None:
        """A token is of its key: taken out of the file, it opens nothing any more; put back, it does again."""
        self.file.write(f"bob:{BOB}\n")
        self.reload()
        self.refused(self.location)
        self.refused(self.path, fields=bearer(ALICE))
        self.file.write(f"alice:{ALICE}\n")
        self.reload()
        self.assertEqual(ask(self.port, "GET", self.location).status, 200)

    def test_running_stream_goes_on(self) -> None:
        """Who follows a stream when its key is taken out follows it to its end; whoever comes back is refused."""
        location = self.start(ALICE).fields["location"]
        with Client(self.port) as client:
            response = client.request("GET", location)
            self.file.write(f"bob:{BOB}\n")
            self.reload()
            self.puppet.send(OUT="b")
            self.puppet.end()
            self.assertEqual([event.number for event in response.read().events], [1, 2])
        self.refused(location)


class WithoutKeysTests(SharedServer):
    """Without --api-key-file whoever reaches the port may."""

    infer = staticmethod(words)

    def test_open(self) -> None:
        """Streams belong to all, a key that is sent is not looked at, and no token is handed out or asked for."""
        response = ask(self.port, "POST", "/infer", {"TEXT": "a"}, {"Prefer": "respond-async", **bearer("anything")})
        stream = response.fields["stream-id"]
        self.assertEqual(response.fields["location"], f"/streams/{stream}")
        for target in (f"/streams/{stream}", f"/streams/{stream}?token=anything"):
            self.assertEqual(ask(self.port, "GET", target).status, 200)

    def test_token_is_no_input(self) -> None:
        """In GET /infer `token` is a reserved name that gives nothing."""
        self.assertEqual(ask(self.port, "GET", "/infer?TEXT=a&token=x").status, 200)


class HostTests(SharedServer):
    """On loopback the server goes by the names of this machine alone (DNS rebinding)."""

    settings: ClassVar[dict[str, Any]] = {"allowed_host": ("api.example",)}

    def status(self, host: str, fields: str = "", request: str = "GET /v2 HTTP/1.1") -> Response:
        with Client(self.port) as client:
            client.send(f"{request}\r\nHost: {host}\r\n{fields}\r\n".encode())
            return Response(client).read()

    def test_names(self) -> None:
        """Names of this machine and listed ones are taken, with any port; another is 403 and told the remedy."""
        for host in (f"localhost:{self.port}", "127.0.0.1", "[::1]:1", "app.localhost", "API.example.:443"):
            self.assertEqual(self.status(host).status, 200, host)
        for host in ("evil.example", f"evil.example:{self.port}", "localhost.evil.example", "x.api.example"):
            response = self.status(host)
            self.assertEqual(response.status, 403, host)
            self.assertIn("--allowed-host", response.json["error"])

    def test_own_origin_of_a_rebound_page(self) -> None:
        """A page whose name was pointed here looks like one of ours by its Origin; its Host gives it away."""
        for path in ("/", "/v2/health/live", "/infer", f"/streams/{UNKNOWN}", "/nothing"):
            fields = "Origin: http://evil.example:8000\r\nSec-Fetch-Site: same-origin\r\n"
            self.assertEqual(self.status("evil.example:8000", fields, f"GET {path} HTTP/1.1").status, 403)

    def test_before_the_body(self) -> None:
        """It is told before the body has come."""
        request = "POST /infer HTTP/1.1\r\nContent-Length: 1000"
        self.assertEqual(self.status("evil.example", request=request).status, 403)

    def test_forwarded_host(self) -> None:
        """X-Forwarded-Host stands for nothing."""
        self.assertEqual(self.status("evil.example", "X-Forwarded-Host: localhost\r\n").status, 403)
        self.assertEqual(self.status("localhost", "X-Forwarded-Host: evil.example\r\n").status, 200)

    def test_without_host(self) -> None:
        """HTTP/1.0 without a Host passes."""
        with Client(self.port) as client:
            client.send(b"GET /v2 HTTP/1.0\r\n\r\n")
            self.assertEqual(Response(client).status, 200)


class ProxyTests(SharedServer):
    """Behind a proxy that is trusted, the scheme is the one that it names."""

    settings: ClassVar[dict[str, Any]] = {"trusted_proxy": networks("127.0.0.0/8")}

    def test_own_origin(self) -> None:
        """A page of the same name is ours if its scheme is what the proxy says; unsaid, either is."""
        for proto, origin, status in (
            ("https", "https://localhost", 200),
            ("https", "http://localhost", 403),
            ("http", "https://localhost", 403),
            ("", "https://localhost", 200),
            ("", "http://localhost", 200),
        ):
            fields = {"Origin": origin, **({"X-Forwarded-Proto": proto} if proto else {})}
            with self.subTest(proto=proto, origin=origin):
                self.assertEqual(ask(self.port, "GET", "/v2", None, fields).status, status)

    def test_page(self) -> None:
        """The page's curl line has the scheme that its reader used."""
        page = ask(self.port, "GET", "/", None, {"X-Forwarded-Proto": "https"}).body.decode()
        self.assertIn("https://localhost/infer", page)

    def test_log(self) -> None:
        """The log names the client that the proxy names, also of a request that is refused."""
        with self.assertLogs("inferless_shim", "INFO") as logs:
            ask(self.port, "GET", "/v2", None, {"X-Forwarded-For": "203.0.113.9, 192.0.2.7"})
            ask(self.port, "GET", "/v2", None, {"X-Forwarded-For": "192.0.2.8", "Origin": "http://evil.example"})
            eventually(lambda: len(logs.records) >= 2)
        clients = [record.args.get("client") for record in logs.records if isinstance(record.args, dict)]
        self.assertEqual(clients, ["192.0.2.7", "192.0.2.8"])


class LogTests(TestCase):
    """What is secret never reaches a log."""

    def test_no_query_values(self) -> None:
        """Whatever comes of a request, what stands in its query is in no line: tokens, inputs, event ids."""
        file = KeyFile(self.addCleanup)
        schema = {"N": {"datatype": "INT32", "required": False, "shape": [1]},
                  "TEXT": {"datatype": "STRING", "required": False, "shape": [1]}}  # fmt: skip
        port = self.serve(lambda inputs, handler: None, schema, api_key_file=file.path).port
        with self.assertLogs(level=logging.DEBUG) as logs:
            started = ask(port, "POST", "/infer", {"TEXT": "x"}, {**bearer(ALICE), "Prefer": "respond-async"})
            token = started.fields["location"].partition("=")[2]
            for target in (
                started.fields["location"],
                f"/streams/{UNKNOWN}?token={token}",
                "/infer?N=secret",
                "/infer?N=secret&N=secret&TEXT=secret",
                "/infer?TEXT=secret&last_event_id=secret",
                f"/infer?TEXT=secret&last_event_id={UNKNOWN}-1",
                "/infer?TEXT=secret%ff",
                "/infer?TEXT=secret",
                "/nothing?x=secret",
                "/?x=secret",
                f"/streams/x?token={token}secret",
                "/infer?TEXT=" + "secret" * 4000,
                "http://localhost/infer?TEXT=secret",
                "http://evil.example/infer?TEXT=secret",
            ):
                for fields in ({}, bearer(ALICE), bearer("secret"), {"Origin": "http://evil.example"}):
                    ask(port, "GET", target, None, fields)
            eventually(lambda: sum("client" in str(record.args) for record in logs.records) >= 57)
        said = json.dumps([[repr(record.args), record.getMessage()] for record in logs.records])
        for secret in ("secret", token, ALICE):
            self.assertNotIn(secret, said)


class SplittingTests(SharedServer):
    """Nothing that a client says can split the head of a response."""

    settings: ClassVar[dict[str, Any]] = {"cors": (PAGE,)}

    def test_hostile_fields(self) -> None:
        """Every line of every response head is a field of ours, whatever stood in the request."""
        hostile = ("a\r\nInjected: 1", "a\nInjected: 1", "a\rInjected: 1", "%0d%0aInjected:%201", "\x85Injected: 1",
                   "\u010aInjected", "a\x00b", "\xe9\xa0\x8d\x8aInjected: 1", "a" * 9000)  # fmt: skip
        ours = re.compile(
            rb"(date|content-type|content-length|connection|x-request-id|vary|access-control-[a-z-]+|allow|stream-id"
            rb"|content-location|location|preference-applied|cache-control|x-accel-buffering|transfer-encoding"
            rb"|retry-after|www-authenticate): [\x20-\xff]*", re.IGNORECASE,
        )  # fmt: skip
        for text in hostile:
            data = text.encode("utf-8" if "\u010a" in text else "latin-1")
            for name in (b"X-Request-Id", b"traceparent", b"Origin", b"Host", b"Prefer", b"Idempotency-Key",
                         b"Last-Event-ID", b"Access-Control-Request-Method", b"Connection"):  # fmt: skip
                with self.subTest(text=text[:20], name=name), Client(self.port) as client:
                    host = b"" if name == b"Host" else b"Host: localhost\r\n"
                    head = b"POST /infer HTTP/1.1\r\n%bConnection: close\r\nContent-Length: 12\r\n%b: %b\r\n\r\n"
                    client.send(head % (host, name, data) + b'{"TEXT":"a"}')
                    answer = b""
                    while more := client.read_some():
                        answer += more
                    status, *lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
                    self.assertRegex(status, rb"^HTTP/1\.1 [2-5][0-9][0-9] [A-Za-z -]+$")
                    self.assertEqual([line for line in lines if not ours.fullmatch(line)], [])

    def test_hostile_paths(self) -> None:
        """Nor can a path, whose escapes of control characters are refused."""
        for target in ("/streams/a%0d%0aInjected:%201", "/v2/models/%0aInjected", "/%c4%8a", "/streams/%C2%85x"):
            for method in ("GET", "DELETE", "OPTIONS"):
                response = ask(self.port, method, target)
                self.assertIn(response.status, (204, 400, 404))
                self.assertNotIn("injected", response.fields)


class HostileAppTests(TestCase):
    """Nor can an app."""

    def test_hostile_app(self) -> None:
        """What an app names its outputs and answers stays in the body."""
        for streaming in (True, False):

            def infer(inputs: dict[str, Any], handler: Any = None) -> Any:
                return {"a\r\nInjected: 1": "b\r\n\r\nHTTP/1.1 200 OK", "id: x\n\ndata": "\n\nevent: done"}

            port = self.serve(infer, streaming=streaming).port
            for target in ("/infer", V2 + "/infer", V2 + "/generate", V2 + "/generate_stream"):
                with self.subTest(streaming=streaming, target=target):
                    body = {"TEXT": "a", "id": "x\r\nInjected: 1"}
                    with Client(port) as client:
                        client.send(request_bytes("POST", target, body, {"Connection": "close"}))
                        response = Response(client).read()
                        self.assertEqual(client.read_some(), b"")  # one answer, and no more
                    self.assertEqual(response.status, 200)
                    self.assertTrue(response.complete)
                    self.assertNotIn("injected", response.fields)
                    if "event-stream" in response.fields["content-type"]:
                        self.assertLessEqual(len(response.events), 2)
                        self.assertEqual(response.events[0].number, 1)


class ReloadRaceTests(TestCase):
    """Keys may change while they are asked for."""

    def test_reload_under_load(self) -> None:
        """A key that stays is never refused for a moment, however often the file is read again."""
        file = KeyFile(self.addCleanup)
        server = self.serve(words, api_key_file=file.path)
        over = threading.Event()
        self.addCleanup(over.set)
        statuses: set[int] = set()

        def call() -> None:
            with Client(server.port) as client:
                while not over.is_set():
                    statuses.add(client.request("GET", "/v2", None, bearer(ALICE)).read().status)

        caller = threading.Thread(target=call)
        caller.start()
        eventually(lambda: statuses)
        with self.assertLogs("inferless_shim.auth", "INFO"):
            for turn in range(50):
                file.write(f"alice:{ALICE}\n" + f"bob:{BOB}\n" * (turn % 2))
                for each in server.service.reload:
                    each()
        over.set()
        caller.join()
        self.assertEqual(statuses, {200})


if __name__ == "__main__":
    unittest.main()
