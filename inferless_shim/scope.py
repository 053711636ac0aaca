"""What one call of `infer` owns: the threads that it starts, and the streamers that they feed.

When the request is cancelled, the next `streamer.put` of such a thread raises (`guards`); when one dies, the
`for text in streamer` that would wait for ever is released, and the request fails once what was put before has been
read; the slot is free when all of them have ended. Which thread belongs to whom is `isolation`'s to see.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .outputs import app_raised
from .stream import Cancelled
from .streamers import Streamers, release

# A put takes milliseconds. One that takes longer is blocked, in a queue that the next request does not have.
PUT_TIME = 1.0
# How long infer may go on reading what a thread had put before it died. The client is to know within a second.
READ_TIME = 0.4


class Local(threading.local):
    """What a thread works for, and the streamers that it has fed but not ended, by id."""

    scope: Scope | None = None

    def __init__(self) -> None:
        self.feeding: dict[int, Any] = {}
        self.making: set[int] = set()  # ids of streamers whose __init__ is under way


local = Local()


def current_scope() -> Scope | None:
    """Return the scope that this thread works for, or None outside any request."""
    return local.scope


def working_scope() -> Scope | None:
    """Return the scope that this thread works for, as a streamer that it feeds sees it.

    A thread that outlived a request that ended well, and is in the middle of no text, is a worker that the app keeps:
    from then on it works for nobody in particular.
    """
    scope = local.scope
    if scope is not None and scope.is_over and not local.feeding and scope.is_wanted():
        scope = local.scope = None
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
        before = local.scope, local.feeding
        local.scope, local.feeding = self, {}
        try:
            yield
        finally:
            fed, local.scope = local.feeding, None
            try:
                self._release_readers(fed.values())
            finally:
                local.scope, local.feeding = before
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
        if not left:
            return
        with contextlib.suppress(Cancelled), self.feeding():
            for streamer in left:
                release(streamer)
