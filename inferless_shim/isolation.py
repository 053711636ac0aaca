"""What two requests must not share: threads, and the state of streamers.

Public streaming apps keep one streamer for all requests and start `model.generate` on a thread of their own. So a
thread started while `infer` runs belongs to its request (a `Scope`): when the request is cancelled, that thread's next
`streamer.put` raises; when the thread dies, the request fails and the `for text in streamer` that would wait for ever
is released; the slot is free when all of them have ended. Nothing is imported here: a streamer is known by its methods
`put` and `end`, transformers' by what `sys.modules` holds already.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.thread
import contextlib
import copy
import functools
import inspect
import logging
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .stream import Cancelled

log = logging.getLogger(__name__)

TRANSFORMERS = ("transformers", "transformers.generation.streamers")

_local = threading.local()
_start = threading.Thread.start
_submit = concurrent.futures.ThreadPoolExecutor.submit


def current_scope() -> Scope | None:
    """Return the scope that this thread works for, or None outside any request."""
    return getattr(_local, "scope", None)


class Scope:
    """What one call of `infer` owns: its threads and its streamers. Enter it on the infer thread."""

    def __init__(self, is_wanted: Callable[[], bool], fail: Callable[[BaseException], None]) -> None:
        self.is_wanted = is_wanted
        self.fail = fail
        self._changed = threading.Condition()  # guards the next two
        self._working: dict[object, str] = {}
        self._released = False
        self._streamers: weakref.WeakSet[Any] = weakref.WeakSet()

    def __enter__(self) -> Scope:
        _local.scope = self
        return self

    def __exit__(self, *_: object) -> None:
        _local.scope = None

    def check(self) -> None:
        """Raise Cancelled if what this thread makes is for nobody, or for a request whose slot went to another."""
        if self._released or not self.is_wanted():
            raise Cancelled

    def wait_for_threads(self, grace: float) -> list[str]:
        """Wait until every thread has ended, `grace` seconds at most; return the names of those left behind."""
        with self._changed:
            self._changed.wait_for(lambda: not self._working, grace)
            self._released = True
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
                del thread.run  # or thread and wrapper would keep each other

        thread.run = run_owned  # type: ignore[method-assign]
        self.joined(thread, thread.name)

    def _run_or_fail(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            # Before any reader is released: infer would come to its end and finish the stream as if all were well.
            if not isinstance(error, Cancelled):
                self.fail(error)
            raise

    @contextlib.contextmanager
    def working(self, token: object) -> Iterator[None]:
        """Let the current thread work for this scope, as `token`, which has joined."""
        before, _local.scope, _local.feeding = current_scope(), self, None
        try:
            yield
        finally:
            feeding, _local.feeding, _local.scope = _local.feeding, None, before
            self._release_readers(feeding)
            self.left(token)

    def joined(self, token: object, name: str) -> None:
        with self._changed:
            self._working[token] = name

    def left(self, token: object) -> None:
        with self._changed:
            self._working.pop(token, None)
            self._changed.notify_all()

    # ---- Streamers

    def made(self, streamer: Any) -> None:
        """Note a streamer of this scope: its reader is released if the request ends early."""
        self._streamers.add(streamer)

    def _release_readers(self, feeding: Any) -> None:
        """Release whoever reads the streamer that a thread fed and left without `end`; all, if the request is over."""
        for streamer in [feeding] if self.is_wanted() else list(self._streamers):
            if streamer is not None:
                release(streamer)


def release(streamer: Any) -> None:
    """Make `for text in streamer` end."""
    try:
        if hasattr(streamer, "on_finalized_text"):
            streamer.on_finalized_text("", stream_end=True)
        else:
            inspect.unwrap(type(streamer).end)(streamer)
    except Exception:
        log.warning("a streamer of type %s could not be released", type(streamer).__name__, exc_info=True)


class SharedStreamers:
    """The streamers that an app keeps for all its requests, each with the state it had when the app was loaded."""

    def __init__(self, holders: list[Any]) -> None:
        found = {id(value): value for holder in holders for value in attributes(holder) if is_streamer(value)}
        self._initial = [(streamer, fresh_state(vars(streamer))) for streamer in found.values()]

    def __len__(self) -> int:
        return len(self._initial)

    def renew(self, scope: Scope) -> None:
        """Give every shared streamer the state of a new one, for the request that begins."""
        for streamer, initial in self._initial:
            state = vars(streamer)
            state.update(fresh_state(initial))
            for added in state.keys() - initial.keys():
                del state[added]
            scope.made(streamer)


def attributes(holder: Any) -> list[Any]:
    return list(getattr(holder, "__dict__", {}).values())


def fresh_state(state: dict[str, Any]) -> dict[str, Any]:
    return {name: fresh(value) for name, value in state.items()}


def fresh(value: Any) -> Any:
    """Return an empty queue for a queue, a copy for a container, anything else as it is."""
    if isinstance(value, queue.Queue) or (hasattr(value, "put_nowait") and hasattr(value, "maxsize")):
        return type(value)(value.maxsize)
    if isinstance(value, queue.SimpleQueue):
        return type(value)()
    return copy.copy(value) if isinstance(value, (list, dict, set, collections.deque)) else value


def is_streamer(value: Any) -> bool:
    """Tell a streamer by what `model.generate` calls on it."""
    return not isinstance(value, type) and is_streamer_class(type(value)) and hasattr(value, "__dict__")


def is_streamer_class(made: type) -> bool:
    return callable(getattr(made, "put", None)) and callable(getattr(made, "end", None))


def guard(made: type) -> None:
    """Make a streamer class know the request of the thread that feeds it."""
    for base in made.__mro__:
        own = vars(base)
        # Not what a streamer merely inherits from, such as queue.Queue, which everybody uses.
        if not is_streamer_class(base) or "_guarded_by_shim" in own:
            continue
        for name, wrap in (("__init__", guard_init), ("put", guard_put), ("end", guard_end)):
            if name in own:
                setattr(base, name, wrap(own[name]))
        base._guarded_by_shim = True  # type: ignore[attr-defined]


def guard_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        scope = current_scope()
        if scope is not None:
            scope.made(self)

    return __init__


def guard_put(put: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(put)
    def put_while_wanted(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_scope()
        if scope is not None:
            scope.check()
            scope.made(self)
            _local.feeding = self
        return put(self, *args, **kwargs)

    return put_while_wanted


def guard_end(end: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(end)
    def end_if_owner(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_scope()
        if scope is not None:
            scope.check()
            _local.feeding = None
        return end(self, *args, **kwargs)

    return end_if_owner


def streamer_classes(holders: list[Any]) -> Iterator[type]:
    """Find the streamer classes in reach: of the app's own objects, and transformers' where that is loaded."""
    modules = [sys.modules[name] for name in TRANSFORMERS if name in sys.modules]
    for holder in [*holders, *modules]:
        for value in attributes(holder):
            made = value if isinstance(value, type) else type(value)
            if is_streamer_class(made):
                yield made


def guard_all(holders: list[Any]) -> None:
    for made in streamer_classes(holders):
        guard(made)


def install() -> None:
    """Let threads and pool workers that start while `infer` runs belong to its request."""
    threading.Thread.start = start_owned  # type: ignore[method-assign,assignment]
    concurrent.futures.ThreadPoolExecutor.submit = submit_owned  # type: ignore[method-assign]


def start_owned(thread: threading.Thread) -> None:
    scope = current_scope()
    # A pool's worker serves many requests: what is submitted has an owner, the worker has none.
    if scope is None or getattr(thread, "_target", None) is concurrent.futures.thread._worker:
        _start(thread)
        return
    guard_all([])
    scope.adopt(thread)
    try:
        _start(thread)
    except BaseException:
        scope.left(thread)
        raise


def submit_owned(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    scope = current_scope()
    if scope is None:
        return _submit(pool, function, *args, **kwargs)
    token = object()

    def run_owned(*args: Any, **kwargs: Any) -> Any:
        with scope.working(token):
            return function(*args, **kwargs)

    scope.joined(token, getattr(function, "__name__", "submitted"))
    future = _submit(pool, run_owned, *args, **kwargs)
    future.add_done_callback(lambda _: scope.left(token))  # cancelled before it ran
    return future
