"""One request on its way through the app: its inputs, and the `stream_output_handler` that takes what `infer` sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import outputs, typed
from .budget import Hold
from .outputs import NO_ANSWER, Answer
from .stream import Stream


class AlreadySent:
    """What the handler's methods return: apps call them plainly or await them."""

    def __await__(self) -> Any:
        return iter(())


ALREADY_SENT = AlreadySent()


@dataclass(eq=False)
class Job:
    """One request's inputs and where its answer goes. `render` makes an answer that is not a stream.

    `hold` is what the inputs take of the budget; whoever has done with the job releases it. `broken` tells what a
    thread of the app's raised while infer went on: such a job cannot end well. A job whose batch raised is run again
    `alone`.
    """

    stream: Stream
    inputs: dict[str, Any]
    render: Callable[[Sequence[Any]], Answer] | None = None
    request_id: str = ""
    traceparent: str | None = None
    sent: list[Any] = field(default_factory=list)
    broken: str | None = None
    alone: bool = False
    hold: Hold = field(kw_only=True)

    @property
    def runnable(self) -> bool:
        """Whether anybody waits for it: its client has not gone, nor was it cancelled."""
        return self.stream.is_open and self.stream.unfollowed is None

    def fail(self, told: str) -> None:
        """End the stream with what the app raised; what broke it before is the reason. Any thread may call it."""
        self.stream.fail("app_error", self.broken or told)

    def finish(self) -> None:
        """End the stream well. Raises what rendering an answer raises."""
        if self.broken is not None:
            self.fail(self.broken)
        elif self.stream.is_open:
            self.stream.finish(self.render(self.sent) if self.render else NO_ANSWER)


class StreamOutputHandler:
    """The `stream_output_handler` of an app: Inferless's two methods, and what an app may want to look at."""

    def __init__(self, job: Job, max_event: int, max_answer: int) -> None:
        self._job = job
        self._stream = job.stream
        self._dialect = job.stream.dialect
        self._schema = outputs.EventSchema()
        self._max_event = max_event
        self._room = max_answer
        self.request_id = job.request_id
        self.stream_id = job.stream.id
        self.traceparent = job.traceparent

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone for good, the request timed out or failed: what is made now is for nobody."""
        return self._stream.failure is not None

    def send_streamed_output(self, output: dict[str, Any]) -> AlreadySent:
        """Send one event. Returns when it is in the log and with every client that keeps up.

        Raises ValueError or TypeError for what cannot be sent, SchemaChanged (a ValueError) for other keys or types
        than the first event had, RuntimeError after finalise_streamed_output, Cancelled if nobody wants it.
        """
        if not self._stream.is_open:
            self._stream.check_open()  # raises, before anything that an app would swallow
        if not isinstance(output, dict):
            output = typed.dumped(output)
        if not isinstance(output, dict):
            raise TypeError(f"send_streamed_output takes a dict, not a {type(output).__name__}")
        before = self._schema.kinds
        try:
            self._send(self._schema.conform(output))
        except outputs.SchemaChanged as error:
            self._stream.fail("schema_changed", str(error))
            raise
        except BaseException:
            self._schema.kinds = before  # what was not sent fixes no schema
            raise
        return ALREADY_SENT

    def finalise_streamed_output(self) -> AlreadySent:
        """End the stream. Calling it again does nothing; returning from `infer` implies it."""
        # An answer is made of what was sent; if nothing was, of what infer returns.
        if self._dialect is not None or self._job.sent:
            self._job.finish()
        return ALREADY_SENT

    def answer(self, result: Any) -> None:
        """Take what an app that does not stream returned: a dict is one event; anything else travels as `result`."""
        if self._dialect is None:
            self._job.sent.append(result)
        else:
            self.send_streamed_output(outputs.as_dict(result))

    @property
    def sent_nothing(self) -> bool:
        return self._schema.kinds is None

    def _send(self, output: dict[str, Any]) -> None:
        if self._dialect is None:
            self._collect(output)
            return
        lines = self._dialect.event(output)
        if len(lines) > self._max_event:
            raise ValueError(
                f"an event of {len(lines)} bytes is above --max-event ({self._max_event}); send it in parts"
            )
        self._stream.append(lines)

    def _collect(self, output: dict[str, Any]) -> None:
        self._stream.check_open()
        sent = outputs.encode(output)
        self._room -= len(sent)
        if self._room < 0:
            fault = "the answer is above --log-cap; ask for it as a stream, or raise the cap"
            self._stream.fail("app_error", fault)  # an answer with a part missing would look like a whole one
            raise ValueError(fault)
        self._job.sent.append(json.loads(sent))  # a copy: many apps fill the same dict again
