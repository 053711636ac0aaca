"""Server-Sent Events as bytes (WHATWG HTML §9.2): what goes out, and the `Last-Event-ID` that comes in. No I/O.

An event id is `<stream>-<n>`: the stream's 128 random bits, a dash, the event's number, counted from 1; `<stream>-0` is
the position before the first event. Lines end in LF alone, and no block has only an `id:` or only a `retry:`, because
several SDKs make an empty event of it; `id_only` is the one exception, for readers that are known to cope.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from .errors import BadRequest

EVENT_ID = re.compile(r"([0-9A-Za-z._-]{1,107})-([0-9]{1,20})")


class EventId(NamedTuple):
    """Where a client is: `number` events of `stream` have reached it."""

    stream: str
    number: int


def new_stream_id() -> str:
    """Make an id that cannot be guessed: whoever knows it can read the stream."""
    return os.urandom(16).hex()


def parse_event_id(text: str) -> EventId:
    """Read a last event id. Raises BadRequest (400) if it is none of ours in form."""
    match = EVENT_ID.fullmatch(text)
    if not match:
        raise BadRequest("The last event id is malformed; send back the id of the last event as it came: <stream>-<n>.")
    return EventId(match[1], int(match[2]))


def body(data: bytes, event: str | None = None) -> bytes:
    """Dress JSON text (one line, UTF-8) as an event's lines after its id, blank line included."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data) if event else b"data: %b\n\n" % data


def retry(seconds: float) -> bytes:
    """Ask the client to wait this long before it reconnects (whole milliseconds)."""
    return b"retry: %d\n" % round(seconds * 1000)


def heartbeat(place: int | None = None) -> bytes:
    """Return a comment that keeps a connection alive; while its request waits it says its `place` in the queue.

    One newline, not two: with a blank line after it, openai-python raises and two other clients deliver an empty event.
    """
    return b": ka\n" if place is None else b": ka, place %d in the queue\n" % place


def id_only(stream: str) -> bytes:
    """Tell an EventSource where it is before the first event, so that even a cut before that is resumable."""
    return b"id: %b-0\n\n" % stream.encode()
