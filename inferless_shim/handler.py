"""One connection's requests: each is dispatched, answered, and its stream followed, one after the other. No sockets.

Runs on the connection's own handler thread, which alone waits on it and alone closes it, after `detach`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from functools import partial
from typing import NamedTuple

from . import http1, origins, sse
from .access import OTHER, Access, End, without_ids
from .admission import Client
from .budget import SMALL, Hold
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
    nothing_follows,
    stream_fields,
    usable_id,
)
from .reader import Reader
from .routes import Routes, wants_events
from .service import Service
from .stream import Stream
from .subscriber import Progress, Subscriber
from .tracing import read_traceparent

log = logging.getLogger(__name__)


class After(Enum):
    """What comes after a request."""

    NEXT = auto()  # another one may
    CLOSE = auto()  # it has its answer, to its end: nothing else
    BREAK = auto()  # its answer is not whole, or there was no request


class Turn(NamedTuple):
    """A request while it is served, and what is given back after it."""

    request: Request
    access: Access
    hold: Hold
    ends: ExitStack


class Handler:
    """A client's connection, which `serve` brings to its end and `close` closes."""

    def __init__(self, connection: Connection, service: Service, routes: Routes) -> None:
        self.connection = connection
        self.service = service
        self.settings = service.settings
        self.routes = routes
        self.reader = Reader(connection, service.settings, lambda: service.draining)
        self._link: Link | None = None

    def serve(self) -> None:
        """Serve requests until the connection is done."""
        try:
            self.reader.start()
            while (after := self._serve_one()) is After.NEXT:
                pass
            if after is After.CLOSE:  # what has come behind the last request would reset its answer (RFC 9112 §9.6)
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

    def _serve_one(self) -> After:
        """Read a request and answer it."""
        try:
            request = self.reader.read_head()
        except ShimError as error:
            with self._noted(None) as access:
                return self._refuse(None, access, error)
        if request is None:
            return After.BREAK
        with self._noted(request) as access:
            return self._answer(request, access)

    @contextmanager
    def _noted(self, request: Request | None) -> Iterator[Access]:
        """Count and log a request, or a head that was none, when its answer is over."""
        request_id = usable_id(request.field("x-request-id")) if request is not None else None
        access = Access(self.connection.address, request_id or os.urandom(8).hex(), request)
        if request is not None:
            access.route = self.routes.template(request.path) or OTHER
            access.trace = read_traceparent(request.field("traceparent"))
        self.service.traffic.begin(access)
        try:
            yield access
        except (ClientGone, OSError) as gone:
            access.end = End.STALLED if isinstance(gone, Stalled) else End.LEFT
            raise
        finally:
            self.service.traffic.end(access)

    def _answer(self, request: Request, access: Access) -> After:
        hold = self.service.budget.hold()
        with ExitStack() as ends:
            ends.callback(hold.release)
            turn = Turn(request, access, hold, ends)
            try:
                outcome = self._dispatch(turn)
                hold.release()  # what its job needs, that has
                self.service.budget.freed.give_back()
                return self._carry_out(turn, outcome)
            except ShimError as error:
                refused = error
            # What it was raised from knows the body, which is to be gone before the client is told to try again.
            refused.__traceback__ = refused.__context__ = None
            hold.release()
            self.service.budget.freed.give_back()
            return self._refuse(request, access, refused)

    def _dispatch(self, turn: Turn) -> Outcome:
        """Decide what a request gets: by its head, then by its body. Raises ShimError."""
        request, access = turn.request, turn.access
        client = self._admit(turn)
        found = self.routes.find(request)
        most = self.settings.max_body
        if found.needs_body:
            http1.require_body(request, most)
        else:  # little or nothing is made of it, and some who send it need no key
            most = min(SMALL, most)
        body = self.reader.read_body(request, turn.hold, most)
        self._open_link()
        exchange = Exchange(request, body, access.request_id, found.params, turn.hold, client, access.trace)
        try:
            return found.endpoint(exchange)
        except ShimError:
            raise
        except Exception:
            log.exception("%s %s failed (request %s)", request.method, without_ids(request.path), access.request_id)
            raise ShimError("The server failed at this request; its log says why.") from None
        finally:
            access.resumes, access.body_id = exchange.resumes, exchange.body_id

    def _admit(self, turn: Turn) -> Client:
        """Return who asks, and note it for the log. Raises Forbidden or Unauthorized."""
        admission = self.service.admission
        address, scheme = admission.seen(turn.request, self.connection.address, secure=self.connection.secure)
        turn.access.address = address
        self._enter(address, turn.ends)
        client = admission.admit(turn.request, address, scheme)
        turn.access.key = client.name
        return client

    def _enter(self, address: str, ends: ExitStack) -> None:
        """Count a client that a proxy speaks for, as long as its request is served. Raises Unavailable (503)."""
        if address == self.connection.address:  # its connection is counted
            return
        if not self.service.clients.enter(address):
            raise Unavailable(
                "There are too many requests from this address; try again shortly (--max-connections-per-client)."
            )
        ends.callback(self.service.clients.leave, address)

    def _open_link(self) -> None:
        """Make what a follower waits with, before anything is started that it is for. Raises Unavailable (503)."""
        try:
            self._link = self._link or Link(self.connection)
        except OSError as error:
            log.error("a request was refused: %s", error)
            raise Unavailable("The server has no descriptors left; try again shortly.") from None

    # ---- Answering

    def _carry_out(self, turn: Turn, outcome: Outcome) -> After:
        """Answer. Raises the ShimError of a failed answer."""
        if isinstance(outcome, Follow):
            return self._follow(turn, outcome)
        if isinstance(outcome, Await):
            outcome = self._await(turn.access, outcome)
            turn.hold.cover_answer(len(outcome.body))
        return self._reply(turn.request, turn.access, outcome, keep=self._keeps(turn.request))

    def _refuse(self, request: Request | None, access: Access, error: ShimError) -> After:
        """Answer with an error; another request may follow only a body that was read to its end."""
        access.error = error.logged
        if isinstance(error, RequestTimeout):
            self.service.traffic.late(request)
        if isinstance(error, Unavailable) and request is not None and wants_events(request):
            # Any status but 200 is final to an EventSource: "not now" is the wish that it come back.
            retry = sse.retry(self.settings.retry)
            return self._reply(request, access, Reply(200, retry, EVENT_STREAM), keep=False)
        keep = self.reader.body_read and request is not None and self._keeps(request)
        return self._reply(request, access, error_reply(error, access.request_id), keep=keep)

    def _keeps(self, request: Request) -> bool:
        """Whether the connection may serve another request after this one."""
        return request.keep_alive and not self.service.draining

    def _reply(self, request: Request | None, access: Access, reply: Reply, *, keep: bool) -> After:
        head_only = self.reader.head_only if request is None else request.method == "HEAD"
        fields = [*reply.fields, ("X-Request-Id", access.request_id), *origins.fields(request, self.settings.cors)]
        if reply.status != 204:
            fields.append(("Content-Type", reply.content_type))
            if reply.body or not head_only:  # HEAD says no length that it does not know (RFC 9110 §8.6)
                fields.append(("Content-Length", str(len(reply.body))))
        if not keep:
            fields.append(("Connection", "close"))
        head = response_head(reply.status, fields)
        access.status = reply.status
        body = b"" if head_only else reply.body
        if len(body) <= SMALL:
            self.connection.send_all(head + body)
        else:  # no copy is made of it
            self.connection.send_all(head)
            self.connection.send_all(body)
        access.replied = len(body)
        return After.NEXT if keep else After.CLOSE

    # ---- Streams

    def _follow(self, turn: Turn, outcome: Follow) -> After:
        """Send the head, follow to the end."""
        stream, chunked = outcome.stream, turn.request.version == (1, 1)
        progress = self._attach_and_follow(
            turn.access,
            stream,
            outcome.number,
            head=self._stream_head(turn, outcome),
            first=self._id_first(outcome, chunked=chunked),
            chunked=chunked,
            heartbeat=self.settings.heartbeat,
            tell_place=outcome.tell_place,
        )
        if progress is None:
            return self._carry_out(turn, nothing_follows(stream, outcome.number))
        if progress is not Progress.ENDED:
            return After.BREAK
        if chunked:
            self.connection.send_all(http1.LAST_CHUNK)
        self.connection.end_stream(chunked=chunked)
        return After.NEXT if self._keeps(turn.request) else After.CLOSE

    def _await(self, access: Access, outcome: Await) -> Reply:
        """Wait for an answer that is not a stream. Raises its ShimError, or ClientGone."""
        stream = outcome.stream
        progress = None
        try:
            progress = self._attach_and_follow(access, stream, 0, head=b"", chunked=False, heartbeat=math.inf)
        finally:
            if not stream.keyed:  # nobody else can ever ask for it
                stream.fail("cancelled", "The client has gone.", cause="unfollowed")
                self.service.store.forget(stream)
        if progress not in (Progress.ENDED, None):
            raise ClientGone("before its answer was ready")
        return answer(stream)

    def _attach_and_follow(
        self,
        access: Access,
        stream: Stream,
        number: int,
        *,
        head: bytes,
        first: bytes = b"",
        chunked: bool,
        heartbeat: float,
        tell_place: bool = False,
    ) -> Progress | None:
        """Attach after event `number`, let the job run, follow to the end; None if nothing follows that event.

        Before its events go `head` and the body's `first` bytes.
        Whatever ends it, the socket is detached before it can be closed.
        """
        assert self._link is not None
        self.connection.attach()
        subscriber = Subscriber(
            self.connection.send,
            self._link.waker.wake,
            head=head + first,
            pulled=self.connection.pulled,
            chunked=chunked,
        )
        if not stream.attach(subscriber, number):
            return None
        try:
            access.follows(stream, subscriber, head=len(head))
            if head:
                access.status = 200
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
            access.followed(progress, stalled=follower.stalled)
            return progress
        finally:
            stream.detach(subscriber)

    def _stream_head(self, turn: Turn, outcome: Follow) -> bytes:
        request = turn.request
        chunked = request.version == (1, 1)
        fields = [
            ("Content-Type", EVENT_STREAM),
            ("Cache-Control", "no-cache, no-transform"),
            ("X-Accel-Buffering", "no"),
            *stream_fields(outcome.stream),
            ("X-Request-Id", turn.access.request_id),
            *origins.fields(request, self.settings.cors),
        ]
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        if not self._keeps(request):
            fields.append(("Connection", "close"))
        return response_head(200, fields)

    def _id_first(self, outcome: Follow, *, chunked: bool) -> bytes:
        """Return what tells the stream's id before there is an event, if that is asked for."""
        if not outcome.id_first:
            return b""
        first = sse.id_only(outcome.stream.id)
        return http1.chunk(first) if chunked else first
