"""Jobs in a queue, and the infer threads that run them one after the other.

Every job has a stream. A job that nobody follows any more stays in the queue but is skipped and does not count: its
client may come back within `--linger` and finds its place. `Engine.lock` guards the queue and the slots; no stream's
lock is taken under it. The app is loaded on the first infer thread, the one that will run it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

from . import isolation, outputs
from .config import Settings
from .errors import StartupError, Unavailable
from .job import Job, StreamOutputHandler
from .loader import App
from .stream import Cancelled, Stream

log = logging.getLogger(__name__)


class Slot:
    """One infer thread and what it runs. `deadline` is when its job has taken too long; None while idle."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.deadline: float | None = None
        self.stuck = False


class Engine:
    """Runs an app: `start` loads it, `submit` queues a job, `stop` finalises it."""

    def __init__(self, app: App, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.loaded = threading.Event()
        self.failed: StartupError | None = None
        self.lock = threading.Condition()
        self._queue: list[Job] = []
        self._slots = [Slot() for _ in range(settings.concurrency)]
        self._reserved = 0
        self._stopping = False
        self._shared: isolation.SharedStreamers | None = None
        self._threads = [
            threading.Thread(target=self._serve, args=(slot, number), name=f"infer-{number}", daemon=True)
            for number, slot in enumerate(self._slots)
        ]

    # ---- Any thread

    def start(self) -> None:
        """Load the app on the first infer thread; `loaded` is set when that is over, well or not (`failed`)."""
        isolation.install()
        self._threads[0].start()

    def reserve(self) -> None:
        """Take a place in the queue before the headers go out. Raises Unavailable (503) if there is none."""
        with self.lock:
            free = sum(slot.job is None for slot in self._slots)
            if self._no_slot_left():
                raise Unavailable("Every slot is held by an infer that does not end; the server must be restarted.")
            if self._reserved + self._waiting() >= self.settings.queue + free:
                raise Unavailable(
                    f"The queue is full ({self.settings.queue} requests are waiting); try again shortly.",
                    retry_after=max(1, round(self.settings.retry)),
                )
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back."""
        with self.lock:
            self._reserved -= 1

    def submit(self, job: Job) -> None:
        """Queue a job in the place that was reserved for it. It runs once its stream is followed."""
        with self.lock:
            self._reserved -= 1
            self._queue.append(job)
            self.lock.notify()

    def notify(self) -> None:
        """Tell that a waiting job's client has come, or come back: it may run."""
        with self.lock:
            self.lock.notify()

    def position(self, stream: Stream) -> int | None:
        """Return a waiting stream's place in the queue, counted from 1; None if it does not wait."""
        with self.lock:
            waiting = [job.stream for job in self._queue if job.runnable]
        return waiting.index(stream) + 1 if stream in waiting else None

    @property
    def stuck(self) -> bool:
        """Whether no slot is left to run anything."""
        with self.lock:
            return self._no_slot_left()

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits; one that is stuck does not count."""
        with self.lock:
            return bool(self._waiting()) or any(slot.job and not slot.stuck for slot in self._slots)

    def tick(self) -> None:
        """Fail what has run longer than `--infer-timeout`, and count slots that do not come back from it."""
        now = time.monotonic()
        for slot in self._slots:
            job, deadline = slot.job, slot.deadline
            if job is None or deadline is None or now < deadline:
                continue
            if job.stream.is_open:
                job.stream.fail("timeout", f"infer took longer than {self.settings.infer_timeout:g} s.")
            if not slot.stuck and now >= deadline + self.settings.stuck_grace:
                slot.stuck = True
                log.error("infer did not end %g s after its timeout; its slot is lost", self.settings.stuck_grace)

    def stop(self, timeout: float) -> bool:
        """Run the app's `finalize` on its own thread; return False if a stuck infer keeps that from happening."""
        with self.lock:
            self._stopping = True
            self.lock.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # ---- Needs self.lock

    def _waiting(self) -> int:
        """Count the jobs that wait for a slot; one whose client has gone does not, one whose client is to come does."""
        return sum(job.runnable or (job.stream.is_open and not job.stream.followed) for job in self._queue)

    def _no_slot_left(self) -> bool:
        return all(slot.stuck for slot in self._slots)

    def _next(self) -> Job | None:
        """Take the first runnable job off the queue, and drop those whose stream has ended."""
        self._queue[:] = [job for job in self._queue if job.stream.is_open]
        for index, job in enumerate(self._queue):
            if job.runnable:
                return self._queue.pop(index)
        return None

    # ---- An infer thread

    def _serve(self, slot: Slot, number: int) -> None:
        if number == 0 and not self._load():
            return
        loop = asyncio.new_event_loop() if is_async(self.app.instance.infer) else None
        while (job := self._take(slot)) is not None:
            self._run(slot, job, loop)
        if loop is not None:
            loop.close()
        if number == 0:
            for thread in self._threads[1:]:
                thread.join(self.settings.stuck_grace)
            self.app.finalize()

    def _load(self) -> bool:
        try:
            self.app.load()
            holders = [self.app.instance, self.app.module]
            isolation.guard_all(holders)
            self._shared = isolation.SharedStreamers(holders)
            if self._shared and self.settings.concurrency > 1:
                raise StartupError(
                    "This app keeps one streamer for all its requests, so their texts would mix; use --concurrency 1."
                )
        except StartupError as error:
            self.failed = error
        else:
            for thread in self._threads[1:]:
                thread.start()
        self.loaded.set()
        return self.failed is None

    def _take(self, slot: Slot) -> Job | None:
        """Wait for a job; None when the engine stops."""
        with self.lock:
            slot.job, slot.deadline, slot.stuck = None, None, False
            while (job := self._next()) is None:
                if self._stopping:
                    return None
                self.lock.wait()
            slot.job = job
            slot.deadline = time.monotonic() + self.settings.infer_timeout
            return job

    def _run(self, slot: Slot, job: Job, loop: asyncio.AbstractEventLoop | None) -> None:
        """Run `infer` and end the job's stream; return when its threads have ended too."""
        stream = job.stream
        stream.started = time.monotonic()

        def fail(error: BaseException) -> None:
            stream.fail("app_error", describe(error))

        scope = isolation.Scope(lambda: stream.failure is None, fail)
        if self._shared:
            self._shared.renew(scope)
        handler = StreamOutputHandler(job, self.settings.max_event, self.settings.log_cap)
        with scope:
            try:
                result = drive(self.app.infer(job.inputs, handler), handler, loop)
                self._finish(job, handler, result)
            except Cancelled:
                pass  # its stream has ended: that is what raised it
            except BaseException as error:
                log.exception("infer raised (request %s)", job.request_id)
                fail(error)
        left = scope.wait_for_threads(self.settings.stuck_grace)
        if left:
            log.error("threads that infer started outlived it by %g s: %s", self.settings.stuck_grace, ", ".join(left))

    def _finish(self, job: Job, handler: StreamOutputHandler, result: Any) -> None:
        """End a job whose `infer` returned `result`. Raises what the result's conversion raises."""
        if self.app.batched:
            result = unbatched(result)
        if not job.stream.is_open:
            return
        if handler.sent_nothing and not self.app.streaming:
            handler.answer(result)
        elif handler.sent_nothing and isinstance(result, dict):
            handler.send_streamed_output(result)
        job.stream.finish(job.render(job.sent) if job.render else b"")


def is_async(infer: Any) -> bool:
    return inspect.iscoroutinefunction(infer) or inspect.isasyncgenfunction(infer)


def drive(result: Any, handler: StreamOutputHandler, loop: asyncio.AbstractEventLoop | None) -> Any:
    """Bring what `infer` returned to its end: await a coroutine, send what a generator yields."""
    if inspect.isgenerator(result):
        yielded: Iterator[Any] = result
        for output in yielded:
            handler.send_streamed_output(output)
        return None
    if inspect.isasyncgen(result):
        result = send_all(result, handler)
    if inspect.iscoroutine(result):
        assert loop is not None
        return loop.run_until_complete(result)
    return result


async def send_all(yielded: AsyncIterator[Any], handler: StreamOutputHandler) -> None:
    async for output in yielded:
        handler.send_streamed_output(output)


def unbatched(result: Any) -> Any:
    """Take the one answer out of a batch of one. Raises ValueError if that is not what infer returned."""
    if not isinstance(result, (list, tuple)) or len(result) != 1:
        raise ValueError("infer must return a list of as many dicts as it was given (BATCH_SIZE is set)")
    return result[0]


def describe(error: BaseException) -> str:
    """Say what an app raised, in a sentence without paths."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return outputs.error_text(f"The app raised {text}")
