"""One call of `infer`, from its start until its threads are over: its jobs are one, or a batch of BATCH_SIZE.

Runs on an infer thread; what any thread may call says so.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from .config import Settings
from .errors import AppFailed, ShimError
from .job import Job, StreamOutputHandler
from .loader import App
from .loops import event_loop
from .outputs import app_raised
from .scope import Scope
from .stream import Cancelled
from .views import Views

log = logging.getLogger(__name__)


class Run:
    """Brings jobs to their end. `views` says what they see of the app; `deadline` is when infer takes too long.

    Whatever happens, every stream of its jobs has ended when `execute` returns.
    """

    def __init__(self, app: App, jobs: Sequence[Job], settings: Settings, views: Views) -> None:
        self.app = app
        self.jobs = jobs
        self.settings = settings
        self.views = views
        self.deadline: float | None = None
        self.seconds = 0.0  # how long infer took
        # Not bound methods: run and scope would keep each other alive.
        self.scope = Scope(partial(is_wanted, jobs), partial(fail, jobs), partial(broke, jobs), views.streamers())

    def execute(self) -> list[Job]:
        """Run `infer` and end the streams; return when the threads that it started have ended, too.

        The jobs of a batch that raised are returned: they are to be run again, each alone, because one may be to blame.
        """
        again: list[Job] = []
        began = time.monotonic()
        try:
            with self.scope.working():
                try:
                    self._infer(self.views.enter(self.scope))
                except BaseException as error:
                    again = self._end_badly(error)
        finally:
            for job in self.jobs:
                if job not in again and job.stream.is_open:  # an error that cannot even be told
                    job.fail("The app could not be run.")
        self.seconds = time.monotonic() - began
        self.deadline = None  # infer is over; its threads have the grace
        grace = self.settings.stuck_grace
        left = self.scope.wait_for_threads(grace)
        if left:
            log.error("threads that infer started outlived it by %g s: %s", grace, ", ".join(left))
        return again

    def is_late(self, now: float, grace: float = 0.0) -> bool:
        """Whether infer has run `grace` seconds longer than it may. Any thread."""
        deadline = self.deadline  # read once: infer may end meanwhile
        return deadline is not None and now >= deadline + grace

    def tick(self, now: float) -> None:
        """Fail what has run too long, and what has lost a thread. Any thread."""
        if self.is_late(now):
            for job in self.jobs:
                job.stream.fail("timeout", f"infer took longer than {self.settings.infer_timeout:g} s.")
        self.scope.tick(now)

    # ---- The infer thread

    def _infer(self, instance: Any) -> None:
        """Run `infer` of `instance` once, for all jobs, and end their streams."""
        now = time.monotonic()
        for job in self.jobs:
            job.stream.started = job.stream.started or now
        self.deadline = now + self.settings.infer_timeout
        handlers = [StreamOutputHandler(job, self.settings.max_event, self.settings.log_cap) for job in self.jobs]
        if self.app.batched:
            self._infer_batch(handlers, instance)
            return
        infer = self.app.infer(self.jobs[0].inputs, handlers[0], instance)
        self._finish(self.jobs[0], handlers[0], drive(infer, handlers[0].send_streamed_output))

    def _infer_batch(self, handlers: Sequence[StreamOutputHandler], instance: Any) -> None:
        """Run `infer` with a list of inputs; each answer goes to its own asker, and so does what is wrong with it."""
        # Copies, which it may change: what raises is run again.
        batch = [copied(job.inputs) if len(self.jobs) > 1 else job.inputs for job in self.jobs]
        results = drive(self.app.infer_batch(batch, instance), refuse_event)
        if not any(job.stream.is_open for job in self.jobs):
            return  # it may have given up, and returned what it likes
        wanted = len(self.jobs)
        if not isinstance(results, (list, tuple)) or len(results) != wanted:
            got = f"{len(results)}" if isinstance(results, (list, tuple)) else f"a {type(results).__name__}"
            wrong = f"infer must return a list of {wanted} answers, as many as it was given, not {got}"
            end_badly(self.jobs, AppFailed(wrong))
            return
        for job, handler, result in zip(self.jobs, handlers, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                self._finish(job, handler, result)
            except BaseException as error:
                end_badly([job], error)

    def _finish(self, job: Job, handler: StreamOutputHandler, result: Any) -> None:
        """End a job whose `infer` returned `result`. Raises what the result's conversion raises."""
        if handler.cancelled or not job.stream.is_open:
            return
        if handler.sent_nothing and (result is not None or not self.app.streaming):
            handler.answer(self.app.answer(result))
        job.finish()

    def _end_badly(self, error: BaseException) -> list[Job]:
        """End the jobs whose `infer` raised; return those of a batch that somebody waits for."""
        wanted = [job for job in self.jobs if job.stream.is_open]
        if len(self.jobs) > 1 and wanted and not isinstance(error, Cancelled):
            log.error("infer raised with a batch of %d; they are run again one by one", len(self.jobs), exc_info=error)
            return wanted
        end_badly(self.jobs, error)
        return []


def end_badly(jobs: Sequence[Job], error: BaseException) -> None:
    """End jobs with what the app raised for them, then log it."""
    if isinstance(error, ShimError):  # ours, in our own words: an answer that does not fit, or lacks what was asked for
        log.error("%s (request %s)", error, ", ".join(job.request_id for job in jobs))
        for job in jobs:
            job.stream.fail(error.code, error.message)
        return
    # A Cancelled comes of a stream that has ended; but the app may have kept one of an earlier request.
    fail(jobs, app_raised(error))
    if not isinstance(error, Cancelled):
        log.error("infer raised (request %s)", ", ".join(job.request_id for job in jobs), exc_info=error)


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs that an app may change as it likes; the same ones if a class of its own cannot be copied."""
    try:
        return copy.deepcopy(inputs)
    except Exception:
        return inputs


# ---- What a scope asks about its jobs, on any thread


def is_wanted(jobs: Sequence[Job]) -> bool:
    """Whether anybody waits for what is made."""
    return any(job.stream.failure is None for job in jobs)


def broke(jobs: Sequence[Job], told: str) -> None:
    """Note that a thread of the app's has died: whatever infer says, these jobs cannot end well."""
    for job in jobs:
        job.broken = told


def fail(jobs: Sequence[Job], told: str) -> None:
    for job in jobs:
        job.fail(told)


# ---- What infer returned


def drive(result: Any, send: Callable[[Any], Any]) -> Any:
    """Bring what `infer` returned to its end: await a coroutine, send what a generator yields."""
    if inspect.isgenerator(result):
        send_all(result, send)
        return None
    if inspect.isasyncgen(result):
        result = send_all_async(result, send)
    if inspect.iscoroutine(result):
        return run_to_its_end(result)
    return result


def run_to_its_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on this thread's event loop, which other tasks of the app's may share.

    asyncio lets a SystemExit of any task through the loop. Left in the middle, the coroutine would go on with the next
    request, and fail it; so it is run to its end, where it finds out itself if that task was one that it awaits.
    """
    loop = event_loop()
    task = loop.create_task(coroutine)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            if task.done():
                return task.result()


def send_all(yielded: Generator[Any, Any, Any], send: Callable[[Any], Any]) -> None:
    with closing(yielded):
        for output in yielded:
            send(output)


async def send_all_async(yielded: AsyncGenerator[Any, Any], send: Callable[[Any], Any]) -> None:
    async with aclosing(yielded):
        async for output in yielded:
            send(output)


def refuse_event(output: Any) -> None:
    """A batch is one list; what a generator yields has no asker."""
    raise TypeError("infer of a batched app must return its list of answers, not yield them")
