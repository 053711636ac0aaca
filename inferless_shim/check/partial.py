"""Just what an app's declarations need, executed: the classes of pydantic apps without the model that they feed.

`source` says which statements those are: the classes themselves and what they name, transitively, as long as that is
classes, functions, plain constants, and imports of the standard library, pydantic and inferless. All else of a file is
left out, so nothing is loaded, and what the app imports beside these need not be installed.
"""

from __future__ import annotations

import ast
import builtins
import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from ..errors import StartupError
from .source import Marked, Source
from .syntax import FUNCTIONS, File, bound_names, module_of, targets_of, text_of

PACKAGES = {"pydantic", "pydantic_core", "pydantic_settings", "typing_extensions", "annotated_types", "inferless"}
# What an assigned value may call: it makes a type, a constant, or reads a setting.
CALLED = (*sorted(PACKAGES), "typing", "enum", "dataclasses", "collections", "datetime", "decimal", "pathlib", "uuid")
CALLED_BY_NAME = {"re.compile", "os.getenv", "os.environ.get", "os.path.join"}
NOT_CALLED = {"open", "exec", "eval", "input", "print", "__import__", "compile", "exit", "quit", "breakpoint"}
STUB = "_parameters_of_infer"
REBUILDS = {"model_rebuild", "update_forward_refs"}


class NotHere(StartupError):
    """The declarations need something that is not installed here, or that is not executed for a check."""


def partial_class(source: Source, marked: Marked) -> Any:
    """Execute what a class needs, and return it. Raises NotHere, or StartupError with the line of what raised."""
    made = Executor(source).execute(marked.file, {marked.node.name})
    return getattr(made, marked.node.name)


def partial_function(source: Source) -> Callable[..., Any]:
    """Return a function that has the parameters of `infer`, with their annotations and defaults, and does nothing.

    Raises what partial_class raises.
    """
    infer = source.entry.roles["infer"] if source.entry is not None else None
    assert infer is not None
    stub = ast.FunctionDef(STUB, copy.deepcopy(infer.node.args), [ast.Pass()], [])
    arguments = stub.args.posonlyargs or stub.args.args
    if infer.self_name is not None:
        del arguments[0]
    file = infer.file
    tree = ast.fix_missing_locations(ast.Module([*file.tree.body, ast.copy_location(stub, infer.node)], []))
    made = Executor(source).execute(File(file.module, file.shown, file.path, tree), {STUB})
    function: Callable[..., Any] = vars(made)[STUB]
    return function


class Executor:
    """Executes parts of the folder's files, each as the module that it is."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.left_out: dict[str, str] = {}  # names, and why they are not there

    def execute(self, file: File, names: Iterable[str]) -> ModuleType:
        """Execute what `names` need of a file. Raises StartupError with the line."""
        selection = Selection(self, file)
        selection.add(names)
        module = ModuleType(file.module)
        module.__file__ = str(file.path)
        sys.modules[file.module] = module  # pydantic looks names up there
        tree = ast.Module(list(selection.kept(file.tree.body)), [])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old ways to write a field; the server logs them
                exec(compile(ast.fix_missing_locations(tree), str(file.path), "exec"), vars(module))
        except BaseException as error:
            raise self._fault(file, error) from error
        return module

    def _fault(self, file: File, error: BaseException) -> StartupError:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == str(file.path)]
        where = f"{file.shown}:{frames[-1].lineno if frames else 1}"
        if isinstance(error, ModuleNotFoundError):
            return NotHere(f"{where}: {error.name} is not installed here, and the app's classes need it.")
        if self.left_out:
            reasons = ", ".join(f"{name} ({why})" for name, why in self.left_out.items())
            return NotHere(f"{where}: the app's classes need what is not executed for a check: {reasons}.")
        return StartupError(f"{where}: {type(error).__name__}: {error}")


class Selection:
    """The statements of one file that some names need."""

    def __init__(self, executor: Executor, file: File) -> None:
        self.executor = executor
        self.source = executor.source
        self.file = file
        self.names: set[str] = set()
        self._chosen: set[int] = set()
        self._imported: set[str] = set()
        self._around: dict[int, list[ast.stmt]] = {}
        self._note_blocks(file.tree.body, [])

    def _note_blocks(self, body: Iterable[ast.stmt], around: list[ast.stmt]) -> None:
        for statement in body:
            self._around[id(statement)] = around
            for block in blocks_of(statement):
                self._note_blocks(block, [*around, statement])

    def add(self, names: Iterable[str]) -> None:
        """Choose what binds these names, and what that needs."""
        for name in names:
            if name in self.names:
                continue
            self.names.add(name)
            for statement in self.file.statements:
                if name in bound_names(statement) or self._concerns(statement, name):
                    self._choose(statement, name)
            if name not in self.file.bindings and not hasattr(builtins, name):
                self._add_stars(name)

    def _choose(self, statement: ast.stmt, name: str) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            allowed = self._import(statement, name)
        else:
            allowed = not isinstance(statement, ast.Assign | ast.AnnAssign) or self._is_plain(statement, name)
        if allowed and id(statement) not in self._chosen:
            self._chosen.add(id(statement))
            for each in self._around[id(statement)]:
                self.add(used_names(head_of(each)))
            self.add(used_names(statement))

    def _concerns(self, statement: ast.stmt, name: str) -> bool:
        """Whether a statement changes what `name` holds: `name["key"] = …`, `name.model_rebuild()`."""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = statement.value.func
            return isinstance(called, ast.Attribute) and called.attr in REBUILDS and ast.unparse(called.value) == name
        parts = [each for each in targets_of(statement) if isinstance(each, (ast.Subscript, ast.Attribute))]
        return isinstance(statement, ast.Assign) and any(
            ast.unparse(each).startswith((f"{name}.", f"{name}[")) for each in parts
        )

    def _is_plain(self, statement: ast.Assign | ast.AnnAssign, name: str) -> bool:
        """Whether a value is a constant or a type: it calls nothing but what makes those."""
        for node in ast.walk(statement.value) if statement.value is not None else ():
            if isinstance(node, ast.Call) and not self._may_call(node):
                if name in bound_names(statement):
                    self.executor.left_out[name] = f"it calls {ast.unparse(node.func)[:60]}"
                return False
        return True

    def _may_call(self, node: ast.Call) -> bool:
        name = self.source.full_name(self.file, node)
        if not name:
            if isinstance(node.func, ast.Name):
                return hasattr(builtins, node.func.id) and node.func.id not in NOT_CALLED
            return isinstance(node.func, ast.Attribute) and isinstance(node.func.value, (ast.Constant, ast.Call))
        made = self.source.definition(name)
        return (
            name in CALLED_BY_NAME
            or name.split(".")[0] in CALLED
            or (made is not None and isinstance(made[1], ast.ClassDef))
        )

    # ---- Imports

    def _import(self, statement: ast.Import | ast.ImportFrom, name: str) -> bool:
        """Whether an import is one of those that are executed. What it takes from the folder is executed first."""
        if isinstance(statement, ast.ImportFrom):
            module = module_of(self.file, statement)
            wanted = next(each.name for each in statement.names if name == (each.asname or each.name))
            inside = f"{module}.{wanted}"
            module, names = (inside, None) if self.source.file(inside) is not None else (module, {wanted})
        else:
            first = next(each for each in statement.names if name in (each.asname, each.name.partition(".")[0]))
            module, names = first.name, None
        package = module.partition(".")[0]
        if self.source.file(module) is not None:
            self._import_sibling(module, attributes_of(self.file.tree) if names is None else names)
        elif package not in PACKAGES and package not in sys.stdlib_module_names:
            self.executor.left_out[name] = f"from {package}"
            return False
        self._imported.add(name)
        return True

    def _import_sibling(self, module: str, names: set[str]) -> None:
        """Execute what is needed of a file of the folder, and put it where `import` looks first."""
        sibling = self.source.file(module)
        assert sibling is not None
        made = sys.modules.get(module)
        if made is None or not names <= vars(made).keys():
            made = self.executor.execute(sibling, names | (set(vars(made)) if made is not None else set()))
        package, _, last = module.rpartition(".")
        if package:
            parent = sys.modules.setdefault(package, ModuleType(package))
            vars(parent)["__path__"] = []
            setattr(parent, last, made)

    def _add_stars(self, name: str) -> None:
        for statement in self.file.statements:
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                module = module_of(self.file, statement)
                sibling = self.source.file(module)
                if sibling is not None and name in sibling.bindings:
                    self._import_sibling(module, {name})
                    self._chosen.add(id(statement))
                elif sibling is None and module.partition(".")[0] in {*PACKAGES, *sys.stdlib_module_names}:
                    self._chosen.add(id(statement))

    # ---- The result

    def kept(self, body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
        """Yield what has been chosen of a block: with the `if` or `try` around it, without what else is there."""
        for statement in body:
            future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
            if id(statement) in self._chosen or future:
                yield self._trimmed(statement)
            elif any(self._holds(block) for block in blocks_of(statement)):
                yield self._emptied(statement)

    def _holds(self, block: Iterable[ast.stmt]) -> bool:
        return any(id(each) in self._chosen or any(map(self._holds, blocks_of(each))) for each in block)

    def _trimmed(self, statement: ast.stmt) -> ast.stmt:
        """Leave out of an import the names that nobody needs, or that are not to be had."""
        if isinstance(statement, ast.Import):
            found = [each for each in statement.names if (each.asname or each.name.partition(".")[0]) in self._imported]
            return ast.copy_location(ast.Import(found), statement)
        if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            found = [each for each in statement.names if (each.asname or each.name) in {*self._imported, "*"}]
            return ast.copy_location(ast.ImportFrom(statement.module, found, statement.level), statement)
        return statement

    def _emptied(self, statement: ast.stmt) -> ast.stmt:
        """Return a compound statement with nothing but what is chosen in its blocks."""
        made = copy.copy(statement)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(statement, name, None)
            if block is not None:
                kept = list(self.kept(block))
                setattr(made, name, kept or ([ast.Pass()] if name == "body" else []))
        if isinstance(made, ast.Try) and isinstance(statement, ast.Try):
            made.handlers = [copy.copy(each) for each in statement.handlers]
            for each in made.handlers:
                each.body = list(self.kept(each.body)) or [ast.Pass()]
        return made


# ---- Trees


def blocks_of(statement: ast.stmt) -> list[list[ast.stmt]]:
    """Return the blocks of an `if`, `try`, `with` or loop."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return []
    blocks = [getattr(statement, name, None) or [] for name in ("body", "orelse", "finalbody")]
    return [*blocks, *(each.body for each in getattr(statement, "handlers", ()))]


def head_of(statement: ast.stmt) -> list[ast.AST]:
    """Return what a compound statement evaluates beside its blocks."""
    heads = [getattr(statement, name, None) for name in ("test", "iter", "subject")]
    heads += [each.type for each in getattr(statement, "handlers", ())]
    heads += [each.context_expr for each in getattr(statement, "items", ())]
    return [each for each in heads if isinstance(each, ast.AST)]


def used_names(nodes: ast.AST | Iterable[ast.AST]) -> set[str]:
    """Return the names that code uses, those in string annotations too."""
    found: set[str] = set()
    for root in [nodes] if isinstance(nodes, ast.AST) else nodes:
        for node in ast.walk(root):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
            for part in (getattr(node, "annotation", None), getattr(node, "slice", None)):
                found |= names_in_strings(part) if isinstance(part, ast.AST) else set()
    return found


def names_in_strings(node: ast.AST) -> set[str]:
    """Return the names in the strings of an annotation, as far as they are Python."""
    texts = [text for each in ast.walk(node) if (text := text_of(each)) is not None and len(text) < 1000]
    found: set[str] = set()
    for text in texts:
        try:
            found |= {each.id for each in ast.walk(ast.parse(text, mode="eval")) if isinstance(each, ast.Name)}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass  # it is text, then
    return found


def attributes_of(tree: ast.AST) -> set[str]:
    """Return the names of all attributes that a tree uses: what it could want of a module."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
