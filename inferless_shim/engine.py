"""Jobs in a queue, and the infer threads that run them one after the other.

Every job has a stream. A job that nobody follows any more stays in the queue but is skipped and does not count: its
client may come back within `--linger` and finds its place. `Engine.lock` guards the queue and the slots; no stream's
lock is taken under it. The app is loaded on the first infer thread, the one that will run it.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any

from . import isolation, outputs, streamers
from .config import Settings
from .errors import ShimError, StartupError, Unavailable
from .job import Job, StreamOutputHandler
from .loader import App, close_event_loop, event_loop
from .stream import Cancelled, Stream

log = logging.getLogger(__name__)


class Slot:
    """One infer thread and what it runs. `deadline` is when its job has taken too long; None while idle."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.scope: isolation.Scope | None = None
        self.deadline: float | None = None
        self.stuck = False

    def is_late(self, now: float, grace: float = 0.0) -> bool:
        """Whether its job has run `grace` seconds longer than it may."""
        return self.deadline is not None and now >= self.deadline + grace


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
        self._others_ended = threading.Event()  # when stopping: `finalize` may run
        self._finalizing = threading.Event()  # and it does
        self._streamers = streamers.Streamers()
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
                raise Unavailable(
                    "Every slot is held by an infer that does not end; restart the server, or try again later."
                )
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
        """Queue a job in the place that was reserved for it. It runs once its stream is followed, or detached."""
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
        with self.lock:
            self._drop_ended()
            late = [slot.job for slot in self._slots if slot.job is not None and slot.is_late(now)]
            scopes = [slot.scope for slot in self._slots if slot.scope is not None]
            lost = [slot for slot in self._slots if slot.is_late(now, self.settings.stuck_grace) and not slot.stuck]
            for slot in lost:
                slot.stuck = True
        for _ in lost:
            log.error("infer did not end %g s after its timeout; its slot is lost", self.settings.stuck_grace)
        for job in late:
            if job.stream.is_open:
                job.stream.fail("timeout", f"infer took longer than {self.settings.infer_timeout:g} s.")
        for scope in scopes:
            scope.rescue()

    def stop(self, timeout: float, finalize_timeout: float | None = None) -> bool:
        """Run the app's `finalize` on its own thread once no other infer runs, or `timeout` is over.

        Return False if an infer is stuck, or `finalize` takes longer than its own timeout.
        """
        with self.lock:
            self._stopping = True
            self.lock.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads[1:]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._others_ended.set()
        first = self._threads[0]
        idle = self._slots[0].job is None  # then it is on its way to `finalize`, however little time there is
        if first.is_alive() and (idle or self._finalizing.wait(max(0.0, deadline - time.monotonic()))):
            first.join(timeout if finalize_timeout is None else finalize_timeout)
        return not first.is_alive() and all(slot.job is None for slot in self._slots)

    # ---- Needs self.lock

    def _waiting(self) -> int:
        """Count the jobs that wait for a slot; one whose client has gone does not, one whose client is to come does."""
        return sum(job.runnable or (job.stream.is_open and not job.stream.followed) for job in self._queue)

    def _no_slot_left(self) -> bool:
        return all(slot.stuck for slot in self._slots)

    def _next(self) -> Job | None:
        """Take the first runnable job off the queue."""
        self._drop_ended()
        for index, job in enumerate(self._queue):
            if job.runnable:
                return self._queue.pop(index)
        return None

    def _drop_ended(self) -> None:
        """Drop the jobs whose stream has ended: their inputs may be large."""
        self._queue[:] = [job for job in self._queue if job.stream.is_open]

    # ---- An infer thread

    def _serve(self, slot: Slot, number: int) -> None:
        if number == 0 and not self._load():
            return
        while self._run_next(slot):
            pass
        if number == 0:
            self._others_ended.wait()
            self._finalizing.set()
            self.app.finalize()
        close_event_loop()

    def _load(self) -> bool:
        try:
            self.app.load()
            holders = [self.app.instance, self.app.module]
            isolation.guard_all(holders)
            shared = streamers.shared_streamers(holders)
            if shared and self.settings.concurrency > 1:
                raise StartupError(
                    "This app keeps one streamer for all its requests, so their texts would mix; use --concurrency 1."
                )
            self._streamers = streamers.Streamers(shared)
        except StartupError as error:
            self.failed = error
        except BaseException as error:
            # Ours, then; but whoever waits for `loaded` must not wait for ever.
            log.exception("loading failed")
            self.failed = StartupError(f"The app could not be loaded: {describe(error)}")
        else:
            for thread in self._threads[1:]:
                thread.start()
        self.loaded.set()
        return self.failed is None

    def _run_next(self, slot: Slot) -> bool:
        """Wait for a job and run it; False when the engine stops. Nothing of the job is kept when it is over."""
        job = self._take(slot)
        if job is not None:
            self._run(slot, job)
        return job is not None

    def _take(self, slot: Slot) -> Job | None:
        """Wait for a job; None when the engine stops."""
        if slot.stuck:
            log.warning("an infer that was stuck has ended; its slot is back")
        with self.lock:
            slot.job, slot.scope, slot.deadline, slot.stuck = None, None, None, False
            while (job := self._next()) is None:
                if self._stopping:
                    return None
                self.lock.wait()
            slot.job = job
            slot.deadline = time.monotonic() + self.settings.infer_timeout
            return job

    def _run(self, slot: Slot, job: Job) -> None:
        """Run `infer` and end the job's stream; return when its threads have ended too."""
        stream = job.stream
        stream.started = time.monotonic()

        def fail(error: BaseException) -> None:
            stream.fail("app_error", f"The app raised {describe(error)}")

        alone = self.settings.concurrency == 1
        scope = isolation.Scope(
            lambda: stream.failure is None, fail, self._streamers if alone else streamers.Streamers()
        )
        slot.scope = scope
        handler = StreamOutputHandler(job, self.settings.max_event, self.settings.log_cap)
        with scope.working():
            try:
                scope.streamers.renew()
                result = drive(self.app.infer(job.inputs, handler), handler)
                self._finish(job, handler, result)
            except ShimError as error:  # of the request, found out only now: an output that the app does not have
                stream.fail(error.code, error.message)
            except BaseException as error:
                if not isinstance(error, Cancelled):
                    log.exception("infer raised (request %s)", job.request_id)
                # A Cancelled comes of a stream that has ended; but the app may have kept one of an earlier request.
                fail(error)
        slot.deadline = None  # infer is over; its threads have the grace
        left = scope.wait_for_threads(self.settings.stuck_grace)
        if left:
            log.error("threads that infer started outlived it by %g s: %s", self.settings.stuck_grace, ", ".join(left))

    def _finish(self, job: Job, handler: StreamOutputHandler, result: Any) -> None:
        """End a job whose `infer` returned `result`. Raises what the result's conversion raises."""
        if handler.cancelled or not job.stream.is_open:
            return
        if self.app.batched:
            result = unbatched(result)
        if handler.sent_nothing and not self.app.streaming:
            handler.answer(result)
        elif handler.sent_nothing and isinstance(result, dict):
            handler.send_streamed_output(result)
        elif handler.sent_nothing and result is not None:
            log.warning("infer sent nothing and returned a %s, which is no event; return a dict", type(result).__name__)
        job.finish()


def drive(result: Any, handler: StreamOutputHandler) -> Any:
    """Bring what `infer` returned to its end: await a coroutine, send what a generator yields."""
    if inspect.isgenerator(result):
        send_all(result, handler)
        return None
    if inspect.isasyncgen(result):
        result = send_all_async(result, handler)
    if inspect.iscoroutine(result):
        return event_loop().run_until_complete(result)
    return result


def send_all(yielded: Generator[Any, Any, Any], handler: StreamOutputHandler) -> None:
    with closing(yielded):
        for output in yielded:
            handler.send_streamed_output(output)


async def send_all_async(yielded: AsyncGenerator[Any, Any], handler: StreamOutputHandler) -> None:
    async with aclosing(yielded):
        async for output in yielded:
            handler.send_streamed_output(output)


def unbatched(result: Any) -> Any:
    """Take the one answer out of a batch of one. Raises ValueError if that is not what infer returned."""
    if not isinstance(result, (list, tuple)) or len(result) != 1:
        raise ValueError("infer must return a list of as many dicts as it was given (BATCH_SIZE is set)")
    return result[0]


def describe(error: BaseException) -> str:
    """Name what an app raised: its class and its own text, bounded, without a traceback."""
    try:
        text = str(error)
    except Exception:
        text = ""  # its __str__ raises
    name = type(error).__name__
    return outputs.error_text(f"{name}: {text}" if text else name)
