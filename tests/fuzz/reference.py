"""A second reader of requests and of JSON, written from the RFCs alone, to compare ours with: slow, plain, whole input.

It shares no code and no regular expression with the first one. Where ours is narrower than the RFC (Host, TE, bounds),
so is this one; each such place is marked "ours".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

DIGITS = set(b"0123456789")
HEX = set(b"0123456789abcdefABCDEF")
LETTERS = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
TCHAR = DIGITS | LETTERS | set(b"!#$%&'*+-.^_`|~")  # RFC 9110 §5.6.2
VCHAR = set(range(0x21, 0x7F))
TEXT = VCHAR | set(b" \t") | set(range(0x80, 0x100))  # field-vchar, obs-text, SP, HTAB (RFC 9110 §5.5)
PCHAR = LETTERS | DIGITS | set(b"-._~!$&'()*+,;=:@")  # RFC 3986 §3.3 without escapes
HOST = LETTERS | DIGITS | set(b"-._~")  # ours: no sub-delims, no escapes
SINGLE = {b"host", b"authorization", b"origin", b"sec-fetch-site", b"last-event-id", b"idempotency-key"}  # ours
CRLF = b"\r\n"


class Read(NamedTuple):
    """A request, and where it ends in what was sent."""

    end: int
    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes


class RefusedError(Exception):
    """No continuation of what was sent can make it good."""


class IncompleteError(Exception):
    """What was sent may go on."""


def read_requests(data: bytes, max_body: int) -> tuple[list[Read], str]:
    """Return the requests in front of `data`, and what the rest of it is: refused or incomplete."""
    requests: list[Read] = []
    at = 0
    try:
        while True:
            requests.append(read_request(data, at, max_body))
            at = requests[-1].end
    except RefusedError:
        return requests, "refused"
    except IncompleteError:
        return requests, "incomplete"


def read_request(data: bytes, at: int, max_body: int) -> Read:
    """Read the request that starts at `at`. Raises RefusedError or IncompleteError."""
    start = at + 2 if data.startswith(CRLF, at) else at  # RFC 9112 §2.2
    end = data.find(CRLF + CRLF, at)
    if end < 0:
        raise IncompleteError
    require(end + 4 - at <= 65536)  # ours: 431
    first, *lines = data[start:end].split(CRLF) if end > at else [b""]
    for line in [first, *lines]:
        require(not set(line) & set(b"\r\n\0"))
    require(start + len(first) + 2 - at <= 16448)  # ours: 414
    method, target, version = read_first_line(first)
    require(len(lines) <= 100)
    fields = [read_field(line) for line in lines]
    names = [name for name, _ in fields]
    require(all(names.count(name) <= 1 for name in SINGLE))
    hosts = [value for name, value in fields if name == b"host"]
    require(bool(hosts) or version == b"1.0")
    require(not hosts or is_host(hosts[0]))
    require(set(members(fields, b"content-encoding")) <= {b"identity", b""})  # ours: 415
    require(version == b"1.0" or set(members(fields, b"expect")) <= {b"100-continue", b""})  # RFC 9110 §10.1.1
    body, end = read_body(data, end + 4, fields, version, max_body)
    return Read(end, method, target, version, fields, body)


def require(condition: bool) -> None:
    if not condition:
        raise RefusedError


def read_first_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    parts = line.split(b" ")
    require(len(parts) == 3)
    method, target, protocol = parts
    require(bool(method) and set(method) <= TCHAR)
    require(protocol in (b"HTTP/1.0", b"HTTP/1.1"))
    require(method != b"CONNECT")  # ours: 501
    require(len(target) <= 16384 and is_target(target, method))  # ours: 414
    return method, target, protocol[5:]


def is_target(target: bytes, method: bytes) -> bool:
    """RFC 9112 §3.2: origin-form, absolute-form, or asterisk-form by OPTIONS."""
    if target == b"*":
        return method == b"OPTIONS"
    path, _, query = target.partition(b"?")
    if not set(query) <= PCHAR | set(b"/?%[]{}|\\^`"):  # ours: what browsers send
        return False
    scheme, colon, rest = path.partition(b"://")
    if colon and scheme.lower() in (b"http", b"https"):
        authority, slash, rest = rest.partition(b"/")
        if not is_host(authority):
            return False
        path = slash + rest
    elif not path.startswith(b"/"):
        return False
    return is_path(path)


def is_path(path: bytes) -> bool:
    text = bytearray()
    rest = iter(path)
    for byte in rest:
        if byte == ord("%"):
            pair = bytes(value for value in (next(rest, None), next(rest, None)) if value is not None)
            if len(pair) < 2 or not set(pair) <= HEX:
                return False
            byte = int(pair, 16)
            if byte < 0x20 or byte in (0x7F, ord("/")):  # ours
                return False
        elif byte not in PCHAR | {ord("/")}:
            return False
        text.append(byte)
    try:
        return "\ufffd" not in text.decode()  # ours: it stands for what is no text
    except UnicodeDecodeError:
        return False


def is_host(value: bytes) -> bool:
    """RFC 9110 §7.2, an empty one aside."""
    if value.startswith(b"["):
        host, bracket, port = value[1:].partition(b"]")
        good = bool(bracket) and bool(host) and set(host) <= HEX | set(b":.")
    else:
        host, colon, port = value.partition(b":")
        port = colon + port
        good = bool(host) and set(host) <= HOST
    return good and (not port or (port[:1] == b":" and set(port[1:]) <= DIGITS and len(port) <= 6))


def read_field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    require(bool(name) and bool(colon) and set(name) <= TCHAR and set(value) <= TEXT)
    return name.lower(), value.strip(b" \t")


def members(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    values = [value for known, value in fields if known == name]
    return [member.strip(b" \t").lower() for value in values for member in value.split(b",")]


def read_body(
    data: bytes, at: int, fields: list[tuple[bytes, bytes]], version: bytes, max_body: int
) -> tuple[bytes, int]:
    """Return the body that starts at `at`, and where it ends (RFC 9112 §6.3)."""
    lengths, codings = members(fields, b"content-length"), members(fields, b"transfer-encoding")
    if codings:
        require(not lengths and version == b"1.1" and codings == [b"chunked"])
        return read_chunks(data, at, max_body)
    if not lengths:
        return b"", at
    length = lengths[0]
    require(len(set(lengths)) == 1 and 0 < len(length) < 20 and set(length) <= DIGITS and int(length) <= max_body)
    end = at + int(length)
    if len(data) < end:
        raise IncompleteError
    return data[at:end], end


def read_chunks(data: bytes, at: int, max_body: int) -> tuple[bytes, int]:
    """RFC 9112 §7.1."""
    body, spare = b"", 65536
    while True:
        line, at = read_line(data, at)
        size = read_size(line)
        spare -= len(line) - digits_of(line)  # ours: 64 KiB of extensions and trailers
        require(len(body) + size <= max_body and spare >= 0)
        if size == 0:
            break
        if len(data) < at + size + 2:
            raise IncompleteError
        require(data[at + size : at + size + 2] == CRLF)
        body, at = body + data[at : at + size], at + size + 2
    while True:
        line, at = read_line(data, at)
        if not line:
            return body, at
        read_field(line)
        spare -= max(len(line), 655)  # ours: so that there are 100 at most
        require(spare >= 0)


def read_line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    require((end if end >= 0 else len(data)) - at < 4096)  # ours
    if end < 0:
        raise IncompleteError
    require(data[at:end].endswith(b"\r"))
    line = data[at : end - 1]
    require(not set(line) & set(b"\r\0"))
    return line, end + 1


def digits_of(line: bytes) -> int:
    return next((place for place, byte in enumerate(line) if byte not in HEX), len(line))


def read_size(line: bytes) -> int:
    """Read a chunk's size, and check its extensions a character at a time (RFC 9112 §7.1.1)."""
    digits = digits_of(line)
    require(0 < digits <= 16)
    at = digits
    while at < len(line):
        at = skip_blanks(line, at)
        require(line[at : at + 1] == b";")
        at = skip_token(line, skip_blanks(line, at + 1))
        value = skip_blanks(line, at)
        if line[value : value + 1] == b"=":
            value = skip_blanks(line, value + 1)
            at = skip_quoted(line, value) if line[value : value + 1] == b'"' else skip_token(line, value)
    return int(line[:digits], 16)


def skip_blanks(line: bytes, at: int) -> int:
    while line[at : at + 1] in (b" ", b"\t"):
        at += 1
    return at


def skip_token(line: bytes, at: int) -> int:
    start = at
    while at < len(line) and line[at] in TCHAR:
        at += 1
    require(at > start)
    return at


def skip_quoted(line: bytes, at: int) -> int:
    at += 1
    while at < len(line) and line[at] != ord('"'):
        at += 2 if line[at] == ord("\\") else 1
        require(at <= len(line) and line[at - 1] in TEXT)
    require(at < len(line))
    return at + 1


# JSON. --------------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> Any:
    """Return the value of JSON text as CONTRACT.md §7 wants it. Raises RefusedError."""
    try:
        text = body.decode()
        require(depth_of(text) <= 64 and not text.startswith("\ufeff"))
        value = json.loads(
            text, object_pairs_hook=once, parse_int=integer, parse_float=finite, parse_constant=lambda _: require(False)
        )
    except ValueError:
        raise RefusedError from None
    require(not any(0xD800 <= ord(letter) < 0xE000 for each in texts_of(value) for letter in each))
    return value


def depth_of(text: str) -> int:
    """Return how deep brackets nest outside of strings, however they are closed."""
    depth = deepest = 0
    inside = escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
        elif not inside and letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif not inside and letter in "]}":
            depth -= 1
    return deepest


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len({name for name, _ in pairs}) == len(pairs))
    return dict(pairs)


def integer(digits: str) -> int:
    require(len(digits.lstrip("-")) <= 4300)
    return int(digits)


def finite(digits: str) -> float:
    require(math.isfinite(float(digits)))
    return float(digits)


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)
