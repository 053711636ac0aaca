"""Streamers: which objects are, the state they begin with, and how to release who reads one.

A streamer is known by what `model.generate` calls on it, `put` and `end`; transformers' are found in what
`sys.modules` holds already. Nothing is imported.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import queue
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from .stream import Cancelled

log = logging.getLogger(__name__)

TRANSFORMERS = "transformers.generation.streamers"
# Where a streamer carries the state that it had before its first use.
INITIAL = "_initial_by_shim"
# What else than a queue holds the state of one answer; by name, so that asyncio is not imported.
MADE_ANEW = {("threading", "Event"), ("asyncio.locks", "Event"), ("_io", "StringIO"), ("_io", "BytesIO")}
CONDITIONS = {("threading", "Condition"), ("asyncio.locks", "Condition")}


def release(streamer: Any) -> None:
    """Make `for text in streamer` end, after the words that it still holds back."""
    try:
        keep_state(streamer)
        try:
            streamer.end()
        except Exception:  # it was in the middle of something
            if not hasattr(streamer, "on_finalized_text"):
                raise
            streamer.on_finalized_text("", stream_end=True)
    except Cancelled:
        pass  # it sends what it gets, and nobody wants it
    except Exception:
        log.warning("a streamer of type %s could not be released", type(streamer).__name__, exc_info=True)


class Streamers:
    """The streamers that requests use. Each carries the state that it had before its first use.

    The state lies in the streamer, not here: it may lead back to the streamer and would keep it for ever.
    """

    def __init__(self, found: Iterable[Any] = (), in_sight: Iterable[Any] = ()) -> None:
        """Take those that an app keeps. Those `in_sight`, as on self, every request is taken to use."""
        self._known: dict[int, weakref.ref[Any]] = {}
        self._used: set[int] = set()  # ids of those that the request that runs uses, or may use
        for streamer in found:
            self.note(streamer)
            keep_state(streamer)
        self._in_sight = frozenset(map(id, in_sight))

    def note(self, streamer: Any) -> None:
        """Remember a streamer that a request has made, or is about to use."""
        self._used.add(id(streamer))
        known = self._known.get(id(streamer))
        if known is None or known() is not streamer:
            with contextlib.suppress(TypeError):  # one with __slots__: nobody is released, but its put raises, too
                self._known[id(streamer)] = weakref.ref(streamer)

    def alive(self) -> list[Any]:
        return [streamer for known in list(self._known.values()) if (streamer := known()) is not None]

    def in_use(self) -> bool:
        """Whether the request that runs has a streamer that somebody may read from."""
        return any(id(streamer) in self._used for streamer in self.alive())

    def renew(self) -> None:
        """Give every streamer the state of a new one, for the request that begins."""
        self._used = set(self._in_sight)
        self._known = {id(streamer): weakref.ref(streamer) for streamer in self.alive()}
        for streamer in self.alive():
            state = state_of(streamer)
            if INITIAL in state:  # else nobody has used it yet
                for added in state.keys() - state[INITIAL].keys() - {INITIAL}:
                    del state[added]
                state.update(fresh_state(state[INITIAL]))


def keep_state(streamer: Any) -> None:
    """Have a streamer carry the state that it has now, if this is its first use."""
    state = state_of(streamer)
    if INITIAL not in state:
        state.setdefault(INITIAL, fresh_state(state))  # two threads may be the first


def state_of(streamer: Any) -> dict[str, Any]:
    return getattr(streamer, "__dict__", {})


def fresh_state(state: dict[str, Any]) -> dict[str, Any]:
    # In one step to a list: another thread may be at work with it.
    return {name: fresh(value) for name, value in list(state.items()) if name != INITIAL}


def fresh(value: Any, depth: int = 3) -> Any:
    """Return an empty queue for a queue, a new event for an event, a copy for a container, anything else as it is."""
    kind = type(value).__module__, type(value).__qualname__
    if isinstance(value, queue.SimpleQueue) or kind in MADE_ANEW:
        return type(value)()
    if kind in CONDITIONS:
        return type(value)(value._lock)  # which may be an attribute, too
    if defined(type(value), "put_nowait"):
        try:
            return type(value)(value.maxsize)
        except (AttributeError, TypeError):
            return value  # a class that wants something else than a size
    if type(value) is dict:
        return {key: fresh(each, depth - 1) for key, each in value.items()} if depth else dict(value)
    if type(value) in (list, tuple, set):
        return type(value)(fresh(each, depth - 1) for each in value) if depth else type(value)(value)
    return collections.deque(value, value.maxlen) if type(value) is collections.deque else value


def attributes(holder: Any) -> list[Any]:
    return list(vars(holder).values()) if hasattr(holder, "__dict__") else []


def defined(made: type, name: str) -> Any:
    """Look a name up in a class without asking the class: transformers' dummies raise ImportError when asked."""
    return next((vars(base)[name] for base in made.__mro__ if name in vars(base)), None)


def is_streamer_class(made: type) -> bool:
    """Tell a streamer by what `model.generate` calls on it."""
    return callable(defined(made, "put")) and callable(defined(made, "end"))


def shared_streamers(holders: Iterable[Any]) -> list[Any]:
    """Find the streamers that an app keeps for all its requests."""
    found = {id(value): value for holder in holders for value in attributes(holder) if is_streamer_class(type(value))}
    return list(found.values())


def streamer_classes(holders: Iterable[Any]) -> Iterator[type]:
    """Find the streamer classes in reach: of the app's own objects, and transformers' where that is loaded."""
    theirs = sys.modules.get(TRANSFORMERS) or sys.modules.get(TRANSFORMERS.partition(".")[0])
    for holder in [*holders, theirs]:
        for value in attributes(holder):
            made = value if issubclass(type(value), type) else type(value)
            if is_streamer_class(made):
                yield from with_subclasses(made)


def with_subclasses(made: type) -> Iterator[type]:
    yield made
    subclasses: list[type] = type.__subclasses__(made)
    for each in subclasses:
        yield from with_subclasses(each)
