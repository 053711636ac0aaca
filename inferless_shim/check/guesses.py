"""What `infer` seems to answer, and to take: the keys of its dicts and the fields of its class, with v2 datatypes.

Guesses of what stands in the source, for `--check` to show; nobody relies on them. A key whose value could be
anything has the datatype None.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..schema import Input, Schema
from ..tensors import v2_name
from .source import Field, Marked, Source, literal_of
from .syntax import Method, own, targets_of, text_of, with_same

SEND = "send_streamed_output"
DEEPEST = 8  # names and calls that lead to a dict or a value
LITERALS: dict[type, str] = {str: "BYTES", bytes: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}
CALLS = {
    **dict.fromkeys(("str", "repr", "format", "json.dumps", "os.path.join", "os.getcwd"), "BYTES"),
    **dict.fromkeys(("int", "len", "ord", "hash", "time.time_ns"), "INT64"),
    **dict.fromkeys(("float", "time.time", "time.perf_counter", "time.monotonic"), "FP64"),
    **dict.fromkeys(("bool", "isinstance", "any", "all", "callable"), "BOOL"),
}
TEXT_METHODS = {"decode", "join", "strip", "lstrip", "rstrip", "format", "lower", "upper", "hexdigest", "isoformat"}
TEXT_METHODS |= {"group"}  # of a match
TYPES = {"str": "STRING", "int": "INT64", "float": "FP64", "bool": "BOOL"}
LISTS = ("list[", "List[", "Sequence[", "tuple[", "Tuple[")
SEVERAL = (ast.List, ast.ListComp, ast.Tuple)

Kind = tuple[str | None, tuple[int, ...]]
UNKNOWN: Kind = (None, (1,))


@dataclass(frozen=True)
class Output:
    """One key: its v2 datatype, None if it could be any, its shape, and where it was first seen."""

    name: str
    datatype: str | None
    shape: tuple[int, ...]
    shown: str
    line: int


@dataclass(frozen=True, eq=False)
class Place:
    """An expression and the function in which it stands."""

    method: Method
    node: ast.AST


def reached(source: Source, start: Method) -> list[Method]:
    """Return a method and what it calls or hands on, as far as the app's class and the folder define it."""
    methods = source.entry.methods if source.entry is not None else {}
    found = [start]
    for method in found:  # it grows
        for node in with_same(method.node, method.self_name):
            known: Method | None = None
            if (
                isinstance(node, ast.Attribute)
                and method.self_name is not None
                and is_name(node.value, method.self_name)
            ):
                known = methods.get(node.attr)
            elif isinstance(node, (ast.Name, ast.Attribute)):
                known = source.function_of(method.file, node)
            if known is not None and all(known.node is not each.node for each in found):
                found.append(known)
    return found


def sends(source: Source, infer: Method) -> list[Place]:
    """Return what is handed to `send_streamed_output`, whatever the handler is called there."""
    return [
        Place(method, (node.args or [each.value for each in node.keywords])[0])
        for method in reached(source, infer)
        for node in ast.walk(method.node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == SEND
        if node.args or node.keywords
    ]


def outputs(source: Source, infer: Method) -> list[Output]:
    """Return the keys of what `infer` sends or yields; if it does neither, of what it returns."""
    places = [*sends(source, infer), *answers(infer, ast.Yield)] or answers(infer, ast.Return)
    guesser = Guesser(source)
    found: dict[str, list[tuple[Place, int]]] = {}
    for place in places:
        for key, value, line in guesser.items(place):
            found.setdefault(key, []).append((value, line))
    return [
        Output(name, *agreed(guesser.kind(value) for value, _ in values), values[0][0].method.file.shown, values[0][1])
        for name, values in found.items()
    ]


def answers(method: Method, kind: type[ast.Yield | ast.Return]) -> list[Place]:
    """Return what a function's own `return` or `yield` statements hand out."""
    return [Place(method, node.value) for node in own(method.node) if isinstance(node, kind) and node.value is not None]


def is_name(node: ast.AST | None, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def is_streamed(method: Method, name: str) -> bool:
    """Whether a name is what a loop takes from something called a streamer."""
    loops = [node for node in own(method.node) if isinstance(node, (ast.For, ast.AsyncFor))]
    return any(is_name(each.target, name) and ast.unparse(each.iter).lower().endswith("streamer") for each in loops)


def agreed(kinds: Iterable[Kind]) -> Kind:
    """Return the kind that all have in common."""
    found = set(kinds)
    return found.pop() if len(found) == 1 else UNKNOWN


class Guesser:
    """Follows names and calls from an expression to the literals behind it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._open: set[int] = set()  # dicts that are being looked at
        self._kinds: dict[int, Kind] = {}  # of nodes; UNKNOWN while one is being looked at

    def assigned(self, method: Method, name: str) -> list[Place]:
        """Return all values that a local name is given; none if one of them is not to be seen."""
        values: list[Place] = []
        for node in ast.walk(method.node):
            bound = [each for target in targets_of(node) for each in ast.walk(target) if is_name(each, name)]
            stored = [each for each in bound if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
            whole = any(each in targets_of(node) for each in stored)
            if stored and not (whole and isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr))):
                return []
            if stored and isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value:
                values.append(Place(method, node.value))
        return values

    # ---- Dicts

    def items(self, place: Place, depth: int = DEEPEST) -> Iterator[tuple[str, Place, int]]:
        """Yield key, value and line of each entry of what seems to be a dict, or a list of dicts."""
        if depth > 0 and id(place.node) not in self._open:
            self._open.add(id(place.node))
            yield from self._items(place.method, place.node, depth)
            self._open.discard(id(place.node))

    def _items(self, method: Method, node: ast.AST, depth: int) -> Iterator[tuple[str, Place, int]]:
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    yield from self.items(Place(method, value), depth - 1)
                elif (name := text_of(key)) is not None:
                    yield name, Place(method, value), key.lineno
        elif isinstance(node, ast.Call):
            yield from self._called(method, node, depth)
        elif isinstance(node, ast.Name):
            for assigned in self.assigned(method, node.id):
                yield from self.items(assigned, depth - 1)
            yield from self._added(method, node.id)
        else:
            for part in self._parts(node):
                yield from self.items(Place(method, part), depth - 1)

    def _parts(self, node: ast.AST) -> list[ast.expr]:
        if isinstance(node, ast.IfExp):
            return [node.body, node.orelse]
        if isinstance(node, (ast.List, ast.Tuple)):
            return node.elts
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return [node.elt]
        return [node.value] if isinstance(node, (ast.Await, ast.NamedExpr)) else []

    def _called(self, method: Method, node: ast.Call, depth: int) -> Iterator[tuple[str, Place, int]]:
        """Yield the entries of `dict(OUT=…)`, of a class's object, or of what a function of the app's returns."""
        if is_name(node.func, "dict") or self.source.class_of(method.file, node.func) is not None:
            for keyword in node.keywords:
                if keyword.arg is None:
                    yield from self.items(Place(method, keyword.value), depth - 1)
                else:
                    yield keyword.arg, Place(method, keyword.value), keyword.value.lineno
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("dict", "model_dump", "copy"):
            yield from self.items(Place(method, node.func.value), depth - 1)
        else:
            for value in self._returned(method, node.func):
                yield from self.items(value, depth - 1)

    def _returned(self, method: Method, function: ast.expr) -> list[Place]:
        methods = self.source.entry.methods if self.source.entry is not None else {}
        called = self.source.function_of(method.file, function)
        if isinstance(function, ast.Attribute) and is_name(function.value, method.self_name):
            called = methods.get(function.attr)
        return answers(called, ast.Return) if called is not None and not called.is_generator else []

    def _added(self, method: Method, name: str) -> Iterator[tuple[str, Place, int]]:
        """Yield what `name["key"] = …` adds to a dict, and `name.append({…})` to a list."""
        for node in ast.walk(method.node):
            if isinstance(node, ast.Assign):
                parts = [each for each in node.targets if isinstance(each, ast.Subscript) and is_name(each.value, name)]
                keys = [text_of(each.slice) for each in parts]
                yield from ((key, Place(method, node.value), node.lineno) for key in keys if key is not None)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
                dicts = [each for each in node.args if isinstance(each, ast.Dict) and is_name(node.func.value, name)]
                for each in dicts:
                    yield from self.items(Place(method, each))

    # ---- Values

    def kind(self, place: Place, depth: int = DEEPEST) -> Kind:
        """Guess the v2 datatype and shape of a value."""
        key = id(place.node)
        if depth > 0 and key not in self._kinds:
            self._kinds[key] = UNKNOWN
            self._kinds[key] = self._kind(place.method, place.node, depth)
        return self._kinds.get(key, UNKNOWN)

    def _kind(self, method: Method, node: ast.AST, depth: int) -> Kind:
        if isinstance(node, ast.Constant):
            return LITERALS.get(type(node.value)), (1,)
        if isinstance(node, (ast.JoinedStr, ast.Compare)):
            return ("BYTES" if isinstance(node, ast.JoinedStr) else "BOOL"), (1,)
        if isinstance(node, ast.UnaryOp):
            return ("BOOL", (1,)) if isinstance(node.op, ast.Not) else self.kind(Place(method, node.operand), depth - 1)
        if isinstance(node, SEVERAL):
            each = agreed(self.kind(Place(method, part), depth - 1) for part in self._parts(node))
            return each[0] if each[1] == (1,) else None, (-1,)
        if isinstance(node, ast.Call):
            return self._call_kind(method, node, depth)
        if isinstance(node, ast.BinOp):
            return self._sum_kind(self.kind(Place(method, node.left), depth - 1), node, method, depth)
        if isinstance(node, ast.Name) and is_streamed(method, node.id):
            return "BYTES", (1,)
        if isinstance(node, ast.Name):
            return agreed(self.kind(value, depth - 1) for value in self.assigned(method, node.id))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
            called = node.value.func
            return ("BYTES" if isinstance(called, ast.Attribute) and called.attr == "batch_decode" else None), (1,)
        return agreed(self.kind(Place(method, part), depth - 1) for part in self._parts(node))

    def _call_kind(self, method: Method, node: ast.Call, depth: int) -> Kind:
        name = self.source.full_name(method.file, node) or ast.unparse(node.func)
        if name in CALLS:
            return CALLS[name], (1,)
        if name == "round":
            return ("FP64" if len(node.args) > 1 else "INT64"), (1,)
        if isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_METHODS:
            return "BYTES", (1,)
        return agreed(self.kind(value, depth - 1) for value in self._returned(method, node.func))

    def _sum_kind(self, left: Kind, node: ast.BinOp, method: Method, depth: int) -> Kind:
        right = self.kind(Place(method, node.right), depth - 1)
        if left[0] == "BYTES" and isinstance(node.op, (ast.Add, ast.Mod)):
            return left
        if right[0] == "BYTES" and isinstance(node.op, ast.Add):
            return right
        if left[1] == right[1] == (1,) and {left[0], right[0]} <= {"INT64", "FP64"}:
            whole = {left[0], right[0]} == {"INT64"} and not isinstance(node.op, (ast.Div, ast.Pow))
            return ("INT64" if whole else "FP64"), (1,)
        return UNKNOWN


# ---- Classes that cannot be executed here


def class_schema(source: Source, marked: Marked) -> Schema:
    """Make a schema of a request class's source: for showing it, not for checking requests."""
    return Schema({input_name(each): field_input(each) for each in source.fields(marked) if each.annotation}, [])


def input_name(field: Field) -> str:
    """Return the name by which a request sends a field: a literal alias goes before its own."""
    options = options_of(field)
    return next((name for key in ("validation_alias", "alias") if type(name := options.get(key)) is str), field.name)


def output_name(field: Field) -> str:
    options = options_of(field)
    return next((name for key in ("serialization_alias", "alias") if type(name := options.get(key)) is str), field.name)


def options_of(field: Field) -> dict[str | None, Any]:
    """Return the literals that are given to `Field(…)` by name."""
    default = ast.parse(field.default, mode="eval").body if field.default is not None else None
    if not (isinstance(default, ast.Call) and ast.unparse(default.func).endswith("Field")):
        return {}
    return {each.arg: literal_of(ast.unparse(each.value)) for each in default.keywords}


def class_outputs(source: Source, marked: Marked) -> list[Output]:
    inputs = [(each, field_input(each)) for each in source.fields(marked) if each.annotation]
    return [
        Output(output_name(each), v2_name(made.datatype), made.shape, marked.file.shown, each.line)
        for each, made in inputs
    ]


def field_input(field: Field) -> Input:
    """Return what the annotation and the default of a field say, as text."""
    annotation = field.annotation.replace("typing.", "").strip("'\"")
    bare = annotation.removeprefix("Optional[").removesuffix("]") if annotation.startswith("Optional[") else annotation
    bare = " | ".join(each for each in bare.split(" | ") if each != "None")
    shape = (1,)
    if bare.startswith(LISTS):
        bare, shape = bare.partition("[")[2].removesuffix("]").partition(",")[0], (-1,)
    datatype = TYPES.get(bare, "JSON")
    default = ast.parse(field.default, mode="eval").body if field.default is not None else None
    required, example = default is None and bare == annotation.replace("None", ""), None
    if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("Field"):
        options = options_of(field)
        first = default.args[0] if default.args else None
        required = not (options.keys() & {"default", "default_factory"}) and (first is None or is_ellipsis(first))
        shown = options.get("examples") or options.get("example") or options.get("default")
        example = shown[0] if "examples" in options and isinstance(shown, list) and shown else shown
    elif default is not None:
        required, example = is_ellipsis(default), literal_of(field.default)
    shape = (1,) if datatype == "JSON" else shape
    return Input(input_name(field), datatype, shape, required, None if example is ... else example)


def is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
