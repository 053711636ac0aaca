"""HTTP/1.x as bytes: request heads and bodies in, response heads and chunks out. No I/O (RFC 9110, RFC 9112).

It reads strictly: two readers of one connection that disagree about where a request ends are a smuggled request
(RFC 9112 §11.2). All it reads is bounded, and looked at once however it is cut up. After any error raised while
reading nobody knows where the next request starts: answer it, then close.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from . import errors

MAX_HEAD = 65536  # bytes; Node takes 16 KiB, nginx 32 KiB, http.server 64 KiB a line; cookies alone can pass 16 KiB
MAX_TARGET = 16384  # bytes; twice nginx's 8 KiB (RFC 9112 §3 asks for 8,000), as a GET carries the app's inputs here
MAX_REQUEST_LINE = MAX_TARGET + 64  # room for the longest registered method (17 bytes) and the version
MAX_FIELDS = 100  # what Apache, hyper and Python's http.client allow
MAX_CHUNK_LINE = 4096  # bytes of one line in a chunked body, as in Go; real ones have at most 8 digits

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
END_OF_HEAD = b"\r\n\r\n"
# A NUL, an LF without its CR, a CR without its LF; a search is quick that begins with a set of characters.
STRAY = re.compile(rb"[\x00\n\r](?:(?<=\x00)|(?<=\n)(?<!\r\n)|(?<=\r)(?=[^\n]))")
# The target is visible ASCII but for "#": a fragment is never sent. Between the parts: one space (RFC 9112 §3).
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rf"({TOKEN}) ([!-\"$-~]+) HTTP/([0-9])\.([0-9])")
# A name is a token, the colon follows it at once, and a line that starts with a blank is none (RFC 9112 §5).
FIELD = re.compile(rf"({TOKEN}):([\t\x20-\x7e\x80-\xff]*)")
# RFC 3986 §3.2.2 also allows sub-delims and escapes in a name; no name in DNS has them, smuggled ones do.
HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# RFC 3986 §3.3 and §3.4; in a query also what browsers leave as it is (WHATWG URL, query percent-encode set).
PATH, QUERY = r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*", r"[A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]{}|\\^`-]*"
TARGET = re.compile(rf"(?:https?://({HOST.pattern})|(?=/))(/{PATH})?(?:\?({QUERY}))?", re.IGNORECASE)
# Incomplete, of a control character, or of a slash: a proxy that does not take that for one sees another path.
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01]|%7[Ff]|%2[Ff]")
LENGTH = re.compile(r"[0-9]{1,19}")  # 19 digits hold every 63-bit length
QUOTED = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
EXTENSION = rf"[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*(?:{TOKEN}|{QUOTED}))?"
CHUNK_LINE = re.compile(rf"([0-9A-Fa-f]{{1,16}})(?:{EXTENSION})*")  # RFC 9112 §7.1
# Two of these would be two answers to "who asks, from where, for what", and a proxy may have read the other one.
SINGLE = ("host", "authorization", "origin", "sec-fetch-site", "last-event-id", "idempotency-key")
Fields = list[tuple[str, str]]
Values = dict[str, str]
Kind = Enum("Kind", "NONE LENGTH CHUNKED")
BodyState = Enum("BodyState", "SIZE DATA TRAILERS DONE")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Framing(NamedTuple):
    """How a request's body ends (RFC 9112 §6.3); `length` is in bytes, and 0 unless the kind is LENGTH."""

    kind: Kind
    length: int = 0


class Request(NamedTuple):
    """A request head that has passed every check here.

    `target` is as sent, `path` percent-decoded without control characters, `query` raw and unchecked, without "?";
    names of `fields` are in lower case; `values` are theirs by name, where repeated lines are one list (RFC 9110 §5.3).
    An absolute-form target's authority has replaced Host (RFC 9112 §3.2.2).
    """

    method: str
    target: str
    path: str
    query: str
    version: tuple[int, int]
    fields: Fields
    values: Values
    framing: Framing
    expects_continue: bool  # the client holds its body back until it reads CONTINUE (RFC 9110 §10.1.1)

    def field(self, name: str) -> str | None:
        """Return the value of field `name` (lower case)."""
        return self.values.get(name)

    def tokens(self, name: str) -> list[str]:
        """Return the members of the list in field `name` (lower case), in lower case, parameters included."""
        return [member for member in _members(self.values, name) if member]

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow (RFC 9112 §9.3); never on HTTP/1.0, where close ends a stream."""
        return self.version == (1, 1) and "close" not in self.tokens("connection")


def find_head(buffer: bytearray, searched: int = 0) -> int | None:
    """Return the length of the head in front of `buffer`, its empty line included; None if more must come.

    `searched` is how long `buffer` was when that was last None. One empty line may come first (RFC 9112 §2.2). Raises
    BadRequest, UriTooLong or HeaderFieldsTooLarge as soon as nothing to come can mend the head.
    """
    end = buffer.find(END_OF_HEAD, max(0, searched - 3), MAX_HEAD)
    stop = end + len(END_OF_HEAD) if end >= 0 else min(len(buffer), MAX_HEAD)
    # From one byte back: a CR that was last in the buffer is judged by what follows it.
    if STRAY.search(buffer, max(0, searched - 1), stop):
        raise errors.BadRequest("The head of the request has a NUL, or a CR or LF alone; end each line with CRLF.")
    # Once, when the buffer passes the bound; from 2 on, past an empty line in front.
    if searched < MAX_REQUEST_LINE <= len(buffer) and buffer.find(b"\r\n", 2, MAX_REQUEST_LINE) < 0:
        raise errors.UriTooLong(f"The request target is over {MAX_TARGET} bytes; send inputs by POST.")
    if end < 0:
        _check_first_line(buffer, searched)
    if end < 0 and len(buffer) >= MAX_HEAD:
        raise errors.HeaderFieldsTooLarge(f"The head of the request is over {MAX_HEAD} bytes; send fewer fields.")
    return stop if end >= 0 else None


def _check_first_line(buffer: bytearray, searched: int) -> None:
    """Refuse what is no request as soon as its first line has come: its sender may wait for an answer (HTTP/0.9)."""
    start = 2 if buffer.startswith(b"\r\n") else 0
    end = buffer.find(b"\r\n", max(start, searched - 1), MAX_REQUEST_LINE)
    if end > start and buffer.find(b"\r\n", start, end) < 0:
        _parse_request_line(buffer[start:end].decode("latin-1"))


def _parse_request_line(line: str) -> tuple[str, str, tuple[int, int]]:
    match = REQUEST_LINE.fullmatch(line)
    if not match:
        raise errors.BadRequest("The request line is malformed; send METHOD target HTTP/1.1, the target URL-encoded.")
    version = (int(match[3]), int(match[4]))
    if version not in ((1, 0), (1, 1)):
        raise errors.VersionNotSupported("This version of HTTP is not spoken here; use HTTP/1.1.")
    return match[1], match[2], version


def asks_for_head(unread: bytearray) -> bool:
    """Whether a request that could not be read is a HEAD: even so its answer has no content (RFC 9110 §9.3.2)."""
    return unread.startswith((b"HEAD ", b"\r\nHEAD "))


def parse_head(head: bytes) -> Request:
    """Read the bytes that `find_head` has measured. Raises a ShimError: 400, 414, 415, 417, 431, 501 or 505."""
    lines = head.decode("latin-1").removeprefix("\r\n").removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = _parse_request_line(lines[0])
    if len(target) > MAX_TARGET:
        raise errors.UriTooLong(f"The request target is over {MAX_TARGET} bytes; send inputs by POST.")
    authority, path, query = _split_target(method, target)
    if len(lines) - 1 > MAX_FIELDS:
        raise errors.HeaderFieldsTooLarge(f"The request has over {MAX_FIELDS} header fields; send fewer.")
    fields = [_parse_field(line) for line in lines[1:]]
    values = _by_name(fields)
    _check_values(values, version)
    if authority:
        fields = [("host", authority), *(field for field in fields if field[0] != "host")]
        values["host"] = authority
    framing = _framing(values, version)
    body_comes = framing.kind is Kind.CHUNKED or framing.length > 0
    expects_continue = body_comes and version == (1, 1) and "100-continue" in _members(values, "expect")
    return Request(method, target, path, query, version, fields, values, framing, expects_continue)


def _split_target(method: str, target: str) -> tuple[str, str, str]:
    """Return the authority of an absolute-form target (else ""), the decoded path and the query (RFC 9112 §3.2)."""
    if method == "CONNECT":
        raise errors.NotImplementedHere("CONNECT is for proxies and this is none; send the request itself.")
    if target == "*" and method == "OPTIONS":
        return "", "*", ""
    match = TARGET.fullmatch(target)
    if not match:
        raise errors.BadRequest(
            "The request target is no path as in a URL; start it with a slash, and percent-encode it."
        )
    authority, raw, query = match.groups(default="")
    path = unquote_to_bytes(raw).decode("utf-8", "replace") if "%" in raw else raw or "/"
    if BAD_ESCAPE.search(raw) or "\ufffd" in path:  # stands for what is no UTF-8
        raise errors.BadRequest("The path has an escape of no text or of a slash; send UTF-8 escapes, % itself as %25.")
    return authority, path, query


def _parse_field(line: str) -> tuple[str, str]:
    match = FIELD.fullmatch(line)
    if not match:
        raise errors.BadRequest("A header field is malformed or folded; send name: value on one line.")
    return match[1].lower(), match[2].strip(" \t")


def _by_name(fields: Fields) -> Values:
    values: Values = {}
    for name, value in fields:
        if name in values and name in SINGLE:
            raise errors.BadRequest(f"The field {name} comes more than once; send it once.")
        values[name] = f"{values[name]}, {value}" if name in values else value
    return values


def _check_values(values: Values, version: tuple[int, int]) -> None:
    host = values.get("host", "" if version == (1, 1) else None)
    if host is not None and not HOST.fullmatch(host):  # RFC 9112 §3.2
        raise errors.BadRequest("The Host field is missing or malformed; send it as host or host:port.")
    if set(_members(values, "content-encoding")) - {"identity", ""}:
        accepted = [("Accept-Encoding", "identity")]  # RFC 9110 §15.5.16
        raise errors.UnsupportedMediaType("The body is compressed; send it uncompressed.", headers=accepted)
    if version == (1, 1) and set(_members(values, "expect")) - {"100-continue", ""}:
        raise errors.ExpectationFailed("Only Expect: 100-continue is known here; send no other expectation.")


def _framing(values: Values, version: tuple[int, int]) -> Framing:
    """Decide how the body ends; two ways to tell are one too many (RFC 9112 §6.3)."""
    lengths, codings = _members(values, "content-length"), _members(values, "transfer-encoding")
    if codings and (lengths or version == (1, 0)):  # RFC 9112 §6.1: on 1.0 its framing is faulty
        raise errors.BadRequest("Transfer-Encoding is for HTTP/1.1 without Content-Length; send one of the two.")
    if codings == ["chunked"]:
        return Framing(Kind.CHUNKED)
    if "chunked" in codings[:-1] or "" in codings:  # twice, or not at the end: where does the body end? (§6.3)
        raise errors.BadRequest("Transfer-Encoding is not chunked alone; send chunked, once.")
    if codings:
        raise errors.NotImplementedHere("Only the transfer coding chunked is known here; send the body chunked.")
    if not lengths:
        return Framing(Kind.NONE)
    # The same length twice, as "5, 5" or on two lines, is one length (RFC 9110 §8.6).
    if len(set(lengths)) > 1 or not LENGTH.fullmatch(lengths[0]):
        raise errors.BadRequest("Content-Length is not one decimal number up to 19 digits; send the size in bytes.")
    return Framing(Kind.LENGTH, int(lengths[0]))


def _members(values: Values, name: str) -> list[str]:
    """Return what stands between commas, empty members too; no list read here has commas in quoted strings."""
    value = values.get(name)
    return [member.strip(" \t").lower() for member in value.split(",")] if value is not None else []


def require_body(request: Request, max_body: int) -> None:
    """Raise LengthRequired if no body was named, ContentTooLarge if one over `max_body` bytes was; before CONTINUE."""
    if request.framing.kind is Kind.NONE:
        raise errors.LengthRequired("The request has no body; send one, with Content-Length or chunked.")
    _check_size(request.framing.length, max_body)


def _check_size(size: int, max_body: int) -> None:
    if size > max_body:
        raise errors.ContentTooLarge(f"The body is over the {max_body} bytes taken here; send a smaller one.")


class BodyDecoder:
    """Takes one body off the front of the caller's unread bytes, and no byte of the next request."""

    def __init__(self, framing: Framing, max_body: int) -> None:
        """Start in front of the body. Raises ContentTooLarge if its length is over `max_body` bytes."""
        _check_size(framing.length, max_body)
        self.body = bytearray()
        self._max_body = max_body
        self._chunked = framing.kind is Kind.CHUNKED
        self._missing = framing.length  # bytes of data until the state changes; a chunk's CRLF counts
        self._state = BodyState.SIZE if self._chunked else BodyState.DATA if self._missing else BodyState.DONE
        self._line = bytearray()  # as much of a line as has come
        self._spare = MAX_HEAD  # bytes left for extensions and trailers: CVE-2023-39326 is 4 KiB of them a byte

    @property
    def done(self) -> bool:
        """Whether `body` is whole."""
        return self._state is BodyState.DONE

    def feed(self, buffer: bytearray) -> None:
        """Take what belongs to the body. Raises BadRequest, ContentTooLarge or HeaderFieldsTooLarge."""
        while buffer and not self.done:  # each turn takes a byte at least
            if self._state is BodyState.DATA:
                self._take_data(buffer)
            elif (line := self._take_line(buffer)) is not None:
                read = self._start_chunk if self._state is BodyState.SIZE else self._drop_trailer
                read(line)
            if self._spare < 0:
                raise errors.HeaderFieldsTooLarge("The body has too many chunk extensions or trailers; send none.")

    def _take_data(self, buffer: bytearray) -> None:
        data = buffer[: self._missing]
        del buffer[: len(data)]
        self.body += data
        self._missing -= len(data)
        if self._missing == 0 and self._chunked:
            if not self.body.endswith(b"\r\n"):
                raise errors.BadRequest("A chunk is not ended by CRLF; check that its size is that of its data.")
            del self.body[-2:]
        if self._missing == 0:
            self._state = BodyState.SIZE if self._chunked else BodyState.DONE

    def _take_line(self, buffer: bytearray) -> str | None:
        """Take a line, or as much of it as has come: then None."""
        end = buffer.find(b"\n", 0, MAX_CHUNK_LINE) + 1
        self._line += buffer[: end or MAX_CHUNK_LINE]
        del buffer[: end or MAX_CHUNK_LINE]
        if len(self._line) > MAX_CHUNK_LINE or (end and not self._line.endswith(b"\r\n")):
            raise errors.BadRequest("A line of the chunked body is too long or has no CRLF; check the chunk sizes.")
        if not end:
            return None
        line, self._line = self._line[:-2].decode("latin-1"), bytearray()
        return line

    def _start_chunk(self, line: str) -> None:
        match = CHUNK_LINE.fullmatch(line)
        if not match:
            raise errors.BadRequest("A chunk has no hexadecimal size; send its size in bytes, then CRLF.")
        size = int(match[1], 16)
        _check_size(len(self.body) + size, self._max_body)
        self._missing = size + len(b"\r\n")
        self._spare -= len(line) - len(match[1])
        self._state = BodyState.DATA if size else BodyState.TRAILERS

    def _drop_trailer(self, line: str) -> None:
        """Check a trailer field and forget it: none may be merged into the head (RFC 9110 §6.5.1)."""
        if line:
            _parse_field(line)
            self._spare -= max(len(line), MAX_HEAD // MAX_FIELDS)  # so there are at most MAX_FIELDS
        else:
            self._state = BodyState.DONE


@lru_cache(maxsize=1)
def imf_fixdate(seconds: int) -> str:
    """Write a time as HTTP does, in English whatever the locale (RFC 9110 §5.6.7). Made once a second."""
    at = time.gmtime(seconds)
    return (
        f"{DAYS[at.tm_wday]}, {at.tm_mday:02} {MONTHS[at.tm_mon - 1]} {at.tm_year} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )


@lru_cache
def status_line(status: int) -> str:
    return f"HTTP/1.1 {status:d} {HTTPStatus(status).phrase}"


def response_head(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return status line, Date and `fields`. Raises ValueError if a field is no Latin-1 or would split the head."""
    lines = [status_line(status), f"Date: {imf_fixdate(int(time.time()))}"]
    for name, value in fields:
        line = f"{name}: {value}"
        if ":" in name or not FIELD.fullmatch(line):
            raise ValueError(f"a response field must be one line, name and value: {name!r}")
        lines.append(line)
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


def chunk(payload: bytes) -> bytes:
    """Return one HTTP chunk. Raises ValueError if `payload` is empty, because that chunk is the last."""
    if not payload:
        raise ValueError("an empty chunk ends the body; send LAST_CHUNK for that")
    return b"%x\r\n%b\r\n" % (len(payload), payload)
