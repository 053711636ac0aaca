"""One connection's requests: each is dispatched, answered, and its stream followed, one after the other. No sockets.

Runs on the connection's own handler thread, which alone waits on it and alone closes it, after `detach`.
"""

from __future__ import annotations

import logging
import math
import os
from functools import partial

from . import http1, origins, sse
from .access import LEFT, OTHER, STALLED, Access
from .admission import Client
from .budget import Hold
from .connection import ClientGone, Connection, Stalled
from .errors import RequestTimeout, ShimError, Unavailable
from .follow import Follower, Link
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
from .reader import Reader
from .routes import REPOSITORY, Routes, usable_id, wants_events
from .service import Service
from .stream import Stream
from .subscriber import Progress, Subscriber
from .tracing import read_traceparent

log = logging.getLogger(__name__)


class Handler:
    """A client's connection, which `serve` brings to its end and `close` closes."""

    def __init__(self, connection: Connection, service: Service, routes: Routes) -> None:
        self.connection = connection
        self.service = service
        self.settings = service.settings
        self.routes = routes
        self.reader = Reader(connection, service.settings, lambda: service.draining)
        self._link: Link | None = None
        self._guest: str | None = None  # for whom a trusted proxy speaks
        self._answered = False  # whether the last request has its answer, to its end

    def serve(self) -> None:
        """Serve requests until the connection is done."""
        try:
            self.reader.start()
            while self._serve_one():
                self._answered = False
            if self._answered:  # what has come behind the last request would reset its answer (RFC 9112 §9.6)
                self.reader.waiting = True  # a drain need not wait for this
                self.connection.close_gently()
        except (ClientGone, OSError) as error:
            log.debug("connection ended: %s", error)

    def close(self) -> None:
        """Close the connection. Runs on the handler thread, once no other thread knows the handler any more."""
        if self._link is not None:
            self._link.close()
        self.connection.close()

    # ---- One request

    def _serve_one(self) -> bool:
        """Read a request and answer it; return whether another may follow."""
        request: Request | None = None
        refused: ShimError | None = None
        try:
            request = self.reader.read_head()
            if request is None:
                return False
        except ShimError as error:
            refused = error
        access = self._access = self._note(request)
        self.service.traffic.begin(access)
        try:
            if request is None:
                assert refused is not None
                return self._refuse(None, access.request_id, refused)
            return self._answer(request, access.request_id)
        except (ClientGone, OSError) as gone:
            access.end = STALLED if isinstance(gone, Stalled) else LEFT
            raise
        finally:
            self.service.traffic.end(access)
            del self._access  # or an idle connection would keep a stream that is forgotten

    def _note(self, request: Request | None) -> Access:
        """Begin what the log will say of a request, or of a head that was none."""
        request_id = usable_id(request.field("x-request-id")) if request is not None else None
        access = Access(self.connection.address, request_id or os.urandom(8).hex(), request)
        if request is not None:
            access.route = self.routes.template(request.path) or OTHER
            access.trace = read_traceparent(request.field("traceparent"))
        return access

    def _answer(self, request: Request, request_id: str) -> bool:
        hold = self._hold = self.service.budget.hold()
        try:
            try:
                outcome = self._dispatch(request, request_id, hold)
                hold.release()  # what its job needs, that has
                self.service.budget.tidy()
                return self._carry_out(request, request_id, outcome)
            except ShimError as error:
                refused = error
            # What it was raised from knows the body, which is to be gone before the client is told to try again.
            refused.__traceback__ = refused.__context__ = None
            hold.release()
            self.service.budget.tidy()
            return self._refuse(request, request_id, refused)
        finally:
            hold.release()
            if self._guest is not None:
                self.service.clients.leave(self._guest)
                self._guest = None

    def _dispatch(self, request: Request, request_id: str, hold: Hold) -> Outcome:
        """Decide what a request gets: by its head, then by its body. Raises ShimError."""
        client = self._admit(request)
        endpoint, params = self.routes.find(request)
        if request.method == "POST" and not request.path.startswith(REPOSITORY):
            http1.require_body(request, self.settings.max_body)
        body = self.reader.read_body(request, hold)
        self._open_link()
        exchange = Exchange(request, body, request_id, params, hold, client, self._access.trace)
        try:
            return endpoint(exchange)
        except ShimError:
            raise
        except Exception:
            log.exception("%s %s failed (request %s)", request.method, request.path, request_id)
            raise ShimError("The server failed at this request; its log says why.") from None
        finally:
            self._access.resumes, self._access.body_id = exchange.resumes, exchange.body_id

    def _admit(self, request: Request) -> Client:
        """Return who asks, and note it for the log. Raises Forbidden or Unauthorized."""
        admission = self.service.admission
        address, scheme = admission.seen(request, self.connection.address, secure=self.connection.secure)
        self._access.address = address
        self._enter(address)
        client = admission.admit(request, address, scheme)
        self._access.key = client.name
        return client

    def _enter(self, address: str) -> None:
        """Count a client that a proxy speaks for, as long as its request is served. Raises Unavailable (503)."""
        if address == self.connection.address:  # its connection is counted
            return
        if not self.service.clients.enter(address):
            raise Unavailable(
                "There are too many requests from this address; try again shortly (--max-connections-per-client)."
            )
        self._guest = address

    def _open_link(self) -> None:
        """Make what a follower waits with, before anything is started that it is for. Raises Unavailable (503)."""
        try:
            self._link = self._link or Link(self.connection)
        except OSError as error:
            log.error("a request was refused: %s", error)
            raise Unavailable("The server has no descriptors left; try again shortly.") from None

    # ---- Answering

    def _carry_out(self, request: Request, request_id: str, outcome: Outcome) -> bool:
        """Answer; return whether the connection can serve another request. Raises the ShimError of a failed answer."""
        if isinstance(outcome, Follow):
            return self._follow(request, request_id, outcome)
        if isinstance(outcome, Await):
            outcome = self._await(outcome)
            self._hold.cover_answer(len(outcome.body))
        keep = self._keeps(request)
        self._reply(request, request_id, outcome, keep)
        return keep

    def _refuse(self, request: Request | None, request_id: str, error: ShimError) -> bool:
        """Answer with an error; return whether the connection is still good, which takes a body read to its end."""
        self._access.error = error.logged
        if isinstance(error, RequestTimeout):
            self.service.traffic.late(request)
        if isinstance(error, Unavailable) and request is not None and wants_events(request):
            # Any status but 200 is final to an EventSource: "not now" is the wish that it come back.
            retry = sse.retry(self.settings.retry)
            self._reply(request, request_id, Reply(200, retry, EVENT_STREAM), keep=False)
            return False
        keep = self.reader.body_read and request is not None and self._keeps(request)
        self._reply(request, request_id, error_reply(error, request_id), keep)
        return keep

    def _keeps(self, request: Request) -> bool:
        """Whether the connection may serve another request after this one."""
        return request.keep_alive and not self.service.draining

    def _reply(self, request: Request | None, request_id: str, reply: Reply, keep: bool) -> None:
        head_only = self.reader.head_only if request is None else request.method == "HEAD"
        fields = [*reply.fields, ("X-Request-Id", request_id), *origins.fields(request, self.settings.cors)]
        if reply.status != 204:
            fields.append(("Content-Type", reply.content_type))
            if reply.body or not head_only:  # HEAD says no length that it does not know (RFC 9110 §8.6)
                fields.append(("Content-Length", str(len(reply.body))))
        if not keep:
            fields.append(("Connection", "close"))
        head = response_head(reply.status, fields)
        self._access.status = reply.status
        body = b"" if head_only else reply.body
        self.connection.send_all(head + body)
        self._access.replied = len(body)
        self._answered = True

    # ---- Streams

    def _follow(self, request: Request, request_id: str, outcome: Follow) -> bool:
        """Send the head, follow to the end; return whether the connection is still good."""
        stream, chunked = outcome.stream, request.version == (1, 1)
        progress = self._attach_and_follow(
            stream,
            outcome.number,
            head=self._stream_head(request, request_id, outcome),
            chunked=chunked,
            heartbeat=self.settings.heartbeat,
            tell_place=outcome.tell_place,
        )
        if progress is None:
            return self._carry_out(request, request_id, Reply(204, fields=stream_fields(stream)))
        if progress is not Progress.ENDED:
            return False
        if chunked:
            self.connection.send_all(http1.LAST_CHUNK)
        self.connection.end_stream(chunked=chunked)
        self._answered = True
        return self._keeps(request)

    def _await(self, outcome: Await) -> Reply:
        """Wait for an answer that is not a stream. Raises its ShimError, or ClientGone."""
        stream = outcome.stream
        progress = None
        try:
            progress = self._attach_and_follow(stream, 0, head=b"", chunked=False, heartbeat=math.inf)
        finally:
            if not stream.keyed:  # nobody else can ever ask for it
                stream.fail("cancelled", "The client has gone.", cause="unfollowed")
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
        chunked: bool,
        heartbeat: float,
        tell_place: bool = False,
    ) -> Progress | None:
        """Attach after event `number`, let the job run, follow to the end; None if nothing follows that event.

        Whatever ends it, the socket is detached before it can be closed.
        """
        assert self._link is not None
        self.connection.attach()
        subscriber = Subscriber(
            self.connection.send, self._link.waker.wake, head=head, pulled=self.connection.pulled, chunked=chunked
        )
        if not stream.attach(subscriber, number):
            return None
        if head:
            self._access.status = 200
        self._access.follows(stream, subscriber)
        try:
            if head:
                self.connection.begin_stream(chunked=chunked)
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
            progress = follower.follow()
            self._access.followed(progress, stalled=follower.stalled)
            return progress
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
