"""The journal of one stream as bytes: what its file holds, record by record. No I/O.

A file is MAGIC, a HEAD, EVENTS (whole frames, exactly as they are sent) and an END. LAST_EVENTS are those after which
none come; LOST stands where a stream went on without its journal. A record is a header and a payload, and each has its
own checksum: a header can be believed before its payload is read. Whoever reads believes nothing else: what is not as
it was written is Damaged.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar
from zlib import crc32

from .http1 import chunk
from .outputs import Answer, Dialect, dialect_of
from .sse import retry
from .stream import INTERRUPTED, interruption
from .tally import State

VERSION = 1
MAGIC = b"inferless-shim journal %d\n" % VERSION
ANY_MAGIC = re.compile(rb"inferless-shim journal ([0-9]{1,9})\n")
# Kind, number of the last event up to the record's end, length of the payload, its CRC-32; the CRC-32 of these.
HEADER = struct.Struct("<BQIII")
SUMMED = struct.Struct("<BQII")
PIECE = 5 * 1024
LENGTH = re.compile(rb"[1-9a-f][0-9a-f]*")  # of a chunk, as we write it

Raw = TypeVar("Raw")
Parsed = TypeVar("Parsed")
Bytes = bytes | bytearray | memoryview


class Damaged(Exception):
    """What was read is not what was written."""


class Kind(IntEnum):
    HEAD = 1
    EVENTS = 2
    END = 3
    LOST = 4
    LAST_EVENTS = 5  # after which none come: so that the stream is whole also if its END is not


EVENTS = (Kind.EVENTS, Kind.LAST_EVENTS)


@dataclass(frozen=True)
class Head:
    """What a stream is, noted as it begins. `created` is the wall clock's time, `retry` is in seconds.

    `dialect` is the dialect's kind, "" of an answer that is no stream. `key` and `fingerprint` are those of the
    Idempotency-Key that made it, as hexadecimal hashes; "" without one.
    """

    stream: str
    created: float
    owner: str
    dialect: str
    model: str
    detached: bool
    retry: float
    key: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class End:
    """How a stream ended, and when by the wall clock; `events` are its app's.

    `kept` is how many events are left of one that was interrupted; then `frame` is its last event, which tells so.
    """

    state: State
    ended: float
    events: int
    failure: tuple[str, str] | None = None
    cause: str = ""
    kept: int | None = None
    frame: bytes = b""
    answer: Answer = Answer()


# Written. -----------------------------------------------------------------------------------------------------------


def record(kind: Kind, last: int, payload: Bytes = b"") -> bytes:
    """Make a record of a payload, of less than 4 GiB."""
    return b"".join((header_of(kind, last, payload), payload))


def header_of(kind: Kind, last: int, payload: Bytes) -> bytes:
    """Make what stands before a payload."""
    told = kind, last, len(payload), checksum(payload)
    return HEADER.pack(*told, crc32(SUMMED.pack(*told)))


def checksum(payload: Bytes) -> int:
    """Return the CRC-32 of a payload, and keep the interpreter meanwhile: 20 µs for 64 KiB.

    Of more than 5 KiB at once `crc32` lets other threads run, and to go on again may take 5 ms each time, which a
    stream that hurries does not leave to those who keep up with it.
    """
    view, found = memoryview(payload), 0
    for start in range(0, len(view), PIECE):
        found = crc32(view[start : start + PIECE], found)
    return found


def head_record(head: Head) -> bytes:
    """Make what a file begins with."""
    return MAGIC + record(Kind.HEAD, 0, json.dumps(vars(head)).encode())


def end_record(end: End, last: int) -> bytes:
    """Make the last record of a file that holds events up to `last`, the frame of an interrupted one not counted."""
    told = {
        "state": end.state.name,
        "ended": end.ended,
        "events": end.events,
        "failure": end.failure,
        "cause": end.cause,
        "kept": end.kept,
        "type": end.answer.content_type,
        "fields": end.answer.fields,
        "frame": len(end.frame),
    }
    payload = b"%b\n%b%b" % (json.dumps(told).encode(), end.frame, end.answer.body)
    return record(Kind.END, last + bool(end.frame), payload)


def interrupted(head: Head, kept: int, now: float) -> End:
    """Make the end of a stream whose process has died, of which `kept` events are left. Raises ValueError.

    Its last event is part of the record, so that a death in the middle of writing it leaves no half of an end.
    """
    lines, failure = interruption(dialect_of(head.dialect, head.model), kept)
    event = b"id: %b-%d\n%b%b" % (head.stream.encode(), kept + 1, b"" if kept else retry(head.retry), lines or b"")
    frame = b"" if lines is None else chunk(event)
    return End(State.FAILED, now, kept, failure, INTERRUPTED, kept, frame)


# Read. --------------------------------------------------------------------------------------------------------------


def read_header(data: bytes, at: int = 0) -> tuple[int, int, int, int]:
    """Read what stands before a payload: kind, last event, length, checksum. Raises Damaged."""
    try:
        kind, last, length, crc, own = HEADER.unpack_from(data, at)
    except struct.error:
        raise Damaged("half a record") from None
    if crc32(data[at : at + SUMMED.size]) != own:
        raise Damaged("a record's header is not what was written")
    return kind, last, length, crc


def read_head(payload: bytes) -> Head:
    """Read a HEAD's payload. Raises Damaged."""
    return _parsed(_head, payload)


def read_end(payload: bytes) -> End:
    """Read an END's payload. Raises Damaged."""
    return _parsed(_end, payload)


def frame_ends(frames: bytes, stream: str, first: int) -> list[int]:
    """Return where each frame of an EVENTS payload ends, the first of which is event `first`.

    Raises Damaged at one that is not the whole chunk of the event whose turn it is (RFC 9112 §7.1).
    """
    found: list[int] = []
    prefix, at, number = b"id: %b-%%d\n" % stream.encode(), 0, first
    while at < len(frames):
        start = frames.find(b"\r\n", at, at + 18) + 2
        length = frames[at : start - 2] if start > 1 else b""
        at = start + int(length, 16) + 2 if LENGTH.fullmatch(length) else 0
        if not frames.startswith(prefix % number, start) or frames[at - 2 : at] != b"\r\n":
            raise Damaged(f"event {number} is not whole")
        found.append(at)
        number += 1
    return found


def payloads(frames: bytes) -> bytes:
    """Take whole frames out of their chunks. For HTTP/1.0, which has none."""
    found, at = [], 0
    while at < len(frames):
        start = frames.index(b"\r\n", at) + 2
        stop = start + int(frames[at : start - 2], 16)
        found.append(frames[start:stop])
        at = stop + 2
    return b"".join(found)


def dialect(head: Head) -> Dialect | None:
    """Return the dialect of a stream's events. Raises Damaged for one that this version does not know."""
    return _parsed(lambda head: dialect_of(head.dialect, head.model), head)


def _head(payload: bytes) -> Head:
    told = json.loads(payload)
    head = Head(**told)
    kinds: dict[str, type | tuple[type, ...]] = {"created": (int, float), "retry": (int, float), "detached": bool}
    if not all(isinstance(value, kinds.get(name, str)) for name, value in told.items()):
        raise ValueError
    return head


def _end(payload: bytes) -> End:
    line, _, rest = payload.partition(b"\n")
    told: dict[str, Any] = json.loads(line)
    failure, cut = told["failure"], int(told["frame"])
    fields = tuple((str(name), str(value)) for name, value in told["fields"])
    return End(
        State[told["state"]],
        float(told["ended"]),
        int(told["events"]),
        None if failure is None else (str(failure[0]), str(failure[1])),
        str(told["cause"]),
        None if told["kept"] is None else int(told["kept"]),
        rest[:cut],
        Answer(rest[cut:], str(told["type"]), fields),
    )


def _parsed(parse: Callable[[Raw], Parsed], data: Raw) -> Parsed:
    try:
        return parse(data)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Damaged("a record cannot be read") from None
