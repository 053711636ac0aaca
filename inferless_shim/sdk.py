"""What `import inferless` gives an app here: decorators that mark and change nothing, and `calls`.

It stands in for the package `inferless` in the serving process, installed or not (CONTRACT.md §7): the names are those
of the package's version below. What is decorated stays the same class or function; the loader finds it by its role.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .calls import call, call_async

__all__ = ["Cls", "call", "call_async", "config", "local_entry_point", "method", "request", "response"]
__version__ = "0.2.15"

MODULE_NAME = "inferless"

# Marks. -------------------------------------------------------------------------------------------------------------

ROLES = ("request", "response", "config", "load", "infer", "method", "local_entry_point")
ROLE_ATTRIBUTE = "_inferless_role"  # of functions
FLAGS = ("is_streaming_output", "is_batched_input", "batch_size", "batch_window")

marked: dict[str, list[Any]] = {role: [] for role in ROLES}  # what was decorated, by role, in order


def of(role: str) -> list[Any]:
    """Return what was decorated as `role` so far, in order."""
    return list(marked.get(role, ()))


def role_of(candidate: object) -> str | None:
    """Return the role that a function, a method or a class was decorated with, None if it has none."""
    function = getattr(candidate, "__func__", candidate)  # of a bound, static or class method
    role = None if isinstance(function, type) else getattr(function, ROLE_ATTRIBUTE, None)
    if isinstance(role, str):
        return role
    return next((role for role, those in marked.items() if any(each is candidate for each in those)), None)


def _decorator(role: str, note: Callable[[Any], None] = lambda decorated: None) -> Callable[..., Any]:
    """Make a decorator for a role, to be used with arguments or without."""

    def decorate(*arguments: Any, **options: Any) -> Any:
        if len(arguments) == 1 and not options and _can_be_decorated(arguments[0]):
            return mark(arguments[0])
        return mark

    def mark(decorated: Any) -> Any:
        _record(role, decorated)
        note(decorated)
        return decorated

    decorate.__name__ = decorate.__qualname__ = role
    return decorate


def _can_be_decorated(argument: object) -> bool:
    return callable(argument) or isinstance(argument, (staticmethod, classmethod))


def _record(role: str, decorated: Any) -> None:
    marked.setdefault(role, []).append(decorated)
    function = getattr(decorated, "__func__", decorated)
    # `method` says least: what is also marked to load or to infer keeps that.
    if inspect.isfunction(function) and getattr(function, ROLE_ATTRIBUTE, "method") == "method":
        setattr(function, ROLE_ATTRIBUTE, role)


def _set_environment(made: Any) -> None:
    """Set each field of a config class in the environment, in capitals, as the package does."""
    for name, value in _declared(made).items():
        os.environ[name.upper()] = str(value)


def config_of(made: Any) -> dict[str, Any]:
    """Return what a config class says of streaming and batches: those of FLAGS that it declares."""
    declared = _declared(made)
    return {name: declared[name] for name in FLAGS if name in declared}


def _declared(made: Any) -> dict[str, Any]:
    """Return the values of a class's fields: a pydantic class's, a dataclass's, or a plain class's attributes."""
    fields = getattr(made, "model_fields" if hasattr(made, "model_validate") else "__fields__", None)
    try:
        holder = made()
    except Exception:  # a field without a default, or an __init__ with arguments
        holder = made
    found = {}
    for name in fields or (name for name in dir(holder) if not name.startswith("_")):
        value = getattr(holder, name, getattr(fields[name], "default", None) if fields else None)
        if isinstance(value, (bool, int, float, str, list, tuple, dict)):
            found[name] = value
    return found


request = _decorator("request")
response = _decorator("response")
config = _decorator("config", _set_environment)
method = _decorator("method")
local_entry_point = _decorator("local_entry_point")


class Cls:
    """`app = inferless.Cls(gpu="T4")`: every attribute is a decorator, and the options are a cloud's."""

    load = staticmethod(_decorator("load"))
    infer = staticmethod(_decorator("infer"))

    def __init__(self, gpu: str | None = None, **options: Any) -> None:
        self.gpu = gpu
        self.options = options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _decorator(name)


# The module. --------------------------------------------------------------------------------------------------------


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"module {MODULE_NAME!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")


def install() -> None:
    """Make `import inferless` give this module."""
    sys.modules[MODULE_NAME] = sys.modules[__name__]
