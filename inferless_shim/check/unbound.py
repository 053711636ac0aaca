"""Names that nothing binds: the commonest mistake in public apps, found only when the line runs.

A doubt in a file's own code; a fault where an import at the start wants one of a file of the folder. What a name means
in which scope, `symtable` says, as the compiler would.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

from .source import Source
from .syntax import Doubt, File, imported_modules, is_caught, is_stored, module_of

# What a module has without saying so.
ALWAYS = {*dir(builtins), "__file__", "__path__", "__annotations__", "__builtins__", "__class__", "__module__"}
ALWAYS |= {"__qualname__", "WindowsError", "__conditional_annotations__"}
CLEVER = {"exec", "globals", "locals", "vars"}


def doubts(file: File) -> Iterator[Doubt]:
    """Yield the names of a file that are used and bound nowhere, each once; none if it may bind names unseen."""
    if binds_unseen(file.tree):
        return
    try:
        code: Any = file.path.read_bytes()  # typeshed knows of str alone
        table = symtable.symtable(code, file.shown, "exec")
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lazy = annotation_nodes(file.tree) if has_lazy_annotations(file.tree) else set()
    loads = [node for node in ast.walk(file.tree) if isinstance(node, ast.Name) and not is_stored(node)]
    told = ALWAYS | set(bound_in(table))
    for scope in scopes(table):
        for name in free_in(scope):
            lines = [node.lineno for node in loads if node.id == name and id(node) not in lazy]
            lines = [line for line in lines if line >= scope.get_lineno()]
            if lines and name not in told:
                told.add(name)
                sentence = f"nothing binds the name {name}: this line fails; define it first."
                yield Doubt(file.shown, min(lines), sentence)


def binds_unseen(tree: ast.Module) -> bool:
    """Whether names may come from where they are not seen, or their absence is awaited."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLEVER:
            return True
        if isinstance(node, ast.ExceptHandler) and node.type is not None and is_caught(node, {"NameError"}):
            return True
    return False


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for each in table.get_children():
        yield from scopes(each)


def bound_in(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names that the module has: its own, and those that a function declares global and binds."""
    for each in scopes(table):
        for symbol in each.get_symbols():
            is_own = each is table or symbol.is_declared_global()
            if is_own and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                yield symbol.get_name()


def free_in(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names that a scope looks up in the module."""
    for symbol in table.get_symbols():
        # CPython up to 3.12 takes every scope called "top" for the module, and what is local there for global.
        is_local = symbol.is_parameter() or (symbol.is_assigned() and not symbol.is_declared_global())
        looked_up = table.get_type() == "module" or (symbol.is_global() and not is_local)
        if symbol.is_referenced() and looked_up:
            yield symbol.get_name()


def has_lazy_annotations(tree: ast.Module) -> bool:
    future = (each for each in tree.body if isinstance(each, ast.ImportFrom) and each.module == "__future__")
    return sys.version_info >= (3, 14) or any(alias.name == "annotations" for each in future for alias in each.names)


def annotation_nodes(tree: ast.Module) -> set[int]:
    """Return the nodes that stand in annotations, by id."""
    roots = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    return {id(each) for root in roots if isinstance(root, ast.AST) for each in ast.walk(root)}


# ---- Imports from the folder's own files


def failing_imports(source: Source) -> Iterator[str]:
    """Yield the imports that are sure to keep the app from starting: of names that a file of the folder has not."""
    files = [source.app]
    for file in files:  # it grows
        for statement in file.tree.body:  # what lies deeper may not run, or be awaited to fail
            reached = [sibling_of(source, module) for module in imported_modules(file, statement)]
            files += [each for each in reached if each is not None and each not in files]
            if isinstance(statement, ast.ImportFrom):
                sibling = sibling_of(source, module_of(file, statement))
                for name in [each.name for each in statement.names]:
                    if sibling is not None and not may_have(source, sibling, name):
                        told = f"{sibling.shown} has no {name}, so the app does not start"
                        yield f"{file.shown}:{statement.lineno}: {told}; define it there."


def sibling_of(source: Source, module: str) -> File | None:
    """Return the folder's file that `import module` reads, unless Python finds another one before it."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package == "inferless":
        return None
    if source.file(package) is None:  # an installed package goes before a folder without __init__.py
        spec = PathFinder.find_spec(package) if package else None
        if spec is not None and spec.origin is not None:
            return None
    return source.file(module)


def may_have(source: Source, file: File, name: str) -> bool:
    """Whether a module may have a name: it stands there anywhere, is a submodule, or comes from where nobody looks."""
    if name == "*" or name.startswith("__") or name in file.bindings or binds_unseen(file.tree):
        return True
    nodes = list(ast.walk(file.tree))
    beside = file.path.parent
    if file.path.name == "__init__.py" and ((beside / name).exists() or any(beside.glob(f"{name}.*"))):
        return True
    if any(isinstance(node, ast.Attribute) and node.attr in ("modules", "__path__") for node in nodes):
        return True
    stored = (node for each in source.files for node in ast.walk(each.tree) if isinstance(node, ast.Attribute))
    return not {name, "__getattr__"}.isdisjoint(names_in(nodes)) or any(
        node.attr == name and is_stored(node) for node in stored
    )


def names_in(nodes: list[ast.AST]) -> set[str]:
    """Return all names that stand in a source, whatever for; not those of attributes."""
    found = {getattr(node, key, None) for node in nodes for key in ("id", "name", "asname", "rest")}
    found |= {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    return {each.partition(".")[0] for each in found if isinstance(each, str)}
