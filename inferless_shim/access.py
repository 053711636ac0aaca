"""What goes on at the door: requests, each of which is one line of the log when its answer is over, and connections.

No I/O. A request's query never comes here, so that no value in it reaches a log.
"""

from __future__ import annotations

import logging
import threading
import time

from .http1 import Request
from .metrics import Counter
from .stream import Stream
from .subscriber import Progress, Subscriber
from .tracing import Trace

log = logging.getLogger(__name__)

MESSAGE = "%(method)s %(path)s %(status)s"

# Labels are few, whatever clients send.
METHODS = frozenset(("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"))
OTHER = "other"
# How a resume ended, by the status of its answer.
RESUMES = {200: "followed", 204: "204", 400: "400", 404: "404", 410: "410"}
LEFT, STALLED, BEHIND = "client left", "stalled", "fell behind"
LATE_HEAD, LATE_BODY = "head_timeout", "body_timeout"


class Access:
    """One request, from its head to the end of its answer. Its handler thread alone writes to it.

    `route` is the template of its path, `end` how it ended if that is not plain, `status` None before an answer began.
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
        self.end: str | None = None
        self.stream: Stream | None = None
        self._subscriber: Subscriber | None = None
        self._head = 0  # bytes of it that are no body

    def follows(self, stream: Stream, subscriber: Subscriber) -> None:
        """Note who sends this answer from now on."""
        self.stream, self._subscriber = stream, subscriber
        self._head = len(subscriber.pending)

    def followed(self, progress: Progress, *, stalled: bool) -> None:
        """Note how following ended."""
        assert self.stream is not None
        if progress is not Progress.ENDED:
            self.end = BEHIND if progress is Progress.OVERRUN else STALLED if stalled else LEFT
        elif self.stream.dialect is not None:
            self.end = "shut down" if self.stream.cause == "shutting_down" else "to its end"

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
            "path": self.path,
            "status": self.status,
            "client": self.address or None,
            "route": self.route,
            "bytes": self.bytes,
            "seconds": round(time.monotonic() - self.began, 6),
            "request": self.request_id,
            "body_id": self.body_id if self.body_id != self.request_id else None,
            "stream": stream.id[:8] if stream is not None else None,
            "end": self.end,
            "events": stream.log.last if stream is not None else None,
            "cause": stream.cause or None if stream is not None else None,
            "key": self.key or None,
            "trace": self.trace.id if self.trace is not None else None,
            "error": self.error,
        }
        # As `log.info` does, but for the search of the stack for its caller, which is always this.
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, MESSAGE, (fields,), None, "log"))


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
        if access.end == STALLED:
            self.faults.add(STALLED)
        access.log()

    def late(self, request: Request | None) -> None:
        """Count a head or a body that did not come in time."""
        self.faults.add(LATE_HEAD if request is None else LATE_BODY)

    def read(self) -> tuple[list[Access], int]:
        """Return the requests that are being answered, and how many bytes of body all others were sent."""
        with self._lock:
            return list(self._live), self._sent
