"""What a request leads to: a reply, a stream to follow, an answer to await. `routes` decides it, `handler` does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import outputs
from .admission import Client
from .budget import Hold
from .errors import AppFailed, BadRequest, InferTimeout, ShimError, Unavailable
from .http1 import Request
from .outputs import JSON
from .stream import INTERRUPTED, Stream
from .tracing import Trace

EVENT_STREAM = "text/event-stream; charset=utf-8"
Fields = list[tuple[str, str]]


@dataclass
class Exchange:
    """A request with its body, the names that its path gave, and who it comes from.

    For the log, what serves it notes if it goes on with a stream, and what the body calls the request.
    """

    request: Request
    body: bytes
    request_id: str
    params: dict[str, str]
    hold: Hold
    client: Client
    trace: Trace | None = None
    resumes: bool = False
    body_id: str | None = None


@dataclass
class Reply:
    """A response that is ready."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    fields: Fields = field(default_factory=list)


@dataclass
class Follow:
    """A stream to attach the client to, after event `number`."""

    stream: Stream
    number: int
    id_first: bool = False
    tell_place: bool = False


@dataclass
class Await:
    """An answer that is no stream: wait until its stream has ended, then reply with what was rendered."""

    stream: Stream


Outcome = Reply | Follow | Await


def followed(stream: Stream, number: int, *, id_first: bool = False) -> Outcome:
    """Follow from event `number`, if anything comes after it."""
    if not stream.can_follow(number):
        return nothing_follows(stream, number)
    return Follow(stream, number, id_first and number == 0)


def nothing_follows(stream: Stream, number: int) -> Reply:
    """Answer a client that has all events: 204, which makes an EventSource stop.

    One that has seen more than is left of an interrupted stream is told so instead (CONTRACT.md §8).
    """
    told = stream.told_past(number)
    if told is None:
        return Reply(204, fields=stream_fields(stream))
    return Reply(200, told, EVENT_STREAM, [("Cache-Control", "no-cache, no-transform"), *stream_fields(stream)])


def accepted(stream: Stream, location: str) -> Reply:
    """Answer `Prefer: respond-async` (RFC 7240 §4.1); what follows the stream at `location` needs no header."""
    fields = [("Location", location), ("Preference-Applied", "respond-async"), *stream_fields(stream)]
    return Reply(202, outputs.encode({"stream": stream.id, "location": location}), fields=fields)


def stream_fields(stream: Stream) -> Fields:
    return [("Stream-Id", stream.id), ("Content-Location", f"/streams/{stream.id}")]


def answer(stream: Stream) -> Reply:
    """Make the reply of an answer that has ended. Raises the ShimError of one that failed."""
    if stream.failure is None:
        return Reply(200, stream.answer.body, stream.answer.content_type, list(stream.answer.fields))
    code, message = stream.failure
    if code == "timeout":
        raise InferTimeout(message)
    if code in ("cancelled", "shutting_down", INTERRUPTED):
        raise Unavailable(message)
    if code == BadRequest.code:  # it asked for an output that the app does not have
        raise BadRequest(message)
    raise AppFailed(message)


def json_reply(value: dict[str, Any]) -> Reply:
    return Reply(200, outputs.encode(value))


def error_reply(error: ShimError, request_id: str, **more: str) -> Reply:
    """Tell an error, with the id that the log knows the request by, and what else there is to tell."""
    return Reply(
        error.status, outputs.encode({**error.body(), **more, "request_id": request_id}), fields=list(error.headers)
    )


def usable_id(text: str | None) -> str | None:
    """Return a client's request id if it can stand in a header and in a log."""
    return text if text and len(text) <= 128 and text.isascii() and text.isprintable() else None
