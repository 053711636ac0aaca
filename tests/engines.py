"""An engine without HTTP: requests that go straight to it, and the apps that they ask."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inferless_shim.config import Settings
from inferless_shim.engine import Engine
from inferless_shim.job import Job
from inferless_shim.outputs import Dialect, Native
from inferless_shim.stream import Progress, Stream, Subscriber
from tests.support import PATIENCE, Event, eventually, parse_events, unbounded


class Request:
    """A client's request, straight to the engine: its job, its stream, and the client who follows it."""

    def __init__(
        self,
        engine: Engine,
        text: str = "Hi",
        *,
        dialect: Dialect | None = None,
        render: Callable[[Sequence[Any]], bytes] | None = None,
        followed: bool = True,
        detached: bool = False,
    ) -> None:
        self.engine = engine
        dialect = None if render else dialect or Native()
        self.stream = Stream(dialect, log_cap=2**20, retry=2, detached=detached)
        self.job = Job(self.stream, {"TEXT": text}, render, request_id=text, hold=unbounded())
        self.subscriber = Subscriber(len, lambda: None)
        engine.reserve()
        engine.submit(self.job)
        if followed:
            self.come()

    def come(self) -> None:
        self.stream.attach(self.subscriber, 0)
        self.engine.notify()

    def leave(self) -> None:
        self.stream.detach(self.subscriber)

    def cancel(self) -> None:
        self.stream.fail("cancelled", "on request")

    def done(self) -> Request:
        """Wait for the end of the stream. infer may still run."""
        eventually(lambda: not self.stream.is_open, what="the stream ends")
        return self

    def late(self) -> Request:
        """Wait for the end of the stream while the engine looks at its timeouts."""
        eventually(lambda: self.engine.tick() or not self.stream.is_open, what="the stream ends")
        return self

    @property
    def events(self) -> list[Event]:
        return read_events(self.stream)

    @property
    def sent(self) -> list[Any]:
        return [event.data for event in self.events if event.event is None]

    @property
    def text(self) -> str:
        return "".join(data["OUT"] for data in self.sent)

    @property
    def end(self) -> tuple[str | None, Any]:
        """The last event's name, and an error's code."""
        last = self.events[-1]
        return last.event, last.data.get("code")

    @property
    def error(self) -> str:
        assert self.stream.failure is not None, "it did not fail"
        return self.stream.failure[1]


def read_events(stream: Stream) -> list[Event]:
    """Return the events so far, as a client reads them who came just now."""
    got = bytearray()

    def send(data: Any) -> int:
        got.extend(data)
        return len(data)

    reader = Subscriber(send, lambda: None, chunked=False)
    if stream.attach(reader, 0):
        while stream.advance(reader) is Progress.MORE:
            pass
        stream.detach(reader)
    return parse_events(got.decode())


@contextlib.contextmanager
def running(app: Any, **settings: Any) -> Iterator[Engine]:
    """Run an engine; at the end every infer must have come back, or be let back by the test."""
    engine = Engine(app, Settings(**{"stuck_grace": PATIENCE, **settings}))
    engine.start()
    assert engine.loaded.wait(PATIENCE)
    try:
        yield engine
    finally:
        for slot in engine._slots:
            if slot.run is not None:
                slot.run.jobs[0].stream.fail("shutting_down", "the test is over")
        with engine.lock:
            waiting = list(engine._backlog.jobs)
        for job in waiting:
            job.stream.fail("shutting_down", "the test is over")
        stopped = engine.stop(PATIENCE)
    assert stopped, "an infer did not come back"


def idle(engine: Engine) -> bool:
    return not engine.busy


class Gate:
    """An infer that waits at a gate, whatever becomes of its request. `entered` counts those that have come to it."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.open = threading.Event()

    def infer(self, inputs: dict[str, Any], handler: Any) -> None:
        self.entered.append(inputs["TEXT"])
        assert self.open.wait(PATIENCE)
        handler.send_streamed_output({"OUT": inputs["TEXT"]})
