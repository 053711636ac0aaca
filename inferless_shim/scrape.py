"""What /metrics says: everything that is counted here, by its name there. No I/O but what `process` reads."""

from __future__ import annotations

from collections.abc import Iterator

from . import process
from .engine import Engine
from .metrics import Family, counter, exposition, gauge, labelled
from .service import Service
from .store import Store
from .tally import State
from .totals import CAUSES

STATES = ("loading", "ready", "draining", "stuck", "unloading", "unloaded")


def scrape(service: Service) -> bytes:
    """Write all metrics now. Every lock is taken by itself and for a moment."""
    return exposition(families(service))


def families(service: Service) -> Iterator[Family]:
    app, state = service.app, service.state
    yield labelled("shim_info", "gauge", "What runs here.", "model", {app.name: 1})
    states = {each: each == state for each in STATES}
    yield labelled("shim_state", "gauge", "1 for the state it is in.", "state", states)
    yield from of_traffic(service)
    yield from of_streams(service.store)
    yield from of_engine(service.engine)
    if service.store.archive is not None:
        yield from service.store.archive.families()
    yield from process.families()


def of_traffic(service: Service) -> Iterator[Family]:
    """Requests, resumes, connections, and who follows what."""
    traffic = service.traffic
    yield traffic.requests.family("shim_requests_total", "Requests whose answer is over, by the kind of their path.")
    live, sent = traffic.read()
    yield gauge("shim_requests_now", "Requests that are being answered.", len(live))
    sent += sum(each.bytes for each in live)
    yield counter("shim_sent_bytes_total", "Bytes of body sent, the framing of chunks included.", sent)
    following = [each.following for each in live]
    subscribers = [each for each in following if each is not None]
    yield gauge("shim_subscribers", "Clients that follow a stream.", len(subscribers))
    lagging = sum(stream.lags(subscriber) for stream, subscriber in subscribers)
    yield gauge("shim_subscribers_lagging", "Those whose stream is ahead of them.", lagging)
    yield traffic.resumes.family("shim_resumes_total", "Streams that were come back for, by how that ended.")
    connections = traffic.connections.read()
    accepted, refused, ended = (connections.get((each,), 0) for each in ("accepted", "refused", "ended"))
    yield gauge("shim_connections", "Open connections.", accepted - ended)
    yield counter("shim_connections_accepted_total", "Connections that were taken.", accepted)
    yield counter("shim_connections_refused_total", "Connections past a cap.", refused)
    yield traffic.faults.family("shim_connection_faults_total", "Clients that were too slow, by what they did slowly.")


def of_streams(store: Store) -> Iterator[Family]:
    """Streams, and answers that are none: of both there is one for each request that was let in."""
    streams, leaving, totals = store.read()
    kept = sum(each.kept for each in streams) + sum(each.kept for each in leaving)
    forgotten = totals.streams
    before = totals.states.copy()
    for stream in streams:
        totals.add(stream)
    now = {state.name.lower(): totals.states[state] - before[state] for state in State}
    yield labelled("shim_streams", "gauge", "Streams that are kept, answers included, by state.", "state", now)
    ended = {state.name.lower(): totals.states[state] for state in State if state is not State.OPEN}
    yield labelled("shim_streams_ended_total", "counter", "Streams that ended, by how.", "state", ended)
    causes = {cause: totals.cancelled[cause] for cause in (*CAUSES.values(), "app")}
    yield labelled("shim_cancels_total", "counter", "Streams that did not end well, by why.", "cause", causes)
    yield counter("shim_streams_started_total", "Streams that were started.", totals.streams)
    yield counter("shim_streams_forgotten_total", "Streams that are not kept any more.", forgotten)
    yield counter("shim_events_total", "Events that apps sent.", totals.events)
    yield counter("shim_logged_bytes_total", "Bytes of events, as they are sent.", totals.logged)
    yield gauge("shim_log_bytes", "Bytes of events and answers that are kept.", kept)
    yield totals.firsts.family("shim_first_event_seconds", "Time from a request to its first event.")
    yield totals.pauses.family("shim_event_gap_seconds", "Time between two events of a stream.")


def of_engine(engine: Engine) -> Iterator[Family]:
    """The queue and the slots."""
    load = engine.load_now()
    yield gauge("shim_queue_depth", "Requests that wait for a slot.", load.waiting)
    yield engine.waits.read().family("shim_queue_wait_seconds", "Time that requests waited for their slot.")
    slots = {"busy": load.busy, "stuck": load.stuck, "free": load.slots - load.busy - load.stuck}
    yield labelled("shim_slots", "gauge", "Slots, by what they do.", "state", slots)
    yield engine.infers.read().family("shim_infer_seconds", "Time that infer took, once for each batch.")
    yield engine.batches.read().family("shim_batch_size", "Requests in a batch.")
