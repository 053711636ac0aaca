"""What a request sees of the app: at `--concurrency 1` the app itself, above that a view.

A view is an object of the app's class with the app's attributes: same model, same tokenizer; what `infer` writes to it
is gone with the request. The app's own object and the streamers that it keeps, on self or anywhere else, stay where
they are, but each dispatches: what a thread of a request does with one happens to that request's view or replica.
Outside any request (`initialize`, `finalize`, the app's own threads) each is itself.
"""

from __future__ import annotations

import gc
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import seeds
from .guards import guard
from .loader import App
from .loops import event_loop
from .scope import Scope, current_scope
from .streamers import Streamers, fresh_state, is_streamer_class, shared_streamers, streamer_classes

log = logging.getLogger(__name__)

# What Python looks up on the class is forwarded; not what must go on being about the object itself, or about classes.
OWN = {"__class__", "__dict__", "__getattribute__", "__setattr__", "__delattr__", "__new__", "__init__", "__del__"}
ABOUT_CLASSES = {"__init_subclass__", "__subclasshook__", "__class_getitem__", "__annotate__", "__annotate_func__"}
# Where a dispatching class names the class that it was made of.
DISPATCHES = "_dispatches_by_shim"
# What a class holds and what it is made of, without asking its metaclass.
namespace: Callable[[type], dict[str, Any]] = type.__dict__["__dict__"].__get__
HEAP_TYPE = 1 << 9  # CPython's Py_TPFLAGS_HEAPTYPE: made by a class statement


class Views:
    """Makes what each request sees of an app that has been loaded. Used by the infer threads, without a lock.

    `several` is whether requests run at once. Else they have the app itself, whose streamers begin anew for each.
    """

    def __init__(self, app: App | None = None, *, several: bool = False) -> None:
        self.app = app
        self.several = several
        self._kept = Streamers()
        self._shared: list[Callable[[], Any]] = []  # weak references: an app that was unloaded is to be freed
        self._is_copied = False
        self._loop: Any = None
        if app is None:
            return
        kept = kept_streamers(app)
        if not several:
            self._kept = Streamers(kept, in_sight=shared_streamers(holders_of(app)))
            return
        self._shared = [reference(each) for each in kept if share(each, "their texts mix")]
        self._is_copied = share(app.instance, "they all write to the same attributes")
        if self._shared and "asyncio" in sys.modules:
            # The one that `initialize` ran on: an AsyncTextIteratorStreamer that was made there keeps it.
            self._loop = event_loop()

    def streamers(self) -> Streamers:
        """Return what keeps a request's streamers."""
        return Streamers() if self.several else self._kept

    def enter(self, scope: Scope) -> Any:
        """Let the request of `scope` begin, on its infer thread; return what it sees as the app's object."""
        assert self.app is not None
        scope.streamers.renew()
        if not self.several:
            return self.app.instance
        seeds.install()  # torch may be loaded by now
        for streamer in [each for refer in self._shared if (each := refer()) is not None]:
            own = scope.replicas[id(streamer)] = copied(streamer, self._own_state(streamer))
            scope.streamers.note(own)
        instance = self.app.instance
        if self._is_copied and id(instance) not in scope.replicas:  # it may be a streamer itself
            scope.replicas[id(instance)] = copied(instance, state_of(instance))
        return scope.replicas.get(id(instance), instance)

    def _own_state(self, streamer: Any) -> dict[Any, Any]:
        """Return the state of a streamer for a request that begins. What waits for it does so on this thread's loop."""
        state: dict[Any, Any] = fresh_state(state_of(streamer))
        if self._loop is not None:
            state.update({name: event_loop() for name, value in state.items() if value is self._loop})
        return state


def reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # its class has __slots__
        return lambda: value


# ---- The streamers that an app keeps


def kept_streamers(app: App) -> list[Any]:
    """Find them however the app keeps them: on self, in a closure, in a pipeline's arguments."""
    classes = guard_streamers(app)
    if not classes:
        return []
    gc.collect()  # so that what is found is in use
    # By id: a metaclass may make classes that cannot be hashed. Those on self may be hidden from the collector.
    found = [*shared_streamers(holders_of(app)), *(each for each in gc.get_objects() if id(type(each)) in classes)]
    return list({id(each): each for each in found}.values())


def guard_streamers(app: App) -> dict[int, type]:
    """Guard the streamer classes that the app can use, wherever in its folder they are made; return them by id.

    Called as soon as they are there, too: a bound method that `initialize` keeps is then one of the guarded.
    """
    classes = {id(made): made for made in streamer_classes(holders_of(app))}
    siblings = siblings_of(app)
    for made in all_classes():
        if namespace(made).get("__module__") in siblings and is_streamer_class(made):
            classes[id(made)] = made
    for made in classes.values():
        guard(made)
    return classes


def all_classes() -> Iterator[type]:
    """Yield all classes that there are, also those that no module names."""
    seen, left = set(), [object]
    while left:
        made = left.pop()
        for each in type.__subclasses__(made):
            if id(each) not in seen:
                seen.add(id(each))
                left.append(each)
                yield each


def holders_of(app: App) -> list[Any]:
    return [app.instance, app.module, *siblings_of(app).values()]


def siblings_of(app: App) -> dict[str, Any]:
    return {name: module for name, module in list(sys.modules.items()) if is_inside(app.folder, module)}


def is_inside(folder: Path, module: Any) -> bool:
    file = getattr(module, "__file__", None)
    # The first look at the name spares most modules the paths, which take long: there may be thousands of modules.
    return isinstance(file, str) and folder.name in file and Path(file).is_relative_to(folder)


# ---- Copies: attributes and slots alone, no code of the class runs


def class_of(instance: Any) -> type:
    """Return the class of an object; of one that dispatches, the class that the app gave it."""
    made: type = namespace(type(instance)).get(DISPATCHES, type(instance))
    return made


def state_of(instance: Any) -> dict[Any, Any]:
    """Return an object's attributes by name and its slots by descriptor."""
    try:
        state: dict[Any, Any] = dict(object.__getattribute__(instance, "__dict__"))
    except AttributeError:
        state = {}
    for slot in slots(class_of(instance)):
        try:
            state[slot] = slot.__get__(instance)
        except AttributeError:
            pass  # empty
    return state


def slots(made: type) -> Iterator[Any]:
    for base in made.__mro__:
        if "__slots__" in namespace(base):
            yield from (each for each in namespace(base).values() if type(each) is types.MemberDescriptorType)


def copied(instance: Any, state: dict[Any, Any]) -> Any:
    """Return a new object of the same class in a state such as `state_of` returns.

    Raises TypeError for one that holds more than attributes, such as a subclass of list.
    """
    made = class_of(instance)
    builtin = next(base for base in made.__mro__ if not base.__flags__ & HEAP_TYPE)
    if builtin not in (object, types.SimpleNamespace):
        raise TypeError(f"{made.__name__} is a {builtin.__name__}")
    new: Any = builtin.__new__(made)
    attributes = {name: value for name, value in state.items() if isinstance(name, str)}
    if attributes:
        object.__getattribute__(new, "__dict__").update(attributes)
    for slot in state.keys() - attributes.keys():
        slot.__set__(new, state[slot])
    return new


# ---- Objects that dispatch by request


def share(instance: Any, otherwise: str) -> bool:
    """Let each request see a copy of its own where it sees `instance`; say what happens `otherwise`, if that fails."""
    try:
        copied(instance, state_of(instance))
        if type(instance) is not types.SimpleNamespace and DISPATCHES not in namespace(type(instance)):
            object.__setattr__(instance, "__class__", dispatching(type(instance)))
    except Exception as error:
        log.warning(
            "an object of class %s is shared by all requests, and %s: it cannot be copied (%s)",
            type(instance).__name__, otherwise, error,
        )  # fmt: skip
        return False
    return True


def dispatching(made: Any) -> type:
    """Make the class of an object that dispatches by the request that a thread works for."""

    told: list[str] = []

    def get(self: Any, name: str) -> Any:
        own = own_of(self)
        if own is not None:
            return getattr(own, name)
        if name == "put" and not told:
            told.append(name)
            log.warning("a thread that belongs to no request feeds a %s: no request reads it", made.__name__)
        return made.__getattribute__(self, name)

    def set(self: Any, name: str, value: Any) -> None:
        own = own_of(self)
        made.__setattr__(self if own is None else own, name, value)

    def delete(self: Any, name: str) -> None:
        own = own_of(self)
        made.__delattr__(self if own is None else own, name)

    def forwarded(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            own = own_of(self)
            return getattr(made, name)(self if own is None else own, *args, **kwargs)

        return call

    names = {name for base in made.__mro__[:-1] for name in namespace(base) if name[:2] == name[-2:] == "__"}
    methods = {name: forwarded(name) for name in names - OWN - ABOUT_CLASSES if callable(getattr(made, name))}
    methods |= {"__getattribute__": get, "__setattr__": set, "__delattr__": delete}
    about = {"__slots__": (), "__module__": made.__module__, "__qualname__": made.__qualname__, DISPATCHES: made}
    new: type = type(made)(made.__name__, (made,), {**methods, **about})
    return new


def own_of(instance: Any) -> Any:
    """Return what this thread's request has of a shared object; None outside any request."""
    scope = current_scope()
    return None if scope is None else scope.replicas.get(id(instance))
