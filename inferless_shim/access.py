"""What goes on at the door: requests, each of which is one line of the log when its answer is over, and connections.

No I/O. A request's query never comes here, so that no value in it reaches a log.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from enum import Enum
from typing import Any

from .http1 import Request
from .metrics import Counter
from .stream import Stream
from .subscriber import Progress, Subscriber
from .tracing import Trace

log = logging.getLogger(__name__)

MESSAGE = "%(method)s %(path)s %(status)s"
IN_COMMON = vars(logging.LogRecord(log.name, logging.INFO, __file__, 0, MESSAGE, None, None, "log"))

# Labels are few, whatever clients send.
METHODS = frozenset(("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"))
OTHER = "other"
# How a resume ended, by the status of its answer.
RESUMES = {200: "followed", 204: "204", 400: "400", 404: "404", 410: "410"}
STALLED, LATE_HEAD, LATE_BODY = "stalled", "head_timeout", "body_timeout"
# A stream's id, wherever it is: without keys, who knows it may follow and cancel the stream.
STREAM_ID = re.compile("([0-9a-f]{8})[0-9a-f]{24}")


class End(Enum):
    """How a request ended, if not plainly with a reply, in the log's words."""

    WHOLE = "to its end"
    SHUT_DOWN = "shut down"
    LEFT = "client left"
    STALLED = "stalled"
    BEHIND = "fell behind"


class Access:
    """One request, from its head to the end of its answer. Its handler thread alone writes to it.

    `route` is the template of its path, `end` None unless there is an End, `status` None before an answer began.
    """

    def __init__(self, address: str, request_id: str, request: Request | None = None) -> None:
        self.began = time.monotonic()
        self.address = address
        self.request_id = request_id
        self.method = request.method if request is not None else "-"
        self.path = request.path if request is not None else "-"
        self.route = OTHER
        self.status: int | None = None
        self.replied = 0  # bytes of a body that is no stream
        self.resumes = False
        self.body_id: str | None = None  # what the body calls the request
        self.key: str | None = None  # the name of the API key
        self.trace: Trace | None = None
        self.error: str | None = None  # what the client was told
        self.end: End | None = None
        self.stream: Stream | None = None
        self._subscriber: Subscriber | None = None
        self._head = 0  # bytes that it sends and that are no body

    def follows(self, stream: Stream, subscriber: Subscriber, *, head: int) -> None:
        """Note who sends this answer from now on, with a head of so many bytes."""
        self._head = head  # first: another thread may ask for `bytes` at any time
        self.stream, self._subscriber = stream, subscriber

    def followed(self, progress: Progress, *, stalled: bool) -> None:
        """Note how following ended."""
        assert self.stream is not None
        if progress is not Progress.ENDED:
            self.end = End.BEHIND if progress is Progress.OVERRUN else End.STALLED if stalled else End.LEFT
        elif self.stream.dialect is not None:
            self.end = End.SHUT_DOWN if self.stream.cause == "shutting_down" else End.WHOLE

    @property
    def bytes(self) -> int:
        """How many bytes of body were sent so far, the framing of chunks included. Any thread."""
        followed = max(0, self._subscriber.sent - self._head) if self._subscriber is not None else 0
        return self.replied + followed

    @property
    def following(self) -> tuple[Stream, Subscriber] | None:
        """The stream that is sent now, if it is one. Any thread."""
        if self.stream is None or self._subscriber is None or self.stream.dialect is None or self.end is not None:
            return None
        return self.stream, self._subscriber

    def log(self) -> None:
        """Write the line."""
        if not log.isEnabledFor(logging.INFO):
            return
        stream = self.stream if self.stream is not None and self.stream.dialect is not None else None
        fields = {
            "method": self.method,
            "path": without_ids(self.path),
            "status": self.status,
            "client": self.address or None,
            "route": self.route,
            "bytes": self.bytes,
            "seconds": round(time.monotonic() - self.began, 6),
            "request": self.request_id,
            "body_id": self.body_id if self.body_id != self.request_id else None,
            "stream": stream.id[:8] if stream is not None else None,
            "end": self.end.value if self.end is not None else None,
            "events": stream.tally().events if stream is not None else None,
            "cause": stream.cause or None if stream is not None else None,
            "key": self.key or None,
            "trace": self.trace.id if self.trace is not None else None,
            "error": without_ids(self.error) if self.error is not None else None,
        }
        log.handle(line_of(fields))


def without_ids(text: str) -> str:
    """Cut what may be a stream's id to its first 8 characters."""
    return STREAM_ID.sub(r"\1…", text)


def line_of(fields: dict[str, Any]) -> logging.LogRecord:
    """Make the record of a line: as `log.info` does, but for what it looks up of its caller, thread and process."""
    record, now = logging.LogRecord.__new__(logging.LogRecord), time.time()
    vars(record).update(IN_COMMON, args=fields, created=now, msecs=now % 1 * 1000)
    return record


class Traffic:
    """Requests and connections, counted. Any thread."""

    def __init__(self) -> None:
        self.requests = Counter("route", "method", "status")
        self.resumes = Counter("outcome")
        self.connections = Counter("outcome")  # accepted, refused, ended
        self.faults = Counter("fault")
        for outcome in RESUMES.values():
            self.resumes.add(outcome, by=0)  # so that a first one is seen as one more
        for fault in (STALLED, LATE_HEAD, LATE_BODY):
            self.faults.add(fault, by=0)
        self._lock = threading.Lock()  # guards what follows
        self._live: set[Access] = set()
        self._sent = 0  # bytes of body, of requests that are over

    def begin(self, access: Access) -> None:
        with self._lock:
            self._live.add(access)

    def end(self, access: Access) -> None:
        """Count a request whose answer is over, and log it."""
        with self._lock:
            self._live.discard(access)
            self._sent += access.bytes
        method = access.method if access.method in METHODS else OTHER
        self.requests.add(access.route, method, "none" if access.status is None else str(access.status))
        if access.resumes:
            self.resumes.add(RESUMES.get(access.status or 0, OTHER))
        if access.end is End.STALLED:
            self.faults.add(STALLED)
        access.log()

    def late(self, request: Request | None) -> None:
        """Count a head or a body that did not come in time."""
        self.faults.add(LATE_HEAD if request is None else LATE_BODY)

    def read(self) -> tuple[list[Access], int]:
        """Return the requests that are being answered, and how many bytes of body all others were sent."""
        with self._lock:
            return list(self._live), self._sent
