"""The laws about who may import whom and what, read off the sources with `ast`; nothing is imported here.

They are DESIGN.md's. cli waits, so it may use threading.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "inferless_shim"

# Imports point up this list. Each module may import those before it, and no other of ours.
# fmt: off
ORDER = [
    "errors", "values", "config", "metrics", "process", "tracing", "logs", "environment", "sse", "outputs",
    "strictjson", "schema", "modelclass", "kinds", "tensors", "weights", "allocator", "budget", "typed", "protocol",
    "queries", "repository", "answers", "http1", "eventlog", "subscriber", "tally", "stream", "copies", "mirror",
    "recorder", "idempotency", "archive", "access", "totals", "store", "records", "archived", "folder", "recovery",
    "shelf", "writer", "journal", "clients", "hosts", "proxies", "origins", "auth", "admission", "job", "backlog",
    "calls", "sdk", "loops", "signatures", "parts", "check.syntax", "check.source", "check.guesses", "loader",
    "streamers", "scope", "guards", "isolation", "seeds", "views", "run", "engine", "service", "scrape", "usage",
    "outcomes", "starts", "routes", "pace", "connection", "refusals", "tls", "reader", "follow", "handler", "app",
    "check.sharing", "check.sending", "check.unbound", "check.doubts", "check.partial", "check.report", "cli",
]
NETWORK = {"socket", "select", "selectors", "socketserver", "ssl", "http.server", "asyncio.streams"}
# Who alone may use what.
LEAVES = [
    ({"connection", "refusals", "tls", "follow", "app"}, NETWORK),
    (
        {"clients", "metrics", "access", "allocator", "budget", "stream", "recorder", "store", "shelf", "writer",
         "scope", "isolation", "engine", "app", "calls", "cli"},
        {"threading", "_thread"},
    ),
    ({"loops"}, {"asyncio"}),
    ({"check.report", "cli"}, {"print()"}),
    ({"cli"}, {".extras"}),
]
# fmt: on
# A module that wants to pass 300 lines is missing a noun (ten are grace). Reasons and promises are free: code counts.
MAX_CODE_LINES = 310
# Longer ones say in a docstring what they are for; shorter ones may be as plain as their names.
MAX_SILENT_FUNCTION, MAX_SILENT_CLASS = 20, 6

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def path_of(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def imports(tree: ast.AST, package: str = "") -> Iterator[str]:
    """Yield the full name of everything imported, anywhere in a module of `package`; what is ours begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = package if node.level == 1 else ""  # two dots are the package around that
            base = "." * min(node.level, 1) + ".".join(filter(None, [inside, node.module]))
            yield base
            yield from (f"{base}.{alias.name}".replace("..", ".") for alias in node.names)


def used(tree: ast.AST) -> set[str]:
    """Return what needs leave, and more: what a module imports, and `print()` if it calls that."""
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {*imports(tree), *("print()" for each in called if isinstance(each, ast.Name) and each.id == "print")}


def ours(name: str) -> str | None:
    """Return the module of ours that an imported name begins with; None if it is not ours, or only the package."""
    name = name.replace(PACKAGE.name, "", 1) if name.split(".")[0] == PACKAGE.name else name
    if not name.startswith(".") or len(name) < 2:
        return None
    first, *rest = name[1:].split(".")
    return f"{first}.{rest[0]}" if rest and f"{first}.{rest[0]}" in ORDER else first


def definitions(node: ast.AST) -> Iterator[Definition]:
    """Yield all public classes, functions and methods, however deep in classes, but not what is inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            yield child
        if isinstance(child, ast.ClassDef):
            yield from definitions(child)


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no blank lines, comments, docstrings."""
    texts = {
        line
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    code = {line for token in tokens if token.type not in empty for line in range(token.start[0], token.end[0] + 1)}
    return len(code - texts)


class Architecture(unittest.TestCase):
    trees: ClassVar[dict[str, ast.Module]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.trees = {name: parse(path_of(name)) for name in ORDER if path_of(name).exists()}
        cls.addClassCleanup(delattr, cls, "trees")

    def test_every_module_has_its_place(self) -> None:
        """The list above is complete: a new module is put where its imports allow it."""
        there = {path.stem for path in PACKAGE.glob("[!_]*.py")}
        there |= {f"check.{path.stem}" for path in PACKAGE.glob("check/[!_]*.py")}
        self.assertEqual(there, set(ORDER))
        self.assertEqual(len(ORDER), len(set(ORDER)))

    def test_imports_point_up(self) -> None:
        """A module imports only modules above it, so that there are no cycles; the package itself imports nothing."""
        for place, name in enumerate(ORDER):
            with self.subTest(name):
                package = name.rpartition(".")[0]
                found = {ours(each) for each in imports(self.trees[name], package)} & set(ORDER)
                self.assertEqual(found - set(ORDER[:place]), set())
        self.assertEqual(list(imports(parse(PACKAGE / "__init__.py"))), [])

    def test_standard_library_alone(self) -> None:
        """The core needs nothing but Python, and models know nothing of us."""
        for name, tree in self.trees.items():
            with self.subTest(name):
                foreign = {each.split(".")[0] for each in imports(tree)} - {"", PACKAGE.name}
                self.assertEqual(foreign - sys.stdlib_module_names, set())
        for path in (ROOT / "models").glob("*/*.py"):
            with self.subTest(path.relative_to(ROOT)):
                self.assertNotIn(PACKAGE.name, {each.split(".")[0] for each in imports(parse(path))})

    def test_who_may_is_who_does(self) -> None:
        """Sockets, threads and the like are where DESIGN.md says, and no leave is left over from a module without."""
        uses = {name: used(tree) for name, tree in self.trees.items()}
        for leave, things in LEAVES:
            with self.subTest(things):
                self.assertEqual({name for name in uses if things & uses[name]}, leave)

    def test_size(self) -> None:
        """No module holds much more than 300 lines of code."""
        for name in ORDER:
            with self.subTest(name):
                self.assertLessEqual(code_lines(path_of(name)), MAX_CODE_LINES)

    def test_docstrings(self) -> None:
        """Every module says what it is; so does every public class, function and method that is not plain by itself."""
        for name, tree in self.trees.items():
            self.assertTrue(ast.get_docstring(tree), name)
            for node in definitions(tree):
                length = (node.end_lineno or 0) - node.lineno + 1
                plain = length <= (MAX_SILENT_CLASS if isinstance(node, ast.ClassDef) else MAX_SILENT_FUNCTION)
                told = plain or ast.get_docstring(node)
                self.assertTrue(told, f"{name}.{node.name}: {length} lines without a word")


if __name__ == "__main__":
    unittest.main()
