"""What an app is made of: a class with three methods, or functions, under whatever names (CONTRACT.md §1)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from . import sdk
from .errors import StartupError

CLASS_NAME = "InferlessPythonModel"


@dataclass(frozen=True)
class Parts:
    """What an app is made of: what makes its object, and the names of that object's methods, None for one it lacks."""

    make: Callable[[], Any]
    name: str
    initialize: str | None
    infer: str
    finalize: str | None


def find_parts(module: ModuleType, marked: Mapping[str, list[Any]]) -> Parts:
    """Find the app's class, or the functions that stand for one. Raises StartupError if there is neither."""
    made = getattr(module, CLASS_NAME, None)
    if inspect.isclass(made):
        parts = class_parts(made)
        if parts is None:
            raise StartupError(f"{module.__file__}: class {CLASS_NAME} has no method infer.")
        return parts
    for other in vars(module).values():
        if inspect.isclass(other) and marked_method(other, "infer"):
            return class_parts(other) or Parts(other, other.__name__, None, "infer", None)
    plain = {
        role: [each for each in marked[role] if inspect.isfunction(each) and "." not in each.__qualname__]
        for role in ("load", "infer", "method")
    }
    infers = plain["infer"] or plain["method"]
    if len(infers) != 1:
        told = f"{len(infers)} functions marked to infer" if infers else f"no class {CLASS_NAME}"
        raise StartupError(
            f"{module.__file__} has {told}; an Inferless app defines that class with the methods "
            "initialize, infer and finalize."
        )
    holder = {"infer": infers[0], "initialize": next(iter(plain["load"]), None)}
    finalize = getattr(module, "finalize", None)
    return Parts(
        lambda: SimpleNamespace(**holder, finalize=finalize),
        infers[0].__name__,
        "initialize" if holder["initialize"] else None,
        "infer",
        "finalize" if finalize else None,
    )


def class_parts(made: type) -> Parts | None:
    infer = marked_method(made, "infer") or "infer"
    if not callable(getattr(made, infer, None)):
        return None
    initialize = marked_method(made, "load") or "initialize"
    has_initialize, has_finalize = hasattr(made, initialize), hasattr(made, "finalize")
    return Parts(
        made, made.__name__, initialize if has_initialize else None, infer, "finalize" if has_finalize else None
    )


def marked_method(made: type, role: str) -> str | None:
    """Return the name of the method that `@app.load` or `@app.infer` marks."""
    return next(
        (name for base in made.__mro__ for name, value in vars(base).items() if sdk.role_of(value) == role), None
    )


def chosen(classes: list[Any], annotations: list[Any]) -> Any:
    """Return the class that `infer` is annotated with, the last one decorated if it does not say."""
    named = [each for each in classes if each in annotations or each.__name__ in annotations]
    return (named or classes)[-1]
