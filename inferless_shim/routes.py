"""Routes: a request becomes a reply, a stream to follow, or an answer to wait for. No sockets.

The route alone decides the kind of answer (CONTRACT.md §8). What is decided here is carried out by `handler`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import answers, origins, outputs, protocol, queries, repository, scrape, sse, usage, weights
from .admission import HEALTH, METRICS, STREAM
from .errors import BadRequest, MethodNotAllowed, NotFound, Unavailable
from .http1 import Request
from .metrics import CONTENT_TYPE
from .outcomes import (
    EVENT_STREAM,
    Exchange,
    Follow,
    Outcome,
    Reply,
    error_reply,
    json_reply,
    stream_fields,
)
from .outputs import JSON, VERSION, Answer
from .schema import Schema
from .service import Service
from .starts import LAST_EVENT_ID, Starts

TEXT = "text/plain; charset=utf-8"

Endpoint = Callable[[Exchange], Outcome]


class Route(NamedTuple):
    """A path: its pattern, what the metrics call it, what serves each method, and whether a POST to it has a body."""

    pattern: re.Pattern[str]
    template: str
    endpoints: dict[str, Endpoint]
    takes_body: bool


class Found(NamedTuple):
    """What serves a request, the names in its path, and whether it must come with a body."""

    endpoint: Endpoint
    params: dict[str, str]
    needs_body: bool = False


class Routes:
    """Every path, the methods that it takes, and what each does."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.app = service.app
        self.starts = Starts(service)
        model = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
        repository = "/v2/repository"
        control = repository + r"/models/(?P<model>[^/]+)"
        self.table = [
            route(r"\*"),  # OPTIONS * asks about the server as a whole (RFC 9110 §9.3.7)
            route("/", GET=self.index),
            route(METRICS, GET=self.metrics),
            route("/infer", GET=self.infer_query, POST=self.infer),
            route(STREAM.pattern, GET=self.follow, DELETE=self.cancel),
            route("/v2/?", GET=self.server_metadata),
            route(HEALTH + "live", GET=self.live),
            route(HEALTH + "ready", GET=self.ready),
            route(model, GET=self.model_metadata),
            route(model + "/config", GET=self.model_config),
            route(model + "/ready", GET=self.ready),
            route(model + "/infer", POST=self.infer_protocol),
            route(model + "/generate", POST=self.generate),
            route(model + "/generate_stream", POST=self.generate_stream),
            route(repository + "/index", takes_body=False, POST=self.repository_index),
            route(control + "/load", takes_body=False, POST=self.load),
            route(control + "/unload", takes_body=False, POST=self.unload),
        ]

    def find(self, request: Request) -> Found:
        """Return what serves a request, HEAD as GET. Raises NotFound, MethodNotAllowed.

        A preflight is told the same of every path, because it comes without a key.
        """
        if origins.is_preflight(request, self.service.settings.cors):
            return Found(preflight, {})
        for route in self.table:
            match = route.pattern.fullmatch(request.path)
            if match:
                params = {name: value for name, value in match.groupdict().items() if value is not None}
                self._check_model(params)
                method = "GET" if request.method == "HEAD" else request.method
                if method == "OPTIONS":
                    return Found(functools.partial(options, allowed(route.endpoints)), params)
                if (method, request.path) == ("POST", "/"):
                    raise NotFound("Nothing is posted here; POST inputs to /infer, and GET / says what else there is.")
                if method not in route.endpoints:
                    raise MethodNotAllowed(request.method, allowed(route.endpoints))
                return Found(route.endpoints[method], params, method == "POST" and route.takes_body)
        raise NotFound(f"There is nothing at {request.path[:200]}; GET / says what there is.")

    def template(self, path: str) -> str | None:
        """Return what a path is, as one of a few: `/streams/<stream>`; None if there is nothing there."""
        return next((route.template for route in self.table if route.pattern.fullmatch(path)), None)

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
        return self.starts.start(exchange, call, outputs.Native(), None if self.app.streaming else flat)

    def infer_query(self, exchange: Exchange) -> Outcome:
        if exchange.request.method == "HEAD":  # never starts anything
            return Reply(200, content_type=EVENT_STREAM if self.app.streaming else JSON)
        last_event_id = self.starts.last_event_id(exchange)
        if last_event_id is not None and self.app.streaming:
            return self.starts.resume(exchange, last_event_id, id_first=True)
        exchange.hold.weigh(weights.of_query(exchange.request.query))
        call, reserved = queries.read_query(exchange.request.query, self._schema())
        return self.starts.start(
            exchange, call, outputs.Native(), None if self.app.streaming else flat, reserved, id_first=True
        )

    def infer_protocol(self, exchange: Exchange) -> Outcome:
        call = self._read(exchange)

        def render(results: Sequence[Any]) -> Answer:
            return answers.infer_response(answers.joined(results), model=self.app.name, call=call)

        dialect = outputs.Generate(self.app.name)
        return self.starts.start(exchange, call, dialect, None if self.app.streaming else render)

    def generate(self, exchange: Exchange) -> Outcome:
        call = self._read(exchange)

        def render(results: Sequence[Any]) -> Answer:
            return answers.generate_response(results, model=self.app.name, id=call.id)

        return self.starts.start(exchange, call, outputs.Generate(self.app.name), render)

    def generate_stream(self, exchange: Exchange) -> Outcome:
        return self.starts.start(exchange, self._read(exchange), outputs.Generate(self.app.name), None)

    def _read(self, exchange: Exchange) -> protocol.Call:
        header_length = exchange.request.field(protocol.HEADER_LENGTH.lower())
        return protocol.read_body(exchange.body, self._schema(), header_length, weigh=exchange.hold.weigh)

    # ---- Streams

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
        outcome = self.starts.followed(stream, number)
        if exchange.request.method == "HEAD" and isinstance(outcome, Follow):
            return Reply(200, content_type=EVENT_STREAM, fields=stream_fields(stream))
        return outcome

    def cancel(self, exchange: Exchange) -> Reply:
        stream = self.service.store.get(exchange.params["stream"], exchange.client.owner)
        if not stream.fail("cancelled", "The stream was cancelled on request.", cause="deleted"):
            self.service.store.delete(stream)
        return Reply(204)


def preflight(exchange: Exchange) -> Reply:
    return Reply(204, fields=list(origins.PREFLIGHT))


def route(pattern: str, *, takes_body: bool = True, **endpoints: Endpoint) -> Route:
    """Make a route; the endpoints are given by method."""
    return Route(re.compile(pattern), template(pattern), endpoints, takes_body)


def template(pattern: str) -> str:
    """Write a path's pattern without its groups and what may be left out: `/v2/models/<model>/infer`."""
    required = re.sub(r"\(\?:.*?\)\?|/\?", "", pattern)
    return re.sub(r"\(\?P(<\w+>)[^)]*\)", r"\1", required).replace("\\", "")


def options(methods: Sequence[str], exchange: Exchange) -> Reply:
    return Reply(204, fields=[("Allow", ", ".join(methods))])


def allowed(endpoints: dict[str, Endpoint]) -> list[str]:
    return [*endpoints, *(["HEAD"] if "GET" in endpoints else []), "OPTIONS"]


def flat(results: Sequence[Any]) -> Answer:
    return answers.flat_response(answers.joined(results))


def wants_events(request: Request) -> bool:
    accepted = [member.partition(";")[0].strip() for member in request.tokens("accept")]
    return request.method == "GET" and "text/event-stream" in accepted
