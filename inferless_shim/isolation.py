"""What two requests must not share: threads, and the state of streamers.

Public streaming apps keep one streamer for all requests and start `model.generate` on a thread of their own. So a
thread started while `infer` runs belongs to its request (a `Scope`): when the request is cancelled, that thread's next
`streamer.put` raises; when the thread dies, the `for text in streamer` that would wait for ever is released, and the
request fails once what was put before has been read; the slot is free when all of them have ended.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .outputs import app_raised
from .stream import Cancelled
from .streamers import Streamers, defined, is_streamer_class, keep_state, release, streamer_classes

log = logging.getLogger(__name__)

# A put takes milliseconds. One that takes longer is blocked, in a queue that the next request does not have.
PUT_TIME = 1.0
# How long infer may go on reading what a thread had put before it died. The client is to know within a second.
READ_TIME = 0.4
# Where a class carries that it is guarded.
GUARDED = "_guarded_by_shim"
# Where threads come from that a library starts when it is first needed, and keeps: they serve whoever comes. What a
# pool is given has an owner, its worker has none; tqdm's watches all progress bars.
LASTING = ("concurrent.futures.", "multiprocessing.queues", "tqdm.", "torch._inductor.")


class Local(threading.local):
    """What a thread works for, and the streamers that it has fed but not ended, by id."""

    scope: Scope | None = None

    def __init__(self) -> None:
        self.feeding: dict[int, Any] = {}
        self.making: set[int] = set()  # ids of streamers whose __init__ is under way


_local = Local()
_start = threading.Thread.start
_submit = concurrent.futures.ThreadPoolExecutor.submit


def current_scope() -> Scope | None:
    """Return the scope that this thread works for, or None outside any request."""
    return _local.scope


def working_scope() -> Scope | None:
    """Return the scope that this thread works for, as a streamer that it feeds sees it.

    A thread that outlived a request that ended well, and is in the middle of no text, is a worker that the app keeps:
    from then on it works for nobody in particular.
    """
    scope = _local.scope
    if scope is not None and scope.is_over and not _local.feeding and scope.is_wanted():
        scope = _local.scope = None
    return scope


class Scope:
    """What one call of `infer` owns: its threads, the streamers that they use, and the seeds that it set.

    `is_wanted` says whether anybody waits for what it makes. `broke` is told at once what a thread of its raised,
    `fail` when its readers have had time to read what came before that. `replicas` are what it has of the objects that
    all requests share, by their id (`views`); `seeds` are by type of device, `generators` torch's, by device (`seeds`).
    """

    def __init__(
        self,
        is_wanted: Callable[[], bool],
        fail: Callable[[str], None],
        broke: Callable[[str], None],
        streamers: Streamers,
    ) -> None:
        self.is_wanted = is_wanted
        self.streamers = streamers
        self.replicas: dict[int, Any] = {}
        self.seeds: dict[str, int] = {}
        self.generators: dict[str, Any] = {}
        self.broken: str | None = None  # what the first of its threads to die raised, in words
        self._told = broke
        self._fail = fail
        self._fail_at = 0.0
        self._changed = threading.Condition()  # guards the rest
        self._working: dict[object, str] = {}
        self._feeding = 0  # how many calls of a streamer are under way
        self._over = False  # its slot went to another request
        self._rescued = False

    @property
    def is_over(self) -> bool:
        """Whether its slot went to another request."""
        return self._over

    def wait_for_threads(self, grace: float) -> list[str]:
        """Wait until every thread has ended, `grace` seconds at most; return the names of those left behind.

        What these do to a streamer from now on raises Cancelled: it may be the next request's.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._working, grace)
            self._over = True
            # A put that has begun would go on in the state that the next request is given.
            self._changed.wait_for(lambda: not self._feeding, PUT_TIME)
            return list(self._working.values())

    # ---- The app's threads

    def adopt(self, thread: threading.Thread) -> None:
        """Make `thread`, which is about to start, one of this scope's: its death fails the request."""
        run = thread.run

        def run_owned() -> None:
            try:
                with self.working(thread):
                    self._run_or_fail(run)
            except Cancelled:
                pass  # the wish of whoever cancelled; no traceback for it
            finally:
                vars(thread).pop("run", None)  # or thread and wrapper would keep each other

        self.joined(thread, thread.name)
        thread.run = run_owned  # type: ignore[method-assign]

    def abandon(self, thread: threading.Thread) -> None:
        """Undo `adopt`: the thread could not be started."""
        vars(thread).pop("run", None)
        self.left(thread)

    def _run_or_fail(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Cancelled:
            raise
        except SystemExit as error:
            # It ends a thread quietly, as `threading` has it; but not one that somebody reads from.
            if self.streamers.in_use():
                self.broke(error)
            raise
        except BaseException as error:
            # Before any reader is released: infer would come to its end and finish the stream as if all were well.
            self.broke(error)
            raise

    def broke(self, error: BaseException) -> None:
        """Note what a thread of its raised; the first says why the request fails. Any thread."""
        if self.broken is None:
            self._fail_at = time.monotonic() + READ_TIME
            self.broken = app_raised(error)
            self._told(self.broken)

    def tick(self, now: float) -> None:
        """Fail the request if a thread of its died a while ago, and rescue who waits for one that has. Any thread."""
        if self.broken is not None and now >= self._fail_at:
            self._fail(self.broken)
        self._rescue()

    @contextlib.contextmanager
    def working(self, token: object = None) -> Iterator[None]:
        """Let the current thread work for this scope: as `token`, which has joined, or as the infer thread."""
        before = _local.scope, _local.feeding
        _local.scope, _local.feeding = self, {}
        try:
            yield
        finally:
            fed, _local.scope = _local.feeding, None
            try:
                self._release_readers(fed.values())
            finally:
                _local.scope, _local.feeding = before
                self.left(token)

    def joined(self, token: object, name: str) -> None:
        with self._changed:
            self._working[token] = name

    def left(self, token: object) -> None:
        with self._changed:
            self._working.pop(token, None)
            self._changed.notify_all()

    # ---- Streamers

    @contextlib.contextmanager
    def feeding(self) -> Iterator[None]:
        """Keep the slot for the time of one call of a streamer. Raises Cancelled if another request has it already."""
        with self._changed:
            if self._over:
                raise Cancelled
            self._feeding += 1
        try:
            yield
        finally:
            with self._changed:
                self._feeding -= 1
                self._changed.notify_all()

    def _rescue(self) -> None:
        """Release the readers of a request that failed and has no thread that could feed them: infer waits in vain.

        What a streamer does may block, so it is done on a thread of its own.
        """
        with self._changed:
            if self.is_wanted() or self._working or self._rescued:
                return
            self._rescued = True
        threading.Thread(target=self._release_readers, args=((),), name="release", daemon=True).start()

    def _release_readers(self, fed: Iterable[Any]) -> None:
        """Release whoever reads the streamers that a thread fed and left without `end`; all, if the request failed.

        Runs without a scope, so that the guards let it pass.
        """
        left = list(fed)
        if not self.is_wanted() or (self.broken is not None and not left):
            left = self.streamers.alive()
        with contextlib.suppress(Cancelled), self.feeding():
            for streamer in left:
                release(streamer)


# ---- Guards


def guard_all(holders: Iterable[Any]) -> None:
    for made in streamer_classes(holders):
        guard(made)


def guard(made: type) -> None:
    """Make a streamer class know the request of the thread that feeds it."""
    for base in made.__mro__:
        if not is_streamer_class(base) or GUARDED in vars(base):
            continue
        for name, wrap in (("__init__", guard_init), ("put", guard_put), ("end", guard_end)):
            owner = next((each for each in base.__mro__ if name in vars(each)), base)
            # What comes from elsewhere, such as queue.Queue, everybody uses: the streamer class gets its own.
            if inspect.isfunction(defined(base, name)) and (owner is base or not is_streamer_class(owner)):
                setattr(base, name, wrap(defined(base, name)))
        setattr(base, GUARDED, True)


def guard_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_noted(self: Any, *args: Any, **kwargs: Any) -> None:
        outermost = id(self) not in _local.making
        _local.making.add(id(self))
        try:
            init(self, *args, **kwargs)
        finally:
            if outermost:
                _local.making.discard(id(self))
        # Not before: who released it while its subclass is half made would take that for how it begins.
        if outermost and _local.scope is not None:
            _local.scope.streamers.note(self)

    return init_noted


def guard_put(put: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(put)
    def put_while_wanted(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = working_scope()
        if scope is None:
            return put(self, *args, **kwargs)
        self = scope.replicas.get(id(self), self)  # a bound method of the shared one
        with scope.feeding():
            scope.streamers.note(self)
            if not scope.is_wanted():
                raise Cancelled
            keep_state(self)
            _local.feeding[id(self)] = self
            return put(self, *args, **kwargs)

    return put_while_wanted


def guard_end(end: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(end)
    def end_while_wanted(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = working_scope()
        if scope is None:
            return end(self, *args, **kwargs)
        self = scope.replicas.get(id(self), self)
        with scope.feeding():
            if not scope.is_wanted():
                raise Cancelled
            keep_state(self)
            ended = end(self, *args, **kwargs)
            _local.feeding.pop(id(self), None)
            return ended

    return end_while_wanted


# ---- Threads and pools


def install() -> None:
    """Let threads and pool work that start while `infer` runs belong to its request."""
    threading.Thread.start = start_owned  # type: ignore[method-assign,assignment]
    concurrent.futures.ThreadPoolExecutor.submit = submit_owned  # type: ignore[method-assign]


def start_owned(thread: threading.Thread) -> None:
    scope = _local.scope
    if scope is None or lasts(thread) or thread.ident is not None:
        _start(thread)
        return
    guard_all([])  # transformers may have been imported by infer
    scope.adopt(thread)
    try:
        _start(thread)
    except BaseException:
        scope.abandon(thread)
        raise


def lasts(thread: threading.Thread) -> bool:
    """Whether a thread is a library's own, which outlives the request that was the first to need it."""
    target = getattr(thread, "_target", None) or type(thread).run
    return str(getattr(target, "__module__", "")).startswith(LASTING)


def submit_owned(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Let what a pool runs for infer belong to its request."""
    scope = _local.scope
    if scope is None:
        return _submit(pool, function, *args, **kwargs)
    token = object()

    def run_owned(*args: Any, **kwargs: Any) -> Any:
        with scope.working(token):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                # It is for whoever asks the future; but a text that ends in the middle must not look like a whole one.
                if _local.feeding:
                    scope.broke(error)
                raise

    scope.joined(token, getattr(function, "__name__", "submitted"))
    try:
        future = _submit(pool, run_owned, *args, **kwargs)
    except BaseException:
        scope.left(token)
        raise
    future.add_done_callback(lambda _: scope.left(token))  # cancelled before it ran
    return future
