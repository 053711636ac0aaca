"""One connection: requests are read one after the other, answered, and streams are followed on it.

Runs on the connection's own handler thread, which alone waits on the socket and alone closes it, after `detach`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import struct
import time
from functools import partial

from . import http1, origins, sse
from .errors import RequestTimeout, ShimError, Unavailable
from .follow import Follower, Link, prepare
from .http1 import Request, response_head
from .outcomes import (
    EVENT_STREAM,
    Await,
    Exchange,
    Follow,
    Outcome,
    Reply,
    answer,
    error_reply,
    stream_fields,
)
from .routes import REPOSITORY, Routes, usable_id, wants_events
from .service import Service
from .stream import Stream
from .subscriber import Progress, Subscriber

log = logging.getLogger(__name__)

RECEIVE = 64 * 1024
# How long and how much of an unread body is thrown away before a close, so that the reply is not lost to a reset.
LINGER_TIME, LINGER_BYTES = 2.0, 1024 * 1024


class ClientGone(Exception):
    """The client closed, or took nothing for too long: there is nobody to answer."""


class Handler:
    """A client's connection, which `serve` brings to its end and `close` closes.

    `waiting` is True while nothing of the next request has come, which is when a drain may end it.
    """

    def __init__(self, sock: socket.socket, service: Service, routes: Routes) -> None:
        self.sock = sock
        self.service = service
        self.settings = service.settings
        self.routes = routes
        self.waiting = False
        self._unread = bytearray()
        self._link: Link | None = None
        self._served = 0
        self._body_read = False

    def serve(self) -> None:
        """Serve requests until the connection is done."""
        try:
            while self._serve_one():
                self._served += 1
        except (ClientGone, OSError) as error:
            log.debug("connection ended: %s", error)

    def close(self) -> None:
        """Close the connection. Runs on the handler thread, once no other thread knows the handler any more."""
        if self._link is not None:
            self._link.close()
        self.sock.close()

    def end_if_waiting(self, *, new: bool = False) -> None:
        """End a connection that waits for a request, for its first only if `new`: its next read finds the end.

        Runs on the main thread. If a request comes at this very moment, it is served, but a stream that it follows
        breaks, because the end looks like the client's; the client comes back for it.
        """
        if self.waiting and (new or self._served):
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)

    # ---- One request

    def _serve_one(self) -> bool:
        """Read a request and answer it; return whether another may follow."""
        request_id = os.urandom(8).hex()
        request: Request | None = None
        self._body_read = False
        try:
            request = self._read_head()
            if request is None:
                return False
            request_id = usable_id(request.field("x-request-id")) or request_id
            outcome = self._dispatch(request, request_id)
            keep = self._carry_out(request, request_id, outcome)
        except ShimError as error:
            keep = self._refuse(request, request_id, error)
        return keep

    def _dispatch(self, request: Request, request_id: str) -> Outcome:
        """Decide what a request gets: by its head, then by its body. Raises ShimError."""
        self._body_read = request.framing.kind is http1.Kind.NONE
        origins.check(request, self.settings.cors)
        endpoint, params = self.routes.find(request)
        if request.method == "POST" and not request.path.startswith(REPOSITORY):
            http1.require_body(request, self.settings.max_body)
        body = self._read_body(request)
        if request.method == "OPTIONS" and request.field("access-control-request-method"):
            return Reply(204, fields=list(origins.PREFLIGHT))
        self._open_link()
        try:
            return endpoint(Exchange(request, body, request_id, params))
        except ShimError:
            raise
        except Exception:
            log.exception("%s %s failed (request %s)", request.method, request.path, request_id)
            raise ShimError("The server failed at this request; its log says why.") from None

    def _open_link(self) -> None:
        """Make what a follower waits with, before anything is started that it is for. Raises Unavailable (503)."""
        try:
            self._link = self._link or Link(self.sock)
        except OSError as error:
            log.error("a request was refused: %s", error)
            raise Unavailable("The server has no descriptors left; try again shortly.") from None

    # ---- Reading

    def _read_head(self) -> Request | None:
        """Read a request head; None if the client ended the connection, or was silent, between two requests."""
        self.waiting = not self._unread
        if not self._unread and not self._receive_first():
            return None
        self.waiting = False
        deadline = time.monotonic() + self.settings.read_timeout
        searched = 0
        while (length := http1.find_head(self._unread, searched)) is None:
            searched = len(self._unread)
            if not self._receive(deadline):
                if time.monotonic() >= deadline:
                    raise RequestTimeout("The head of the request did not come in time.")
                return None
        head = bytes(self._unread[:length])
        del self._unread[:length]
        return http1.parse_head(head)

    def _receive_first(self) -> bool:
        """Wait for the first bytes of a request; a drain waits for a connection's first request alone."""
        if not self._served:
            return self._receive(time.monotonic() + self.settings.read_timeout)
        # Looked at after `waiting` was set: either this sees the drain, or the drain sees that.
        return not self.service.draining and self._receive(time.monotonic() + self.settings.idle_timeout)

    def _read_body(self, request: Request) -> bytes:
        decoder = http1.BodyDecoder(request.framing, self.settings.max_body)
        if request.expects_continue and not self._unread:
            self._send(http1.CONTINUE)
        deadline = time.monotonic() + self.settings.read_timeout
        decoder.feed(self._unread)
        while not decoder.done:
            if not self._receive(deadline):
                if time.monotonic() >= deadline:
                    raise RequestTimeout("The body of the request did not come in time.")
                raise ClientGone("in the middle of a body")
            decoder.feed(self._unread)
        self._body_read = True
        return bytes(decoder.body)

    def _receive(self, deadline: float) -> bool:
        """Add what has come to the unread bytes; False at the deadline or the end of the connection."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(RECEIVE)
        except TimeoutError:
            return False
        self._unread += data
        return bool(data)

    # ---- Answering

    def _carry_out(self, request: Request, request_id: str, outcome: Outcome) -> bool:
        """Answer; return whether the connection can serve another request. Raises the ShimError of a failed answer."""
        if isinstance(outcome, Follow):
            return self._follow(request, request_id, outcome)
        if isinstance(outcome, Await):
            outcome = self._await(outcome)
        keep = self._keeps(request)
        self._reply(request, request_id, outcome, keep)
        return keep

    def _refuse(self, request: Request | None, request_id: str, error: ShimError) -> bool:
        """Answer with an error; return whether the connection is still good, which takes a body read to its end."""
        method, path = (request.method, request.path) if request is not None else ("-", "-")
        log.info("%s %s %d %s", method, path, error.status, error)
        if isinstance(error, Unavailable) and request is not None and wants_events(request):
            # Any status but 200 is final to an EventSource: "not now" is the wish that it come back.
            retry = sse.retry(self.settings.retry)
            self._reply(request, request_id, Reply(200, retry, EVENT_STREAM), keep=False)
            return False
        keep = self._body_read and request is not None and self._keeps(request)
        self._reply(request, request_id, error_reply(error), keep)
        if not self._body_read:
            self._close_gently()
        return keep

    def _keeps(self, request: Request) -> bool:
        """Whether the connection may serve another request after this one."""
        return request.keep_alive and not self.service.draining

    def _reply(self, request: Request | None, request_id: str, reply: Reply, keep: bool) -> None:
        head_only = request is not None and request.method == "HEAD"
        fields = [*reply.fields, ("X-Request-Id", request_id), *origins.fields(request, self.settings.cors)]
        if reply.status != 204:
            fields.append(("Content-Type", reply.content_type))
            if reply.body or not head_only:  # HEAD says no length that it does not know (RFC 9110 §8.6)
                fields.append(("Content-Length", str(len(reply.body))))
        if not keep:
            fields.append(("Connection", "close"))
        head = response_head(reply.status, fields)
        self._send(head if head_only else head + reply.body)

    def _send(self, data: bytes) -> None:
        """Send all of it. The client may be as slow as it likes, if it takes something within `stall` each time."""
        self.sock.settimeout(self.settings.stall)
        left = memoryview(data)
        while left:  # not sendall, whose timeout is for all of the data together
            left = left[self.sock.send(left) :]

    def _close_gently(self) -> None:
        """Say that no more comes, and read on for a moment: a reset now could destroy the reply on its way."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            deadline, left = time.monotonic() + LINGER_TIME, LINGER_BYTES
            while left > 0 and (wait := deadline - time.monotonic()) > 0:
                self.sock.settimeout(wait)
                data = self.sock.recv(RECEIVE)
                if not data:
                    return
                left -= len(data)

    # ---- Streams

    def _follow(self, request: Request, request_id: str, outcome: Follow) -> bool:
        """Send the head, follow to the end; return whether the connection is still good."""
        stream = outcome.stream
        pulled = request.version == (1, 0)
        progress = self._attach_and_follow(
            stream,
            outcome.number,
            head=self._stream_head(request, request_id, outcome),
            pulled=pulled,
            heartbeat=self.settings.heartbeat,
            tell_place=outcome.tell_place,
        )
        if progress is None:
            return self._carry_out(request, request_id, Reply(204, fields=stream_fields(stream)))
        self._log(request, stream, progress)
        if progress is not Progress.ENDED:
            return False
        if pulled:
            self._reset_on_close(False)
        else:
            self._send(http1.LAST_CHUNK)
        return self._keeps(request)

    def _await(self, outcome: Await) -> Reply:
        """Wait for an answer that is not a stream. Raises its ShimError, or ClientGone."""
        stream = outcome.stream
        progress = None
        try:
            progress = self._attach_and_follow(stream, 0, head=b"", pulled=True, heartbeat=math.inf)
        finally:
            if not stream.keyed:  # nobody else can ever ask for it
                stream.fail("cancelled", "The client has gone.")
                self.service.store.forget(stream)
        if progress not in (Progress.ENDED, None):
            raise ClientGone("before its answer was ready")
        return answer(stream)

    def _attach_and_follow(
        self,
        stream: Stream,
        number: int,
        *,
        head: bytes,
        pulled: bool,
        heartbeat: float,
        tell_place: bool = False,
    ) -> Progress | None:
        """Attach after event `number`, let the job run, follow to the end; None if nothing follows that event.

        Whatever ends it, the socket is detached before it can be closed.
        """
        assert self._link is not None
        prepare(self.sock, self.settings.stall)
        subscriber = Subscriber(self.sock.send, self._link.waker.wake, head=head, pulled=pulled)
        if not stream.attach(subscriber, number):
            return None
        try:
            if pulled and head:
                self._reset_on_close(True)
            follower = Follower(
                stream,
                subscriber,
                self._link,
                heartbeat=heartbeat,
                stall=self.settings.stall,
                place=partial(self.service.engine.position, stream),
                progress=tell_place,
            )
            follower.advance()  # the head goes out before infer runs
            self.service.engine.notify()
            return follower.follow()
        finally:
            stream.detach(subscriber)

    def _stream_head(self, request: Request, request_id: str, outcome: Follow) -> bytes:
        chunked = request.version == (1, 1)
        fields = [
            ("Content-Type", EVENT_STREAM),
            ("Cache-Control", "no-cache, no-transform"),
            ("X-Accel-Buffering", "no"),
            *stream_fields(outcome.stream),
            ("X-Request-Id", request_id),
            *origins.fields(request, self.settings.cors),
        ]
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        if not self._keeps(request):
            fields.append(("Connection", "close"))
        head = response_head(200, fields)
        if not outcome.id_first:
            return head
        first = sse.id_only(outcome.stream.id)
        return head + (http1.chunk(first) if chunked else first)

    def _reset_on_close(self, reset: bool) -> None:
        """Choose how the connection ends, whoever ends it: were the process to die, the kernel would.

        HTTP/1.0 has no final chunk to leave out: an ordinary end is what a client, or a proxy, takes for success.
        """
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))

    def _log(self, request: Request, stream: Stream, progress: Progress) -> None:
        ends = {
            Progress.ENDED: "to its end",
            Progress.OVERRUN: "until it fell behind what is kept",
        }
        log.info(
            "%s %s followed %s %s, %d events", request.method, request.path, stream.id[:8],
            ends.get(progress, "until the client left"), stream.log.last,
        )  # fmt: skip
