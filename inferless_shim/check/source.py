"""What an app folder's sources say about the app: its class, its methods, what is decorated, what is imported.

Nothing is executed or imported. Names are followed through imports, assignments and the folder's own files to what
they stand for: `utils:helper` is a definition in the folder, `inferless.Cls.load` comes from elsewhere. What a program
decides only while it runs is not seen here.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import StartupError
from .syntax import (
    FUNCTIONS,
    File,
    Function,
    Import,
    Method,
    found_imports,
    imported_modules,
    module_of,
    parse,
    targets_of,
    text_of,
)

CLASS_NAME = "InferlessPythonModel"
SCHEMA = "INPUT_SCHEMA"
METHODS = ("initialize", "infer", "finalize")
# What a method of `inferless.Cls(…)` decorates, and the method that it then stands for.
ROLES = {"load": "initialize", "infer": "infer"}
ROOTS = {"object", "ABC", "Protocol", "Generic"}  # base classes that bring no methods of an app
DEEPEST = 20  # names that lead to names, classes that have bases


@dataclass(frozen=True, eq=False)
class Entry:
    """What stands for the app: a class, or functions of a module (then `cls` is None).

    `roles` are initialize, infer and finalize, as far as they are there; `whole` says that every base class is known.
    """

    file: File
    cls: ast.ClassDef | None
    methods: dict[str, Method]
    roles: dict[str, Method]
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
        methods = {
            node.name: Method(owner, node, self_name(node))
            for owner, each in reversed(chain)
            for node in each.body
            if isinstance(node, FUNCTIONS)
        }
        roles = {name: methods[name] for name in METHODS if name in methods}
        roles.update({role: each for each in methods.values() if (role := self.role(each))})
        bases = [(owner, base) for owner, each in chain for base in each.bases]
        whole = all(self.class_of(*each) or ast.unparse(each[1]).rpartition(".")[2] in ROOTS for each in bases)
        return Entry(file, cls, methods, roles, whole)

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
                    if isinstance(target, ast.Name) and not annotation.startswith(("ClassVar", "typing.ClassVar")):
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
