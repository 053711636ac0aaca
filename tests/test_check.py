"""Promises of `--check`: what it prints of a folder, what it refuses, and that it loads nothing."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import textwrap
import unittest
import unittest.mock
from pathlib import Path

from inferless_shim import sdk
from inferless_shim.check.report import check
from inferless_shim.config import Settings
from tests.support import ROOT, TestCase, app_folder

GOOD = """
    class InferlessPythonModel:
        def initialize(self):
            raise RuntimeError("it was loaded")

        def infer(self, inputs, stream_output_handler):
            self.count = len(inputs["TEXT"])
            stream_output_handler.send_streamed_output({"OUT": inputs["TEXT"].upper(), "LENGTH": self.count})
"""
PYDANTIC = """
    import inferless
    import no_such_torch
    from typing import List, Optional
    from pydantic import BaseModel, Field

    @inferless.request
    class Question(BaseModel):
        prompt: str = Field(example="Hello")
        temperature: Optional[float] = 0.7
        sizes: List[int] = [1, 2]
        more: dict

    @inferless.response
    class Answer(BaseModel):
        text: str
        scores: List[float]

    class InferlessPythonModel:
        def infer(self, request: Question) -> Answer:
            return Answer(text=request.prompt, scores=[request.temperature, request.sizes, request.more])
"""


class CheckTest(TestCase):
    """A check changes the working directory, sys.path, sys.modules and a log level: all is put back."""

    def setUp(self) -> None:
        folder, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
        logger, environment = logging.getLogger("inferless_shim"), dict(os.environ)
        level, inferless = logger.level, sys.modules.get(sdk.MODULE_NAME)
        sdk.install()

        def put_back() -> None:
            os.chdir(folder)
            sys.path[:] = path
            logger.setLevel(level)
            os.environ.clear()
            os.environ.update(environment)
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "/tmp")).startswith("/tmp"):
                    del sys.modules[name]
            if inferless is not None:
                sys.modules[sdk.MODULE_NAME] = inferless

        self.addCleanup(put_back)

    def folder(self, app: str = GOOD, schema: str | None = None, *, streaming: bool = True, **files: str) -> Path:
        made = app_folder(app, schema, streaming=streaming)
        folder = made.__enter__()
        self.addCleanup(made.__exit__, None, None, None)
        for name, source in files.items():
            (folder / name.replace("__", ".")).write_text(textwrap.dedent(source), encoding="utf-8")
        return folder.resolve()

    def check(self, folder: Path, **settings: object) -> tuple[int, str, str]:
        """Return the exit status and what was printed on stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = check(Settings(model=folder, check=True, **settings))  # type: ignore[arg-type]
        return status, out.getvalue(), err.getvalue()

    def report(self, *args: str, **kwargs: object) -> str:
        """Return what is printed of a folder that is good."""
        status, out, err = self.check(self.folder(*args, **kwargs))  # type: ignore[arg-type]
        self.assertEqual((status, err), (0, ""))
        return out

    def refusal(self, *args: str, **kwargs: object) -> list[str]:
        """Return the errors that are told of a folder."""
        status, out, err = self.check(self.folder(*args, **kwargs))  # type: ignore[arg-type]
        self.assertEqual((status, out), (2, ""))
        return [each.removesuffix("\n") for each in err.split("error: ")[1:]]

    def typed_refusal(self, app: str) -> list[str]:
        """Return the errors that are told of an app without input_schema.py."""
        folder = self.folder(app)
        (folder / "input_schema.py").unlink()
        status, out, err = self.check(folder)
        self.assertEqual((status, out), (2, ""))
        return [each.removesuffix("\n") for each in err.split("error: ")[1:]]


class Report(CheckTest):
    def test_report_of_a_good_folder(self):
        """Kind, inputs, outputs, methods, flags, doubts, notes and a command, without loading the model."""
        folder = self.folder()
        os.chdir(folder.parent)
        status, out, err = self.check(folder)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out, textwrap.dedent("""\
            made (made): streams

            inputs
              name  type    shape  required  example
              TEXT  STRING  [1]    yes       ["How to make an omelette"]

            outputs
              name    type   shape  line
              OUT     BYTES  [1]    app.py:8
              LENGTH  ?      [1]    app.py:8

            methods
              app.py:3  initialize(self)
              app.py:6  infer(self, inputs, stream_output_handler)

            flags
              IS_STREAMING_OUTPUT = True

            doubts
            app.py:7: infer writes self.count: with --concurrency above 1 each request has its own view of self, and \
what it writes is gone when the request is over.

            notes
            app.py:6: finalise_streamed_output() is never called; here the end of infer implies it.

            when it is served
              curl -N http://127.0.0.1:8000/infer -d '{"TEXT": "How to make an omelette"}'
        """))  # fmt: skip

    def test_kinds(self):
        """Streams, answers, batches; the flags that make them so."""
        answers = self.report("class InferlessPythonModel:\n def infer(self, inputs): return {}", "INPUT_SCHEMA = {}")
        self.assertIn(": answers with JSON\n", answers)
        self.assertIn("\ninputs\n  none are known\n", answers)
        batches = self.report("class InferlessPythonModel:\n def infer(self, inputs): return [{} for i in inputs]",
                              "INPUT_SCHEMA = {}\nBATCH_SIZE = 4")  # fmt: skip
        self.assertIn(": answers with JSON, in batches of 4, window 500 ms\n", batches)
        self.assertIn("\n  BATCH_SIZE = 4\n  BATCH_WINDOW = 500\n", batches)

    def test_examples_are_shortened(self):
        """A table fits 100 columns, whatever the examples are; what a terminal would obey is escaped."""
        schema = {
            "A\x1b[31m": {"datatype": "STRING", "shape": [1], "example": ["x" * 1_700_000 + "END"]},
            "B": {"datatype": "INT8", "required": False, "shape": [-1]},
        }
        out = self.report("class InferlessPythonModel:\n def infer(self, inputs): return f(inputs)",
                          f"INPUT_SCHEMA = {schema!r}")  # fmt: skip
        table = out[: out.index("\noutputs")]
        self.assertLessEqual(max(map(len, table.splitlines())), 100)
        self.assertIn("x…x", table)
        self.assertIn('END"]', table)
        self.assertNotIn("\x1b", table)
        self.assertIn(r"A\u001b[31m", table)
        self.assertIn("@-", out[out.index("when it is served") :])  # too large to paste

    def test_warnings_of_the_schema_have_their_line(self):
        """Found by the name of the input, the longest first."""
        out = self.report(
            "class InferlessPythonModel:\n def infer(self, inputs): return f(inputs)",
            """
            INPUT_SCHEMA = {
                "A": {"datatype": "STRING", "shape": [1]},
                "A b": {"datatype": "INT8", "shape": [1], "example": [512], "default": 1},
            }
            INPUT_SCHEMA["C"] = {"datatype": "INT8", "shape": [1], "example": ["x"]}
        """,
        )
        self.assertEqual(re.findall(r"^(input_schema\.py:\d+): (A b|An example)", out, re.MULTILINE),
                         [("input_schema.py:4", "A b"), ("input_schema.py:4", "A b"),
                          ("input_schema.py:6", "An example")])  # fmt: skip

    def test_environment_names_and_no_values(self):
        """Of inferless.yaml; a value may be a secret."""
        out = self.report(inferless__yaml="name: x\nenv:\n  HF_TOKEN: secret-1\n  OTHER: secret-2\n")
        self.assertIn("\nenvironment, from inferless.yaml\n  HF_TOKEN\n  OTHER\n", out)
        self.assertNotIn("secret", out)

    def test_what_the_schema_prints_is_not_the_report(self):
        """It goes to stderr, in order to keep stdout for the report."""
        status, out, err = self.check(
            self.folder(schema="print('noise')\nINPUT_SCHEMA = {}\nIS_STREAMING_OUTPUT = True")
        )
        self.assertEqual((status, err), (0, "noise\n"))
        self.assertNotIn("noise", out)

    def test_relaxed_schema(self):
        """What streaming does not allow is an error, and with the flag a doubt."""
        schema = "INPUT_SCHEMA = {\n'A': {'datatype': 'FP32', 'shape': [1]}}\nIS_STREAMING_OUTPUT = True"
        folder = self.folder(schema=schema)
        status, _, err = self.check(folder)
        self.assertEqual(status, 2)
        self.assertIn("error: input_schema.py:2: A has the datatype FP32", err)
        status, out, _ = self.check(folder, relaxed_schema=True)
        self.assertEqual(status, 0)
        self.assertIn("\ninput_schema.py:2: A has the datatype FP32", out)

    def test_name_flag(self):
        """The name that the server would have."""
        self.assertTrue(self.check(self.folder(), name="other")[1].startswith("other ("))

    def test_app_that_comes_from_elsewhere(self):
        """Nothing is refused that may be right: what cannot be seen is left out."""
        out = self.report("from somewhere import InferlessPythonModel", "INPUT_SCHEMA = {}")
        self.assertNotIn("\nmethods\n", out)
        self.assertIn("app.py:1: not installed here: somewhere", out)

    def test_deep_expressions(self):
        """They cost a doubt at most."""
        body = "+".join(["i"] * 1200)
        out = self.report(
            f"class InferlessPythonModel:\n def infer(self, i): return {{'A': {body}}}", "INPUT_SCHEMA = {}"
        )
        self.assertIn(": answers with JSON\n", out)


class Refusals(CheckTest):
    def test_errors_all_at_once(self):
        """Each fault of the schema with its line, and a missing app.py."""
        folder = self.folder(schema="INPUT_SCHEMA = {\n'A': {'datatype': 'STRNG', 'shape': [1]},\n'B': {'shape': 1}}")
        told = self.check(folder)[2]
        self.assertEqual(told.count("error: "), 3)
        self.assertIn("error: input_schema.py:2: A has the datatype 'STRNG'; did you mean STRING?", told)
        self.assertIn("error: input_schema.py:3: B has the datatype None", told)
        self.assertIn("error: input_schema.py:3: B has the shape 1", told)
        (folder / "app.py").unlink()
        told = self.check(folder)[2]
        self.assertEqual(told.count("error: "), 4)
        self.assertIn("has no app.py", told)

    def test_errors_of_the_folder(self):
        """What the server would refuse, and where it is."""
        for app, schema, *words in (
            ("class (", "INPUT_SCHEMA = {}", "app.py:1: "),
            ("class (", "INPUT_SCHEMA = {'A': 1}", "input_schema.py:1: A must be a dict", "app.py:1: "),
            ("x = 1", "INPUT_SCHEMA = {}", "app.py has no class InferlessPythonModel"),
            (
                "class InferlessPythonModel: 0",
                "INPUT_SCHEMA = {}",
                "app.py:1: class InferlessPythonModel has no method",
            ),
            (
                "class InferlessPythonModel:\n def infer(self): 0",
                "INPUT_SCHEMA = {}",
                "app.py:2: infer takes no inputs",
            ),
            ("class InferlessPythonModel:\n def infer(): 0", "INPUT_SCHEMA = {}", "app.py:2: infer takes no inputs"),
            ("import broken\n" + textwrap.dedent(GOOD), "INPUT_SCHEMA = {}", "broken.py:1: "),
            (GOOD, "x = 1", "does not define INPUT_SCHEMA"),
            (GOOD, "INPUT_SCHEMA = {}\nBATCH_SIZE = 'x'", "BATCH_SIZE"),
            (GOOD, "INPUT_SCHEMA = {}\n1 / 0", "ZeroDivisionError"),
            (GOOD, "INPUT_SCHEMA = {}\nraise SystemExit", "SystemExit"),
            (GOOD, "INPUT_SCHEMA = {", "SyntaxError"),
        ):
            with self.subTest(app=app, schema=schema):
                told = self.refusal(app, schema, broken__py="class (")
                self.assertTrue(told)
                for word in words:
                    self.assertTrue(any(word in each for each in told), told)
        for settings in ({"model": ROOT / "nowhere"}, {"model": ROOT / "tests"}):
            self.assertEqual(self.check(settings["model"])[0], 2)

    def test_error_of_a_folder_without_a_schema(self):
        """It says what infer reads."""
        folder = self.folder("class InferlessPythonModel:\n def infer(self, i): return i['A'], i.get('B'), i['A']")
        (folder / "input_schema.py").unlink()
        status, _, err = self.check(folder)
        self.assertEqual(status, 2)
        self.assertIn("has no input_schema.py", err)
        self.assertIn("error: app.py:2: infer reads A, B; a schema would name them.", err)

    def test_infer_that_is_bound_in_another_way(self):
        """What the server finds by another way than a def is not refused, and followed if it is a plain function."""
        head, run = "class InferlessPythonModel:\n", "def run(self, inputs): return {'A': 1}\n"
        followed = (
            (head + " def predict(self, inputs): return {'A': 1}\n infer = predict", "app.py:2  predict(self, inputs)"),
            (run + head + " infer = run", "app.py:1  run(self, inputs)"),
            ("from other import run\n" + head + " infer = run", "other.py:1  run(self, inputs)"),
            ("import other\n" + head + " infer: object = other.run", "other.py:1  run(self, inputs)"),
            (head + " if True:\n  def infer(self, inputs): 0", "app.py:3  infer(self, inputs)"),
            (head + " 0\n" + run + "InferlessPythonModel.infer = run", "app.py:3  run(self, inputs)"),
            (head + " def infer(self): 0\n" + run + "setattr(InferlessPythonModel, 'infer', run)", "app.py:3  run("),
            ("class Base: 0\nclass InferlessPythonModel(Base): 0\n" + run + "Base.infer = run", "app.py:3  run("),
        )
        unseen = (
            head + " if x:\n  def infer(self, inputs): 0\n else:\n  def infer(self): 0",
            "import functools\n" + run + head + " infer = functools.partialmethod(run, 5)",
            head + " infer = staticmethod(lambda inputs: {})",
            head + " infer = make()",
            head + " def infer(self): 0\n" + run + "if x:\n InferlessPythonModel.infer = run",
            head + " def infer(self): 0\ndef patch(): InferlessPythonModel.infer = 1",
            head + " def infer(self): 0\nsetattr(InferlessPythonModel, 'in' + 'fer', 1)",
            head + " for name in 'ab': locals()[name] = 1",
            "from other import patch\n@patch\n" + head + " 0",
            "from other import patch\n" + head + " @patch\n def infer(self): 0",
            "import meta\nclass InferlessPythonModel(metaclass=meta.Meta): 0",
            "import other\n" + head + " 0\nother.patch()",
        )
        other = run + "def patch(x=None):\n import app\n app.InferlessPythonModel.infer = run\n"
        for app, shown in (*followed, *((app, "") for app in unseen)):
            with self.subTest(app):
                out = self.report(app, "INPUT_SCHEMA = {}", other__py=other)
                self.assertIn(f"\n  {shown}" if shown else ": answers with JSON\n", out)

    def test_class_that_cannot_be_made_or_started(self):
        """What the server calls without arguments, and a name that is no class: refused, with the line."""
        head, infer = "class InferlessPythonModel", "\n def infer(self, inputs): 0\n"
        for app, words in (
            (head + ":\n def __init__(self, name, more=1): 0" + infer, "app.py:2: InferlessPythonModel() gets no arg"),
            (head + ":\n def __init__(self, *, name): 0" + infer, "__init__ needs name"),
            (f"class Base:\n def __init__(self, name): 0\n{head}(Base):{infer}", "app.py:2: InferlessPythonModel() "),
            (head + ":\n def initialize(self, *, ctx): 0" + infer, "app.py:2: initialize needs ctx by name, which"),
            ("class _M:" + infer + "InferlessPythonModel = _M()", "app.py:3: InferlessPythonModel is no class"),
            ("def InferlessPythonModel(): 0", "app.py:1: InferlessPythonModel is no class"),
            ("from made import InferlessPythonModel", "made.py:1: InferlessPythonModel is no class"),
        ):
            with self.subTest(app):
                told = self.refusal(app, "INPUT_SCHEMA = {}", made__py="def InferlessPythonModel(): 0")
                self.assertEqual(len(told), 1, told)
                self.assertIn(words, told[0])
        for app in (
            head + ":\n def __init__(self, name=1, *args, **more): 0" + infer,
            "from a import B\n" + head + "(B):\n def __init__(self, name): 0" + infer,
            "from a import B\n" + head + "(metaclass=B):\n def __init__(self, name): 0" + infer,
            "from a import b\n" + head + ":\n @b\n def __init__(self, name): 0" + infer,
            head + ":\n def __new__(cls): return 1\n def __init__(self, name): 0" + infer,
            head + ":\n def initialize(self, ctx, *, more=1): 0" + infer,
            "class Meta(type): 0\nInferlessPythonModel = Meta('A', (), {})",
            "from a import b\n@b\ndef InferlessPythonModel(): 0",
            "class M:" + infer + "InferlessPythonModel = M\nM = M()",
        ):
            with self.subTest(app):
                self.report(app, "INPUT_SCHEMA = {}")

    def test_name_that_a_sibling_has_not(self):
        """An import that is sure to fail is an error; one that may find its name, or need not, is none."""
        app = "\n" + textwrap.dedent(GOOD).replace("stream_output_handler.", "0, ")
        sibling = "Here = 1\ndef make():\n    global Late\n    Late = 1\n"
        for line, words in (
            ("from sibling import Here, Missing", "app.py:1: sibling.py has no Missing"),
            ("from sibling import Missing as M", "has no Missing"),
            ("import second", "second.py:1: sibling.py has no Gone"),
        ):
            with self.subTest(line):
                told = self.refusal(line + app, "INPUT_SCHEMA = {}", sibling__py=sibling,
                                    second__py="from sibling import Gone")  # fmt: skip
                self.assertEqual(len(told), 1, told)
                self.assertIn(words, told[0])
        for line, source in (
            ("from sibling import Here, Late, __doc__", sibling),
            ("from sibling import *", sibling),
            ("try: from sibling import Missing\nexcept ImportError: 0", sibling),
            ("if x: from sibling import Missing", sibling),
            ("def f(): from sibling import Missing", sibling),
            ("def f(): import second", sibling),
            ("from json import Missing", sibling),
            ("from sibling import Missing", "def __getattr__(name): 0"),
            ("from sibling import Missing", "from elsewhere import *"),
            ("from sibling import Missing", "globals().update(Missing=1)"),
            ("from sibling import Missing", "import sys\nsys.modules[__name__] = 1"),
            ("from sibling import Missing", "if __name__ != '__main__': Missing = 1"),
            ("from sibling import Missing", "match 1:\n    case Missing: 0"),
        ):
            with self.subTest(line=line, source=source):
                self.report(line + app, "INPUT_SCHEMA = {}", sibling__py=source, json__py="",
                            second__py="from sibling import Gone")  # fmt: skip

    def test_all_faults_of_the_flags(self):
        """Each with its own line, together with the schema's."""
        told = self.refusal(GOOD, "INPUT_SCHEMA = {'A': {'datatype': 'STRNG', 'shape': [1]}}\n"
                                  "IS_STREAMING_OUTPUT = 'True'\nBATCH_SIZE = '4'\nBATCH_WINDOW = -1")  # fmt: skip
        self.assertEqual([each[:40] for each in told], [
            "input_schema.py:2: IS_STREAMING_OUTPUT m", "input_schema.py:3: BATCH_SIZE must be a ",
            "input_schema.py:4: BATCH_WINDOW must be ", "input_schema.py:1: A has the datatype 'S",
        ])  # fmt: skip
        told = self.refusal(GOOD, "INPUT_SCHEMA = {}\nBATCH_SIZE = 4\nIS_STREAMING_OUTPUT = True")
        self.assertEqual([each[:50] for each in told], ["input_schema.py:3: IS_STREAMING_OUTPUT and BATCH_S"])

    def test_late_sibling_that_is_no_python(self):
        """One that only a function imports is not what keeps the app from starting."""
        app = "class InferlessPythonModel:\n def infer(self, i): import broken"
        self.assertIn("infer(self, i)", self.report(app, "INPUT_SCHEMA = {}", broken__py="class ("))


class Typed(CheckTest):
    """Apps that declare their inputs in app.py."""

    def report_without_pydantic(self, app: str) -> str:
        """Return what is said of an app where its classes cannot be executed."""
        folder = self.folder(app)
        (folder / "input_schema.py").unlink()
        with unittest.mock.patch.dict(sys.modules, {"pydantic": None}):
            status, out, err = self.check(folder)
        self.assertEqual((status, err), (0, ""))
        return out

    def test_pydantic_that_is_not_installed(self):
        """The table is read off the source; a doubt says so."""
        out = self.report_without_pydantic(PYDANTIC)
        self.assertIn(textwrap.dedent("""\
            inputs
              name         type             shape  required  example
              prompt       str              [1]    yes       "Hello"
              temperature  Optional[float]  [1]    no        0.7
              sizes        List[int]        [-1]   no        [1, 2]
              more         dict             [1]    yes

            outputs
              name    type   shape  line
              text    BYTES  [1]    app.py:16
              scores  FP64   [-1]   app.py:17
        """), out)  # fmt: skip
        self.assertIn("app.py:8: the inputs are read off the source of Question, because", out)
        self.assertIn("""-d '{"prompt": "Hello", "more": """, out)

    def test_dict_in_a_response(self):
        """It is told as BYTES where the source is all there is, too: JSON was told, which is no datatype of v2."""
        out = self.report_without_pydantic(PYDANTIC.replace("scores: List[float]", "scores: dict"))
        self.assertRegex(out, r"\n  scores +BYTES +\[1\] +app.py:17\n")

    def test_pydantic_that_is_installed(self):
        """Only the classes are executed: the package that the model needs is not there."""
        try:
            import pydantic  # noqa: F401
        except ImportError:
            self.skipTest("pydantic is not installed")
        folder = self.folder(PYDANTIC)
        (folder / "input_schema.py").unlink()
        status, out, err = self.check(folder)
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(out, r"\n  prompt +STRING +\[1\] +yes +\"Hello\"\n")
        self.assertRegex(out, r"\n  scores +FP64 +\[-1\] +app.py:17\n")
        self.assertNotIn("read off", out)

    def test_config_class(self):
        """Its flags are the app's; a wrong one is an error."""
        app = """
            import inferless
            @inferless.config
            class Config:
                is_streaming_output = FLAG
            app = inferless.Cls(gpu="T4")
            class Any:
                @app.infer
                def go(self, prompt: str, seed: int = 3, stream_output_handler=None):
                    stream_output_handler.send_streamed_output({"OUT": "x"})
        """
        folder = self.folder(app.replace("FLAG", "True"))
        (folder / "input_schema.py").unlink()
        status, out, err = self.check(folder)
        self.assertEqual((status, err), (0, ""))
        self.assertIn(": streams\n", out)
        self.assertRegex(out, r"\n  prompt +STRING +\[1\] +yes")
        self.assertRegex(out, r"\n  seed +INT64 +\[1\] +no +3\n")
        folder = self.folder(app.replace("FLAG", "'yes'"))
        (folder / "input_schema.py").unlink()
        status, _, err = self.check(folder)
        self.assertEqual(status, 2)
        self.assertIn("error: app.py:5: is_streaming_output must be True or False", err)

    def test_all_faults_of_the_config_class(self):
        """By the names and lines of its fields; with those of the inputs, each at the line of its field."""
        head = "import inferless\n@inferless.config\nclass Config:\n is_streaming_output = "
        function = "\n@inferless.method()\ndef go(prompt: str,\n  f: float, stream_output_handler): return {}"
        told = self.typed_refusal(head + "'yes'\n batch_size = 0.5\n batch_window = -1" + function)
        self.assertEqual([each[:31] for each in told], [
            "app.py:4: is_streaming_output m", "app.py:5: batch_size must be a ", "app.py:6: batch_window must be ",
        ])  # fmt: skip
        told = self.typed_refusal(head + "True\n batch_size = 4" + function)
        self.assertEqual(
            [each[:39] for each in told],
            ["app.py:4: is_streaming_output and batch", "app.py:8: f has the datatype FP64, but "],
        )

    def test_faults_of_a_request_class(self):
        """Each at the line of its field."""
        try:
            import pydantic  # noqa: F401
        except ImportError:
            self.skipTest("pydantic is not installed")
        app = PYDANTIC.replace("@inferless.response", "@inferless.config\n    class C: is_streaming_output = True\n"
                               "    @inferless.response")  # fmt: skip
        told = self.typed_refusal(app)
        self.assertEqual(len(told), 2, told)
        self.assertTrue(told[0].startswith("app.py:10: temperature has the datatype FP64"), told)
        self.assertTrue(told[1].startswith("app.py:11: sizes has the shape [-1]"), told)

    def test_names_of_a_class_that_is_read_off_its_source(self):
        """A literal alias is the input's name; pydantic's own settings and private attributes are no fields."""
        app = """
            import inferless
            from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
            @inferless.request
            class Question(BaseModel):
                model_config = ConfigDict(extra="forbid")
                _cache: dict = PrivateAttr({})
                a: str = Field(alias="imageURL")
                b: str = Field(alias="no", validation_alias="imageSize", examples=["x"])
                c: str = Field(alias=NAME)
            @inferless.response
            class Answer(BaseModel):
                d: str = Field(serialization_alias="D", alias="no")
                e: str = Field(alias="E")
            class InferlessPythonModel:
                def infer(self, request: Question) -> Answer:
                    return Answer(d=request.a, e=request.b + request.c)
        """
        out = self.report_without_pydantic(app)
        self.assertIn(textwrap.dedent("""\
            inputs
              name       type  shape  required  example
              imageURL   str   [1]    yes
              imageSize  str   [1]    yes       "x"
              c          str   [1]    yes

            outputs
              name  type   shape  line
              D     BYTES  [1]    app.py:13
              E     BYTES  [1]    app.py:14
        """), out)  # fmt: skip
        self.assertNotIn("never reads", out)
        folder = self.folder(app.replace("=NAME", '="C"').replace("request.a,", "(request.a, request._cache),"))
        (folder / "input_schema.py").unlink()
        status, out, err = self.check(folder)
        self.assertEqual((status, err), (0, ""))
        self.assertNotIn("the request class does not have", out)
        self.assertNotIn("never reads", out)


class Process(TestCase):
    """`python server.py --model DIR --check`."""

    def run_check(self, model: str, *python: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, "server.py", "--model", model, "--check"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def test_models(self):
        """Our own models, without site-packages: no doubt but what is not installed, and exit 0."""
        for name in ("echo", "smollm2", "zephyr"):
            with self.subTest(name):
                done = self.run_check(f"models/{name}", "-S", "-E")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                doubts = done.stdout.split("\ndoubts\n")[1].split("\n\n")[0].splitlines()
                self.assertTrue(all("not installed here" in each or each == "  none" for each in doubts), doubts)

    def test_readme_shows_what_is_printed(self):
        """The README's report is the one of models/echo."""
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        shown = readme.split("## Check a folder first")[1].split("```")[1].partition("\n")[2]
        self.assertEqual(self.run_check("models/echo").stdout, shown)

    def test_curl_line_is_one_command(self):
        """What is printed is a shell's words: curl, the address, the body."""
        *_, line = self.run_check("models/echo").stdout.splitlines()
        self.assertEqual(json.loads(shlex.split(line)[-1]), {"TEXT": "How to make an omelette"})

    def test_refusal(self):
        """Exit 2, nothing on stdout, errors on stderr."""
        done = self.run_check("tests")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("error: ", done.stderr)
        self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()
