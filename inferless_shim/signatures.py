"""How an app's methods want to be called: public apps write their parameters in a dozen ways (CONTRACT.md §1)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from .loops import event_loop

HANDLER = "stream_output_handler"  # Inferless's name for it
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class InferCall:
    """What `infer` takes: the inputs as one object or by name, and the handler or not.

    `handler` is the name of the parameter that gets the handler, "" for the second place, None if it takes none;
    `absent` are optional inputs that `infer` takes by name without a default: they get None.
    """

    by_name: bool = False
    handler: str | None = None
    absent: tuple[str, ...] = ()

    def __call__(self, infer: Callable[..., Any], inputs: Any, handler: Any) -> Any:
        """Call `infer`; return what it returns (a coroutine or a generator, too)."""
        named = {self.handler: handler} if self.handler else {}
        if self.by_name:
            return infer(**{**dict.fromkeys(self.absent), **inputs, **named})
        return infer(inputs, handler) if self.handler == "" else infer(inputs, **named)


def how_infer_is_called(infer: Callable[..., Any], names: Collection[str], *, streaming: bool) -> InferCall:
    """Tell `infer(inputs)`, `infer(inputs, handler)` and the old `infer(prompt, image_url)` apart.

    `names` are the schema's inputs. Raises TypeError if it takes none at all.
    """
    parameters = parameters_of(infer)
    handler = handler_of([each for each in parameters if each.name not in names], streaming)
    call = by_name(parameters, names, handler)
    if call is not None:
        return call
    positional = [each for each in parameters if each.kind in POSITIONAL]
    if len(positional) > 1 or any(each.kind is Parameter.VAR_POSITIONAL for each in parameters):
        needs_two = any(each.default is Parameter.empty for each in positional[1:])
        return InferCall(handler="" if streaming or needs_two else None)
    if positional:
        return InferCall(handler=handler.name if handler and handler.kind is Parameter.KEYWORD_ONLY else None)
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
        return InferCall(by_name=True)
    raise TypeError("infer takes no inputs")


def handler_of(others: Sequence[Parameter], streaming: bool) -> Parameter | None:
    """Return which of the parameters that are no inputs gets the handler: by its name, or as the only one needed."""
    named = [each for each in others if each.kind in NAMED]
    needed = [each for each in named if each.default is Parameter.empty]
    only = needed[0] if streaming and len(needed) == 1 else None
    return next((each for each in named if each.name == HANDLER), only)


def by_name(parameters: Sequence[Parameter], names: Collection[str], handler: Parameter | None) -> InferCall | None:
    """Return how `infer` gets its inputs by name, None if it gets them as one object."""
    inputs = [each for each in parameters if each.kind in NAMED and each.name in names]
    if not inputs or parameters[0] not in inputs:
        return None
    # One alone is the inputs, which it may call like one of them; unless it is told apart from others.
    if len(inputs) == 1 and inputs[0].kind in POSITIONAL and parameters[-1].kind is not Parameter.VAR_KEYWORD:
        return None
    others = [each for each in parameters if each not in inputs and each.kind in (*POSITIONAL, Parameter.KEYWORD_ONLY)]
    if any(each.default is Parameter.empty and each is not handler for each in others):
        return None
    absent = tuple(each.name for each in inputs if each.default is Parameter.empty)
    return InferCall(True, handler.name if handler else None, absent)


def how_functions_are_called(infer: Callable[..., Any], *, streaming: bool) -> tuple[InferCall, list[Parameter]]:
    """Tell how what has no schema but its signature is called, and which of its parameters are inputs.

    One parameter that says nothing of itself gets the inputs as one object: then any name is an input. Raises TypeError
    if it takes nothing.
    """
    inputs = parameters_of(infer)
    handler = next((each for each in inputs if each.name == HANDLER), None)
    if handler is None and streaming and len(inputs) > 1:
        handler = inputs[-1]
    if handler is not None:
        inputs.remove(handler)
    if not inputs:
        raise TypeError("infer takes no inputs")
    if len(inputs) == 1 and inputs[0].kind in POSITIONAL and inputs[0].annotation in (Parameter.empty, dict):
        return InferCall(handler=None if handler is None else ""), [inputs[0].replace(kind=Parameter.VAR_KEYWORD)]
    return InferCall(True, None if handler is None else handler.name), inputs


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    """Return what a caller passes. Raises TypeError for a method that has no place for self."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        raise TypeError(f"{getattr(function, '__name__', 'it')} takes no inputs") from None


def call_as_declared(method: Callable[..., Any]) -> Any:
    """Call a method that may take nothing, not even self, or arguments, which are None; await it if it is async."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except ValueError:  # `def finalize():` in a class has no place for self
        method, parameters = method.__func__, []  # type: ignore[attr-defined]
    needed = [each for each in parameters if each.default is each.empty and each.kind in POSITIONAL]
    result = method(*[None] * len(needed))
    return event_loop().run_until_complete(result) if inspect.iscoroutine(result) else result
