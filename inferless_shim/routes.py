"""Routes: a request becomes a reply, a stream to follow, or an answer to wait for. No sockets.

The route alone decides the kind of answer (CONTRACT.md §8). What is decided here is carried out by `handler`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import answers, origins, outputs, protocol, queries, repository, scrape, sse, usage, weights
from .errors import BadRequest, MethodNotAllowed, NotFound, Unavailable
from .http1 import Request
from .job import Job
from .metrics import CONTENT_TYPE
from .outcomes import (
    EVENT_STREAM,
    Await,
    Exchange,
    Follow,
    Outcome,
    Reply,
    accepted,
    error_reply,
    followed,
    json_reply,
    stream_fields,
)
from .outputs import JSON, VERSION, Answer
from .schema import Schema
from .service import SHUTTING_DOWN, Service
from .store import IdempotencyKey
from .stream import Stream

TEXT = "text/plain; charset=utf-8"
LAST_EVENT_ID = "last_event_id"
REPOSITORY = "/v2/repository"  # whose requests may come without a body

Endpoint = Callable[[Exchange], Outcome]
Render = Callable[[Sequence[Any]], Answer]


class Routes:
    """Every path, the methods that it takes, and what each does."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.app = service.app
        model = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
        control = REPOSITORY + r"/models/(?P<model>[^/]+)"
        table: list[tuple[str, dict[str, Endpoint]]] = [
            (r"\*", {}),  # OPTIONS * asks about the server as a whole (RFC 9110 §9.3.7)
            (r"/", {"GET": self.index}),
            (r"/metrics", {"GET": self.metrics}),
            (r"/infer", {"GET": self.infer_query, "POST": self.infer}),
            (r"/streams/(?P<stream>[^/]+)", {"GET": self.follow, "DELETE": self.cancel}),
            (r"/v2/?", {"GET": self.server_metadata}),
            (r"/v2/health/live", {"GET": self.live}),
            (r"/v2/health/ready", {"GET": self.ready}),
            (model, {"GET": self.model_metadata}),
            (model + "/config", {"GET": self.model_config}),
            (model + "/ready", {"GET": self.ready}),
            (model + "/infer", {"POST": self.infer_protocol}),
            (model + "/generate", {"POST": self.generate}),
            (model + "/generate_stream", {"POST": self.generate_stream}),
            (REPOSITORY + r"/index", {"POST": self.repository_index}),
            (control + "/load", {"POST": self.load}),
            (control + "/unload", {"POST": self.unload}),
        ]
        self._table = [(re.compile(path), endpoints) for path, endpoints in table]
        self._templates = [(re.compile(path), template(path)) for path, _ in table]

    def find(self, request: Request) -> tuple[Endpoint, dict[str, str]]:
        """Return what serves a request, HEAD as GET, and the names in its path. Raises NotFound, MethodNotAllowed.

        A preflight is told the same of every path, because it comes without a key.
        """
        if origins.is_preflight(request, self.service.settings.cors):
            return preflight, {}
        for pattern, endpoints in self._table:
            match = pattern.fullmatch(request.path)
            if match:
                params = {name: value for name, value in match.groupdict().items() if value is not None}
                self._check_model(params)
                method = "GET" if request.method == "HEAD" else request.method
                if method == "OPTIONS":
                    return functools.partial(options, allowed(endpoints)), params
                if (method, request.path) == ("POST", "/"):
                    raise NotFound("Nothing is posted here; POST inputs to /infer, and GET / says what else there is.")
                if method not in endpoints:
                    raise MethodNotAllowed(request.method, allowed(endpoints))
                return endpoints[method], params
        raise NotFound(f"There is nothing at {request.path[:200]}; GET / says what there is.")

    def template(self, path: str) -> str | None:
        """Return what a path is, as one of a few: `/streams/<stream>`; None if there is nothing there."""
        return next((template for pattern, template in self._templates if pattern.fullmatch(path)), None)

    def _check_model(self, params: dict[str, str]) -> None:
        name, version = params.get("model", self.app.name), params.get("version", VERSION)
        if name != self.app.name:
            raise NotFound(f"There is no model {name[:200]} here; this server runs {self.app.name}.")
        if version != VERSION:
            raise NotFound(f"There is no version {version[:200]} of {name}; the only one is {VERSION}.")

    # ---- What is here

    def index(self, exchange: Exchange) -> Reply:
        base = f"{exchange.client.scheme or 'http'}://{exchange.request.field('host') or 'localhost'}"
        return Reply(200, usage.page(self.service, base).encode(), TEXT)

    def live(self, exchange: Exchange) -> Reply:
        return Reply(200, b'{"live":true}')

    def ready(self, exchange: Exchange) -> Reply:
        try:
            self.service.check_ready()
        except Unavailable as error:
            # Not raised: to a probe that accepts events it must not look like a 200.
            return error_reply(error, exchange.request_id, state=error.state)
        return Reply(200, b'{"ready":true}')

    def metrics(self, exchange: Exchange) -> Reply:
        return Reply(200, scrape.scrape(self.service), CONTENT_TYPE)

    def server_metadata(self, exchange: Exchange) -> Reply:
        return json_reply(answers.server_metadata())

    def model_metadata(self, exchange: Exchange) -> Reply:
        return json_reply(answers.model_metadata(self.app.name, self._schema(), self.app.described_outputs()))

    def model_config(self, exchange: Exchange) -> Reply:
        flags = self.app.flags
        return json_reply(
            answers.model_config(
                self.app.name,
                self._schema(),
                self.app.described_outputs(),
                batch_size=flags.batch_size,
                streaming=flags.streaming,
            )
        )

    def _schema(self) -> Schema:
        """Return what the app takes. Raises Unavailable (503) if that is not known before it is loaded."""
        if self.app.schema is None:
            self.service.check_ready()
        assert self.app.schema is not None, "loaded without a schema"
        return self.app.schema

    # ---- The repository, of one model

    def repository_index(self, exchange: Exchange) -> Reply:
        only_ready = repository.read_index(exchange.body)
        engine = self.service.engine
        state, reason = repository.STATES.get(engine.state.name, engine.state.name), engine.reason
        listed = [answers.index_entry(self.app.name, state, reason)] if state == "READY" or not only_ready else []
        return Reply(200, outputs.encode_value(listed))

    def load(self, exchange: Exchange) -> Reply:
        repository.check_control(exchange.body)
        self.service.check_not_draining()
        self.service.engine.load()
        return Reply(200, b"{}")

    def unload(self, exchange: Exchange) -> Reply:
        repository.check_control(exchange.body)
        self.service.engine.unload()
        return Reply(200, b"{}")

    # ---- Inference

    def infer(self, exchange: Exchange) -> Outcome:
        call = self._read(exchange)
        return self._start(exchange, call, outputs.Native(), None if self.app.streaming else flat)

    def infer_query(self, exchange: Exchange) -> Outcome:
        if exchange.request.method == "HEAD":  # never starts anything
            return Reply(200, content_type=EVENT_STREAM if self.app.streaming else JSON)
        last_event_id = self._last_event_id(exchange)
        if last_event_id is not None and self.app.streaming:
            return self._resume(exchange, last_event_id, id_first=True)
        exchange.hold.weigh(weights.of_query(exchange.request.query))
        call, reserved = queries.read_query(exchange.request.query, self._schema())
        return self._start(
            exchange, call, outputs.Native(), None if self.app.streaming else flat, reserved, id_first=True
        )

    def infer_protocol(self, exchange: Exchange) -> Outcome:
        call = self._read(exchange)

        def render(results: Sequence[Any]) -> Answer:
            return answers.infer_response(answers.joined(results), model=self.app.name, call=call)

        dialect = outputs.Generate(self.app.name)
        return self._start(exchange, call, dialect, None if self.app.streaming else render)

    def generate(self, exchange: Exchange) -> Outcome:
        call = self._read(exchange)

        def render(results: Sequence[Any]) -> Answer:
            return answers.generate_response(results, model=self.app.name, id=call.id)

        return self._start(exchange, call, outputs.Generate(self.app.name), render)

    def generate_stream(self, exchange: Exchange) -> Outcome:
        return self._start(exchange, self._read(exchange), outputs.Generate(self.app.name), None)

    def _read(self, exchange: Exchange) -> protocol.Call:
        header_length = exchange.request.field(protocol.HEADER_LENGTH.lower())
        return protocol.read_body(exchange.body, self._schema(), header_length, weigh=exchange.hold.weigh)

    def _start(
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
            last_event_id = self._last_event_id(exchange)
            # Where the route answers with no stream, there is none to resume: the route decides, not the header.
            if last_event_id is not None and (render is None or detached):
                return self._resume(exchange, last_event_id)
        if not self.app.outputs:
            dialect = outputs.Watched(dialect, self._learn)
        stream, new = self._open(exchange, None if render and not detached else dialect, detached)
        if new:
            job = Job(
                stream,
                call.inputs,
                None if detached or render is None else self._learning(render),
                exchange.body_id or exchange.request_id,
                exchange.trace.traceparent if exchange.trace is not None else None,
                hold=exchange.hold.hand_over(),
            )
            self.service.engine.submit(job)
        if stream.dialect is None:
            return Await(stream)
        if detached:
            return accepted(stream, self.service.admission.location(stream.id, stream.owner))
        if new:
            return Follow(stream, 0, id_first, reserved.get("progress") == "1")
        return followed(stream, 0, id_first=id_first)

    def _open(self, exchange: Exchange, dialect: outputs.Dialect | None, detached: bool) -> tuple[Stream, bool]:
        """Return the stream that the Idempotency-Key made before, or a new one with a place in the queue reserved.

        The key is claimed first: its retry finds the stream even if the queue has no place left, and of two at once the
        second waits for the first one's place, instead of being refused one of its own.
        """
        key = idempotency_key(exchange)
        if key is None:
            return self._open_new(exchange, None, dialect, detached), True
        known = self.service.store.claim(key)
        if known is not None:
            return known, False
        try:
            return self._open_new(exchange, key, dialect, detached), True
        finally:
            self.service.store.let_go(key)

    def _open_new(
        self, exchange: Exchange, key: IdempotencyKey | None, dialect: outputs.Dialect | None, detached: bool
    ) -> Stream:
        """Make a stream, with a place in the queue reserved for its job. Raises Unavailable (503)."""
        self.service.check_ready()
        self.service.engine.reserve()
        try:
            stream, _ = self.service.store.open(dialect, key, owner=exchange.client.owner, detached=detached)
            if self.service.draining:  # looked at again: a drain that has begun since may have missed it
                stream.fail("shutting_down", "The server is shutting down.")
                self.service.store.forget(stream)
                raise Unavailable(SHUTTING_DOWN)
        except BaseException:
            self.service.engine.release()
            raise
        return stream

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

    # ---- Streams

    def _last_event_id(self, exchange: Exchange) -> str | None:
        """Return where the client is: the header wins over the query, where the app may have an input of that name."""
        in_query = None
        own = self.app.schema.inputs if self.app.schema is not None else {}
        if exchange.request.method == "POST" or LAST_EVENT_ID not in own:
            in_query = queries.reserved_query(exchange.request.query).get(LAST_EVENT_ID)
        return exchange.request.field("last-event-id") or in_query or None

    def _resume(self, exchange: Exchange, last_event_id: str, *, id_first: bool = False) -> Outcome:
        exchange.resumes = True
        event_id = sse.parse_event_id(last_event_id)
        stream = self.service.store.get(event_id.stream, exchange.client.owner)
        return followed(stream, event_id.number, id_first=id_first)

    def follow(self, exchange: Exchange) -> Outcome:
        exchange.resumes = exchange.request.method == "GET"
        stream = self.service.store.get(exchange.params["stream"], exchange.client.owner)
        in_query = queries.reserved_query(exchange.request.query).get(LAST_EVENT_ID)
        last_event_id = exchange.request.field("last-event-id") or in_query
        number = 0
        if last_event_id:
            event_id = sse.parse_event_id(last_event_id)
            if event_id.stream != stream.id:
                raise BadRequest("The last event id is another stream's; send back the id of this stream's last event.")
            number = event_id.number
        outcome = followed(stream, number)
        if exchange.request.method == "HEAD" and isinstance(outcome, Follow):
            return Reply(200, content_type=EVENT_STREAM, fields=stream_fields(stream))
        return outcome

    def cancel(self, exchange: Exchange) -> Reply:
        stream = self.service.store.get(exchange.params["stream"], exchange.client.owner)
        if not stream.fail("cancelled", "The stream was cancelled on request.", cause="deleted"):
            self.service.store.forget(stream)
        return Reply(204)


def preflight(exchange: Exchange) -> Reply:
    return Reply(204, fields=list(origins.PREFLIGHT))


def template(pattern: str) -> str:
    """Write a path's pattern without its groups and what may be left out: `/v2/models/<model>/infer`."""
    required = re.sub(r"\(\?:.*?\)\?|/\?", "", pattern)
    return re.sub(r"\(\?P(<\w+>)[^)]*\)", r"\1", required).replace("\\", "")


def options(methods: Sequence[str], exchange: Exchange) -> Reply:
    return Reply(204, fields=[("Allow", ", ".join(methods))])


def allowed(endpoints: dict[str, Endpoint]) -> list[str]:
    return [*endpoints, *(["HEAD"] if "GET" in endpoints else []), "OPTIONS"]


def idempotency_key(exchange: Exchange) -> IdempotencyKey | None:
    """Read the Idempotency-Key of a POST; the fingerprint tells another route or body from the first one's."""
    value = exchange.request.field("idempotency-key")
    if value is None or exchange.request.method != "POST":
        return None
    import hashlib  # OpenSSL, 3 MB, which only this needs

    fingerprint = hashlib.sha256(exchange.request.path.encode() + b"\0" + exchange.body).digest()
    return IdempotencyKey(value, fingerprint, exchange.client.owner)


def flat(results: Sequence[Any]) -> Answer:
    return answers.flat_response(answers.joined(results))


def usable_id(text: str | None) -> str | None:
    """Return a client's request id if it can stand in a header and in a log."""
    return text if text and len(text) <= 128 and text.isascii() and text.isprintable() else None


def wants_events(request: Request) -> bool:
    accepted = [member.partition(";")[0].strip() for member in request.tokens("accept")]
    return request.method == "GET" and "text/event-stream" in accepted
