"""Streamer classes that know the request of the thread that feeds them: what nobody wants raises there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .scope import local, working_scope
from .stream import Cancelled
from .streamers import defined, is_streamer_class, keep_state, streamer_classes

# Where a class carries that it is guarded.
GUARDED = "_guarded_by_shim"


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
        outermost = id(self) not in local.making
        local.making.add(id(self))
        try:
            init(self, *args, **kwargs)
        finally:
            if outermost:
                local.making.discard(id(self))
        # Not before: who released it while its subclass is half made would take that for how it begins.
        if outermost and local.scope is not None:
            local.scope.streamers.note(self)

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
            local.feeding[id(self)] = self
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
            local.feeding.pop(id(self), None)
            return ended

    return end_while_wanted
