"""Promises of what is read off an app's sources: what the app is, what it takes and answers, what may go wrong."""

from __future__ import annotations

import ast
import sys
import textwrap
import unittest
from pathlib import Path
from typing import Any

from inferless_shim import sdk
from inferless_shim.check import doubts, guesses, unbound
from inferless_shim.check.partial import NotHere, partial_class, partial_function
from inferless_shim.check.sending import Declared
from inferless_shim.check.source import Source, read_source
from inferless_shim.check.syntax import Doubt
from inferless_shim.errors import StartupError
from tests.support import TestCase, app_folder

CLASS = "class InferlessPythonModel:\n"


class SourceTest(TestCase):
    def folder(self, app: str, schema: str | None = None, **files: str) -> Path:
        """Make an app folder that lives as long as the test; `files` are further modules, `pkg__mod` lies in pkg."""
        made = app_folder(app, schema)
        folder = made.__enter__()
        self.addCleanup(made.__exit__, None, None, None)
        for name, source in files.items():
            path = folder.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source), encoding="utf-8")
        return folder

    def source(self, app: str, schema: str | None = None, **files: str) -> Source:
        return read_source(self.folder(app, schema, **files))


class WhatTheAppIs(SourceTest):
    """Which class or functions stand for the app, in whatever way they are written down."""

    APPS: tuple[tuple[str, str, dict[str, str], str, dict[str, int]], ...] = (
        ("the class", CLASS + " def initialize(self): 0\n def infer(self, i): 0", {},
         "InferlessPythonModel", {"initialize": 2, "infer": 3}),
        ("inside an if", "if True:\n class InferlessPythonModel:\n  def infer(self, i): 0", {},
         "InferlessPythonModel", {"infer": 3}),
        ("from a sibling", "from model import InferlessPythonModel", {"model": CLASS + " def infer(self, i): 0"},
         "InferlessPythonModel", {"infer": 2}),
        ("from a package's module", "from pkg.model import Model as InferlessPythonModel",
         {"pkg__model": "class Model:\n def infer(self, i): 0"}, "Model", {"infer": 2}),
        ("from a star", "from model import *", {"model": CLASS + " def infer(self, i): 0"},
         "InferlessPythonModel", {"infer": 2}),
        ("by another name", "class Model:\n def infer(self, i): 0\nInferlessPythonModel = Model", {},
         "Model", {"infer": 2}),
        ("a base class", "import base\nclass InferlessPythonModel(base.Base):\n def initialize(self): 0",
         {"base": "class Base:\n def infer(self, i): 0"}, "InferlessPythonModel", {"initialize": 3, "infer": 2}),
        ("marked methods", "import inferless\napp = inferless.Cls(gpu='T4')\nclass Any:\n @app.load\n def up(self): 0\n"
         " @app.infer\n def go(self, i): 0", {}, "Any", {"initialize": 5, "infer": 7}),
        ("marked by a sibling's object", "from common import app\nclass Any:\n @app.infer()\n def go(self, i): 0",
         {"common": "from inferless import Cls\napp = Cls()"}, "Any", {"infer": 4}),
        ("functions", "import inferless as x\na = x.Cls()\n@a.load\ndef up(): 0\n@a.infer\ndef go(prompt: str): 0",
         {}, "", {"initialize": 4, "infer": 6}),
        ("one method", "from inferless import method\n@method(gpu='T4')\ndef go(prompt): 0", {}, "", {"infer": 3}),
    )  # fmt: skip

    def test_entry_in_every_form(self):
        """A class, an imported one, an inherited one, marked methods, marked functions."""
        for what, app, files, name, lines in self.APPS:
            with self.subTest(what):
                entry = self.source(app, **files).entry
                self.assertIsNotNone(entry)
                assert entry is not None
                self.assertEqual(entry.cls.name if entry.cls is not None else "", name)
                self.assertEqual({role: each.node.lineno for role, each in entry.roles.items()}, lines)

    def test_entry_that_is_not_there(self):
        """None; `opaque` says whether it may come from where nobody looks."""
        for app, opaque in (
            ("x = 1", False),
            ("from vllm_app import InferlessPythonModel", True),
            ("from somewhere import *", True),
            ("exec(open('x').read())", True),
            ("from sibling import *", False),
        ):
            with self.subTest(app):
                source = self.source(app, sibling="x = 1")
                self.assertIsNone(source.entry)
                self.assertEqual(source.opaque, opaque)

    def test_entry_with_an_unknown_base_is_not_whole(self):
        """It may inherit what is not seen; `object` and the like bring nothing."""
        for bases, whole in (("", True), ("(object)", True), ("(abc.ABC)", True), ("(nn.Module)", False)):
            with self.subTest(bases):
                entry = self.source(f"import abc, nn\nclass InferlessPythonModel{bases}:\n def infer(self, i): 0").entry
                assert entry is not None
                self.assertEqual(entry.whole, whole)

    def test_method_signature_and_kind(self):
        """Parameters without self and annotations; a nested function's yield does not make a generator."""
        entry = self.source(
            """
            class InferlessPythonModel:
                async def initialize(self, context=None): pass
                def infer(self, inputs: dict, *rest, x: int = 1, **more) -> dict:
                    def inner():
                        yield 1
                    return {}
                @staticmethod
                def finalize(args):
                    yield 1
            """
        ).entry
        assert entry is not None
        told = {role: (each.signature, each.positional, each.is_async, each.is_generator)
                for role, each in entry.roles.items()}  # fmt: skip
        self.assertEqual(told, {
            "initialize": ("async initialize(self, context=None)", ["context"], True, False),
            "infer": ("infer(self, inputs, *rest, x=1, **more)", ["inputs"], False, False),
            "finalize": ("finalize(args)", ["args"], False, True),
        })  # fmt: skip

    def test_marked_classes_in_any_style_of_import(self):
        """With and without parentheses, aliased, from, star, in a sibling."""
        for head, mark in (
            ("import inferless", "@inferless.request"),
            ("import inferless", "@inferless.request()"),
            ("import inferless as inf", "@inf.request"),
            ("from inferless import request", "@request"),
            ("from inferless import request as r, response", "@r()"),
            ("from inferless import *", "@request"),
            ("import os, inferless", "@inferless.request"),
            ("try:\n    import inferless\nexcept ImportError:\n    pass", "@inferless.request"),
        ):
            with self.subTest(head=head, mark=mark):
                source = self.source(f"{head}\n{mark}\nclass Question:\n    x: int = 1\n")
                self.assertEqual([each.node.name for each in source.marked("request")], ["Question"])
                self.assertEqual(source.marked("response"), [])
        source = self.source(
            "from kinds import Question", kinds="import inferless\n@inferless.request\nclass Question: 0"
        )
        self.assertEqual([each.file.shown for each in source.marked("request")], ["kinds.py"])

    def test_chosen_class_is_the_annotated_one(self):
        """Else the last one that is marked."""
        for annotation, name in (("A", "A"), ("'A'", "A"), ("B", "B"), ("", "B")):
            with self.subTest(annotation):
                source = self.source(f"""
                    import inferless
                    @inferless.request
                    class A: x: int
                    @inferless.request
                    class B: x: int
                    class InferlessPythonModel:
                        def infer(self, request{annotation and ": " + annotation}): 0
                """)
                chosen = source.chosen("request")
                self.assertEqual(chosen and chosen.node.name, name)

    def test_config_values_that_are_literals(self):
        """Annotated or not, inherited or not; what is computed is left out."""
        source = self.source("""
            import inferless
            class Base: batch_size = 4
            @inferless.config
            class Config(Base):
                is_streaming_output: bool = True
                batch_window = 10 * WINDOW
        """)
        self.assertEqual(source.config_values(), {"batch_size": 4, "is_streaming_output": True})

    def test_imports_and_what_is_optional(self):
        """A guarded or conditional import is optional, one in a function late; a type checker's is none."""
        source = self.source("""
            import a.b, c
            from d.e import f
            from .sibling import x
            try:
                import g
            except ImportError:
                import h
            try:
                import i
            except ValueError: pass
            if 1: import j
            def infer():
                import k
            if TYPE_CHECKING:
                import l
            if __name__ == "__main__":
                import m
        """, sibling="import n")  # fmt: skip
        told = [(each.package, each.line, each.optional, each.late) for each in source.imports()]
        self.assertEqual(told, [
            ("a", 2, False, False), ("c", 2, False, False), ("d", 3, False, False), ("g", 6, True, False),
            ("h", 8, True, False), ("i", 10, False, False), ("j", 12, True, False), ("k", 14, False, True),
            ("n", 1, False, False),
        ])  # fmt: skip

    def test_sources_that_are_no_python(self):
        """The file, the line and the reason; of a sibling it is remembered."""
        for app, words in (
            ("x = 1\nclass (", "app.py:2: "),
            ("x = '\0'", "app.py:1: "),
            ("(" * 5000 + ")" * 5000, "app.py:"),
            ("x = " + "-" * 200_000 + "1", "app.py:"),
        ):
            with self.subTest(app[:20]), self.assertRaises(StartupError) as caught:
                self.source(app)
            self.assertIn(words, str(caught.exception))
        folder = self.folder("")
        (folder / "app.py").write_bytes(b"x = 1\n# \xff\ny = z\n")  # CPython minds it in code alone
        self.assertEqual(list(read_source(folder).app.bindings), ["x", "y"])
        self.assertEqual([each.line for each in unbound.doubts(read_source(folder).app)], [3])
        (folder / "app.py").write_bytes(b"x = 1\ny = '\xff'\n")
        with self.assertRaises(StartupError) as caught:
            read_source(folder)
        self.assertIn("app.py:", str(caught.exception))
        source = self.source("import broken", broken="class (")
        self.assertEqual(list(source.unreadable), ["broken"])
        self.assertIn("broken.py:1: ", source.unreadable["broken"])

    def test_names_that_lead_in_a_circle(self):
        """Imports and assignments that lead back to themselves stand for nothing."""
        source = self.source("from other import InferlessPythonModel\na = b\nb = a\nclass C(C): 0",
                             other="from app import InferlessPythonModel")  # fmt: skip
        self.assertIsNone(source.entry)
        self.assertIsNone(source.class_of(source.app, ast.Name("a")))

    def test_schema_lines(self):
        """Of a literal, of an annotated one, of what is added; a large one is quick."""
        schema = f"""
            x = 1
            INPUT_SCHEMA: dict = {{
                "A": {{"example": "{"x" * 1_700_000}"}},
                name: {{}},
                "B": {{}},
            }}
            INPUT_SCHEMA["C"] = {{}}
        """
        self.assertEqual(self.source("", schema).schema_lines, [("A", 4), ("B", 6), ("C", 8)])


class Outputs(SourceTest):
    """The keys of what infer answers, with a datatype where that is plain."""

    CASES = (
        ("return {'A': 'x', 'B': f'{i}', 'C': 1, 'D': 1.5, 'E': True, 'F': i}",
         [("A", "BYTES", [1]), ("B", "BYTES", [1]), ("C", "INT64", [1]), ("D", "FP64", [1]), ("E", "BOOL", [1]),
          ("F", None, [1])]),
        ("return dict(A=str(i), B=len(i), C=float(i), D=round(i, 2), E=round(i), F=i > 1, G=not i)",
         [("A", "BYTES", [1]), ("B", "INT64", [1]), ("C", "FP64", [1]), ("D", "FP64", [1]), ("E", "INT64", [1]),
          ("F", "BOOL", [1]), ("G", "BOOL", [1])]),
        ("import json\nreturn {'A': json.dumps(i), 'B': i.decode(), 'C': ''.join(i), 'D': [1, 2], 'E': [x for x in i]}",
         [("A", "BYTES", [1]), ("B", "BYTES", [1]), ("C", "BYTES", [1]), ("D", "INT64", [-1]), ("E", None, [-1])]),
        ("d = {'A': 1}\nd['B'] = 'x'\nreturn d", [("A", "INT64", [1]), ("B", "BYTES", [1])]),
        ("x = 'a' + i\nreturn {'A': x}", [("A", "BYTES", [1])]),
        ("x = 1\nx = 'a'\nreturn {'A': x}", [("A", None, [1])]),
        ("for x in i: pass\nreturn {'A': x}", [("A", None, [1])]),
        ("for text in streamer: yield {'A': text}", [("A", "BYTES", [1])]),
        ("if i: return {'A': 1}\nreturn {'B': 2}", [("A", "INT64", [1]), ("B", "INT64", [1])]),
        ("if i: return {'A': 1}\nreturn {'A': 'x'}", [("A", None, [1])]),
        ("yield {'A': 1}\nreturn {'B': 2}", [("A", "INT64", [1])]),
        ("h.send_streamed_output({'A': 'x'})\nreturn {'B': 1}", [("A", "BYTES", [1])]),
        ("return [{'A': 1} for x in i]", [("A", "INT64", [1])]),
        ("r = []\nr.append({'A': 1})\nreturn r", [("A", "INT64", [1])]),
        ("return self.help()", [("H", "INT64", [1])]),
        ("return {**self.help(), 'A': 1}", [("H", "INT64", [1]), ("A", "INT64", [1])]),
        ("def f():\n  return {'X': 1}\nreturn {'A': 1}", [("A", "INT64", [1])]),
        ("d = {'A': 1}\nd = {**d, 'B': d}\nreturn d", [("A", "INT64", [1]), ("B", None, [1])]),
        ("return i", []),
        ("return", []),
    )  # fmt: skip

    def test_keys_and_datatypes(self):
        """Literals, calls whose result is known, names, loops over a streamer, helpers; and what could be anything."""
        for body, expected in self.CASES:
            with self.subTest(body):
                app = CLASS + " def help(self):\n  return {'H': 1}\n def infer(self, i, h):\n"
                source = self.source(app + textwrap.indent(body, "  "))
                assert source.entry is not None
                found = guesses.outputs(source, source.entry.roles["infer"])
                self.assertEqual([(each.name, each.datatype, list(each.shape)) for each in found], expected)

    def test_output_of_an_expression_that_grows(self):
        """Names that are made of themselves many times over take no time."""
        body = "\n".join(f"  x = x + x * {n}" for n in range(200))
        source = self.source(CLASS + f" def infer(self, i):\n  x = 1\n{body}\n  return {{'A': x}}")
        assert source.entry is not None
        self.assertEqual(len(guesses.outputs(source, source.entry.roles["infer"])), 1)


class Doubts(SourceTest):
    """What is said of an app, and of which line; and what nothing is said of."""

    def told(self, body: str, *, head: str = "", streaming: bool = False, batched: bool = False, rest: str = "",
             inputs: dict[str, bool] | None = None, signature: str = "self, inputs, handler=None",
             members: frozenset[str] | None = None) -> list[Doubt]:  # fmt: skip
        """Return the doubts about an infer of this body, whose first line is line 10."""
        head = head + "\n" * (8 - head.count("\n") - 1)
        app = f"{head}{CLASS} def infer({signature}):\n{textwrap.indent(textwrap.dedent(body), '  ')}\n{rest}"
        found = doubts.find(self.source(app), Declared(inputs, streaming, batched, members))
        return [each for each in found if "nothing binds" not in each.sentence]  # the bodies here are fragments

    def assert_told(self, found: list[Doubt], *expected: tuple[int, str]) -> None:
        self.assertEqual([each.line for each in found], [line for line, _ in expected], found)
        for each, (_, words) in zip(found, expected, strict=True):
            self.assertIn(words, each.sentence)

    def test_writes_to_self(self):
        """Every form of them, once for each attribute; reading, and another object's attributes, are none."""
        self.assert_told(
            self.told("self.count += 1\nself.count = 2\na, self.b = 1, 2\ndel self.c\nfor self.d in []: pass\n"
                      "setattr(self, 'e', 1)\nx.f = self.g\ny = self.h\n"
                      "class T:\n  def __init__(self): self.inner = 1"),
            (10, "infer writes self.count (also at line 11): with --concurrency above 1 each request has its own view"),
            (12, "self.b"), (13, "self.c"), (14, "self.d"), (15, "self.e"),
        )  # fmt: skip

    def test_writes_to_self_in_what_infer_calls(self):
        """Methods that infer calls, or gives to a thread, count; initialize and the rest do not."""
        rest = " def step(self):\n  self.last = 1\n  self.deep()\n def deep(self): self.low = 1\n"
        rest += " def initialize(self): self.model = 1\n def other(self): self.x = 1"
        found = self.told("Thread(target=self.step).start()", rest=rest)
        self.assert_told(found, (12, "step writes self.last"), (14, "deep writes self.low"))

    def test_changes_of_what_is_shared(self):
        """Containers and objects that self holds, unless infer made them; a streamer is each request's own."""
        rest = (" def initialize(self):\n  self.cache = {}\n  self.pipe = load()\n  self.mine = []\n"
                "  self.streamer = TextIteratorStreamer(1)\n")  # fmt: skip
        found = self.told("self.cache['x'] = 1\nself.cache.update(y=2)\nself.pipe.scheduler = 1\nself.pipe.pop()\n"
                          "self.mine = []\nself.mine.append(1)\nself.streamer.text_queue = 1", rest=rest)  # fmt: skip
        self.assert_told(
            found,
            (10, "infer changes self.cache (also at line 11), which is shared by all requests"),
            (12, "self.pipe.scheduler"),
            (14, "infer writes self.mine"),
            (21, "self.streamer is one for all requests"),
        )
        self.assertTrue(found[-1].note)

    def test_globals(self):
        """A global that infer or a function of the folder writes."""
        found = self.told("global x, y\nx = 1\nprint(y)\nhelp()", head="def help():\n global z\n z = 1\n")
        self.assert_told(found, (3, "help writes the global z"), (11, "infer writes the global x"))

    def test_inputs(self):
        """Names that the schema has not; inputs that may be absent; inputs that nobody reads."""
        schema = {"A": True, "B": False, "C": False, "D": False, "E": False, "UNREAD": True}
        body = """\
            inputs["A"]; inputs["AA"]
            inputs.get("Z")
            inputs["B"]
            if "C" in inputs: inputs["C"]
            try:
                inputs["D"]
            except KeyError: pass
            try:
                inputs["E"]
            except Exception: pass
        """
        self.assert_told(
            self.told(body, inputs=schema),
            (9, "infer never reads UNREAD"), (10, 'infer reads "AA", which is no input of the schema'),
            (11, '"Z"'), (12, '"B" is not required, so a request without it fails'),
        )  # fmt: skip

    def test_inputs_that_are_used_otherwise(self):
        """Handed on, unpacked or bound anew: nothing is said of what is not read, or of anything."""
        for body in ("f(inputs)", "x = {**inputs}", "for k in inputs: pass", "inputs['A'], inputs.items()",
                     "inputs = clean(inputs)\ninputs['Z']", "def g():\n  return inputs\ng()"):  # fmt: skip
            with self.subTest(body):
                self.assertEqual(self.told(body, inputs={"A": True, "B": True}), [])
        self.assertEqual(
            self.told("x = prompt", signature="self, prompt, seed=1", inputs={"prompt": True, "seed": False}), []
        )

    def test_attributes_of_a_request_class(self):
        """What it has not, and what nobody reads; its own methods and pydantic's are fine."""
        members = frozenset({"model_dump", "size"})
        told = self.told("inputs.promt\ninputs.size()", inputs={"prompt": True}, members=members)
        self.assert_told(told, (10, "inputs.promt, which the request class does not have; did you mean prompt?"))
        told = self.told("inputs.prompt", inputs={"prompt": True, "seed": False}, members=members)
        self.assert_told(told, (9, "infer never reads seed"))

    def test_streaming_that_is_not(self):
        """Declared and not done; done and not declared; a handler that is handed on may do anything."""
        streams = {"streaming": True, "signature": "self, inputs, handler"}
        self.assert_told(self.told("return {'A': 1}", **streams), (9, "infer sends nothing"))
        for body in ("go(handler)", "handler.send_streamed_output(x); handler.finalise_streamed_output()",
                     "def f(): handler.send_streamed_output(x); handler.finalise_streamed_output()\nf()", "yield {}",
                     "send = handler.send_streamed_output\nsend({})"):  # fmt: skip
            with self.subTest(body):
                self.assertEqual(self.told(body, **streams), [])
        self.assert_told(self.told("handler.send_streamed_output({})"), (10, "the app does not say so"))
        self.assert_told(self.told("yield {}"), (9, "the app does not say so"))

    def test_streaming_notes(self):
        """What is served all the same, and how."""
        body = """\
            try:
                handler.send_streamed_output({"A": 1})
            except Exception: pass
            try:
                handler.send_streamed_output({"A": 1})
            except: return {"A": 2}
        """
        found = self.told(body, streaming=True, signature="self, inputs, handler")
        self.assert_told(
            found, (9, "never called"), (12, "is not told"), (15, "catches a cancel"), (15, "reaches nobody")
        )
        self.assertEqual([each.note for each in found], [True, True, True, False])
        raised = "try: handler.send_streamed_output({})\nexcept Exception: raise\nhandler.finalise_streamed_output()"
        self.assertEqual(self.told(raised, streaming=True, signature="self, inputs, handler"), [])

    def test_generate_without_a_streamer(self):
        """On a thread, while streaming, with all its arguments in sight."""
        send = "\nfor x in q: handler.send_streamed_output({})\nhandler.finalise_streamed_output()"
        unfed = ("Thread(target=m.generate, kwargs={'a': 1})", "Thread(target=m.generate, kwargs=dict(a=1))",
                 "k = {'a': 1}; Thread(target=m.generate, kwargs=k)", "Thread(target=lambda: m.generate(x))",
                 "Thread(target=m.generate, args=(1,))", "Thread(target=m.generate, kwargs={**{'a': 1}})")  # fmt: skip
        fed = ("Thread(target=m.generate, kwargs={'streamer': 1})",
               "Thread(target=m.generate, kwargs=dict(streamer=1))",
               "k = {'a': 1}; k['streamer'] = 1; Thread(target=m.generate, kwargs=k)",
               "k = make(); Thread(target=m.generate, kwargs=k)", "Thread(target=m.generate, kwargs={**given})",
               "k = {'a': 1}; k.update(more); Thread(target=m.generate, kwargs=k)",
               "Thread(target=lambda: m.generate(x, streamer=s))", "Thread(target=work)", "m.generate(x)")  # fmt: skip
        for body in unfed + fed:
            with self.subTest(body):
                found = self.told(body + send, streaming=True, signature="self, inputs, handler")
                self.assert_told(found, *([(10, "without a streamer")] if body in unfed else []))

    def test_batches(self):
        """A batched infer gets a list and returns one."""
        found = self.told("x = inputs['A']\nreturn {'A': x}", batched=True, inputs={"A": True})
        self.assert_told(found, (10, '"A" is read as if it got one'), (11, "not a dict"))
        self.assert_told(self.told("d = {'A': 1}\nreturn d", batched=True), (11, "not a dict"))
        self.assertEqual(self.told("return [{'A': i['A']} for i in inputs]", batched=True), [])

    def test_conventions(self):
        """Parameters that nobody passes; inputs that have no parameter."""
        schema = {"A": True, "B": True, "C": True}
        for signature, words in (
            ("self, inputs, handler, more", "nothing is passed for infer's more"),
            ("self, inputs, *, seed", "nothing is passed for infer's seed"),
            ("self, A, B", "infer takes its inputs by name, but not C"),
        ):
            with self.subTest(signature):
                self.assert_told(self.told("f(inputs)", signature=signature, inputs=schema), (9, words))
        for signature in ("self, A, B, C", "self, A, B, **more", "self, inputs", "self, *args", "self, inputs, handler",
                          "self, inputs, handler=None, more=None", "self, inputs, *, seed=1",
                          "self, inputs, *, stream_output_handler"):  # fmt: skip
            with self.subTest(signature):
                self.assertEqual(self.told("f(inputs, *args)", signature=signature, inputs=schema), [])

    def test_calls_that_end_the_process(self):
        """In infer and initialize; a local of that name is something else."""
        rest = " def initialize(self):\n  sys.exit(1)\n  signal.signal(1, 2)\n"
        found = self.told("os._exit(1)\nexit()\ninput('?')\nos.kill(1, 9)", head="import os, sys, signal\n", rest=rest)
        self.assert_told(found, (10, "os._exit ends the server"), (11, "fails the request"), (12, "terminal"),
                         (13, "os.kill"), (15, "keeps the app from starting"), (16, "main thread"))  # fmt: skip
        self.assertEqual(self.told("input = f\ninput()"), [])

    def test_calls_that_end_a_request_of_another_name(self):
        """What is said does not hang on the name of the function that stands for infer."""
        source = self.source("import sys\n" + CLASS + " def go(self, i): sys.exit()\n infer = go")
        found = doubts.find(source, Declared(None, False, False))
        self.assert_told(found, (3, "fails the request"))

    def test_calls_that_block_the_import(self):
        """At the module's own level; not under the main guard."""
        head = "import uvicorn\nuvicorn.run(app)\nif __name__ == '__main__':\n uvicorn.run(app)\n"
        found = [each for each in self.told("pass", head=head) if "not installed" not in each.sentence]
        self.assert_told(found, (2, "keeps app.py from being imported"))

    def test_packages_that_are_not_here(self):
        """Named with their lines, once; siblings, the standard library, inferless, awq and optional ones are not."""
        head = "import no_such_a, json, sibling\nimport no_such_b.c\nimport inferless, awq, no_such_a.d\n"
        head += "try: import no_such_e\nexcept ImportError: pass\n"
        source = self.source(head + "def f():\n import no_such_f\n", sibling="import no_such_a, no_such_g")
        found = [(each.shown, each.line, each.sentence) for each in doubts.missing_packages(source)]
        self.assertEqual(found, [
            ("app.py", 1, "not installed here: no_such_a, no_such_b (line 2); the app does not start without."),
            ("sibling.py", 1, "not installed here: no_such_g; the app does not start without."),
            ("app.py", 7, "not installed here: no_such_f; infer or initialize fails without."),
        ])  # fmt: skip
        self.assertNotIn("no_such_a", sys.modules)

    def test_names_that_nothing_binds(self):
        """Each once, at its first line; what a scope, an import, a `global` or Python itself binds is there."""
        app = """
            import os.path as path, json
            from a import b as c
            class InferlessPythonModel:
                size = 1
                def initialize(self):
                    global made
                    made = json, path, c, __file__, __name__, WindowsError
                    self.model = load(made, torch.float16)
                def infer(self, inputs: Request, top=1):
                    try:
                        x = [y for y in inputs if (z := y)]
                    except ValueError as error:
                        print(error)
                    def top(which, *rest, **more):
                        return which, rest, more, x, z, super
                    return lambda w: top(w, size, torch)
        """
        source = self.source(app)
        found = [*unbound.doubts(source.app)]
        lazy = sys.version_info >= (3, 14)
        expected = [(9, "load"), (9, "torch"), *([] if lazy else [(10, "Request")]), (17, "size")]
        self.assert_told(sorted(found), *((line, f"nothing binds the name {name}:") for line, name in expected))
        for head in ("from somewhere import *", "globals().update(x=1)", "exec('load = 1')",
                     "try: load\nexcept NameError: load = 1", "from __future__ import annotations\ndef f(x: load): 0",
                     "def g():\n  load()\nfor load in []: 0"):  # fmt: skip
            with self.subTest(head):
                self.assertEqual([*unbound.doubts(self.source(head).app)], [])

    def test_inputs_that_stand_there_twice(self):
        """The last one wins, and nobody says so."""
        source = self.source("", 'INPUT_SCHEMA = {\n"A": {},\n"B": {},\n"A": {}}')
        self.assert_told(list(doubts.repeated_inputs(source)), (4, '"A" stands there twice'))


class Partial(SourceTest):
    """What the declarations need is executed, and nothing else. No pydantic here: plain classes do as well."""

    def setUp(self) -> None:
        modules, path = set(sys.modules), list(sys.path)
        had = sys.modules.get(sdk.MODULE_NAME)
        sdk.install()

        def put_back() -> None:
            for name in set(sys.modules) - modules:
                del sys.modules[name]
            sys.path[:] = path
            if had is not None:
                sys.modules[sdk.MODULE_NAME] = had

        self.addCleanup(put_back)

    def made(self, app: str, **files: str) -> Any:
        source = self.source(app, **files)
        return partial_class(source, source.chosen("request"))

    def test_only_what_is_needed(self):
        """Bases, enums, constants, aliases, guarded imports, string annotations, helpers; no model, no torch."""
        made = self.made("""
            from __future__ import annotations
            import inferless, torch, json
            from typing import List, Optional
            try:
                from enum import StrEnum
            except ImportError:
                from enum import Enum as StrEnum
            from transformers import AutoModel
            raise_if_executed = torch.nope()
            SIZES = [1, 2]
            SIZES[0] = 3
            class Size(StrEnum):
                BIG = "big"
            class Base:
                size: "Size" = Size.BIG
                sizes: List[int] = SIZES
                def help(self):
                    return json.dumps(helper(self))
            def helper(x):
                return torch.tensor(x)
            @inferless.request
            class Question(Base):
                text: Optional[str] = None
            model = AutoModel.from_pretrained("x")
            class InferlessPythonModel:
                model = AutoModel.from_pretrained("x")
                def infer(self, request: Question): 0
        """)
        self.assertEqual((made.size.value, made.sizes), ("big", [3, 2]))
        self.assertEqual(made.__module__, "app")

    def test_classes_of_siblings(self):
        """In whatever style they are imported, packages too."""
        base = "import torch\nclass Base:\n    x: int = 1\n"
        for head, name in (("from kinds import Base", "Base"), ("import kinds as k", "k.Base"),
                           ("from kinds import *", "Base"), ("from pkg.kinds import Base as B", "B"),
                           ("import pkg.kinds", "pkg.kinds.Base"),
                           ("from pkg import kinds", "kinds.Base")):  # fmt: skip
            with self.subTest(head):
                app = f"import inferless\n{head}\n@inferless.request\nclass Question({name}): 0\n"
                made = self.made(app, kinds=base, pkg__kinds=base)
                self.assertEqual(made.x, 1)

    def test_what_raises_is_told_with_its_line(self):
        """A StartupError of the app's own mistake; NotHere where what it needs is not executed."""
        with self.assertRaises(StartupError) as caught:
            self.made("import inferless\n@inferless.request\nclass Q:\n  x = 1 / 0\n")
        self.assertNotIsInstance(caught.exception, NotHere)
        self.assertIn("app.py:4: ZeroDivisionError", str(caught.exception))
        for app, words in (
            ("import inferless, torch\n@inferless.request\nclass Q:\n  x = torch.float16\n", "torch (from torch)"),
            ("import inferless\nX = load()\n@inferless.request\nclass Q:\n  x = X\n", "X (it calls load)"),
            ("import inferless, pydantic.nope\n@inferless.request\nclass Q(pydantic.Nope): 0\n", "pydantic"),
        ):
            with self.subTest(app), self.assertRaises(NotHere) as caught:
                self.made(app)
            self.assertIn(words, str(caught.exception))

    def test_parameters_of_infer(self):
        """A function that has them, without its body, without self."""
        source = self.source("""
            import inferless, torch
            from typing import Optional
            app = inferless.Cls(gpu="T4")
            DEFAULT = 3
            class Any:
                @app.infer
                @torch.no_grad()
                def go(self, prompt: Optional[str], seed: int = DEFAULT): torch.nope()
        """)
        function = partial_function(source)
        self.assertEqual(list(function.__annotations__), ["prompt", "seed"])
        self.assertEqual(function.__defaults__, (3,))
        self.assertIsNone(function("x"))


if __name__ == "__main__":
    unittest.main()
