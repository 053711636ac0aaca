"""What an app folder's sources say about the app: its class, its methods, what is decorated, what is imported.

Nothing is executed or imported. Names are followed through imports, assignments and the folder's own files to what
they stand for: `utils:helper` is a definition in the folder, `inferless.Cls.load` comes from elsewhere. What a program
decides only while it runs is not seen here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..parts import CLASS_NAME
from .syntax import (
    FUNCTIONS,
    File,
    Function,
    Import,
    Method,
    attributes_set,
    bound_names,
    found_imports,
    imported_modules,
    is_plain_class,
    is_self,
    module_of,
    parse,
    targets_of,
    text_of,
    top_level,
)

SCHEMA = "INPUT_SCHEMA"
METHODS = ("initialize", "infer", "finalize")
# What a method of `inferless.Cls(…)` decorates, and the method that it then stands for.
ROLES = {"load": "initialize", "infer": "infer"}
BARE = {"staticmethod", "classmethod"}  # decorators that leave a function's parameters as they are
CLEVER = {"exec", "globals", "locals", "vars"}  # calls that may bind any name
ROOTS = {"object", "ABC", "Protocol", "Generic"}  # base classes that bring no methods of an app
DEEPEST = 20  # names that lead to names, classes that have bases


@dataclass(frozen=True, eq=False)
class Entry:
    """What stands for the app: a class, or functions of a module (then `cls` is None).

    `roles` are initialize, infer and finalize, as far as they are there. `unseen` are names that something binds which
    is no function of the folder, or not always the same; `whole` says that all that may bring methods is known.
    """

    file: File
    cls: ast.ClassDef | None
    methods: dict[str, Method]
    roles: dict[str, Method]
    unseen: frozenset[str] = frozenset()
    whole: bool = True


@dataclass(frozen=True, eq=False)
class Marked:
    """A class that `@inferless.request`, `response` or `config` decorates."""

    file: File
    node: ast.ClassDef


@dataclass(frozen=True)
class Field:
    """A class's own `name: annotation = default`, as text."""

    name: str
    annotation: str
    default: str | None
    line: int


class Source:
    """An app folder as its sources tell it: `app.py`, the siblings that it imports, `input_schema.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: dict[str, str] = {}  # siblings that are no Python, by module
        self.app = parse(folder / "app.py", "app", "app.py")
        self._files: dict[str, File | None] = {"app": self.app}
        self.files = self._reached()

    # ---- Files

    def file(self, module: str) -> File | None:
        """Return the folder's own file that `import module` would read, or None. Each is read once."""
        if module not in self._files:
            stem = self.folder.joinpath(*module.split("."))
            candidates = (stem / "__init__.py", stem.with_name(stem.name + ".py")) if module else ()
            path = next((each for each in candidates if each.is_file()), None)
            self._files[module] = None
            if path is not None:
                try:
                    self._files[module] = parse(path, module, path.relative_to(self.folder).as_posix())
                except StartupError as error:
                    self.unreadable[module] = str(error)
        return self._files[module]

    def is_own(self, package: str) -> bool:
        """Whether `import package` finds something in the folder, a folder without Python in it, too."""
        return self.file(package) is not None or package in self.unreadable or (self.folder / package).is_dir()

    def _reached(self) -> list[File]:
        """Follow the imports from `app.py` through the folder."""
        found = [self.app]
        for file in found:  # it grows
            for node in ast.walk(file.tree):
                for module in imported_modules(file, node):
                    sibling = self.file(module)
                    if sibling is not None and sibling not in found:
                        found.append(sibling)
        return found

    # ---- Names

    def full_name(self, file: File, expression: ast.AST, depth: int = DEEPEST) -> str:
        """Return what an expression stands for; for a call, what is called. "" if that is nothing known."""
        if isinstance(expression, ast.Call):
            return self.full_name(file, expression.func, depth)
        if isinstance(expression, ast.Attribute):
            base = self.full_name(file, expression.value, depth)
            module = self.file(base) if ":" not in base else None
            if module is not None:
                return self._bound(module, expression.attr, depth - 1) or f"{base}.{expression.attr}"
            return base and f"{base}.{expression.attr}"
        return self._bound(file, expression.id, depth) if isinstance(expression, ast.Name) else ""

    def _bound(self, file: File, name: str, depth: int = DEEPEST) -> str:
        """Return what `name` stands for in a module; "" if nothing there binds it."""
        if depth <= 0:
            return ""
        statement = file.bindings.get(name)
        if isinstance(statement, ast.Import):
            alias = next(each for each in statement.names if name in (each.asname, each.name.partition(".")[0]))
            return alias.name if alias.asname else name
        if isinstance(statement, ast.ImportFrom):
            alias = next(each for each in statement.names if name == (each.asname or each.name))
            return self._from(module_of(file, statement), alias.name, depth)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            meant = self.full_name(file, statement.value, depth - 1)
            # An object that the app makes stands for itself; another name for something, or inferless.Cls(), for that.
            if meant.startswith("inferless.") or (meant and not isinstance(statement.value, ast.Call)):
                return meant
        if statement is not None:
            return f"{file.module}:{name}"
        found = (self._from(module_of(file, star), name, depth) for star in self._stars(file))
        return next((meant for meant in found if ":" in meant or meant.startswith("inferless.")), "")

    def _from(self, module: str, name: str, depth: int) -> str:
        sibling = self.file(module)
        return (sibling and self._bound(sibling, name, depth - 1)) or f"{module}.{name}"

    def _stars(self, file: File) -> list[ast.ImportFrom]:
        found = (each for each in file.statements if isinstance(each, ast.ImportFrom))
        return [each for each in found if each.names[0].name == "*"]

    def definition(self, full_name: str) -> tuple[File, ast.stmt] | None:
        """Return the statement of the folder that defines what `full_name` names."""
        module, colon, name = full_name.partition(":")
        file = self.file(module) if colon else None
        return (file, file.bindings[name]) if file is not None and name in file.bindings else None

    def function_of(self, file: File, expression: ast.AST) -> Method | None:
        """Return the function of the folder that an expression names."""
        found = self.definition(self.full_name(file, expression))
        return Method(found[0], found[1]) if found is not None and isinstance(found[1], FUNCTIONS) else None

    def class_of(self, file: File, expression: ast.AST) -> tuple[File, ast.ClassDef] | None:
        """Return the class of the folder that an expression names."""
        found = None if isinstance(expression, ast.Call) else self.definition(self.full_name(file, expression))
        return (found[0], found[1]) if found is not None and isinstance(found[1], ast.ClassDef) else None

    def with_bases(self, file: File, cls: ast.ClassDef, depth: int = DEEPEST) -> list[tuple[File, ast.ClassDef]]:
        """Return a class and its bases as far as the folder defines them, nearest first."""
        found = [(file, cls)]
        for base in cls.bases if depth else ():
            known = self.class_of(file, base)
            if known is not None and known not in found:
                found += [each for each in self.with_bases(*known, depth - 1) if each not in found]
        return found

    # ---- What the app is

    @cached_property
    def entry(self) -> Entry | None:
        """What stands for the app, found as the server finds it; None if nothing is seen that could."""
        named = self.class_of(self.app, ast.Name(CLASS_NAME))
        if named is not None:
            return self._class_entry(*named)
        for name in self.app.bindings:
            known = self.class_of(self.app, ast.Name(name))
            entry = self._class_entry(*known) if known is not None else None
            if entry is not None and any(self.role(each) == "infer" for each in entry.methods.values()):
                return entry
        return self._function_entry()

    def _class_entry(self, file: File, cls: ast.ClassDef) -> Entry:
        chain = self.with_bases(file, cls)
        methods: dict[str, Method] = {}
        unseen: set[str] = set()
        for owner, name, node, is_sure in [*class_bindings(chain), *self._patches(chain)]:
            is_one_of_several = not is_sure and (name in methods or name in unseen)
            made = None if is_one_of_several else self._method(owner, node, methods)
            methods.pop(name, None)
            unseen.discard(name)
            if made is not None:
                methods[name] = made
            else:
                unseen.add(name)
        roles = {name: methods[name] for name in METHODS if name in methods}
        roles.update({role: each for each in methods.values() if (role := self.role(each))})
        bases = [(owner, base) for owner, each in chain for base in each.bases]
        whole = all(self.class_of(*each) or ast.unparse(each[1]).rpartition(".")[2] in ROOTS for each in bases)
        whole = whole and not self.is_clever and all(is_plain_class(each) for _, each in chain)
        return Entry(file, cls, methods, roles, frozenset(unseen), whole)

    def _method(self, file: File, node: ast.AST, methods: dict[str, Method]) -> Method | None:
        """Return the method that a definition or a value makes; None if the folder does not say."""
        if isinstance(node, FUNCTIONS):
            return Method(file, node, self_name(node))
        if isinstance(node, ast.Name) and node.id in methods:
            return methods[node.id]
        known = self.function_of(file, node) if isinstance(node, (ast.Name, ast.Attribute)) else None
        return Method(known.file, known.node, self_name(known.node)) if known is not None else None

    def _patches(self, chain: list[tuple[File, ast.ClassDef]]) -> Iterator[Binding]:
        """Yield what any file assigns to one of the classes from outside."""
        for file in self.files:
            sure = {id(each) for each in file.tree.body}
            for node in ast.walk(file.tree):
                for owner, name, value in attributes_set(node):
                    if self.class_of(file, owner) in chain:
                        yield file, name, value, id(node) in sure

    @cached_property
    def is_clever(self) -> bool:
        """Whether any file may bind an attribute of a class in a way that is not seen."""
        nodes = [(file, node) for file in self.files for node in ast.walk(file.tree)]
        for file, node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = [*node.args, None, None]
                is_open = node.func.id == "setattr" and not is_self(given[0]) and text_of(given[1]) is None
                if node.func.id in CLEVER or is_open:
                    return True
            for owner, name, _ in attributes_set(node):
                if name in METHODS and not is_self(owner) and self.class_of(file, owner) is None:
                    return True
        return False

    def is_bare(self, method: Method) -> bool:
        """Whether a function is called with the parameters that stand there: nothing unknown decorates it."""
        names = [(ast.unparse(each), self.full_name(method.file, each)) for each in method.node.decorator_list]
        return all(text in BARE or name.startswith("inferless.") for text, name in names)

    def _function_entry(self) -> Entry | None:
        found = [self.function_of(self.app, ast.Name(name)) for name in self.app.bindings]
        roles = {role: each for each in found if each is not None and (role := self.role(each))}
        finalize = self.function_of(self.app, ast.Name("finalize"))
        if finalize is not None:
            roles["finalize"] = finalize
        return Entry(roles["infer"].file, None, {}, roles) if "infer" in roles else None

    def role(self, method: Method) -> str:
        """Return what `@app.load`, `@app.infer` or `@inferless.method` makes of a function; "" if nothing does."""
        names = [self.full_name(method.file, each) for each in method.node.decorator_list]
        called = [name.rpartition(".")[2] for name in names if name.startswith("inferless.Cls.")]
        return next((ROLES[each] for each in called if each in ROLES), "infer" if "inferless.method" in names else "")

    @property
    def opaque(self) -> bool:
        """Whether the app's class may come from where it is not seen: another package, a call, a loop, exec."""
        meant = self._bound(self.app, CLASS_NAME)
        calls = [node.func for node in ast.walk(self.app.tree) if isinstance(node, ast.Call)]
        made = any(isinstance(each, ast.Name) and each.id in ("exec", "globals", "setattr", "vars") for each in calls)
        return bool(meant) or made or any(not self.file(module_of(self.app, star)) for star in self._stars(self.app))

    def place_of_no_class(self) -> str:
        """Return where the name of the app's class is bound to a function or an object; "" if it may be a class."""
        found = self.definition(self._bound(self.app, CLASS_NAME))
        nodes = [node for file in self.files for node in ast.walk(file.tree)]
        rebound = any(isinstance(node, ast.Global) and CLASS_NAME in node.names for node in nodes)
        if found is None or rebound or self.is_clever:
            return ""
        file, statement = found
        if statement not in file.tree.body or CLASS_NAME not in bound_names(statement):
            return ""
        made = None
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            made = self.class_of(file, statement.value.func)
        entry = self._class_entry(*made) if made is not None else None
        is_object = entry is not None and entry.whole and "__new__" not in {*entry.methods, *entry.unseen}
        is_function = isinstance(statement, FUNCTIONS) and not statement.decorator_list
        return f"{file.shown}:{statement.lineno}" if is_object or is_function else ""

    def marked(self, mark: str) -> list[Marked]:
        """Return the classes that `@inferless.<mark>` decorates, in any style of import, with or without a call."""
        return [
            Marked(file, node)
            for file in reversed(self.files)  # a sibling runs before the file that imports it
            for node in file.statements
            if isinstance(node, ast.ClassDef)
            and any(self.full_name(file, each) == f"inferless.{mark}" for each in node.decorator_list)
        ]

    def chosen(self, mark: str) -> Marked | None:
        """Return the class that `infer` is annotated with, or the last one marked so."""
        classes = self.marked(mark)
        infer = self.entry.roles.get("infer") if self.entry is not None else None
        for annotation in annotations_of(infer, mark) if infer is not None else ():
            known = self.class_of(infer.file, annotation) if infer is not None else None
            for each in classes:
                if text_of(annotation) == each.node.name or (known is not None and known[1] is each.node):
                    return each
        return classes[-1] if classes else None

    def config_values(self) -> dict[str, Any]:
        """Return the fields of the config class whose values stand there as literals."""
        found = self.marked("config")
        fields = self.fields(found[-1]) if found else []
        values = ((each.name, literal_of(each.default)) for each in fields)
        return {name: value for name, value in values if value is not None}

    def fields(self, marked: Marked) -> list[Field]:
        """Return the fields of a class and its bases, the bases' first."""
        found: dict[str, Field] = {}
        for _, cls in reversed(self.with_bases(marked.file, marked.node)):
            for node in cls.body:
                annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
                value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
                targets = [node.target] if isinstance(node, ast.AnnAssign) else targets_of(node)
                for target in targets:
                    if isinstance(target, ast.Name) and not is_setting(target.id, annotation):
                        default = None if value is None else ast.unparse(value)
                        found[target.id] = Field(target.id, annotation, default, node.lineno)
        return list(found.values())

    def imports(self) -> list[Import]:
        """Return what the sources import, relative imports aside."""
        return [each for file in self.files for each in found_imports(file)]

    @cached_property
    def schema_lines(self) -> list[tuple[str, int]]:
        """The names in INPUT_SCHEMA and their lines, in order, as far as they stand there as literals."""
        file = self.file("input_schema")
        return schema_lines(file) if file is not None else []


def read_source(folder: Path) -> Source:
    """Read a folder's sources. Raises StartupError if `app.py` is not there or is no Python."""
    return Source(folder)


def schema_lines(file: File) -> list[tuple[str, int]]:
    """Return the names in INPUT_SCHEMA of `input_schema.py` and their lines, as far as they stand there as literals."""
    found: list[tuple[ast.expr | None, int]] = []
    for node in file.statements:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        for target in targets_of(node):
            if isinstance(target, ast.Subscript) and ast.unparse(target.value) == SCHEMA:
                found.append((target.slice, target.lineno))
            elif isinstance(target, ast.Name) and target.id == SCHEMA and isinstance(value, ast.Dict):
                found += [(key, key.lineno) for key in value.keys if key is not None]
    return [(name, line) for key, line in found if (name := text_of(key)) is not None]


Binding = tuple[File, str, ast.AST, bool]  # where, which name, by what, and whether that is sure to run


def class_bindings(chain: list[tuple[File, ast.ClassDef]]) -> Iterator[Binding]:
    """Yield what the bodies of a class and its bases bind, in order, the bases' first."""
    for file, cls in reversed(chain):
        sure = {id(each) for each in cls.body}
        for node in top_level(cls.body):
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            plain = {each.id for each in targets_of(node) if isinstance(each, ast.Name)}
            for name in bound_names(node):
                yield file, name, value if value is not None and name in plain else node, id(node) in sure


def is_setting(name: str, annotation: str) -> bool:
    """Whether a class's attribute is none of its fields, as pydantic has it."""
    return name == "model_config" or name.startswith("_") or annotation.startswith(("ClassVar", "typing.ClassVar"))


def self_name(node: Function) -> str | None:
    """Return what a method calls the object that it is called on."""
    arguments = [*node.args.posonlyargs, *node.args.args]
    static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    return None if static or not arguments else arguments[0].arg


def annotations_of(infer: Method, mark: str) -> list[ast.expr]:
    """Return the annotations of what `infer` takes, or, for "response", of what it returns."""
    arguments = infer.node.args
    taken = [each.annotation for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [each for each in ([infer.node.returns] if mark == "response" else taken) if each is not None]


def literal_of(text: str | None) -> Any:
    try:
        return None if text is None else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
