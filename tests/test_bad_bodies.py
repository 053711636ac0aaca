"""Shows 8: what is wrong with a request is told over HTTP, with its status and a sentence; then all is well again.

The bodies are `bad_bodies.BAD_BODIES`; the framings here are those that a client can get wrong around a good body.
"""

from __future__ import annotations

import time
import tracemalloc
import unittest
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import quote

from inferless_shim.errors import BadRequest
from inferless_shim.schema import Rules, compile_schema
from tests.bad_bodies import (
    BAD_BODIES,
    DOUBTFUL,
    DOUBTFUL_TENSORS,
    HEADER_LENGTH,
    SCHEMA,
    doubtful_bodies,
    doubtful_tensor,
    text_of,
)
from tests.support import Client, Response, SharedServer, read_body, request_bytes

GOOD = b'{"TEXT": "hello"}'
MAX_BODY = 1_000_000  # the largest of BAD_BODIES fits
ROUTES = ("/infer", "/v2/models/fake/infer", "/v2/models/fake/generate", "/v2/models/fake/generate_stream")


def post(fields: str, body: bytes = GOOD, version: str = "1.1", target: str = "/infer") -> bytes:
    return f"POST {target} HTTP/{version}\r\nHost: localhost\r\n{fields}\r\n".encode("latin-1") + body


def sized(fields: str = "", **options: Any) -> bytes:
    return post(f"Content-Length: {len(GOOD)}\r\n{fields}", **options)


def chunked(body: bytes, fields: str = "Transfer-Encoding: chunked\r\n") -> bytes:
    return post(fields, body)


LENGTH = len(GOOD)
WHOLE = b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, GOOD)

# Each: what is wrong, the bytes, the status, words of its error.
BAD_FRAMINGS: list[tuple[str, bytes, int, str]] = [
    # How long the body is
    ("no length", post(""), 411, "Content-Length"),
    ("no length over 1.0", post("", version="1.0"), 411, "Content-Length"),
    ("an empty length", post("Content-Length: \r\n"), 400, "Content-Length"),
    ("a negative length", post("Content-Length: -1\r\n"), 400, "Content-Length"),
    ("a length with a plus", post(f"Content-Length: +{LENGTH}\r\n"), 400, "Content-Length"),
    ("a length in hexadecimal", post("Content-Length: 0x11\r\n"), 400, "Content-Length"),
    ("a length with a fraction", post("Content-Length: 17.0\r\n"), 400, "Content-Length"),
    ("a length with an underscore", post("Content-Length: 1_7\r\n"), 400, "Content-Length"),
    ("a length in other digits", post("Content-Length: \xb2\r\n"), 400, "Content-Length"),
    ("a length of twenty digits", post("Content-Length: " + "1" * 20 + "\r\n"), 400, "Content-Length"),
    ("a length in words", post("Content-Length: all\r\n"), 400, "Content-Length"),
    ("two lengths", post(f"Content-Length: {LENGTH}\r\nContent-Length: 1\r\n"), 400, "Content-Length"),
    ("two lengths in one field", post(f"Content-Length: {LENGTH}, 1\r\n"), 400, "Content-Length"),
    (
        "a length and chunks",
        chunked(WHOLE, f"Content-Length: {LENGTH}\r\nTransfer-Encoding: chunked\r\n"),
        400,
        "one of the two",
    ),
    (
        "chunks and a length",
        chunked(WHOLE, f"Transfer-Encoding: chunked\r\nContent-Length: {LENGTH}\r\n"),
        400,
        "one of the two",
    ),
    ("too large", post(f"Content-Length: {MAX_BODY + 1}\r\n", b""), 413, str(MAX_BODY)),
    ("much too large", post("Content-Length: 9999999999999999999\r\n", b""), 413, str(MAX_BODY)),
    # Transfer codings
    ("an unknown coding", chunked(WHOLE, "Transfer-Encoding: rot13\r\n"), 501, "chunked"),
    ("gzip as a transfer coding", chunked(WHOLE, "Transfer-Encoding: gzip\r\n"), 501, "chunked"),
    ("identity as a transfer coding", chunked(WHOLE, "Transfer-Encoding: identity\r\n"), 501, "chunked"),
    ("gzip, then chunks", chunked(WHOLE, "Transfer-Encoding: gzip, chunked\r\n"), 501, "chunked"),
    ("chunked twice", chunked(WHOLE, "Transfer-Encoding: chunked, chunked\r\n"), 400, "chunked"),
    (
        "chunked on two lines",
        chunked(WHOLE, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        400,
        "chunked",
    ),
    ("an empty coding", chunked(WHOLE, "Transfer-Encoding: \r\n"), 400, "chunked"),
    ("a misspelt coding", chunked(WHOLE, "Transfer-Encoding: xchunked\r\n"), 501, "chunked"),
    ("chunks over 1.0", post("Transfer-Encoding: chunked\r\n", WHOLE, "1.0"), 400, "HTTP/1.1"),
    # Chunks
    ("no chunk size", chunked(b"\r\n" + WHOLE), 400, "chunk"),
    ("a chunk size that is none", chunked(b"xyz\r\n"), 400, "chunk"),
    ("a negative chunk size", chunked(b"-1\r\n"), 400, "chunk"),
    ("a chunk size with 0x", chunked(b"0x11\r\n" + GOOD + b"\r\n0\r\n\r\n"), 400, "chunk"),
    ("a chunk size of 17 digits", chunked(b"0" * 16 + b"11\r\n" + GOOD + b"\r\n0\r\n\r\n"), 400, "chunk"),
    ("a space before the chunk size", chunked(b" 11\r\n" + GOOD + b"\r\n0\r\n\r\n"), 400, "chunk"),
    ("a chunk that is longer than its size", chunked(b"3\r\n" + GOOD + b"\r\n0\r\n\r\n"), 400, "chunk"),
    ("a chunk that is shorter than its size", chunked(b"13\r\n" + GOOD + b"\r\n0\r\n\r\n\r\n"), 400, "chunk"),
    ("a chunk line without CR", chunked(b"11\n" + GOOD + b"\r\n0\r\n\r\n"), 400, "chunk"),
    ("a chunk without CRLF after it", chunked(b"11\r\n" + GOOD + b"\n\n0\r\n\r\n"), 400, "CRLF"),
    ("a chunk line without end", chunked(b"1;" + b"x" * 5000), 400, "chunk"),
    ("a chunk that is too large", chunked(b"fffffff\r\n"), 413, str(MAX_BODY)),
    ("chunks that are too large together", chunked(b"10000\r\n" + b" " * 65536 + b"\r\nfffff\r\n"), 413, str(MAX_BODY)),
    ("many extensions", chunked(b"".join(b"1;%b\r\n \r\n" % (b"x" * 4000) for _ in range(20))), 431, "extensions"),
    ("many trailers", chunked(b"0\r\n" + b"T: x\r\n" * 200), 431, "trailers"),
    ("a trailer that is none", chunked(b"0\r\nno colon\r\n\r\n"), 400, "field"),
    # What the body is
    ("a compressed body", sized("Content-Encoding: gzip\r\n"), 415, "uncompressed"),
    ("a body compressed twice", sized("Content-Encoding: identity, br\r\n"), 415, "uncompressed"),
    ("an expectation", sized("Expect: a-miracle\r\n"), 417, "100-continue"),
    # The head
    ("no Host", b"POST /infer HTTP/1.1\r\n\r\n", 400, "Host"),
    ("two Hosts", sized("Host: b\r\n"), 400, "host"),
    ("a bad Host", b"POST /infer HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host"),
    ("two Idempotency-Keys", sized("Idempotency-Key: a\r\nIdempotency-Key: b\r\n"), 400, "idempotency-key"),
    ("two Last-Event-IDs", sized("Last-Event-ID: a-1\r\nLast-Event-ID: b-1\r\n"), 400, "last-event-id"),
    ("a folded field", sized("X: a\r\n b\r\n"), 400, "field"),
    ("a space before the colon", sized("X : a\r\n"), 400, "field"),
    ("a field without a colon", sized("hello\r\n"), 400, "field"),
    ("a field without a name", sized(": a\r\n"), 400, "field"),
    ("a bare LF", b"POST /infer HTTP/1.1\nHost: a\n\n", 400, "CRLF"),
    ("a NUL", sized("X: \0\r\n"), 400, "NUL"),
    ("too many fields", sized("X: a\r\n" * 101), 431, "fields"),
    ("a head that is too large", sized("X: " + "a" * 70_000 + "\r\n"), 431, "65536"),
    ("a target that is too long", sized(target="/infer?" + "a" * 17_000), 414, "16384"),
    ("a target without a slash", sized(target="infer"), 400, "slash"),
    ("a target with a bad escape", sized(target="/infer%"), 400, "%25"),
    ("no method", b" /infer HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "request line"),
    ("no version", b"POST /infer\r\nHost: localhost\r\n\r\n", 400, "request line"),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"),
    ("HTTP/0.9", b"GET /\r\n\r\n", 400, "request line"),
    ("a proxy's method", b"CONNECT a:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, "proxies"),
    ("TLS", bytes.fromhex("16030100 c2010000 be0303") + b"\r\n\r\n", 400, "line"),
]


called: list[Any] = []  # what has reached the app


def infer(inputs: dict[str, Any]) -> dict[str, Any]:
    called.append(inputs)
    return {"OUT": inputs["TEXT"]}


class BadBodyTests(SharedServer):
    """Every request that cannot be right is refused, and nothing that it holds reaches the app."""

    infer = staticmethod(infer)
    settings: ClassVar[dict[str, Any]] = {"schema": SCHEMA, "streaming": False, "max_body": MAX_BODY}

    def setUp(self) -> None:
        called.clear()

    def assert_refused(self, response: Response, status: int) -> None:
        self.assertEqual(response.status, status, response.body)
        self.assertTrue(response.complete)
        self.assertEqual(response.fields["content-type"], "application/json; charset=utf-8")
        sentence = response.json["error"]
        self.assertRegex(sentence, r"^\S.*[.?]$")
        self.assertNotIn("Traceback", sentence)
        self.assertLess(len(response.body), 20_000)

    def assert_good(self, client: Client) -> None:
        response = client.request("POST", "/infer", GOOD).read()
        self.assertEqual((response.status, response.json), (200, {"OUT": "hello"}))
        self.assertEqual(called, [{"TEXT": "hello"}])
        called.clear()

    def test_bad_bodies(self) -> None:
        """Each bad body is 400 in JSON, in words that name fault and remedy; the connection serves the next request."""
        for route in ROUTES:
            with Client(self.port) as client:
                for label, body, words in BAD_BODIES:
                    with self.subTest(label, route=route):
                        response = client.request("POST", route, body).read()
                        self.assert_refused(response, 400)
                        for word in words:
                            self.assertIn(word, text_of(response.json))
                        self.assertNotIn("connection", response.fields)
                self.assert_good(client)

    def test_bad_bodies_in_chunks(self) -> None:
        """The same bodies, chunked, get the same answers."""
        with Client(self.port) as client:
            for label, body, words in BAD_BODIES:
                with self.subTest(label):
                    client.send(post("Transfer-Encoding: chunked\r\n", b"".join(in_chunks(body))))
                    response = Response(client).read()
                    self.assert_refused(response, 400)
                    for word in words:
                        self.assertIn(word, text_of(response.json))
            self.assert_good(client)

    def test_doubtful_json(self) -> None:
        """What JSON leaves open is 400 in every form of a body, at once, and the connection serves the next request."""
        with Client(self.port) as client:
            for label, value, words in DOUBTFUL:
                for form, (body, fields) in doubtful_bodies(value).items():
                    with self.subTest(label, form=form):
                        response = client.request("POST", "/v2/models/fake/infer", body, fields).read()
                        self.assert_refused(response, 400)
                        self.assertIn(words, text_of(response.json))
            self.assert_good(client)

    def test_doubtful_tensors(self) -> None:
        """Binary data is as strict as JSON."""
        with Client(self.port) as client:
            for label, name, datatype, data, words in DOUBTFUL_TENSORS:
                with self.subTest(label):
                    body, fields = doubtful_tensor(name, datatype, data)
                    response = client.request("POST", "/infer", body, fields).read()
                    self.assert_refused(response, 400)
                    self.assertIn(words, text_of(response.json))
            self.assert_good(client)

    def test_doubtful_queries(self) -> None:
        """The same in a query, as far as a target is long."""
        with Client(self.port) as client:
            for label, value, words in DOUBTFUL:
                if len(value) < 10_000:
                    with self.subTest(label):
                        response = client.request("GET", f"/infer?TEXT=a&STOP={quote(b'[' + value + b']')}").read()
                        self.assert_refused(response, 400)
                        self.assertIn(words, text_of(response.json))
            self.assert_good(client)

    def test_bad_framings(self) -> None:
        """A request whose end nobody can be sure of is refused with its status, in JSON, and its connection closed."""
        for label, data, status, words in BAD_FRAMINGS:
            with self.subTest(label), Client(self.port) as client:
                client.send(data)
                response = Response(client).read()
                self.assert_refused(response, status)
                self.assertIn(words, response.json["error"])
                self.assertEqual(response.fields["connection"], "close")
                self.assertEqual(client.read_some(), b"", "two answers to one request")

    def test_there_are_enough(self) -> None:
        """Shows 8 asks for sixty; no two are the same."""
        self.assertGreaterEqual(len(BAD_BODIES) + len(BAD_FRAMINGS), 120)
        self.assertEqual(len({data for _, data, _, _ in BAD_FRAMINGS}), len(BAD_FRAMINGS))

    def test_good_framings(self) -> None:
        """What looks odd and is right is let through, and the connection goes on."""
        with Client(self.port) as client:
            for data in (
                sized(),
                sized(f"Content-Length: {LENGTH}\r\n"),
                post(f"Content-Length: {LENGTH}, {LENGTH}\r\n"),
                post(f"Content-Length: 000{LENGTH}\r\n"),
                sized("Content-Encoding: identity\r\n"),
                sized("Content-Type: application/x-www-form-urlencoded\r\n"),
                chunked(WHOLE),
                chunked(b"".join(in_chunks(GOOD, 1))),
                chunked(b"0011;a=b\r\n" + GOOD + b"\r\n000\r\nTrailer: x\r\n\r\n"),
                chunked(WHOLE, "transfer-encoding: CHUNKED\r\n"),
                b"\r\n" + request_bytes("POST", "http://localhost/infer", GOOD),
            ):
                with self.subTest(data):
                    client.send(data)
                    response = Response(client).read()
                    self.assertEqual((response.status, response.json), (200, {"OUT": "hello"}))


class CostTests(unittest.TestCase):
    """What a refusal costs, whatever the body holds."""

    def test_doubtful_json(self) -> None:
        """A refused body takes a few times its own size in memory, and no more time than others of its size."""
        schema = compile_schema(SCHEMA, Rules())
        for label, value, _ in DOUBTFUL:
            for form, (body, fields) in doubtful_bodies(value).items():
                with self.subTest(label, form=form):
                    tracemalloc.start()
                    before = time.thread_time()
                    try:
                        with self.assertRaises(BadRequest):
                            read_body(body, schema, fields.get(HEADER_LENGTH))
                        taken, peak = time.thread_time() - before, tracemalloc.get_traced_memory()[1]
                    finally:
                        tracemalloc.stop()
                    self.assertLess(taken, 1.0)
                    self.assertLess(peak, 6 * len(body) + 1024 * 1024)


def in_chunks(body: bytes, size: int = 5000) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        part = body[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


if __name__ == "__main__":
    unittest.main()
