"""Doubts about streaming: an app that does not send what it is declared to send, or that cannot be cancelled."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..signatures import InferCall
from .guesses import SEND, Guesser, answers, is_name, reached, sends
from .source import Source
from .syntax import FUNCTIONS, TRIES, Doubt, Method, is_caught, text_of

FINALISE = "finalise_streamed_output"


@dataclass(frozen=True)
class Declared:
    """What is known of an app beside its code: its inputs and whether each is required, None if not known.

    `members` are what else an app's request class has; None for an app whose inputs are a dict.
    """

    inputs: Mapping[str, bool] | None
    streaming: bool
    batched: bool
    members: frozenset[str] | None = None


def doubts(source: Source, infer: Method, call: InferCall | None, declared: Declared) -> Iterator[Doubt]:
    """Doubt an app that is declared to stream and does not, or streams and is not declared to."""
    sent = sends(source, infer)
    methods = reached(source, infer)
    if not declared.streaming:
        if sent or infer.is_generator:
            node = sent[0].node if sent else infer.node
            told = "infer streams, but the app does not say so: its answer is one JSON"
            flag = "IS_STREAMING_OUTPUT" if declared.members is None else "is_streaming_output in the config class"
            yield (sent[0].method if sent else infer).doubt(node, f"{told}; set {flag} to True.")
        return
    uses = {node.attr for each in methods for node in ast.walk(each.node) if isinstance(node, ast.Attribute)}
    passed_on = is_passed_on(infer, handler_name(infer, call))
    if not (SEND in uses or infer.is_generator or passed_on):
        told = "the app is declared to stream, but infer sends nothing: a dict that it returns is its only event"
        yield infer.doubt(infer.node, f"{told}; send with stream_output_handler.{SEND}({{…}}).")
    if sent and FINALISE not in uses and not passed_on:
        yield infer.doubt(infer.node, f"{FINALISE}() is never called; here the end of infer implies it.", note=True)
    for place in answers(infer, ast.Return) if sent else ():
        if any(True for _ in Guesser(source).items(place)):
            told = "what infer returns here reaches nobody once an event has been sent"
            yield infer.doubt(place.node, f"{told}; send it before.")
    for method in methods:
        yield from swallowed(method)
        yield from unfed(source, method)


def handler_name(infer: Method, call: InferCall | None) -> str | None:
    if call is not None and call.handler:
        return call.handler
    if len(infer.positional) > 1:
        return infer.positional[1]
    return infer.node.args.vararg.arg if infer.node.args.vararg is not None else None


def is_passed_on(infer: Method, name: str | None) -> bool:
    """Whether a parameter is used as a whole, and not only for what it has."""
    parts = {id(node.value) for node in ast.walk(infer.node) if isinstance(node, ast.Attribute)}
    return any(is_name(node, name) and id(node) not in parts for node in ast.walk(infer.node))


def swallowed(method: Method) -> Iterator[Doubt]:
    """Note where what goes wrong while sending is caught and not raised again."""
    for node in ast.walk(method.node):
        if isinstance(node, TRIES) and has_attribute(node.body, SEND):
            for handler in node.handlers:
                raises = any(isinstance(each, ast.Raise) for each in ast.walk(handler))
                if raises or has_attribute(handler.body, SEND):
                    continue
                if is_caught(handler, {"BaseException"}):
                    told = "this catches a cancel, too; the next send raises it again, so go on only to clean up."
                    yield method.doubt(handler, told, note=True)
                elif is_caught(handler, {"Exception"}):
                    told = "an error caught here is not told: the client sees a stream that ends well."
                    yield method.doubt(handler, told, note=True)


def has_attribute(body: Iterable[ast.AST], name: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == name for each in body for node in ast.walk(each))


def unfed(source: Source, method: Method) -> Iterator[Doubt]:
    """Doubt a generate on a thread that feeds no streamer."""
    for node in ast.walk(method.node):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Thread":
            options = {each.arg: each.value for each in node.keywords}
            target, kwargs = options.get("target"), options.get("kwargs")
            if isinstance(target, ast.Attribute) and target.attr == "generate":
                fed = None not in options and kwargs is None
                fed = not fed and (kwargs is None or may_hold(source, method, kwargs, "streamer"))
            else:
                fed = target is None or feeds(source, method, target)
            if not fed:
                told = "this thread generates without a streamer: it cannot be cancelled, and goes on to its own end"
                yield method.doubt(node, f"{told}; pass streamer=.")


def feeds(source: Source, method: Method, target: ast.expr) -> bool:
    """Whether a thread's target passes a streamer wherever it generates, or does not generate at all."""
    function: ast.AST | None = target if isinstance(target, ast.Lambda) else None
    if isinstance(target, ast.Name):
        inside = (node for node in ast.walk(method.node) if isinstance(node, FUNCTIONS) and node.name == target.id)
        function = next(inside, None)
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "generate":
            more = [each.value for each in node.keywords if each.arg is None]
            named = any(each.arg == "streamer" for each in node.keywords)
            if not (named or any(may_hold(source, method, each, "streamer") for each in more)):
                return False
    return True


def may_hold(source: Source, method: Method, node: ast.AST, key: str, depth: int = 5) -> bool:
    """Whether a dict may have `key`: it has it, or not all of it is to be seen."""
    if depth > 0 and isinstance(node, ast.Dict):
        for name, value in zip(node.keys, node.values, strict=True):
            if text_of(name) in (None, key) and (name is not None or may_hold(source, method, value, key, depth - 1)):
                return True
        return False
    if depth > 0 and isinstance(node, ast.Call) and is_name(node.func, "dict") and not node.args:
        unseen = (each.arg is None and may_hold(source, method, each.value, key, depth - 1) for each in node.keywords)
        return any(each.arg == key for each in node.keywords) or any(unseen)
    if depth > 0 and isinstance(node, ast.Name):
        values = Guesser(source).assigned(method, node.id)
        touched = (f"{node.id}.update", f"{node.id}.setdefault", f"{node.id}['{key}']")
        changed = any(
            ast.unparse(each) in touched
            for each in ast.walk(method.node)
            if isinstance(each, (ast.Attribute, ast.Subscript))
        )
        return changed or not values or any(may_hold(source, method, each.node, key, depth - 1) for each in values)
    return True
