"""How a request gets its stream: a new one, the one that its Idempotency-Key made before, or the one that it resumes.

What runs in it is submitted here, after a place in the queue was reserved and before anybody follows. No sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import answers, outputs, protocol, queries, sse
from .errors import Gone, Unavailable
from .idempotency import IdempotencyKey
from .job import Job
from .outcomes import Await, Exchange, Follow, Outcome, accepted, followed, usable_id
from .outputs import Answer
from .service import SHUTTING_DOWN, Service
from .stream import Stream

LAST_EVENT_ID = "last_event_id"

Render = Callable[[Sequence[Any]], Answer]


class Starts:
    """Starts what requests ask for, and finds what they asked for before."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.app = service.app

    def start(
        self,
        exchange: Exchange,
        call: protocol.Call,
        dialect: outputs.Dialect,
        render: Render | None,
        reserved: dict[str, str] | None = None,
        *,
        id_first: bool = False,
    ) -> Outcome:
        """Start a stream, or an answer if there is a `render`; or find what the client asked for before."""
        request = exchange.request
        exchange.body_id = usable_id(call.id)
        detached = any(each.partition(";")[0].strip() == "respond-async" for each in request.tokens("prefer"))
        if reserved is None:
            reserved = queries.reserved_query(request.query)
            last_event_id = self.last_event_id(exchange)
            # Where the route answers with no stream, there is none to resume: the route decides, not the header.
            if last_event_id is not None and (render is None or detached):
                return self.resume(exchange, last_event_id)
        if not self.app.outputs:
            dialect = outputs.Watched(dialect, self._learn)
        stream, new = self._open(exchange, None if render and not detached else dialect, detached)
        if new:
            self._submit(exchange, call, stream, None if detached else render)
        if stream.dialect is None:
            return Await(stream)
        if detached:
            return accepted(stream, self.service.admission.location(stream.id, stream.owner))
        if new:
            return Follow(stream, 0, id_first, reserved.get("progress") == "1")
        return self.followed(stream, 0, id_first=id_first)

    def last_event_id(self, exchange: Exchange) -> str | None:
        """Return where the client is: the header wins over the query, where the app may have an input of that name."""
        in_query = None
        own = self.app.schema.inputs if self.app.schema is not None else {}
        if exchange.request.method == "POST" or LAST_EVENT_ID not in own:
            in_query = queries.reserved_query(exchange.request.query).get(LAST_EVENT_ID)
        return exchange.request.field("last-event-id") or in_query or None

    def resume(self, exchange: Exchange, last_event_id: str, *, id_first: bool = False) -> Outcome:
        """Follow the client's stream from the event that it has. Raises BadRequest, NotFound, Gone."""
        exchange.resumes = True
        event_id = sse.parse_event_id(last_event_id)
        stream = self.service.store.get(event_id.stream, exchange.client.owner)
        return self.followed(stream, event_id.number, id_first=id_first)

    def followed(self, stream: Stream, number: int, *, id_first: bool = False) -> Outcome:
        """Follow from event `number`; what memory has lost of an ended stream may be in the archive. Raises Gone."""
        try:
            return followed(stream, number, id_first=id_first)
        except Gone:
            whole = self.service.store.whole(stream)
            if whole is None:
                raise
            return followed(whole, number, id_first=id_first)

    def _open(self, exchange: Exchange, dialect: outputs.Dialect | None, detached: bool) -> tuple[Stream, bool]:
        """Return the stream that the Idempotency-Key made before, or a new one with a place in the queue reserved.

        The key is claimed first: its retry finds the stream even if the queue has no place left, and of two at once the
        second waits for the first one's place, instead of being refused one of its own.
        """
        key = idempotency_key(exchange)
        if key is None:
            return self._open_new(exchange, None, dialect, detached)
        known = self.service.store.claim(key)
        if known is not None:
            return known, False
        try:
            return self._open_new(exchange, key, dialect, detached)
        finally:
            self.service.store.let_go(key)

    def _open_new(
        self, exchange: Exchange, key: IdempotencyKey | None, dialect: outputs.Dialect | None, detached: bool
    ) -> tuple[Stream, bool]:
        """Make a stream, with a place in the queue reserved for its job; or find that its key has one elsewhere.

        Raises Unavailable (503).
        """
        self.service.check_ready()
        self.service.engine.reserve()
        try:
            stream = self.service.store.open(dialect, key, owner=exchange.client.owner, detached=detached)
            # Looked at again: a drain that has begun since may have missed it.
            if self.service.draining and not stream.elsewhere:
                stream.fail("shutting_down", "The server is shutting down.")
                self.service.store.delete(stream)
                raise Unavailable(SHUTTING_DOWN)
        except BaseException:
            self.service.engine.release()
            raise
        if stream.elsewhere:
            self.service.engine.release()
        return stream, not stream.elsewhere

    def _submit(self, exchange: Exchange, call: protocol.Call, stream: Stream, render: Render | None) -> None:
        """Have `infer` run for a new stream, in the place that is reserved; `render` makes what is an answer."""
        job = Job(
            stream,
            call.inputs,
            self._learning(render) if render is not None else None,
            exchange.body_id or exchange.request_id,
            exchange.trace.traceparent if exchange.trace is not None else None,
            hold=exchange.hold.hand_over(),
        )
        self.service.engine.submit(job)

    def _learning(self, render: Render) -> Render:
        """Return `render`, after which the metadata knows what was rendered."""

        def rendered(results: Sequence[Any]) -> Answer:
            answer = render(results)
            for result in results[-1:]:
                self._learn(result)
            return answer

        return rendered

    def _learn(self, result: Any) -> None:
        """Note outputs that are not known yet. Runs on an infer thread, after what it is shown could be sent."""
        known = self.app.outputs
        new = {name: value for name, value in outputs.as_dict(result).items() if str(name) not in known}
        if new:
            self.app.outputs = known | answers.learn(new)


def idempotency_key(exchange: Exchange) -> IdempotencyKey | None:
    """Read the Idempotency-Key of a POST; the fingerprint tells another route or body from the first one's."""
    value = exchange.request.field("idempotency-key")
    if value is None or exchange.request.method != "POST":
        return None
    import hashlib  # OpenSSL, 3 MB, which only this needs

    fingerprint = hashlib.sha256(exchange.request.path.encode() + b"\0" + exchange.body).digest()
    return IdempotencyKey(value, fingerprint, exchange.client.owner)
