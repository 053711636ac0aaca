"""Python sources as trees: one file, one function, and the walks over them that `source` and `doubts` need.

Nothing is executed or imported. A walk over a function's own code leaves out what is defined inside it.
"""

from __future__ import annotations

import ast
import copy
import platform
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import StartupError

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.Lambda, ast.ClassDef)
TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))  # `except*` came with 3.11
IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, eq=False)
class File:
    """One source: `module` is its name to `import`, `shown` its path within the folder."""

    module: str
    shown: str
    path: Path
    tree: ast.Module

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """The module's own statements, those inside `if`, `try` and the like too."""
        return list(top_level(self.tree.body))

    @cached_property
    def bindings(self) -> dict[str, ast.stmt]:
        """The last of the module's own statements that binds each name."""
        return {name: statement for statement in self.statements for name in bound_names(statement)}


@dataclass(frozen=True, order=True)
class Doubt:
    """What is said of one line of a source. A `note` says how something is served; there is nothing to do."""

    shown: str
    line: int
    sentence: str
    note: bool = False


@dataclass(frozen=True, eq=False)
class Method:
    """A method or a plain function. `self_name` is what it calls the app's object, None if it has no place for it."""

    file: File
    node: Function
    self_name: str | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def is_async(self) -> bool:
        return isinstance(self.node, ast.AsyncFunctionDef)

    @property
    def is_generator(self) -> bool:
        return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own(self.node))

    @property
    def positional(self) -> list[str]:
        """The names of what a caller passes by position."""
        arguments = self.node.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
        return names if self.self_name is None else names[1:]

    def doubt(self, node: ast.AST, sentence: str, note: bool = False) -> Doubt:
        """Make a doubt of the line of a node in this method."""
        return Doubt(self.file.shown, getattr(node, "lineno", 1), sentence, note)

    @property
    def signature(self) -> str:
        """How it is called, in one line."""
        bare = copy.deepcopy(self.node.args)
        for each in ast.walk(bare):
            if isinstance(each, ast.arg):
                each.annotation = None
        return f"{'async ' if self.is_async else ''}{self.name}({ast.unparse(bare)})"


@dataclass(frozen=True)
class Import:
    """A package that a source imports. `optional`: the source goes on without it; `late`: in a function's body."""

    package: str
    shown: str
    line: int
    optional: bool
    late: bool


def parse(path: Path, module: str, shown: str) -> File:
    """Read one source as this interpreter would. Raises StartupError that names the line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in the app's own strings
            return File(module, shown, path, ast.parse(path.read_bytes(), str(path)))
    except SyntaxError as error:
        reason = f"{error.msg}; this is no Python {platform.python_version()}."
        raise StartupError(f"{shown}:{error.lineno or 1}: {reason}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes before 3.12; nested without end
        raise StartupError(f"{shown}:1: Python cannot read this file: {error or type(error).__name__}.") from None
    except OSError as error:
        raise StartupError(f"{shown}: {error.strerror or error}.") from None


# ---- Walks


def top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's own statements in order, those inside `if`, `try` and the like too; not `if __name__ == …`."""
    waiting = [*body][::-1]
    while waiting:  # not by recursion: each elif lies in the one before
        yield (statement := waiting.pop())
        if not isinstance(statement, SCOPES) and not is_skipped(statement):
            waiting += [*inner(statement)][::-1]


def inner(statement: ast.stmt) -> Iterator[ast.stmt]:
    """Yield the statements that directly lie in a compound one."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
            yield from child.body


def is_skipped(statement: ast.stmt) -> bool:
    """Whether a block does not run where the app is served: the main program's, and what only type checkers read."""
    if not isinstance(statement, ast.If):
        return False
    test = ast.unparse(statement.test)
    return "__name__" in test or test.endswith("TYPE_CHECKING")


def own(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function's own code, not of what is defined inside it."""
    waiting = [*ast.iter_child_nodes(function)][::-1]
    while waiting:  # not by recursion: an expression may be deeper than the stack
        yield (node := waiting.pop())
        if not isinstance(node, SCOPES):
            waiting += [*ast.iter_child_nodes(node)][::-1]


def with_same(function: ast.AST, name: str | None) -> Iterator[ast.AST]:
    """Yield the nodes of a function and of what is defined inside it, as far as `name` means the same there."""
    waiting = [*ast.iter_child_nodes(function)][::-1]
    while waiting:
        yield (node := waiting.pop())
        if not (isinstance(node, (*FUNCTIONS, ast.Lambda)) and name in parameter_names(node.args)):
            waiting += [*ast.iter_child_nodes(node)][::-1]


def parameter_names(arguments: ast.arguments) -> set[str]:
    return {each.arg for each in ast.walk(arguments) if isinstance(each, ast.arg)}


def bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds by itself, not by the statements inside it."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, ast.Import):
        yield from (each.asname or each.name.partition(".")[0] for each in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        yield from (each.asname or each.name for each in statement.names)
    else:
        for target in targets_of(statement):
            yield from (each.id for each in ast.walk(target) if isinstance(each, ast.Name) and is_stored(each))


def targets_of(node: ast.AST) -> list[ast.expr]:
    """Return what a statement, or a part of one, assigns to or deletes."""
    if isinstance(node, (ast.Assign, ast.Delete)):
        return node.targets
    if isinstance(node, (ast.AugAssign, ast.For, ast.AsyncFor, ast.NamedExpr, ast.comprehension)):
        return [node.target]
    if isinstance(node, ast.AnnAssign):
        return [node.target] if node.value is not None else []
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return [each.optional_vars for each in node.items if each.optional_vars is not None]
    alias = getattr(node, "name", None)  # `type X = …`, since 3.12, alone has a node for a name
    return [alias] if isinstance(alias, ast.Name) else []


def attributes_set(node: ast.AST) -> Iterator[tuple[ast.expr, str, ast.AST]]:
    """Yield owner, name and value of the attributes that a statement sets; itself where no value is to be seen."""
    for target in targets_of(node):
        for each in ast.walk(target):
            if isinstance(each, ast.Attribute) and is_stored(each):
                value = node.value if isinstance(node, ast.Assign) and each is target else node
                yield each.value, each.attr, value
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "setattr" and len(call.args) == 3:
        owner, name, value = call.args
        if (text := text_of(name)) is not None:
            yield owner, text, value


def is_self(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def is_plain_class(cls: ast.ClassDef) -> bool:
    """Whether nothing but its body and its bases makes a class what it is."""
    return not cls.decorator_list and all(ast.unparse(each.value).endswith("ABCMeta") for each in cls.keywords)


def is_stored(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, (ast.Store, ast.Del))


def text_of(node: ast.AST | None) -> str | None:
    """Return a string literal's text."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_caught(handler: ast.ExceptHandler, names: set[str]) -> bool:
    """Whether an `except` catches one of the exceptions `names`, or all of them."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind).rpartition(".")[2] in names for kind in kinds)


# ---- Imports


def module_of(file: File, statement: ast.ImportFrom) -> str:
    """Return the module that `from … import` reads, a relative one too."""
    parts = file.module.split(".")
    kept = len(parts) - statement.level + (file.path.name == "__init__.py")
    base = parts[: max(0, kept)] if statement.level else []
    return ".".join([*base, *([statement.module] if statement.module else [])])


def imported_modules(file: File, node: ast.AST) -> Iterator[str]:
    """Yield the modules that a node imports, with the packages that they lie in."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [each.name for each in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = module_of(file, node)
        names = [f"{module}.{each.name}".strip(".") for each in node.names]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def found_imports(file: File) -> Iterator[Import]:
    """Yield the packages that a source imports. Where a condition decides, the import is optional."""
    waiting = [(each, False, False) for each in reversed(file.tree.body)]
    while waiting:
        statement, optional, late = waiting.pop()
        if isinstance(statement, ast.Import):
            packages = {each.name.partition(".")[0] for each in statement.names}
            yield from (Import(each, file.shown, statement.lineno, optional, late) for each in sorted(packages))
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield Import((statement.module or "").partition(".")[0], file.shown, statement.lineno, optional, late)
        elif not is_skipped(statement):
            tried = isinstance(statement, TRIES) and any(is_caught(each, IMPORT_ERRORS) for each in statement.handlers)
            unsure = optional or tried or isinstance(statement, ast.If)
            in_function = late or isinstance(statement, FUNCTIONS)
            waiting += [(each, unsure, in_function) for each in inner(statement)][::-1]
