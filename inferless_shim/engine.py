"""The infer threads: they load the app, run what waits, and finalise it; the app can be unloaded and loaded again.

Every job has a stream. `Engine.lock` guards the backlog, the slots and the state; no stream's lock is taken under it.
The app is loaded on the first infer thread, the one that will run it.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from . import isolation, views
from .backlog import Backlog
from .config import Settings
from .errors import AppFailed, StartupError, Unavailable
from .job import Job
from .loader import App
from .loops import close_event_loop
from .metrics import Histogram
from .outputs import app_raised, error_text
from .run import Run
from .stream import Stream

log = logging.getLogger(__name__)

# How long `finalize` may take at least.
FINALIZE_TIME = 10.0
STUCK = "Every slot is held by an infer that does not end; restart the server, or try again later."
ENDED_BY_UNLOAD = "The model is being unloaded."
# Seconds, for the metrics: a queue is empty or long, an infer is an embedding or a page of text.
WAITS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
INFERS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches
CANNOT_UNLOAD = "The model cannot be unloaded: an infer, or finalize, does not end."


class State(Enum):
    """What has become of the app."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"


class Slot:
    """One infer thread and what it runs."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.stuck = False


class Load(NamedTuple):
    """How many jobs wait, and how many slots there are, are busy, and are lost."""

    waiting: int
    slots: int
    busy: int
    stuck: int


class Engine:
    """Runs an app: `start` loads it, `submit` queues a job, `stop` finalises it."""

    def __init__(self, app: App, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.loaded = threading.Event()  # for the first time, well or not
        self.failed: StartupError | None = None
        self.state = State.LOADING
        self.reason = ""  # why it is unloaded, if loading failed
        self._unloads = 0  # how many there were
        self.lock = threading.Lock()
        self._work = threading.Condition(self.lock)  # for infer threads: there is something to do
        self._changed = threading.Condition(self.lock)  # for others: the state has changed
        self._backlog = Backlog(settings.queue)
        self._slots = [Slot() for _ in range(settings.concurrency)]
        self._closing = False  # nobody comes any more
        self._stopping = False
        self._others_ended = threading.Event()  # when stopping: `finalize` may run
        self._finalizing = threading.Event()  # and it does
        self._views = views.Views()
        self.waits, self.infers, self.batches = Histogram(*WAITS), Histogram(*INFERS), Histogram(*SIZES)
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
        """Take a place in the backlog before the headers go out. Raises Unavailable (503) if there is none."""
        with self.lock:
            self._check_ready()
            if not self._backlog.reserve(sum(slot.run is None for slot in self._slots)):
                raise Unavailable(
                    f"The queue is full ({self.settings.queue} requests are waiting); try again shortly.",
                    retry_after=max(1, round(self.settings.retry)),
                )

    def release(self) -> None:
        """Give a reserved place back."""
        with self.lock:
            self._backlog.release()
            self._look_again()

    def submit(self, job: Job) -> None:
        """Queue a job in the place that was reserved for it. It runs once its stream is followed, or detached."""
        with self.lock:
            self._backlog.add(job)
            if job.runnable:  # else `notify` will tell
                self._work.notify()

    def notify(self) -> None:
        """Tell that a waiting job's client has come, or come back: it may run."""
        with self.lock:
            self._work.notify()

    def position(self, stream: Stream) -> int | None:
        """Return a waiting stream's place in the queue, counted from 1; None if it does not wait."""
        with self.lock:
            waiting = self._backlog.streams()
        return waiting.index(stream) + 1 if stream in waiting else None

    def check_ready(self) -> None:
        """Raise Unavailable (503), which says why, unless new work is taken."""
        with self.lock:
            self._check_ready()

    @property
    def stuck(self) -> bool:
        """Whether no slot is left to run anything."""
        with self.lock:
            return self._no_slot_left()

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits; one that is stuck does not count."""
        with self.lock:
            return self._is_busy()

    def load_now(self) -> Load:
        """Return what there is to do and who does it, at one moment."""
        with self.lock:
            busy = sum(slot.run is not None for slot in self._slots)
            stuck = sum(slot.stuck for slot in self._slots)
            return Load(self._backlog.waiting(), len(self._slots), busy - stuck, stuck)

    def tick(self) -> None:
        """Fail what has run longer than `--infer-timeout`, and count slots that do not come back from it.

        What has ended in the backlog goes, with what its inputs hold.
        """
        now = time.monotonic()
        gone: list[Stream] = []
        with self.lock:
            ended = self._backlog.drop_ended()
            runs = [slot.run for slot in self._slots if slot.run is not None]
            if self.state is State.UNLOADING:
                gone = [job.stream for job in self._backlog.jobs if job.stream.followed and not job.runnable]
                self._work.notify_all()  # jobs may have ended in the backlog
        for job in ended:
            job.hold.release()
        for stream in gone:  # an app that goes waits for no client that went
            stream.fail("shutting_down", ENDED_BY_UNLOAD, if_unfollowed_since=now)
        for run in runs:
            run.tick(now)
        grace = self.settings.stuck_grace
        with self.lock:  # only now: who looks at `stuck` finds its clients told
            lost = [slot for slot in self._slots if slot.run and slot.run.is_late(now, grace) and not slot.stuck]
            for slot in lost:
                slot.stuck = True
            # Each time: one may have had its place before the last slot was lost, and come after.
            waiting = [job.stream for job in self._backlog.jobs] if self._no_slot_left() else []
        for _ in lost:
            log.error("infer did not end %g s after its timeout; its slot is lost", grace)
        for stream in waiting:  # or they would wait for ever
            stream.fail("shutting_down", STUCK)

    def unload(self) -> None:
        """Take no more work, let what runs and waits end for `--drain`, end the rest, finalise the app.

        Returns when that is over. Raises Unavailable if an infer does not end, and the app is ready as before; or if
        `finalize` does not end, or the app is just being loaded.
        """
        with self.lock:
            before = self._unloads
            if self.state is State.LOADING:
                self._check_ready()
            if self.state is State.READY:
                if self._slots[0].stuck:  # it is its thread that finalises
                    raise Unavailable(CANNOT_UNLOAD)
                self._become(State.UNLOADING)
            self._wait_until_unloaded(self.settings.drain)
            streams: list[Stream] = []
            if self.state is State.UNLOADING:
                runs = [slot.run for slot in self._slots if slot.run is not None]
                streams = [job.stream for run in runs for job in run.jobs] + [job.stream for job in self._backlog.jobs]
        for stream in streams:
            stream.fail("shutting_down", ENDED_BY_UNLOAD)
        with self.lock:
            self._work.notify_all()  # what has ended need not be waited for
            self._wait_until_unloaded(self.settings.stuck_grace + FINALIZE_TIME)
            if self._unloads > before:
                return  # and perhaps loaded again
            if self.state is State.UNLOADING and not self._is_drained():
                self._become(State.READY)
            if self.state in (State.UNLOADING, State.READY):
                raise Unavailable(CANNOT_UNLOAD)

    def load(self) -> None:
        """Make a new instance of an app that was unloaded; return when it is ready. Raises AppFailed, Unavailable."""
        with self.lock:
            if self.state is State.UNLOADED and not self._stopping:
                self._become(State.LOADING)
            self._changed.wait_for(lambda: self.state is not State.LOADING)
            if self.reason:
                raise AppFailed(f"{self.app.name} could not be loaded: {self.reason}")
            self._check_ready()

    def close(self) -> None:
        """Let what waits run at once: nobody comes any more to fill a batch."""
        with self.lock:
            self._closing = True
            self._work.notify_all()

    def stop(self, timeout: float, finalize_timeout: float | None = None) -> bool:
        """Run the app's `finalize` on its own thread once no other infer runs, or `timeout` is over.

        Return False if an infer is stuck, or `finalize` takes longer than its own timeout.
        """
        with self.lock:
            self._stopping = True
            self._work.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads[1:]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._others_ended.set()
        first = self._threads[0]
        idle = self._slots[0].run is None  # then it is on its way to `finalize`, however little time there is
        if first.is_alive() and (idle or self._finalizing.wait(max(0.0, deadline - time.monotonic()))):
            first.join(timeout if finalize_timeout is None else finalize_timeout)
        return not first.is_alive() and all(slot.run is None for slot in self._slots)

    # ---- Needs self.lock

    def _check_ready(self) -> None:
        name = self.app.name
        if self._no_slot_left():
            raise Unavailable(STUCK, state="stuck")
        if self.state is State.LOADING:
            raise Unavailable(f"{name} is still loading; try again shortly.", state=self.state.value)
        if self.state is not State.READY:
            told = "is unloaded;" if self.state is State.UNLOADED else "is being unloaded; when that is over,"
            told = f"{name} {told} POST /v2/repository/models/{name}/load brings it back."
            raise Unavailable(told, state=self.state.value)

    def _no_slot_left(self) -> bool:
        return all(slot.stuck for slot in self._slots)

    def _is_busy(self) -> bool:
        return bool(self._backlog.waiting()) or any(slot.run and not slot.stuck for slot in self._slots)

    def _become(self, state: State, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._work.notify_all()
        self._changed.notify_all()

    def _look_again(self) -> None:
        """An app that is being unloaded may have nothing left to do. Else nobody is woken: there may be 1,000 slots."""
        if self.state is State.UNLOADING:
            self._work.notify_all()

    def _wait_until_unloaded(self, timeout: float) -> None:
        self._changed.wait_for(lambda: self.state is not State.UNLOADING, timeout)

    def _is_drained(self) -> bool:
        """Whether an app that is being unloaded has nothing left to do, nor ever will. A stuck infer keeps its app.

        A waiting job whose client has gone counts: it would run if the client came back. `tick` ends it.
        """
        waits = self._backlog.reserved or any(job.stream.is_open for job in self._backlog.jobs)
        return self.state is State.UNLOADING and not waits and not self._is_busy()

    # ---- An infer thread

    def _serve(self, slot: Slot, number: int) -> None:
        """Run jobs until the engine stops. The first thread also loads the app, and finalises it."""
        if number == 0 and not self._load_first():
            return
        while self._run_next(slot, number):
            pass
        if number == 0:
            self._others_ended.wait()
            self._finalizing.set()
            if self.state is not State.UNLOADED:
                self.app.finalize()
        close_event_loop()

    def _load_first(self) -> bool:
        self.failed = self._load()
        if self.failed is None:
            for thread in self._threads[1:]:
                thread.start()
        self.loaded.set()
        return self.failed is None

    def _load(self) -> StartupError | None:
        """Load the app, and get ready to run it; return what went wrong."""
        failed = None
        self.app.on_import = partial(views.guard_streamers, self.app)
        try:
            self.app.load()
            self._views = views.Views(self.app, several=self.settings.concurrency > 1)
        except StartupError as error:
            failed = error
        except BaseException as error:
            # Ours, then; but whoever waits must not wait for ever.
            log.exception("loading failed")
            failed = StartupError(app_raised(error))
        if failed is not None and self.loaded.is_set():  # the first time, cli says so
            log.error("%s", failed)
        with self.lock:
            self._backlog.batch = max(1, self.app.flags.batch_size)
            self._backlog.window = self.app.flags.batch_window / 1000 if self.app.batched else 0.0
            self._become(State.UNLOADED if failed else State.READY, reason(failed) if failed else "")
        return failed

    def _unload(self) -> None:
        self.app.finalize()
        self._views = views.Views()
        gc.collect()  # a model is full of cycles, and its memory is what unloading is for
        with self.lock:
            self._unloads += 1
            self._become(State.UNLOADED)

    def _run_next(self, slot: Slot, number: int) -> bool:
        """Do the next thing; False when the engine stops. Nothing of a job is kept when it is over."""
        if slot.stuck:
            log.warning("an infer that was stuck has ended; its slot is back")
        todo = self._next(slot, number)
        if isinstance(todo, Run):
            self._execute(todo)
        elif todo is State.LOADING:
            self._load()
        elif todo is State.UNLOADING:
            self._unload()
        return todo is not None

    def _execute(self, run: Run) -> None:
        try:
            self._measure(run.jobs)
            again = run.execute()
        except BaseException:  # of what the app has changed under us; the thread must live on
            log.exception("a run failed")
            again = []
        self.infers.observe(run.seconds)
        for job in run.jobs:
            if job not in again:
                job.hold.release()
        with self.lock:
            self._backlog.put_back(again)
            if again:
                self._work.notify_all()

    def _measure(self, jobs: Sequence[Job]) -> None:
        """Note how long jobs have waited, and how many run together; those that are run again have been counted."""
        now = time.monotonic()
        new = [job.stream for job in jobs if job.stream.started is None]
        for stream in new:
            self.waits.observe(now - stream.created)
        if self.app.batched and new:
            self.batches.observe(len(new))

    def _next(self, slot: Slot, number: int) -> Run | State | None:
        """Wait for something to do: a run, or what the first thread does for all; None when the engine stops."""
        with self.lock:
            slot.run, slot.stuck = None, False
            self._look_again()
            while True:
                if number == 0 and (self.state is State.LOADING or self._is_drained()):
                    return self.state
                last = self._closing or self._stopping or self.state is State.UNLOADING  # no batch is filled any more
                jobs, wait = self._backlog.take(math.inf if last else time.monotonic())
                if jobs:
                    slot.run = Run(self.app, jobs, self.settings, self._views)
                    return slot.run
                if self._stopping:
                    return None
                self._work.wait(wait)


def reason(failed: StartupError) -> str:
    """Tell a client why loading failed: without the traceback that the terminal gets."""
    return app_raised(failed.__cause__) if failed.__cause__ is not None else error_text(str(failed))
