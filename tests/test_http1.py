"""What a request may look like and what it may not, as tables of bytes; no socket.

Sources of the malformed heads: RFC 9112's own warnings, h1spec, and the smuggling literature (CL.TE, TE.CL, TE.TE,
folded and misspelt fields, bare line ends).
"""

from __future__ import annotations

import io
import os
import random
import re
import time
import unittest
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest import mock

from inferless_shim import errors, http1
from inferless_shim.http1 import BodyDecoder, Framing, Kind, Request, find_head, parse_head, require_body
from tests.support import about

MAX_BODY = 1_000_000
NO_BODY = Framing(Kind.NONE)
CHUNKED = Framing(Kind.CHUNKED)
HOST = b"Host: localhost:8000\r\n"


class IncompleteError(Exception):
    """The bytes are at their end, what they hold is not."""


def head(line: bytes = b"GET / HTTP/1.1", fields: bytes = HOST) -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


def post(fields: bytes) -> bytes:
    return head(b"POST /infer HTTP/1.1", HOST + fields)


def length(size: int) -> Framing:
    return Framing(Kind.LENGTH, size)


def read_head(pieces: Iterable[bytes]) -> tuple[Request, bytes]:
    """Read a head that comes in pieces, as a handler does; return it and the bytes after it."""
    coming, buffer, searched = iter(pieces), bytearray(), 0
    for piece in coming:
        buffer += piece
        size = find_head(buffer, searched)
        searched = len(buffer)
        if size is not None:
            return parse_head(bytes(buffer[:size])), bytes(buffer[size:]) + b"".join(coming)
    raise IncompleteError


def read_body(framing: Framing, pieces: Iterable[bytes], max_body: int = MAX_BODY) -> tuple[bytes, bytes]:
    """Read a body that comes in pieces; return it and the bytes after it."""
    coming, buffer, decoder = iter(pieces), bytearray(), BodyDecoder(framing, max_body)
    for piece in coming:
        buffer += piece
        decoder.feed(buffer)
        if decoder.done:
            return bytes(decoder.body), bytes(buffer) + b"".join(coming)
    raise IncompleteError


def whole(raw: bytes) -> list[bytes]:
    return [raw]


def bytewise(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


def three_ways(raw: bytes) -> dict[str, list[bytes]]:
    return {"whole": whole(raw), "byte by byte": bytewise(raw), "with trailing data": [raw + b"\nGET \x00 trailing"]}


# head -> what is asserted about it
GOOD_HEADS: list[tuple[bytes, dict[str, Any]]] = [
    (head(), {"method": "GET", "target": "/", "path": "/", "query": "", "version": (1, 1), "framing": NO_BODY}),
    (b"\r\n" + head(), {"path": "/"}),
    (head(b"GET /infer?TEXT=a%20b&x=1?2 HTTP/1.1"), {"path": "/infer", "query": "TEXT=a%20b&x=1?2"}),
    (head(b"GET /a? HTTP/1.1"), {"path": "/a", "query": ""}),
    (head(b"GET /?/a HTTP/1.1"), {"path": "/", "query": "/a"}),
    (head(b"GET /caf%C3%A9/%e2%82%ac/a%3Fb HTTP/1.1"), {"path": "/café/€/a?b"}),
    (head(b"GET /?bad=%zz%ff HTTP/1.1"), {"path": "/", "query": "bad=%zz%ff"}),
    (head(b"GET /~a-b._!$&'()*+,;=:@%22 HTTP/1.1"), {"path": "/~a-b._!$&'()*+,;=:@\""}),
    (head(b"GET /?a\\^`{|}[] HTTP/1.1"), {"path": "/", "query": "a\\^`{|}[]"}),
    (head(b"GET //other/x HTTP/1.1"), {"path": "//other/x", "host": "localhost:8000"}),
    (head(b"OPTIONS * HTTP/1.1"), {"method": "OPTIONS", "path": "*", "query": ""}),
    (head(b"OPTIONS /infer HTTP/1.1"), {"method": "OPTIONS", "path": "/infer"}),
    (head(b"DELETE /streams/x HTTP/1.1"), {"method": "DELETE", "path": "/streams/x"}),
    (head(b"M-SEARCH /x HTTP/1.1"), {"method": "M-SEARCH"}),
    (head(b"get / HTTP/1.1"), {"method": "get"}),
    (head(b"GET http://a.example:80/b?c HTTP/1.1"), {"path": "/b", "query": "c", "host": "a.example:80"}),
    (head(b"GET HTTPS://a.example HTTP/1.1"), {"path": "/", "query": "", "host": "a.example"}),
    (head(b"GET http://a.example?b HTTP/1.1"), {"path": "/", "query": "b", "host": "a.example"}),
    (head(b"GET http://[::1]:8/b HTTP/1.1"), {"path": "/b", "host": "[::1]:8"}),
    (head(b"GET http://a.example/ HTTP/1.0", b""), {"version": (1, 0), "host": "a.example"}),
    (head(b"GET / HTTP/1.0", b""), {"version": (1, 0), "host": None, "keep_alive": False}),
    (head(b"GET / HTTP/1.0", HOST + b"Connection: keep-alive\r\n"), {"keep_alive": False}),
    (head(b"GET / HTTP/1.0", b"Expect: anything\r\n"), {"expects_continue": False}),
    (head(b"GET / HTTP/1.0", b"Expect: 100-continue\r\nContent-Length: 2\r\n"), {"expects_continue": False}),
    (head(fields=b"hoSt:\texample.com\t \r\nempty:\r\nblank: \t\r\n"), {"host": "example.com", "framing": NO_BODY}),
    (head(fields=b"Host: [2001:db8::1]:8000\r\n"), {"host": "[2001:db8::1]:8000"}),
    (head(fields=b"Host: my_service.internal:\r\n"), {"host": "my_service.internal:"}),
    (head(fields=HOST + b"X-Name: caf\xe9 \x80\tb\r\n"), {"framing": NO_BODY}),
    (head(fields=HOST + b"!#$%&'*+-.^_`|~9: x\r\n"), {"framing": NO_BODY}),
    (head(fields=HOST + b"Connection: keep-alive\r\n"), {"keep_alive": True}),
    (head(fields=HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n"), {"keep_alive": True}),
    (head(fields=HOST + b"Connection: close\r\n"), {"keep_alive": False}),
    (head(fields=HOST + b"Connection: x,, \tCLOSE\r\n"), {"keep_alive": False}),
    (head(fields=HOST + b"Connection: x\r\nConnection: close\r\n"), {"keep_alive": False}),
    (head(fields=HOST + b"Expect: 100-continue\r\n"), {"expects_continue": False}),
    (post(b"Expect:\r\nContent-Length: 5\r\n"), {"expects_continue": False}),
    (post(b"Expect: 100-Continue\r\nContent-Length: 0\r\n"), {"expects_continue": False}),
    (post(b"Expect: 100-Continue\r\nContent-Length: 5\r\n"), {"expects_continue": True, "framing": length(5)}),
    (post(b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"), {"expects_continue": True}),
    (post(b"Content-Length: 0\r\n"), {"framing": length(0)}),
    (post(b"Content-Length:\t007 \r\n"), {"framing": length(7)}),
    (post(b"Content-Length: 5, 5\r\n"), {"framing": length(5)}),
    (post(b"Content-Length: 5\r\ncontent-length: 5\r\n"), {"framing": length(5)}),
    (post(b"Content-Length: 9999999999999999999\r\n"), {"framing": length(9999999999999999999)}),
    (post(b"Transfer-Encoding: chunked\r\n"), {"framing": CHUNKED}),
    (post(b"tRANSFER-eNCODING:chunKED\t\r\n"), {"framing": CHUNKED}),
    (post(b"Content-Encoding: Identity\r\nContent-Length: 5\r\n"), {"framing": length(5)}),
    (post(b"Content-Encoding:\r\nContent-Length: 5\r\n"), {"framing": length(5)}),
]

# what is wrong, head, status
BAD_HEADS: list[tuple[str, bytes, int]] = [
    ("two empty lines first", b"\r\n\r\n" + head(), 400),
    ("nothing but empty lines", b"\r\n\r\n", 400),
    ("no version (HTTP/0.9)", head(b"GET /"), 400),
    ("no version, a space", head(b"GET / "), 400),
    ("no target", head(b"GET HTTP/1.1"), 400),
    ("an empty target", head(b"GET  HTTP/1.1"), 400),
    ("only a method", head(b"GET"), 400),
    ("two spaces after the method", head(b"GET  / HTTP/1.1"), 400),
    ("two spaces after the target", head(b"GET /  HTTP/1.1"), 400),
    ("a space first", head(b" GET / HTTP/1.1"), 400),
    ("a space last", head(b"GET / HTTP/1.1 "), 400),
    ("a tab for a space", head(b"GET\t/ HTTP/1.1"), 400),
    ("a vertical tab for a space", head(b"GET\x0b/ HTTP/1.1"), 400),
    ("words first", head(b"Extra lineGET / HTTP/1.1"), 400),
    ("a space in the target", head(b"GET /a b HTTP/1.1"), 400),
    ("a method that is no token", head(b"G(ET / HTTP/1.1"), 400),
    ("a method with a colon", head(b"GET: / HTTP/1.1"), 400),
    ("a byte above ASCII in the method", head(b"G\xc9T / HTTP/1.1"), 400),
    ("a byte above ASCII in the target", head("GET /é HTTP/1.1".encode()), 400),
    ("DEL in the target", head(b"GET /\x7f HTTP/1.1"), 400),
    ("a control character in the target", head(b"GET /\x01 HTTP/1.1"), 400),
    ("a fragment", head(b"GET /a#b HTTP/1.1"), 400),
    *(
        (f"{character} in the path", head(b"GET /a%b HTTP/1.1" % character.encode()), 400)
        for character in '"<>\\^`{|}[]'
    ),
    *((f"{character} in the query", head(b"GET /?a%b HTTP/1.1" % character.encode()), 400) for character in '"<>'),
    ("a target that is no path", head(b"GET a HTTP/1.1"), 400),
    ("a query alone", head(b"GET ?a=1 HTTP/1.1"), 400),
    ("an asterisk without OPTIONS", head(b"GET * HTTP/1.1"), 400),
    ("an asterisk and more", head(b"OPTIONS *a HTTP/1.1"), 400),
    ("authority-form without CONNECT", head(b"GET localhost:80 HTTP/1.1"), 400),
    ("CONNECT", head(b"CONNECT localhost:80 HTTP/1.1"), 501),
    ("CONNECT with a path", head(b"CONNECT / HTTP/1.1"), 501),
    ("another scheme", head(b"GET ftp://a/ HTTP/1.1"), 400),
    ("a URL without a host", head(b"GET http:///a HTTP/1.1"), 400),
    ("a URL with user information", head(b"GET http://a@b/ HTTP/1.1"), 400),
    ("a URL with a bad port", head(b"GET http://a:b/ HTTP/1.1"), 400),
    ("a URL, but no Host", head(b"GET http://a/ HTTP/1.1", b""), 400),
    ("a cut percent-escape", head(b"GET /a%4 HTTP/1.1"), 400),
    ("a percent-escape that is not hexadecimal", head(b"GET /a%+1 HTTP/1.1"), 400),
    ("a NUL in escapes", head(b"GET /a%00 HTTP/1.1"), 400),
    ("a line end in escapes", head(b"GET /a%0d%0aX:1 HTTP/1.1"), 400),
    ("a slash in escapes", head(b"GET /a%2Fb HTTP/1.1"), 400),
    ("escapes that are no UTF-8", head(b"GET /a%ff HTTP/1.1"), 400),
    ("an overlong slash in escapes", head(b"GET /a%c0%af HTTP/1.1"), 400),
    ("a surrogate in escapes", head(b"GET /%ed%a0%80 HTTP/1.1"), 400),
    ("a target over its bound", head(b"GET /%b HTTP/1.1" % (b"a" * http1.MAX_TARGET)), 414),
    ("a request line over its bound", head(b"GET /%b HTTP/1.1" % (b"a" * 20_000)), 414),
    ("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("HTTP/1.2", head(b"GET / HTTP/1.2"), 505),
    ("HTTP/0.9 in words", head(b"GET / HTTP/0.9"), 505),
    ("HTTP/9.9", head(b"GET / HTTP/9.9"), 505),
    ("HTTP/1.10", head(b"GET / HTTP/1.10"), 400),
    ("HTTP/01.1", head(b"GET / HTTP/01.1"), 400),
    ("HTTP/1", head(b"GET / HTTP/1"), 400),
    ("http/1.1", head(b"GET / http/1.1"), 400),
    ("another protocol", head(b"GET / RTSP/1.0"), 400),
    ("digits of another script", head(b"GET / HTTP/\xb2.\xb9"), 400),
    ("a greeting in TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("bare LF everywhere", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ("bare LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    ("bare LF after a field", b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    ("bare LF for the empty line", b"GET / HTTP/1.1\r\nHost: a\r\n\n\r\n\r\n", 400),
    ("bare CR after the request line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    ("bare CR first in a line", head(fields=HOST + b"\rX: b\r\n"), 400),
    ("bare CR in a value", head(fields=HOST + b"X: a\rTransfer-Encoding: chunked\r\n"), 400),
    ("CR twice before LF", head(fields=HOST + b"X: a\r\r\n"), 400),
    ("LF first of all", b"\n" + head(), 400),
    ("NUL in a name", head(fields=HOST + b"X\x00: a\r\n"), 400),
    ("NUL in a value", head(fields=HOST + b"X: a\x00b\r\n"), 400),
    ("BEL in a value", head(fields=HOST + b"X: a\x07\r\n"), 400),
    ("DEL in a value", head(fields=HOST + b"X: a\x7f\r\n"), 400),
    ("a folded field", head(fields=HOST + b"X: a\r\n b\r\n"), 400),
    ("a field folded with a tab", head(fields=HOST + b"X: a\r\n\tb\r\n"), 400),
    ("a folded first field", head(fields=b" Host: a\r\n"), 400),
    ("a line of blanks", head(fields=HOST + b" \r\n"), 400),
    ("a blank before the colon", head(fields=b"Host : a\r\n"), 400),
    ("a tab before the colon", post(b"Transfer-Encoding\t: chunked\r\n"), 400),
    ("no colon", head(fields=HOST + b"nonsense\r\n"), 400),
    ("an empty name", head(fields=HOST + b": a\r\n"), 400),
    ("brackets in a name", head(fields=HOST + b"X-Invalid[]: a\r\n"), 400),
    ("a space in a name", head(fields=HOST + b"X Y: a\r\n"), 400),
    ("a byte above ASCII in a name", head(fields=HOST + b"X\xe9: a\r\n"), 400),
    ("no Host", head(fields=b""), 400),
    ("an empty Host", head(fields=b"Host:\r\n"), 400),
    ("an empty Host in HTTP/1.0", head(b"GET / HTTP/1.0", b"Host:\r\n"), 400),
    ("Host twice", head(fields=HOST + b"Host: b\r\n"), 400),
    ("the same Host twice", head(fields=HOST + HOST), 400),
    ("Host twice in HTTP/1.0", head(b"GET / HTTP/1.0", HOST + HOST), 400),
    ("two hosts in Host", head(fields=b"Host: a, b\r\n"), 400),
    ("a space in Host", head(fields=b"Host: a b\r\n"), 400),
    ("a path in Host", head(fields=b"Host: a/b\r\n"), 400),
    ("user information in Host", head(fields=b"Host: a@b\r\n"), 400),
    ("a port that is no number", head(fields=b"Host: a:b\r\n"), 400),
    ("a port of six digits", head(fields=b"Host: a:000080\r\n"), 400),
    ("a port alone", head(fields=b"Host: :80\r\n"), 400),
    ("two ports", head(fields=b"Host: a:1:2\r\n"), 400),
    ("a URL for a host", head(fields=b"Host: http://a\r\n"), 400),
    ("a bare IPv6 address for a host", head(fields=b"Host: ::1\r\n"), 400),
    ("an unclosed bracket in Host", head(fields=b"Host: [::1\r\n"), 400),
    ("a byte above ASCII in Host", head(fields=b"Host: caf\xe9\r\n"), 400),
    ("an empty Content-Length", post(b"Content-Length:\r\n"), 400),
    ("a signed Content-Length", post(b"Content-Length: +5\r\n"), 400),
    ("a negative Content-Length", post(b"Content-Length: -5\r\n"), 400),
    ("a Content-Length in words", post(b"Content-Length: five\r\n"), 400),
    ("a hexadecimal Content-Length", post(b"Content-Length: 0x5\r\n"), 400),
    ("a Content-Length with a point", post(b"Content-Length: 5.0\r\n"), 400),
    ("a Content-Length as Python writes it", post(b"Content-Length: 1_0\r\n"), 400),
    ("a Content-Length in quotes", post(b'Content-Length: "5"\r\n'), 400),
    ("a Content-Length in superscript", post(b"Content-Length: \xb2\r\n"), 400),
    ("a Content-Length with a space", post(b"Content-Length: 5 5\r\n"), 400),
    ("a Content-Length of 20 digits", post(b"Content-Length: 00000000000000000005\r\n"), 400),
    ("a Content-Length of 5,000 digits", post(b"Content-Length: %b\r\n" % (b"9" * 5000)), 400),
    ("two lengths on a line", post(b"Content-Length: 5, 6\r\n"), 400),
    ("two lengths on two lines", post(b"Content-Length: 5\r\nContent-Length: 6\r\n"), 400),
    ("a length and nothing", post(b"Content-Length: 5,\r\n"), 400),
    ("one length written in two ways", post(b"Content-Length: 5, 05\r\n"), 400),
    ("a length and chunked", post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked and a length", post(b"TransFer-Encoding: chunked\r\ncontent-LengtH: 5\r\n"), 400),
    ("a length and another coding", post(b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n"), 400),
    ("a length and an empty Transfer-Encoding", post(b"Content-Length: 5\r\nTransfer-Encoding:\r\n"), 400),
    ("an empty Transfer-Encoding", post(b"Transfer-Encoding:\r\n"), 400),
    ("Transfer-Encoding in HTTP/1.0", head(b"POST / HTTP/1.0", HOST + b"Transfer-Encoding: chunked\r\n"), 400),
    ("chunked twice on a line", post(b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    ("chunked on two lines", post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked, then another coding", post(b"Transfer-Encoding: chunked, identity\r\n"), 400),
    ("another coding, then chunked", post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501),
    ("another coding between two", post(b"Transfer-Encoding: chunked, gzip, chunked\r\n"), 400),
    ("chunked and a comma", post(b"Transfer-Encoding: chunked,\r\n"), 400),
    ("a comma and chunked", post(b"Transfer-Encoding: ,chunked\r\n"), 400),
    ("a vertical tab and chunked", post(b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    ("a no-break space and chunked", post(b"Transfer-Encoding: \xa0chunked\r\n"), 501),
    ("chunked with a parameter", post(b"Transfer-Encoding: chunked;a=b\r\n"), 501),
    ("chunked in quotes", post(b'Transfer-Encoding: "chunked"\r\n'), 501),
    ("almost chunked", post(b"Transfer-Encoding: xchunked\r\n"), 501),
    ("the coding identity", post(b"Transfer-Encoding: identity\r\n"), 501),
    ("the coding gzip", post(b"Transfer-Encoding: gzip\r\n"), 501),
    ("a compressed body", post(b"Content-Encoding: gzip\r\nContent-Length: 5\r\n"), 415),
    ("a body compressed twice", post(b"Content-Encoding: identity, br\r\nContent-Length: 5\r\n"), 415),
    ("another expectation", post(b"Expect: 200-ok\r\nContent-Length: 5\r\n"), 417),
    ("two expectations", post(b"Expect: 100-continue, x\r\nContent-Length: 5\r\n"), 417),
    ("Authorization twice", head(fields=HOST + b"Authorization: a\r\nauthorization: b\r\n"), 400),
    ("Origin twice", head(fields=HOST + b"Origin: null\r\nOrigin: null\r\n"), 400),
    ("Sec-Fetch-Site twice", head(fields=HOST + b"Sec-Fetch-Site: none\r\n" * 2), 400),
    ("Last-Event-ID twice", head(fields=HOST + b"Last-Event-ID: a-1\r\nLast-Event-ID: a-2\r\n"), 400),
    ("Idempotency-Key twice", head(fields=HOST + b"Idempotency-Key: a\r\nIdempotency-Key: a\r\n"), 400),
    ("101 fields", head(fields=HOST + b"X: a\r\n" * 100), 431),
    ("20,000 fields", head(fields=HOST + b":\r\n" * 20_000), 431),
    ("a head over its bound", head(fields=HOST + b"X: %b\r\n" % (b"a" * http1.MAX_HEAD)), 431),
]

# chunked bytes -> body
GOOD_CHUNKS: list[tuple[bytes, bytes]] = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"c\r\nHellO world1\r\n0\r\n\r\n", b"HellO world1"),
    (b"1\r\na\r\n1\r\nb\r\n2\r\ncd\r\n0\r\n\r\n", b"abcd"),
    (b"00A\r\n0\r\n\r\n12345\r\n000\r\n\r\n", b"0\r\n\r\n12345"),
    (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
    (b"3\r\na\r\n\r\n0\r\n\r\n", b"a\r\n"),
    (b'5;name="a b;c";x\r\nhello\r\n0;last\r\n\r\n', b"hello"),
    (b"5 \t; x\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b'5;a = "\\"\\\\;\xff";b=c\r\nhello\r\n0\r\n\r\n', b"hello"),
    (b"5;" + b"x" * 4000 + b"\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    (b"5\r\nhello\r\n0\r\nTrailer: a\r\nContent-Length: 99\r\nTransfer-Encoding: x\r\n\r\n", b"hello"),
    (b"0\r\n" + b"X: a\r\n" * 100 + b"\r\n", b""),
    (b"4\r\n\x00\xff\n\r\r\n0\r\n\r\n", b"\x00\xff\n\r"),
]

# what is wrong, chunked bytes, status
BAD_CHUNKS: list[tuple[str, bytes, int]] = [
    ("no size", b"\r\nhello\r\n0\r\n\r\n", 400),
    ("a size that is not hexadecimal", b"g\r\nhello\r\n0\r\n\r\n", 400),
    ("a size as Python writes it", b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    ("a size with an underscore", b"0_5\r\nhello\r\n0\r\n\r\n", 400),
    ("a signed size", b"+5\r\nhello\r\n0\r\n\r\n", 400),
    ("a negative size", b"-5\r\nhello\r\n0\r\n\r\n", 400),
    ("a blank before the size", b" 5\r\nhello\r\n0\r\n\r\n", 400),
    ("a blank after the size", b"5 \r\nhello\r\n0\r\n\r\n", 400),
    ("a size of 17 digits", b"00000000000000005\r\nhello\r\n0\r\n\r\n", 400),
    ("a size that wraps around 64 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n", 400),
    ("an endless size line", b"0" * 5000, 400),
    ("an endless extension", b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n", 400),
    ("bare LF after the size", b"5\nhello\r\n0\r\n\r\n", 400),
    ("bare CR after the size", b"5\rhello\r\n0\r\n\r\n", 400),
    ("CR twice after the size", b"5\r\r\nhello\r\n0\r\n\r\n", 400),
    ("bare LF in an extension", b"5;a\nhello\r\n0\r\n\r\n", 400),
    ("bare CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
    ("NUL in an extension", b"5;a\x00b\r\nhello\r\n0\r\n\r\n", 400),
    ("an extension without a name", b"5;\r\nhello\r\n0\r\n\r\n", 400),
    ("an extension without its value", b"5;a=\r\nhello\r\n0\r\n\r\n", 400),
    ("an extension with an open quote", b'5;a="b\r\nhello\r\n0\r\n\r\n', 400),
    ("an extension with an escaped quote at its end", b'5;a="b\\"\r\nhello\r\n0\r\n\r\n', 400),
    ("a blank after an extension", b"5;a \r\nhello\r\n0\r\n\r\n", 400),
    ("an extension without a semicolon", b"5 a\r\nhello\r\n0\r\n\r\n", 400),
    ("nothing after the data", b"5\r\nhello0\r\n\r\n", 400),
    ("two other bytes after the data", b"5\r\nhelloXX0\r\n\r\n", 400),
    ("bare LF after the data", b"5\r\nhello\n0\r\n\r\n", 400),
    ("bare CR after the data", b"5\r\nhello\r0\r\n\r\n", 400),
    ("more data than the size", b"4\r\nhello\r\n0\r\n\r\n", 400),
    ("less data than the size", b"6\r\nhello\r\n0\r\n\r\n", 400),
    ("bare LF after the last chunk", b"0\n\r\n", 400),
    ("bare LF for the last line", b"0\r\n\n", 400),
    ("a request for a trailer", b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("a trailer without a colon", b"0\r\nnonsense\r\n\r\n", 400),
    ("a blank before a trailer's colon", b"0\r\nX : a\r\n\r\n", 400),
    ("a folded trailer", b"0\r\nX: a\r\n b\r\n\r\n", 400),
    ("a control character in a trailer", b"0\r\nX: a\x01\r\n\r\n", 400),
    ("bare LF after a trailer", b"0\r\nX: a\nY: b\r\n\r\n", 400),
    ("an endless trailer", b"0\r\nX: " + b"a" * 5000 + b"\r\n\r\n", 400),
    ("101 trailers", b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
    ("100 KiB of trailers", b"0\r\n" + (b"X: " + b"a" * 4000 + b"\r\n") * 25 + b"\r\n", 431),
    ("extensions of 4,000 bytes for each byte", (b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20 + b"0\r\n\r\n", 431),
    ("a chunk over the bound", b"f4241\r\n", 413),
    ("a chunk of 2^64 - 1", b"ffffffffffffffff\r\n", 413),
    ("chunks over the bound together", b"80000\r\n" + b"a" * 0x80000 + b"\r\n80000\r\n", 413),
]


class RefusalTestCase(unittest.TestCase):
    def assert_refused(self, status: int, action: Any, *args: Any) -> errors.ShimError:
        with self.assertRaises(errors.ShimError) as caught:
            action(*args)
        self.assertEqual(caught.exception.status, status, caught.exception.message)
        self.assertRegex(caught.exception.message, r"\A[A-Z][^\n]*[^.]\.\Z")
        return caught.exception


class HeadTest(RefusalTestCase):
    def test_parse_head_valid(self) -> None:
        """A valid head reads the same whole, byte by byte and with the next bytes behind it."""
        for raw, expected in GOOD_HEADS:
            for way, pieces in three_ways(raw).items():
                with self.subTest(head=raw[:200], way=way):
                    request, rest = read_head(pieces)
                    self.assertEqual(b"".join(pieces), raw + rest)
                    for name, value in expected.items():
                        got = request.field("host") if name == "host" else getattr(request, name)
                        self.assertEqual(got, value, name)

    def test_parse_head_malformed(self) -> None:
        """A malformed head is refused with its status, whole, byte by byte and with bytes behind it."""
        self.assertGreaterEqual(len(BAD_HEADS), 60)
        for fault, raw, status in BAD_HEADS:
            for way, pieces in three_ways(raw).items():
                with self.subTest(fault=fault, way=way):
                    self.assert_refused(status, read_head, pieces)

    def test_parse_head_without_find_head(self) -> None:
        """Line ends that find_head refuses do not get past parse_head either."""
        for fault, raw, status in BAD_HEADS:
            with self.subTest(fault=fault):
                if status != 431:
                    self.assert_refused(status, parse_head, raw.partition(b"\r\n\r\nSM")[0])

    def test_parse_head_empty_line_inside(self) -> None:
        """Two heads given as one are refused, not merged."""
        self.assert_refused(400, parse_head, head() + head())

    def test_parse_head_compressed(self) -> None:
        """A 415 says which content coding would do (RFC 9110 §15.5.16)."""
        error = self.assert_refused(415, parse_head, post(b"Content-Encoding: gzip\r\n"))
        self.assertEqual(error.headers, [("Accept-Encoding", "identity")])

    def test_parse_head_bounds_reached(self) -> None:
        """A target, a number of fields and a head that just reach their bounds are read."""
        self.assertEqual(len(parse_head(head(b"GET /%b HTTP/1.1" % (b"a" * 16383))).target), http1.MAX_TARGET)
        self.assertEqual(len(parse_head(head(fields=HOST + b"X: a\r\n" * 99)).fields), http1.MAX_FIELDS)
        spare = http1.MAX_HEAD - len(head(fields=HOST + b"X: \r\n"))
        raw = head(fields=HOST + b"X: %b\r\n" % (b"a" * spare))
        self.assertEqual(find_head(bytearray(raw)), http1.MAX_HEAD)

    def test_find_head_junk(self) -> None:
        """Junk is refused at the first byte that tells, not when the head is complete."""
        for fault, raw, status in [
            ("NUL", b"GET /\x00", 400),
            ("bare LF", b"GET / HTTP/1.1\n", 400),
            ("bare CR", b"GET / HTTP/1.1\rH", 400),
            ("no version", b"GET /\r\n", 400),
            ("no version, an empty line first", b"\r\nGET /\r\n", 400),
            ("another protocol", b"EHLO localhost\r\n", 400),
            ("another version", b"GET / HTTP/2.0\r\n", 505),
            ("no line end", b"A" * http1.MAX_REQUEST_LINE, 414),
            ("no line end after an empty line", b"\r\n" + b"A" * (http1.MAX_REQUEST_LINE - 2), 414),
            ("no end of the head", head()[:-2].ljust(http1.MAX_HEAD, b"X"), 431),
        ]:
            with self.subTest(fault=fault):
                self.assert_refused(status, find_head, bytearray(raw))
                self.assertIsNone(find_head(bytearray(raw[:-1])))

    def test_find_head_incomplete(self) -> None:
        """Every beginning of a valid head asks for more."""
        for raw, _ in GOOD_HEADS:
            for size in range(len(raw)):
                with about(beginning=raw[:size]):
                    self.assertIsNone(find_head(bytearray(raw[:size])))

    def test_find_head_searched(self) -> None:
        """What was searched is not searched again: NUL bytes and ends put there since are not noticed."""
        for seen in (b"\x00" * 1000 + b"G", b"\n" * 1000 + b"G", b"GET / HTTP/1.1\r\n\r\nabc", b"A" * 20_000):
            with self.subTest(seen=seen[:20]):
                self.assertIsNone(find_head(bytearray(seen + b"X"), searched=len(seen)))

    def test_find_head_cut_anywhere(self) -> None:
        """A cut between any two bytes, line ends and the end of the head included, changes nothing."""
        for fault, raw, status in [("none", head(), 0), ("bare CR", b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", 400)]:
            for cut in range(1, len(raw)):
                with self.subTest(fault=fault, cut=cut):
                    pieces = [raw[:cut], raw[cut:]]
                    if status:
                        self.assert_refused(status, read_head, pieces)
                    else:
                        self.assertEqual(read_head(pieces)[1], b"")

    def test_find_head_body_behind(self) -> None:
        """Bytes behind the head are neither judged nor counted."""
        body = b"\x00\n\r" * http1.MAX_HEAD
        self.assertEqual(find_head(bytearray(head() + body)), len(head()))

    def test_asks_for_head(self) -> None:
        """A HEAD is known by its first word, even if the rest cannot be read; methods tell upper from lower case."""
        for raw, expected in [
            (b"HEAD / HTTP/1.1\r\n\0", True),
            (b"\r\nHEAD / HTTP/1.1\r\n\0", True),
            (b"HEADER / HTTP/1.1\r\n\0", False),
            (b"head / HTTP/1.1\r\n\0", False),
            (b"GET HEAD HTTP/1.1\r\n\0", False),
            (b"\r\n\r\nHEAD ", False),
        ]:
            with self.subTest(raw=raw):
                self.assertIs(http1.asks_for_head(bytearray(raw)), expected)


class RequestTest(unittest.TestCase):
    def test_field_repeated(self) -> None:
        """Repeated lines are one list, in order; an absent field is None, an empty one is empty."""
        request = parse_head(head(fields=HOST + b"X-A: 1\r\nX-B:\r\nx-a:\t2, 3 \r\n"))
        self.assertEqual(request.field("x-a"), "1, 2, 3")
        self.assertEqual(request.field("x-b"), "")
        self.assertIsNone(request.field("x-c"))
        self.assertEqual(request.fields[1:], [("x-a", "1"), ("x-b", ""), ("x-a", "2, 3")])

    def test_field_latin_1(self) -> None:
        """Bytes above ASCII come through as Latin-1, so that the caller can have them back."""
        request = parse_head(head(fields=HOST + b"X-A: caf\xc3\xa9\r\n"))
        self.assertEqual((request.field("x-a") or "").encode("latin-1").decode("utf-8"), "café")

    def test_tokens_list(self) -> None:
        """Members are in lower case and in order, keep their parameters, and empty ones do not count."""
        request = parse_head(head(fields=HOST + b"Prefer: Respond-Async, ,wait=10;x=Y\r\nPrefer:\r\nPrefer: a\r\n"))
        self.assertEqual(request.tokens("prefer"), ["respond-async", "wait=10;x=y", "a"])
        self.assertEqual(request.tokens("connection"), [])


class RequireBodyTest(RefusalTestCase):
    def test_require_body_missing(self) -> None:
        """Without Content-Length or Transfer-Encoding there is no body to read: 411."""
        for line in (b"POST /infer HTTP/1.1", b"POST /infer HTTP/1.0"):
            self.assert_refused(411, require_body, parse_head(head(line)), MAX_BODY)

    def test_require_body_too_large(self) -> None:
        """A length over the bound is refused before the client is told to continue."""
        request = parse_head(post(b"Expect: 100-continue\r\nContent-Length: 1000001\r\n"))
        self.assert_refused(413, require_body, request, MAX_BODY)
        self.assert_refused(413, BodyDecoder, request.framing, MAX_BODY)

    def test_require_body_given(self) -> None:
        """A length up to the bound, zero included, and chunks will do."""
        for fields in (b"Content-Length: 1000000\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"):
            with self.subTest(fields=fields):
                self.assertIsNone(require_body(parse_head(post(fields)), MAX_BODY))


class BodyTest(RefusalTestCase):
    def test_feed_length(self) -> None:
        """A body of known length reads the same whole, byte by byte and with the next request behind it."""
        for size in (1, 2, 5, 1000):
            raw = bytes(range(256)) * 4
            for way, pieces in three_ways(raw[:size]).items():
                with self.subTest(size=size, way=way):
                    body, rest = read_body(length(size), pieces)
                    self.assertEqual(body, raw[:size])
                    self.assertEqual(b"".join(pieces), body + rest)

    def test_feed_chunked(self) -> None:
        """A chunked body reads the same whole, byte by byte and with the next request behind it."""
        for raw, expected in GOOD_CHUNKS:
            for way, pieces in three_ways(raw).items():
                with self.subTest(body=raw[:80], way=way):
                    body, rest = read_body(CHUNKED, pieces)
                    self.assertEqual(body, expected)
                    self.assertEqual(b"".join(pieces), raw + rest)

    def test_feed_chunked_malformed(self) -> None:
        """A malformed chunked body is refused with its status, however it comes."""
        for fault, raw, status in BAD_CHUNKS:
            for way, pieces in three_ways(raw).items():
                with self.subTest(fault=fault, way=way):
                    self.assert_refused(status, read_body, CHUNKED, pieces)

    def test_feed_chunked_incomplete(self) -> None:
        """Every beginning of a chunked body asks for more, and leaves nothing unread."""
        for raw, _ in GOOD_CHUNKS:
            for size in range(len(raw)):
                decoder, buffer = BodyDecoder(CHUNKED, MAX_BODY), bytearray(raw[:size])
                decoder.feed(buffer)
                self.assertEqual((decoder.done, buffer), (False, b""), raw[:size])

    def test_feed_no_body(self) -> None:
        """Without a body, or with one of no bytes, nothing is taken."""
        for framing in (NO_BODY, length(0)):
            decoder, buffer = BodyDecoder(framing, MAX_BODY), bytearray(b"GET")
            decoder.feed(buffer)
            self.assertEqual((decoder.done, decoder.body, buffer), (True, b"", b"GET"))

    def test_feed_after_the_end(self) -> None:
        """A body that is whole takes nothing more, however often it is fed."""
        decoder, buffer = BodyDecoder(length(2), MAX_BODY), bytearray(b"abGET")
        decoder.feed(buffer)
        decoder.feed(buffer)
        self.assertEqual((decoder.body, buffer), (b"ab", b"GET"))

    def test_feed_bound_reached(self) -> None:
        """A chunked body may have as many bytes as are allowed, and not one more."""
        self.assertEqual(read_body(CHUNKED, [b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"], 5)[0], b"abcde")
        self.assert_refused(413, read_body, CHUNKED, [b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"], 5)

    def test_feed_pipelined(self) -> None:
        """Three requests in one buffer are three requests, and the last leaves nothing."""
        buffer = bytearray(
            post(b"Transfer-Encoding: chunked\r\n")
            + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"
            + post(b"Content-Length: 5\r\n")
            + b"world"
            + head(b"GET /last HTTP/1.1")
        )
        got = []
        while size := find_head(buffer):
            request = parse_head(bytes(buffer[:size]))
            del buffer[:size]
            decoder = BodyDecoder(request.framing, MAX_BODY)
            decoder.feed(buffer)
            got.append((request.path, bytes(decoder.body), decoder.done))
        self.assertEqual(got, [("/infer", b"hello", True), ("/infer", b"world", True), ("/last", b"", True)])
        self.assertEqual(buffer, b"")

    def test_feed_byte_by_byte(self) -> None:
        """Each byte is looked at once: after each feed nothing is left to be looked at again, a long body through."""
        line = b"400;" + b"x" * 60 + b"\r\n"
        raw = (line + b"a" * 1024 + b"\r\n") * 256 + b"0\r\n\r\n"
        decoder, buffer = BodyDecoder(CHUNKED, MAX_BODY), bytearray()
        for byte in raw:
            buffer.append(byte)
            decoder.feed(buffer)
            self.assertFalse(buffer)
        self.assertEqual((decoder.done, len(decoder.body)), (True, 256 * 1024))


class WriterTest(unittest.TestCase):
    def test_response_head_fields(self) -> None:
        """Status line, Date and the fields in order, byte for byte; nothing tells what runs here."""
        with mock.patch.object(time, "time", lambda: 784111777.9):
            got = http1.response_head(200, [("Content-Type", "text/event-stream"), ("X-Name", "café")])
        self.assertEqual(
            got,
            b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/event-stream\r\n"
            b"X-Name: caf\xe9\r\n\r\n",
        )

    def test_response_head_date(self) -> None:
        """Date follows the clock though it is made once a second."""
        for now in (1_700_000_000.0, 1_700_000_000.9, 1_700_000_001.0, 1_600_000_000.5):
            with mock.patch.object(time, "time", lambda now=now: now):
                date = re.search(rb"Date: (.*)\r\n", http1.response_head(204, []))
            assert date
            self.assertEqual(parsedate_to_datetime(date[1].decode()).timestamp(), int(now))

    def test_response_head_split(self) -> None:
        """No name and no value can add a field, a second head or a body."""
        for name, value in [
            ("X", "a\r\nSet-Cookie: b"),
            ("X", "a\r\n\r\n<script>"),
            ("X", "a\nb"),
            ("X", "a\rb"),
            ("X", "a\x00b"),
            ("X", "a\x7fb"),
            ("X", "a\n"),
            ("X", "€"),
            ("X", "\ud800"),
            ("X\r\nY", "a"),
            ("X: a\r\nY", "b"),
            ("X: a", "b"),
            ("X:", "b"),
            (":", "b"),
            ("X ", "a"),
            (" X", "a"),
            ("", "a"),
            ("é", "a"),
        ]:
            with self.subTest(name=name, value=value), self.assertRaises(ValueError):
                http1.response_head(200, [(name, value)])

    def test_response_head_unknown_status(self) -> None:
        """A status without a phrase is a mistake of ours, found here."""
        for status in (0, 299, 1000):
            with self.subTest(status=status), self.assertRaises(ValueError):
                http1.response_head(status, [])

    def test_response_head_every_error(self) -> None:
        """Every error that a client can be told has a status line."""
        leaves: list[type[errors.ShimError]] = [errors.ShimError, *errors.ShimError.__subclasses__()]
        for leaf in leaves:
            with self.subTest(leaf=leaf.__name__):
                self.assertTrue(http1.response_head(leaf.status, []).startswith(b"HTTP/1.1 %d " % leaf.status))

    def test_chunk_read_back(self) -> None:
        """What is written as chunks is read back by our reader and by the standard library's."""
        payloads = [b"a", b"\r\n", b"0\r\n\r\n", bytes(range(256)) * 300]
        raw = b"".join(map(http1.chunk, payloads)) + http1.LAST_CHUNK
        self.assertEqual(read_body(CHUNKED, [raw]), (b"".join(payloads), b""))
        response = http1.response_head(200, [("Transfer-Encoding", "chunked")]) + raw
        with mock.Mock(makefile=lambda mode: io.BytesIO(response)).makefile("rb") as file:
            reader = HTTPResponse(mock.Mock(makefile=lambda mode: file))
            reader.begin()
            self.assertEqual((reader.status, reader.read()), (200, b"".join(payloads)))

    def test_chunk_empty(self) -> None:
        """An empty chunk would end the body, so it cannot be written by mistake."""
        with self.assertRaises(ValueError):
            http1.chunk(b"")


class StdlibHandler(BaseHTTPRequestHandler):
    """http.server's reading of one request, without a socket."""

    def __init__(self, raw: bytes) -> None:
        self.rfile = io.BytesIO(raw)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline()
        self.accepted = self.parse_request()

    def log_message(self, format: str, *args: object) -> None:
        pass


class StdlibTest(unittest.TestCase):
    def test_parse_head_against_http_server(self) -> None:
        """http.server reads the same method, target, version and fields in every valid request."""
        for raw, _ in GOOD_HEADS:
            with self.subTest(head=raw):
                if raw.startswith((b"\r\n", b"GET //")):  # http.server wants no empty line, and folds the slashes
                    continue
                ours, theirs = read_head([raw])[0], StdlibHandler(raw)
                self.assertTrue(theirs.accepted)
                self.assertEqual((ours.method, ours.target), (theirs.command, theirs.path))
                self.assertEqual("HTTP/{}.{}".format(*ours.version), theirs.request_version)
                fields = [(name.lower(), value.strip(" \t")) for name, value in theirs.headers.items()]
                if ours.target.startswith("/") or ours.target == "*":  # else Host is the target's
                    self.assertEqual(ours.fields, fields)


class RandomTest(unittest.TestCase):
    MUTATIONS = 3000
    SPICE = (b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b",", b";", b"\xff", b"0", b"chunked", b"%", b"\x7f")

    def mutate(self, rng: random.Random, raw: bytes) -> bytes:
        result = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(result) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                result[at:at] = rng.choice(self.SPICE)
            elif kind == 1:
                result[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 2:
                del result[at : at + rng.randrange(1, 8)]
            else:
                result[at:at] = result[at : at + rng.randrange(1, 40)]
        return bytes(result)

    def verdict(self, raw: bytes, cut: Callable[[bytes], list[bytes]]) -> tuple[Request, bytes, bytes] | str:
        """Read one request; return it, its body and what is behind, or that it is refused, or not complete."""
        try:
            request, rest = read_head(cut(raw))
            return request, *read_body(request.framing, [b"", *cut(rest)], 1000)
        except errors.ShimError as error:
            self.assertIn(error.status, (400, 413, 414, 415, 417, 431, 501, 505))
            return "refused"
        except IncompleteError:
            return "incomplete"

    def try_mutations(self, sources: list[bytes], check: Callable[[bytes], None]) -> None:
        """Call `check` with mutated requests; a failure tells the seed to run this test again with."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        for _ in range(self.MUTATIONS):
            raw = self.mutate(rng, rng.choice(sources))
            with about(TEST_SEED=seed, raw=raw):
                check(raw)

    def test_mutated_requests(self) -> None:
        """Whatever is done to a valid request, it is read, refused or incomplete, the same whole and byte by byte."""

        def check(raw: bytes) -> None:
            self.assertEqual(self.verdict(raw, whole), self.verdict(raw, bytewise))

        chunked = post(b"Transfer-Encoding: chunked\r\n")
        sources = [raw for raw, _ in GOOD_HEADS] + [chunked + raw for raw, _ in GOOD_CHUNKS if len(raw) < 200]
        self.try_mutations(sources, check)

    def test_mutated_heads_accepted(self) -> None:
        """A mutated head that is accepted has one Host at most, one way to tell the body's end, no control bytes."""

        def check(raw: bytes) -> None:
            outcome = self.verdict(raw, whole)
            if isinstance(outcome, str):
                return
            names = [name for name, _ in outcome[0].fields]
            self.assertFalse("content-length" in names and "transfer-encoding" in names)
            self.assertLessEqual(names.count("host"), 1)
            text = "".join(name + value for name, value in outcome[0].fields) + outcome[0].path
            self.assertNotRegex(text, r"[\x00-\x08\x0a-\x1f\x7f]")

        self.try_mutations([raw for raw, _ in GOOD_HEADS], check)


if __name__ == "__main__":
    unittest.main()
