"""Doubts about an app that its sources raise: what will fail, or be otherwise than its author may think.

Each is a line and a sentence with the remedy. A doubt that is wrong costs more than one that is missing: where a
program could well be right, nothing is said. What the server is sure to refuse is no doubt but a fault.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator, Mapping

from ..loader import SCHEMA_FILE
from ..parts import CLASS_NAME
from ..signatures import InferCall, how_infer_is_called
from ..strictjson import nearest, quoted
from . import sending, sharing, unbound
from .guesses import Guesser, answers, is_name, reached
from .sending import Declared
from .source import Entry, Source
from .syntax import TRIES, Doubt, Method, is_caught, is_stored, text_of

ALWAYS_THERE = {"inferless", "awq"}
ENDS_PROCESS = {"os._exit", "os.abort", "os.kill", "os.killpg"}
ENDS_REQUEST = {"sys.exit", "exit", "quit"}
BLOCKS = {"uvicorn.run", "app.run", "server.run", "serve_forever", "run_forever", "launch", "input"}
MISSING = {"KeyError", "LookupError", "Exception", "BaseException"}


def find(source: Source, declared: Declared) -> list[Doubt]:
    """Return all doubts about an app, sorted by file and line."""
    infer = source.entry.roles.get("infer") if source.entry is not None else None
    found = [*missing_packages(source), *blocking(source), *repeated_inputs(source), *unbound.doubts(source.app)]
    if infer is not None:
        call = call_of(infer, declared)
        found += sharing.doubts(source, infer)
        found += ends(source, infer)
        found += conventions(infer, call, declared)
        found += sending.doubts(source, infer, call, declared)
        found += batches(source, infer) if declared.batched else inputs(infer, call, declared)
    return sorted(set(found))


# ---- What the server refuses


def faults(source: Source) -> Iterator[str]:
    """Yield what the server is sure to refuse in the app's sources."""
    needed = {each.package for each in source.imports() if not (each.optional or each.late)}
    for module, fault in source.unreadable.items():
        if module.partition(".")[0] in needed and module != "input_schema":
            yield fault
    yield from unbound.failing_imports(source)
    entry = source.entry
    if entry is None:
        yield from faults_without_entry(source)
    else:
        yield from faults_of_methods(source, entry)


def faults_without_entry(source: Source) -> Iterator[str]:
    wanted = "with the methods initialize, infer and finalize"
    if not source.opaque:
        yield f"app.py has no class {CLASS_NAME}; an Inferless app defines it {wanted}."
    elif place := source.place_of_no_class():
        yield f"{place}: {CLASS_NAME} is no class; an Inferless app defines it as a class {wanted}."


def faults_of_methods(source: Source, entry: Entry) -> Iterator[str]:
    """Yield what keeps an app from being made, started or called. What another one may have bound is not judged."""
    infer, initialize = entry.roles.get("infer"), entry.roles.get("initialize")
    init = entry.methods.get("__init__") if entry.whole and "__new__" not in {*entry.methods, *entry.unseen} else None
    if entry.cls is not None and entry.whole and infer is None and "infer" not in entry.unseen:
        yield f"{entry.file.shown}:{entry.cls.lineno}: class {entry.cls.name} has no method infer."
    if infer is not None and is_known(source, infer) and not signature_of(infer).parameters:
        yield f"{place_of(infer)}: infer takes no inputs; write infer(self, inputs)."
    if init is not None and entry.cls is not None and is_known(source, init) and needs(init):
        told = f"{entry.cls.name}() gets no arguments, but __init__ needs {', '.join(needs(init))}"
        yield f"{place_of(init)}: {told}; give each a default."
    if initialize is not None and is_known(source, initialize):
        by_name = {each.arg for each in initialize.node.args.kwonlyargs}
        lacking = [name for name in needs(initialize) if name in by_name]
        if lacking:
            told = f"{initialize.name} needs {', '.join(lacking)} by name, which nothing passes"
            yield f"{place_of(initialize)}: {told}; give it a default."


def is_known(source: Source, method: Method) -> bool:
    """Whether a method is sure to be called with the parameters that its source has."""
    return source.is_bare(method) and not source.is_clever


def place_of(method: Method) -> str:
    return f"{method.file.shown}:{method.node.lineno}"


def needs(method: Method) -> list[str]:
    """Return the parameters without a default."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = signature_of(method).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in several]


# ---- How infer is called


def signature_of(method: Method) -> inspect.Signature:
    """Return the signature that the method will have, of the object; annotations are left out."""
    arguments, kinds = method.node.args, inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    found = []
    for number, each in enumerate(positional):
        kind = kinds.POSITIONAL_ONLY if each in arguments.posonlyargs else kinds.POSITIONAL_OR_KEYWORD
        found.append(kinds(each.arg, kind, default=None if number >= first_default else kinds.empty))
    if arguments.vararg:
        found.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(kinds(each.arg, kinds.KEYWORD_ONLY, default=None if default is not None else kinds.empty))
    if arguments.kwarg:
        found.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found if method.self_name is None else found[1:])


def call_of(infer: Method, declared: Declared) -> InferCall | None:
    """Return how the server will call `infer`; None if it takes no inputs, with which the server does not start."""

    def stand_in() -> None: ...

    stand_in.__signature__ = signature_of(infer)  # type: ignore[attr-defined]
    names = declared.inputs or () if declared.members is None else ()
    try:
        return how_infer_is_called(stand_in, names, streaming=declared.streaming)
    except TypeError:
        return None


def conventions(infer: Method, call: InferCall | None, declared: Declared) -> Iterator[Doubt]:
    """Doubt parameters that nothing is passed for, and inputs that have no parameter."""
    if call is None or declared.batched or declared.inputs is None:
        return
    parameters = list(signature_of(infer).parameters.values())
    kinds = inspect.Parameter
    if call.by_name:
        open_ended = any(each.kind is kinds.VAR_KEYWORD for each in parameters)
        lacking = [name for name in declared.inputs if all(name != each.name for each in parameters)]
        if lacking and not open_ended:
            told = f"infer takes its inputs by name, but not {', '.join(lacking)}: a request that sends it fails"
            yield infer.doubt(infer.node, f"{told}; add the parameter, or remove the input from the schema.")
        return
    given = 1 if call.handler is None else 2
    needed = [each for each in parameters if each.default is kinds.empty and each.kind is not kinds.VAR_KEYWORD]
    extra = [each.name for each in needed if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)][given:]
    extra += [each.name for each in needed if each.kind is kinds.KEYWORD_ONLY and each.name != call.handler]
    if extra:
        told = f"nothing is passed for infer's {', '.join(extra)}: every request fails with a TypeError"
        yield infer.doubt(infer.node, f"{told}; write infer(self, inputs), with a stream_output_handler if it streams.")


# ---- Inputs


def batches(source: Source, infer: Method) -> Iterator[Doubt]:
    """Doubt an infer that takes or returns one request where it gets a list."""
    told = "infer gets a list of inputs here (BATCH_SIZE is set), and must return a list of as many answers"
    for place in answers(infer, ast.Return):
        values = [place]
        if isinstance(place.node, ast.Name):
            values = Guesser(source).assigned(infer, place.node.id)
        if values and all(isinstance(each.node, ast.Dict) for each in values):
            yield infer.doubt(place.node, f"{told}, not a dict.")
    for read in Reads.of(infer).subscripts[:1]:
        yield Doubt(infer.file.shown, read[1], f"{told}; {quoted(read[0])} is read as if it got one.")


class Reads:
    """What `infer` reads of its inputs by literal names; `whole` if it uses them in any other way, too."""

    def __init__(self) -> None:
        self.subscripts: list[tuple[str, int]] = []
        self.asked: list[tuple[str, int]] = []  # .get(…), `in`, an attribute: none of them fails
        self.sure: set[int] = set()  # lines of subscripts that an `except` guards
        self.whole = False

    @classmethod
    def of(cls, infer: Method) -> Reads:
        """Look through `infer`. If it binds the name of its inputs anew, nothing is known of it."""
        found, name = cls(), (infer.positional or [""])[0]
        nodes = list(ast.walk(infer.node))
        uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == name]
        if not name or any(is_stored(node) for node in uses):
            found.whole = True
            return found
        known = sum(found._take(node, name) for node in nodes)
        found.whole = known < len(uses)
        for node in nodes:
            if isinstance(node, TRIES) and any(is_guard(node, handler) for handler in node.handlers):
                found.sure |= {getattr(each, "lineno", 0) for part in node.body for each in ast.walk(part)}
        return found

    def _take(self, node: ast.AST, name: str) -> bool:
        """Note a read by a literal name; return whether it was one."""
        if isinstance(node, ast.Subscript) and is_name(node.value, name) and not is_stored(node):
            key, into = text_of(node.slice), self.subscripts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_name(node.func.value, name):
            literal = node.func.attr in ("get", "pop", "setdefault") and node.args
            key, into = text_of(node.args[0]) if literal else None, self.asked
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and is_name(node.comparators[0], name):
            key, into = text_of(node.left) if isinstance(node.ops[0], (ast.In, ast.NotIn)) else None, self.asked
        else:
            return False
        if key is not None:
            into.append((key, node.lineno))
        return key is not None


def names_read(infer: Method) -> list[str]:
    """Return the names that `infer` reads of its inputs; if none is to be seen, those of its parameters."""
    reads = Reads.of(infer)
    return list(dict.fromkeys(name for name, _ in reads.subscripts + reads.asked)) or infer.positional


def is_guard(tried: ast.Try, handler: ast.ExceptHandler) -> bool:
    """Whether an `except` is about a missing key: it says so, or it follows no more than a few lines."""
    return is_caught(handler, {"KeyError", "LookupError"}) or (is_caught(handler, MISSING) and len(tried.body) <= 3)


def inputs(infer: Method, call: InferCall | None, declared: Declared) -> Iterator[Doubt]:
    """Doubt reads of what is not in the schema, or may be absent; note inputs that are never read."""
    if declared.inputs is None or call is None or call.by_name:
        return
    if declared.members is not None:
        yield from attributes(infer, declared.inputs, declared.members)
        return
    reads = Reads.of(infer)
    asked = {name for name, _ in reads.asked}
    for name, line in reads.subscripts + reads.asked:
        if name not in declared.inputs:
            near = nearest(name, declared.inputs)
            remedy = f"did you mean {near}?" if near else "add it to the schema."
            yield Doubt(
                infer.file.shown, line, f"infer reads {quoted(name)}, which is no input of the schema; {remedy}"
            )
    for name, line in reads.subscripts:
        if declared.inputs.get(name) is False and name not in asked and line not in reads.sure:
            told = f"{quoted(name)} is not required, so a request without it fails here with a KeyError"
            yield Doubt(infer.file.shown, line, f"{told}; use .get({quoted(name)}, a default).")
    unread = [name for name in declared.inputs if name not in asked | {name for name, _ in reads.subscripts}]
    if unread and not reads.whole:
        yield infer.doubt(infer.node, f"infer never reads {', '.join(unread)}; remove it from the schema, or use it.")


def attributes(infer: Method, fields: Mapping[str, bool], members: frozenset[str]) -> Iterator[Doubt]:
    """Doubt reads of what the request class does not have; note fields that are never read."""
    name = (infer.positional or [""])[0]
    uses = [node for node in ast.walk(infer.node) if is_name(node, name)]
    reads = [node for node in ast.walk(infer.node) if isinstance(node, ast.Attribute) and is_name(node.value, name)]
    if not name or any(isinstance(node, ast.Name) and is_stored(node) for node in uses):
        return
    for node in reads:
        if not is_stored(node) and node.attr not in fields and node.attr not in members:
            near = nearest(node.attr, fields)
            remedy = f"did you mean {near}?" if near else "add the field."
            yield infer.doubt(node, f"infer reads {name}.{node.attr}, which the request class does not have; {remedy}")
    unread = [field for field in fields if all(field != node.attr for node in reads)]
    if unread and len(uses) == len(reads) and all(node.attr in fields for node in reads):
        yield infer.doubt(infer.node, f"infer never reads {', '.join(unread)}; remove it from the class, or use it.")


def repeated_inputs(source: Source) -> Iterator[Doubt]:
    """Doubt a name that stands twice in INPUT_SCHEMA: the last one wins, without a word."""
    seen: set[str] = set()
    for name, line in source.schema_lines:
        if name in seen:
            yield Doubt(SCHEMA_FILE, line, f"{quoted(name)} stands there twice, and the last one counts; remove one.")
        seen.add(name)


# ---- What ends or blocks the server, and what is not there


def ends(source: Source, infer: Method) -> Iterator[Doubt]:
    """Doubt calls in infer or initialize that end the process, or wait for a terminal."""
    initialize = source.entry.roles.get("initialize") if source.entry is not None else None
    for start in [infer, *([initialize] if initialize is not None else [])]:
        for method in reached(source, start):
            for node in ast.walk(method.node):
                if isinstance(node, ast.Call):
                    told = end_of(called_name(source, method, node), start is infer)
                    if told:
                        yield method.doubt(node, told)


def called_name(source: Source, method: Method, node: ast.Call) -> str:
    """Return the full name of what is called; a builtin's own, unless the method has a local of that name."""
    local = {each.id for each in ast.walk(method.node) if isinstance(each, ast.Name) and is_stored(each)}
    local |= {each.arg for each in ast.walk(method.node) if isinstance(each, ast.arg)}
    known = source.full_name(method.file, node)
    return known or (node.func.id if isinstance(node.func, ast.Name) and node.func.id not in local else "")


def end_of(name: str, in_infer: bool) -> str:
    if name in ENDS_PROCESS:
        return f"{name} ends the server and every request in it; raise an exception instead."
    if name in ENDS_REQUEST:
        fails = "fails the request, and does not end the server" if in_infer else "keeps the app from starting"
        return f"{name} {fails}; raise an exception that says what is wrong."
    if name == "signal.signal":
        return "signal.signal works on the main thread alone, where an app does not run; remove it."
    return "input() waits for a terminal that a server does not have; remove it." if name == "input" else ""


def blocking(source: Source) -> Iterator[Doubt]:
    """Doubt calls that keep `app.py` from being imported to its end."""
    for statement in source.app.statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            name = ast.unparse(statement.value.func)
            if name in BLOCKS or name.rpartition(".")[2] in BLOCKS - {"input"}:
                told = f"{name} keeps app.py from being imported to its end, so the app does not start"
                yield Doubt("app.py", statement.lineno, f'{told}; put it under if __name__ == "__main__".')


def missing_packages(source: Source) -> Iterator[Doubt]:
    """Doubt the packages that are imported and not installed here; none of them is imported to find out."""
    missing: dict[tuple[str, bool], dict[str, int]] = {}
    told: set[str] = set()
    for each in sorted(source.imports(), key=lambda each: each.late):
        package = each.package
        fine = each.optional or package in ALWAYS_THERE or source.is_own(package) or is_installed(package)
        if not fine and package not in told:
            told.add(package)
            missing.setdefault((each.shown, each.late), {})[package] = each.line
    for (shown, late), lines in missing.items():
        first = min(lines.values())
        names = ", ".join(name if line == first else f"{name} (line {line})" for name, line in lines.items())
        fails = "infer or initialize fails" if late else "the app does not start"
        yield Doubt(shown, first, f"not installed here: {names}; {fails} without.")


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand
        return True
