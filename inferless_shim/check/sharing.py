"""Doubts about what two requests share: what `infer` writes to self, shared objects that it changes, streamers.

All of it is harmless while one request runs at a time, as on Inferless; `--concurrency` above 1 is where it matters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .guesses import is_name, reached
from .source import Source
from .syntax import Doubt, Method, is_stored, own, targets_of, text_of, with_same

CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "popleft", "appendleft"}
CHANGES |= {"remove", "discard", "clear", "sort", "reverse", "extendleft"}
CONTAINERS = {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter"}
LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def doubts(source: Source, infer: Method) -> Iterator[Doubt]:
    """Yield what is to be said of one `infer` and all that it calls on self, or in the folder."""
    methods = reached(source, infer)
    # What infer makes anew belongs to its request; a streamer, however it is kept, is a new one for each request.
    theirs = {attribute for method in methods for attribute, _ in writes(method)}
    theirs |= {target.attr for _, target, value in kept(source) if is_streamer(value)}
    containers = kept_containers(source)
    for method in methods:
        yield from told(method, writes(method), WRITES)
        changed = [each for each in changes(method, containers) if each[0].split(".")[0] not in theirs]
        yield from told(method, changed, CHANGED)
        yield from told(method, global_writes(method), GLOBAL)
    yield from kept_streamers(source, methods)


WRITES = (
    "{where} writes self.{name}{more}: with --concurrency above 1 each request has its own view of self, and what it "
    "writes is gone when the request is over."
)
CHANGED = (
    "{where} changes self.{name}{more}, which is shared by all requests: with --concurrency above 1 they change it "
    "while others use it; let each request make its own."
)
GLOBAL = (
    "{where} writes the global {name}{more}, which is shared by all requests: with --concurrency above 1 one finds "
    "what another wrote; use a local name."
)


def told(method: Method, found: Iterator[tuple[str, int]] | list[tuple[str, int]], sentence: str) -> Iterator[Doubt]:
    """Yield one doubt for each name, at its first line, which names the other lines."""
    lines: dict[str, list[int]] = {}
    for name, line in found:
        lines.setdefault(name, []).append(line)
    for name, (first, *others) in ((name, sorted(set(each))) for name, each in lines.items()):
        more = f" (also at line {', '.join(map(str, others))})" if others else ""
        yield Doubt(method.file.shown, first, sentence.format(where=method.name, name=name, more=more))


# ---- What a method does to self


def writes(method: Method) -> Iterator[tuple[str, int]]:
    """Yield attribute and line of each write to self itself."""
    for node in with_same(method.node, method.self_name):
        for target in targets_of(node):
            for each in ast.walk(target):
                if isinstance(each, ast.Attribute) and is_name(each.value, method.self_name) and is_stored(each):
                    yield each.attr, each.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            name = text_of(node.args[1]) if len(node.args) > 1 and is_name(node.args[0], method.self_name) else None
            if name is not None:
                yield name, node.lineno


def changes(method: Method, containers: set[str]) -> Iterator[tuple[str, int]]:
    """Yield attribute and line where an object that self holds is changed: `self.d["k"] = …`, `self.a.b = …`.

    A call such as `self.d.append(…)` counts for what is known to be a container.
    """
    for node in with_same(method.node, method.self_name):
        parts = [each for target in targets_of(node) for each in ast.walk(target)]
        for each in parts:
            if isinstance(each, (ast.Attribute, ast.Subscript)) and is_stored(each):
                held = held_by_self(each.value, method)
                if held:
                    yield held + (f".{each.attr}" if isinstance(each, ast.Attribute) else ""), each.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            held = held_by_self(node.func.value, method)
            if held in containers:
                yield held, node.lineno


def held_by_self(node: ast.expr, method: Method) -> str:
    """Return the attribute of self, with what follows it, that `node` is a part of; "" if it is none."""
    if isinstance(node, ast.Subscript):
        return held_by_self(node.value, method)
    if isinstance(node, ast.Attribute):
        if is_name(node.value, method.self_name):
            return node.attr
        held = held_by_self(node.value, method)
        return held and f"{held}.{node.attr}"
    return ""


def global_writes(method: Method) -> Iterator[tuple[str, int]]:
    names = {name for node in own(method.node) if isinstance(node, ast.Global) for name in node.names}
    for node in own(method.node):
        if isinstance(node, ast.Name) and node.id in names and is_stored(node):
            yield node.id, node.lineno


# ---- What the app keeps


def kept(source: Source) -> Iterator[tuple[Method, ast.Attribute, ast.expr]]:
    """Yield the places where a method assigns to an attribute of self, and what."""
    for method in source.entry.methods.values() if source.entry is not None else ():
        for node in ast.walk(method.node):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in targets_of(node):
                    if isinstance(target, ast.Attribute) and is_name(target.value, method.self_name):
                        yield method, target, node.value


def kept_containers(source: Source) -> set[str]:
    """Return the attributes of self that hold a list, dict or set."""
    found = {target.attr for _, target, value in kept(source) if is_container(value)}
    for node in source.entry.cls.body if source.entry is not None and source.entry.cls is not None else ():
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if value is not None and is_container(value):
            found |= {each.id for each in targets_of(node) if isinstance(each, ast.Name)}
    return found


def is_container(value: ast.expr) -> bool:
    called = ast.unparse(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
    return isinstance(value, LITERALS) or called in CONTAINERS


def is_streamer(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Streamer")


def kept_streamers(source: Source, methods: list[Method]) -> Iterator[Doubt]:
    """Note the streamers that the app makes once, outside `infer`."""
    for method, target, value in kept(source):
        if is_streamer(value) and all(method.node is not each.node for each in methods):
            told = f"self.{target.attr} is one for all requests; each request gets a fresh state of it, and none mix."
            yield Doubt(method.file.shown, target.lineno, told, note=True)
