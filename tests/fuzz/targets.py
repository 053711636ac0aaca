"""What is fuzzed: each target is one invariant, of a parser that reads what a stranger sends. No I/O.

A target takes bytes and returns, whatever they are, unless the invariant is broken: an AssertionError, or any
exception that the parser does not document.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from inferless_shim import errors, http1, queries, sse, strictjson, tensors
from inferless_shim.admission import BEARER
from inferless_shim.auth import read_keys
from inferless_shim.hosts import Hosts
from inferless_shim.http1 import BodyDecoder, find_head, parse_head, response_head
from inferless_shim.logs import JsonFormatter, TextFormatter
from inferless_shim.outcomes import usable_id
from inferless_shim.proxies import Proxies
from inferless_shim.schema import Rules, compile_schema
from inferless_shim.tracing import read_traceparent
from inferless_shim.values import networks
from tests import bad_bodies, corpus, test_strictjson
from tests.fuzz import reference
from tests.support import read_body

MAX_BODY = 1000
STATUSES = {400, 413, 414, 415, 417, 431, 501, 505}  # of a request that cannot be read
SCHEMAS = [
    compile_schema(bad_bodies.SCHEMA, Rules()),
    compile_schema(bad_bodies.SCHEMA, Rules(batched=True)),
    compile_schema(
        {name: {"datatype": "BYTES", "shape": [-1, 2], "required": False} for name in ("inputs", "parameters", "id")},
        Rules(),
    ),
]
HOSTS = Hosts("127.0.0.1", "localhost", ["api.example.org", ".example.net"])
PROXIES = Proxies(networks("127.0.0.0/8,10.0.0.0/8,::1"))


class Target(NamedTuple):
    name: str
    check: Callable[[bytes], None]
    seeds: list[bytes]


# Requests. ------------------------------------------------------------------------------------------------------------


def read_requests(pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], str]:
    """Read requests that come in pieces, as a connection does; return them, each with its end, and how it went on."""
    coming, buffer, requests, taken = iter(pieces), bytearray(), [], 0
    try:
        while True:
            searched = 0
            while (size := find_head(buffer, searched)) is None:
                searched = len(buffer)
                buffer += next(coming)
            request = parse_head(bytes(buffer[:size]))
            del buffer[:size]
            taken += size
            decoder, before = BodyDecoder(request.framing, MAX_BODY), len(buffer)
            decoder.feed(buffer)
            while not decoder.done:
                assert not buffer, "the decoder left bytes that it needs"
                piece = next(coming)
                before += len(piece)
                buffer += piece
                decoder.feed(buffer)
            taken += before - len(buffer)
            requests.append((taken, request, bytes(decoder.body)))
    except StopIteration:
        return requests, "incomplete"
    except errors.ShimError as error:
        assert error.status in STATUSES, error.status
        return requests, "refused"


def cut(data: bytes) -> list[bytes]:
    """Cut data at places that depend on it alone."""
    places = zlib.crc32(data)
    pieces, at = [], 0
    while at < len(data):
        size = 1 + (places & 15) if places & 16 else 1
        pieces.append(data[at : at + size])
        at, places = at + size, (places >> 5 | places << 27) & 0xFFFFFFFF
    return pieces


def check_requests(data: bytes) -> None:
    """However they are cut, bytes are the requests that the reference sees, with the same ends; then the same fate."""
    requests, end = read_requests([data])
    again, same_end = read_requests(cut(data))
    assert (again, same_end) == (requests, end), "it matters how the bytes are cut"
    expected, expected_end = reference.read_requests(data, MAX_BODY)
    # What cannot become good any more may be refused before it is complete, but never waited for when it is.
    assert end == expected_end or (end, expected_end) == ("refused", "incomplete"), (end, expected_end)
    ours = [
        (
            end,
            request.method.encode(),
            request.target.encode(),
            b"%d.%d" % request.version,
            [pair for pair in request.fields if pair[0] != "host"],
            body,
        )
        for end, request, body in requests
    ]
    theirs = [
        (
            *read[:4],
            [(name.decode(), value.decode("latin-1")) for name, value in read.fields if name != b"host"],
            read.body,
        )
        for read in expected
    ]
    assert ours == theirs, (ours, theirs)
    for _, request, _ in requests:
        check_head(request)


def check_head(request: http1.Request) -> None:
    """What a head says to others is bounded, and of what it may be."""
    assert not any(letter < " " or letter == "\x7f" for letter in request.path)
    request_id = usable_id(request.field("x-request-id"))
    assert request_id is None or response_head(200, [("X-Request-Id", request_id)]).count(b"\r\n") == 4
    trace = read_traceparent(request.field("traceparent"))
    assert trace is None or (read_traceparent(trace.traceparent) == trace and int(trace.id, 16))
    try:
        HOSTS.check(request)
    except errors.Forbidden:
        pass
    else:
        host = (request.field("host") or "localhost").lower()
        name = host if host.startswith("[") else host.partition(":")[0].removesuffix(".")
        ours = name in ("localhost", "api.example.org") or name.endswith((".localhost", ".example.net"))
        assert ours or name.startswith(("[", "127.")), host
    client, scheme = PROXIES.seen_through(request, "127.0.0.1")
    assert ipaddress.ip_address(client) and scheme in (None, "http", "https")
    BEARER.fullmatch(request.field("authorization") or "")


def check_field(data: bytes) -> None:
    """A response's field is one line, or a ValueError."""
    name, _, value = data.decode("utf-8", "surrogateescape").partition("\0")
    try:
        head = response_head(200, [(name, value), ("Last", "field")])
    except ValueError:
        return
    lines = head.split(b"\r\n")
    assert len(lines) == 6 and lines[3:] == [b"Last: field", b"", b""], head
    assert not set(head) & set(b"\0\n\r") - {10, 13} and head.count(b"\n") == head.count(b"\r") == 5


# Bodies and queries. ------------------------------------------------------------------------------------------------


def check_json(data: bytes) -> None:
    """JSON is read as the reference reads it, or refused where it does."""
    try:
        expected = [reference.read_json(data)]
    except reference.RefusedError:
        expected = []
    try:
        got = [strictjson.loads(data)]
    except errors.BadRequest as error:
        assert len(error.message) < 250, error.message
        got = []
    assert repr(got) == repr(expected), (got, expected)  # as text: 1 is not 1.0, nor True


def check_body(data: bytes) -> None:
    """A body becomes a call whose inputs are the schema's, or a 400 whose faults are bounded."""
    if not data:
        return
    kind, rest = data[0], data[1:]
    header_length = None
    if kind & 4:  # binary data behind the JSON, whose size is told or mistold
        told = len(rest) // 2 if kind & 8 else rest.rfind(b"}") + 1
        header_length = str(told) if kind & 16 == 0 else rest[:3].decode("latin-1")
    schema = SCHEMAS[(kind & 3) % len(SCHEMAS)]
    try:
        call = read_body(rest, schema, header_length)
    except errors.BadRequest as error:
        check_told(error)
        return
    assert call.inputs.keys() <= schema.inputs.keys()
    assert all(call.inputs.get(name) is not None for name, each in schema.inputs.items() if each.required)
    json.dumps(call.inputs, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no lone surrogate
    assert call.id is None or isinstance(call.id, str)


def check_told(error: errors.ShimError) -> None:
    told = json.dumps(error.body(), ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert len(told) < 40_000 and error.status == 400, told[:200]


def check_query(data: bytes) -> None:
    """A query becomes a call, or a 400; what is reserved is text."""
    query = data.decode("latin-1")
    for schema in SCHEMAS:
        try:
            call, reserved = queries.read_query(query, schema)
        except errors.BadRequest as error:
            check_told(error)
        else:
            assert call.inputs.keys() <= schema.inputs.keys() and reserved.keys() <= set(queries.RESERVED)
            json.dumps(call.inputs, ensure_ascii=False, allow_nan=False).encode()
    try:
        assert queries.reserved_query(query).keys() <= set(queries.RESERVED)
    except errors.BadRequest as error:
        check_told(error)
    queries.token(query)


def check_tensor(data: bytes) -> None:
    """Binary data that is read as a tensor is written as it was."""
    if len(data) < 3:
        return
    datatype = tensors.DATATYPES[data[0] % len(tensors.DATATYPES)]
    shape = [data[1] & 15, data[1] >> 4][: data[2] & 3]
    try:
        elements = tensors.read(memoryview(data)[3:], datatype, shape)
    except tensors.Malformed as error:
        assert len(str(error)) < 300
        return
    assert tensors.write(elements, datatype) == data[3:]


def check_schema(data: bytes) -> None:
    """Whatever a schema holds, it is compiled or refused as a start-up error, and then every body has an answer."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return
    for rules in (Rules(), Rules(streaming=True, relaxed=True), Rules(batched=True)):
        try:
            schema = compile_schema(raw, rules)
        except errors.StartupError:
            continue
        if max((abs(math.prod(declared.shape)) for declared in schema.inputs.values()), default=0) > 10_000:
            continue  # its author's own wish
        example = json.dumps(schema.example()).encode()
        for body in (example, b"{}"):
            try:
                read_body(body, schema)
            except errors.BadRequest as error:
                check_told(error)


# Small things. ------------------------------------------------------------------------------------------------------


def check_event_id(data: bytes) -> None:
    """An event id is read as it was written, or refused."""
    text = data.decode("latin-1")
    try:
        stream, number = sse.parse_event_id(text)
    except errors.BadRequest:
        return
    assert text.isascii() and text.rpartition("-")[0] == stream and int(text.rpartition("-")[2]) == number


def check_log(data: bytes) -> None:
    """A record is one line to whoever reads JSON, and to a person one line that looks like one."""
    text = data.decode("utf-8", "surrogateescape")
    for message, arguments in (("%s said", (text,)), ("%(path)s said", ({"path": text, "client": text},)), (text, ())):
        record = logging.LogRecord("inferless_shim.fuzz", logging.INFO, __file__, 1, message, arguments, None)
        line = JsonFormatter().format(record)
        assert line.isascii() and "\n" not in line and json.loads(line)["level"] == "INFO"
        first, *rest = TextFormatter().format(record).split("\n")
        assert " INFO " in first and all(each.startswith("    ") for each in rest)
        assert not any(letter < " " and letter != "\t" for each in (first, *rest) for letter in each)


def check_keys(data: bytes) -> None:
    """A file of keys is read, or refused in words that do not show what stands in it."""
    try:
        keys = read_keys(data.decode("utf-8", "replace"), "keys")
    except errors.StartupError as error:
        assert len(str(error)) < 200 and str(error).startswith("keys")
        return
    assert all(key.owner == owner and key.name for owner, key in keys.items())


def body_seeds() -> Iterator[bytes]:
    for _, body, _ in bad_bodies.BAD_BODIES:
        if len(body) < 500:
            yield b"\0" + body
            yield b"\2" + body
    declared = {"name": "BOXES", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    yield b"\4" + bad_bodies.tensors(declared, binary_data_output=True) + bytes(16)
    yield b"\6" + b'{"inputs": {"inputs": [["a", "b"]]}, "parameters": {"id": ["a", "b"]}, "id": "x"}'


DIALOGUE = [case.data for case in corpus.CASES if len(case.data) <= 600]
HEAD_WORDS = (
    b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
    b"X-Forwarded-For: 192.0.2.1, [::1], 10.0.0.1\r\nX-Forwarded-Proto: https\r\n",
    b"Authorization: Bearer abcdefghijklmnop\r\nX-Request-Id: a\r\n",
)
SCHEMA_TEXT = json.dumps(bad_bodies.SCHEMA)
ALL = [
    Target("requests", check_requests, DIALOGUE + [corpus.live(words) for words in HEAD_WORDS]),
    Target("json", check_json, [text for text, *_ in test_strictjson.GOOD + test_strictjson.BAD if len(text) < 500]),
    Target("body", check_body, list(body_seeds())),
    Target("query", check_query, [b"TEXT=a%20b&MAX_NEW_TOKENS=5&SAMPLE=1&STOP=[%22a%22]&token=x", b"id=[[%22a%22]]&a"]),
    Target("tensor", check_tensor, [bytes([kind, 2, 1]) + b"\2\0\0\0ab\0\0\0\0" for kind in range(13)]),
    Target("schema", check_schema, [SCHEMA_TEXT.encode(), b'{"A": {"datatype": "INT8", "shape": [-1, 3]}}']),
    Target("field", check_field, [b"X-Name\0value", b"X\0caf\xc3\xa9", b"X\0a\r\nY: b"]),
    Target("event id", check_event_id, [b"0123456789abcdef-12", b"a.b_c-d-0"]),
    Target("log", check_log, [b"GET /infer\n12:00:00 INFO forged", "\u2028 \x1b[31m %s %(x)d".encode()]),
    Target("keys", check_keys, [b"# keys\nname:abcdefghijklmnop\n\nabcdefghijklmnopq==\n"]),
]
