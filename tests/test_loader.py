"""Promises of the loader: what it makes of a folder, what it refuses and how it says so, how it calls the app."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferless_shim import loader, loops
from inferless_shim.config import Settings
from inferless_shim.errors import StartupError
from inferless_shim.loader import App, read_app
from tests.support import ROOT, TEXT_SCHEMA, ServerProcess, TestCase, app_folder

GOOD_APP = """
    class InferlessPythonModel:
        def initialize(self):
            self.ready = True

        def infer(self, inputs, stream_output_handler):
            stream_output_handler.send_streamed_output({"OUT": inputs["TEXT"]})

        def finalize(self):
            pass
"""


def on_a_thread(function: Callable[[], Any]) -> Any:
    """Call a function as an infer thread would; return what it returns, raise what it raises."""
    ends: list[Any] = []

    def work() -> None:
        try:
            ends.extend((function(), None))
        except BaseException as error:
            ends.extend((None, error))
        loops.close_event_loop()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result, error = ends
    if error is not None:
        raise error
    return result


class LoaderTest(TestCase):
    """Loading changes the working directory, sys.path and sys.modules: all is put back after each test."""

    def setUp(self) -> None:
        folder, path, modules = os.getcwd(), list(sys.path), set(sys.modules)

        def put_back() -> None:
            os.chdir(folder)
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if not hasattr(sys.modules[name], "__file__") or str(sys.modules[name].__file__).startswith("/tmp"):
                    del sys.modules[name]
            sys.modules.pop("app", None)
            sys.modules.pop("input_schema", None)

        self.addCleanup(put_back)

    def folder(self, app: str = GOOD_APP, schema: str | None = None, *, streaming: bool = True, **files: str) -> Path:
        """Make an app folder that lives as long as the test; `files` are further modules."""
        made = app_folder(app, schema, streaming=streaming)
        folder = made.__enter__()
        self.addCleanup(made.__exit__, None, None, None)
        for name, source in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        return folder.resolve()

    def load(self, *args: Any, **kwargs: Any) -> App:
        app = read_app(Settings(model=self.folder(*args, **kwargs)))
        on_a_thread(app.load)
        return app

    def refusal(self, *args: Any, **kwargs: Any) -> str:
        """Return what is said of a folder that cannot be loaded."""
        folder = self.folder(*args, **kwargs)
        with self.assertRaises(StartupError) as caught:
            app = read_app(Settings(model=folder))
            on_a_thread(app.load)
        said = str(caught.exception)
        self.assertIn(str(folder), said)
        self.assertNotIn("inferless_shim", said)
        self.assertNotIn("importlib", said)
        self.assertNotIn("loader.py", said)
        return said


class TestRead(LoaderTest):
    def test_folder_that_is_good_becomes_an_app(self):
        """Name, flags and schema are known before anything is loaded."""
        app = read_app(Settings(model=self.folder()))
        self.assertEqual((app.name, app.streaming, app.batched, app.instance), ("made", True, False, None))
        self.assertEqual(list(app.schema.inputs), ["TEXT"])
        self.assertEqual(read_app(Settings(model=self.folder(), name="other")).name, "other")

    def test_flags_that_are_absent_have_inferless_defaults(self):
        """No streaming, no batching."""
        app = read_app(Settings(model=self.folder(schema="INPUT_SCHEMA = {}")))
        self.assertEqual((app.streaming, app.batched), (False, False))
        app = read_app(Settings(model=self.folder(schema="INPUT_SCHEMA = {}\nBATCH_SIZE = 4\nBATCH_WINDOW = 5000")))
        self.assertEqual((app.streaming, app.batched), (False, True))

    def test_schema_file_is_executed_as_python(self):
        """It may import siblings, read files of its folder, and build its dict any way it likes."""
        folder = self.folder(
            schema="""
                from shapes import one
                with open("example.txt") as file:
                    example = file.read()
                INPUT_SCHEMA = {name: {"datatype": "STRING", "shape": one, "example": [example]} for name in ("A", "B")}
            """,
            shapes="one = [1]",
        )
        (folder / "example.txt").write_text("Hello")
        self.assertEqual(list(read_app(Settings(model=folder)).schema.inputs), ["A", "B"])

    def test_warnings_of_the_schema_are_logged(self):
        """An example out of its width is one line in the log, and no fault."""
        schema = """INPUT_SCHEMA = {"N": {"datatype": "INT8", "required": True, "shape": [1], "example": [512]}}"""
        with self.assertLogs("inferless_shim.loader", logging.WARNING) as logs:
            read_app(Settings(model=self.folder(schema=schema)))
        self.assertEqual(len(logs.records), 1)
        self.assertIn("input_schema.py: N has an example outside INT8", logs.output[0])


class TestRefusals(LoaderTest):
    """What stands in the way is said in a sentence, with the place; the app's own error has the app's own traceback."""

    def test_folder_that_is_none_is_refused(self):
        """A missing folder, a file, a folder without app.py or input_schema.py: each has its sentence."""
        folder = self.folder()
        for path, said in (
            (folder / "nowhere", "is not a folder; --model takes the folder that holds app.py."),
            (folder / "app.py", "is not a folder; --model takes the folder that holds app.py."),
            (folder.parent, "has no app.py; an Inferless app is a folder with app.py and input_schema.py."),
        ):
            with self.assertRaises(StartupError) as caught:
                read_app(Settings(model=path))
            self.assertEqual(str(caught.exception), f"{path} {said}")
        (folder / "input_schema.py").unlink()
        with self.assertRaises(StartupError) as caught:
            read_app(Settings(model=folder))
        self.assertTrue(str(caught.exception).startswith(f"{folder} has no input_schema.py; it says what infer takes"))

    def test_schema_file_without_a_schema_is_refused(self):
        """INPUT_SCHEMA is not there, or is no dict."""
        self.assertTrue(
            self.refusal(schema="SCHEMA = {}").endswith(
                "input_schema.py does not define INPUT_SCHEMA, the dict that says what infer takes."
            )
        )
        self.assertIn("input_schema.py: INPUT_SCHEMA must be a dict", self.refusal(schema="INPUT_SCHEMA = []"))

    def test_input_json_stands_for_a_schema(self):
        """What Inferless had before input_schema.py: an example of a request says names, datatypes and shapes."""
        folder = self.folder()
        (folder / "input_schema.py").unlink()
        tensor = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["What is AI?"]}
        (folder / "input.json").write_text(json.dumps({"inputs": [tensor, tensor | {"name": "n", "optional": True}]}))
        schema = read_app(Settings(model=folder)).schema
        self.assertEqual([each.required for each in schema.inputs.values()], [True, False])
        self.assertEqual(schema.example(), {"prompt": "What is AI?"})
        for text in ("", "[]", "{}", '{"inputs": [1]}', '{"inputs": [{"name": "x"}]}'):
            (folder / "input.json").write_text(text)
            with self.assertRaisesRegex(StartupError, "input.json is no example of a request"):
                read_app(Settings(model=folder))

    def test_request_class_in_a_package_of_the_folder_is_seen(self):
        """app.py need not say inferless itself."""
        folder = self.folder(app="from schemas.objects import RequestObjects")
        (folder / "input_schema.py").unlink()
        (folder / "schemas").mkdir()
        (folder / "schemas" / "objects.py").write_text("import inferless\nclass RequestObjects: pass\n")
        self.assertIsNone(read_app(Settings(model=folder)).schema)

    def test_import_of_inferless_among_others_is_seen(self):
        """`import os, inferless` declares as much as a line of its own; a name like it does not."""
        for line, declares in (
            ("import inferless", True),
            ("import os, inferless", True),
            ("    import inferless as x", True),
            ("from inferless import request", True),
            ("import inferless_utils", False),
            ("# import inferless", False),
            ("import os  # like inferless", True),  # it costs no more than an import
        ):
            path = self.folder() / "app.py"
            path.write_text(f"{line}\n")
            self.assertEqual(loader.may_declare_inputs(path), declares, line)

    def test_schema_faults_are_told_with_the_file(self):
        """What the schema's compiler finds is said with the path of the file."""
        schema = 'INPUT_SCHEMA = {"N": {"datatype": "FP32", "shape": [1]}}\nIS_STREAMING_OUTPUT = True'
        said = self.refusal(schema=schema)
        self.assertIn("input_schema.py: ", said)
        self.assertIn("N", said)
        self.assertNotIn("Traceback", said)
        with self.assertLogs("inferless_shim.loader", logging.WARNING):
            read_app(Settings(model=self.folder(schema=schema), relaxed_schema=True))

    def test_flags_of_the_wrong_type_are_refused(self):
        """Each is named, with what it must be and what it is."""
        for flag, said in (
            ("IS_STREAMING_OUTPUT = 'yes'", "IS_STREAMING_OUTPUT must be True or False, not 'yes'."),
            ("IS_STREAMING_OUTPUT = 1", "IS_STREAMING_OUTPUT must be True or False, not 1."),
            ("BATCH_SIZE = -1", "BATCH_SIZE must be a whole number of at least 1, not -1."),
            ("BATCH_SIZE = True", "BATCH_SIZE must be a whole number of at least 1, not True."),
            ("BATCH_SIZE = 2.5", "BATCH_SIZE must be a whole number of at least 1, not 2.5."),
            ("BATCH_WINDOW = 'long'", "BATCH_WINDOW must be a whole number of at least 1, not 'long'."),
        ):
            self.assertTrue(self.refusal(schema=f"INPUT_SCHEMA = {{}}\n{flag}").endswith(f"input_schema.py: {said}"))

    def test_syntax_error_shows_file_and_line_and_nothing_of_ours(self):
        """In app.py, in input_schema.py and in a module of the folder."""
        broken = "x = 1\ndef f(:\n    pass\n"
        said = self.refusal(app=broken)
        self.assertTrue(said.startswith("app.py raised while it was imported ("), said)
        self.assertRegex(said, r'File ".*/made/app\.py", line 2\n')
        self.assertRegex(said, r"SyntaxError: .*\Z")
        said = self.refusal(schema=broken)
        self.assertTrue(said.startswith("input_schema.py raised ("), said)
        self.assertRegex(said, r'File ".*/made/input_schema\.py", line 2\n')
        said = self.refusal(app="import helper", helper=broken)
        self.assertRegex(said, r'File ".*/made/app\.py", line 1, in <module>\n')
        self.assertRegex(said, r'File ".*/made/helper\.py", line 2\n')

    def test_exceptions_on_import_show_the_apps_frames_alone(self):
        """Whatever is raised, sys.exit included: the app's own traceback, with a sentence in front."""
        for statement, told in (
            ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
            ("from json import no_such_name", "ImportError: cannot import name 'no_such_name'"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("import sys; sys.exit(3)", "SystemExit: 3"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("open('missing.txt')", "FileNotFoundError"),
        ):
            with self.subTest(statement):
                said = self.refusal(app=f"x = 1\n{statement}\n")
                lines = said.splitlines()
                self.assertTrue(lines[0].startswith("app.py raised while it was imported ("), said)
                self.assertEqual(lines[1], "Traceback (most recent call last):")
                self.assertRegex(lines[2], r'^  File ".*/made/app\.py", line 2, in <module>$')
                self.assertIn(told, lines[-1])
                self.assertIn("input_schema.py raised (", self.refusal(schema=f"x = 1\n{statement}\n"))

    def test_exceptions_while_another_was_handled_show_the_apps_frames_alone(self):
        """The chain of an app's exceptions is shown whole."""
        app = """
            try:
                1 / 0
            except ZeroDivisionError:
                raise ValueError("no model")
        """
        said = self.refusal(app=app)
        self.assertIn("ZeroDivisionError", said)
        self.assertIn("ValueError: no model", said)

    def test_app_without_the_class_is_refused(self):
        """No class, something else of its name, or a class without infer."""
        sentence = "has no class InferlessPythonModel; an Inferless app defines that class with the methods"
        self.assertIn(sentence, self.refusal(app="class Model: pass"))
        self.assertIn(sentence, self.refusal(app="InferlessPythonModel = 3"))
        self.assertTrue(
            self.refusal(app="class InferlessPythonModel: pass").endswith(
                "app.py: class InferlessPythonModel has no method infer."
            )
        )

    def test_class_that_cannot_be_made_is_refused(self):
        """`__init__` raises, or wants arguments; it is told apart from `initialize`."""
        app = """
            class InferlessPythonModel:
                def __init__(self{arguments}):
                    {body}
                def infer(self, inputs): pass
        """
        said = self.refusal(app=app.format(arguments="", body="1 / 0"))
        self.assertTrue(said.startswith("InferlessPythonModel() raised ("), said)
        self.assertIn("line 4, in __init__", said)
        said = self.refusal(app=app.format(arguments=", config", body="pass"))
        self.assertIn("missing 1 required positional argument: 'config'", said)

    def test_initialize_that_raises_is_refused_with_its_traceback(self):
        """Frames: the app's, and those of what it called; a sys.exit counts, too."""
        app = """
            import json

            class InferlessPythonModel:
                def initialize(self):
                    {body}

                def infer(self, inputs): pass
        """
        for body, told in (
            ("json.loads('{')", "JSONDecodeError"),
            ("exit(1)", "SystemExit: 1"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ):
            said = self.refusal(app=app.format(body=body))
            lines = said.splitlines()
            self.assertTrue(lines[0].startswith("InferlessPythonModel.initialize raised ("), said)
            self.assertRegex(lines[2], r'^  File ".*/made/app\.py", line 6, in initialize$')
            self.assertIn(told, lines[-1])

    def test_initialize_without_self_that_raises_shows_nothing_of_ours(self):
        """How its signature was found out is no part of the app's traceback.

        The app's exception was raised while ours was handled, so that both were printed.
        """
        app = """
            class InferlessPythonModel:
                def initialize():
                    1 / 0
                def infer(self, inputs): pass
        """
        said = self.refusal(app=app)
        self.assertNotIn("During handling", said)
        self.assertIn("ZeroDivisionError", said)

    def test_infer_without_inputs_is_refused(self):
        """No parameter, or not even self.

        The last one raised ValueError on the thread that loads; the server waited for it for ever.
        """
        for signature in ("(self)", "()", "(self, *, inputs)"):
            app = f"class InferlessPythonModel:\n    def infer{signature}: pass\n"
            self.assertTrue(
                self.refusal(app=app).endswith("app.py: infer takes no inputs; write infer(self, inputs)."), signature
            )

    def test_server_exits_with_2_and_no_traceback_of_ours(self):
        """From the command line, each of these ends the process with status 2 and the sentence on stderr."""
        raising = "class InferlessPythonModel:\n    def initialize(self): 1 / 0\n    def infer(self, inputs): pass\n"
        for app, schema, said in (
            (raising, None, "error: InferlessPythonModel.initialize raised ("),
            ("import sys; sys.exit(0)", None, "error: app.py raised while it was imported ("),
            (GOOD_APP, "INPUT_SCHEMA =", "error: input_schema.py raised ("),
            (GOOD_APP, "INPUT_SCHEMA = 3", "input_schema.py: INPUT_SCHEMA must be a dict"),
            ("class InferlessPythonModel:\n    def infer(): pass\n", None, "infer takes no inputs"),
        ):
            with self.subTest(said):
                server = ServerProcess(self.folder(app, schema))
                self.assertEqual(server.finish(), 2)
                self.assertIn(said, server.log)
                self.assertNotIn("inferless_shim", server.log)
                self.assertNotIn("threading.py", server.log)


class TestSurroundings(LoaderTest):
    """What an app finds around it: its folder first, as on Inferless."""

    def test_folder_is_the_working_directory_and_first_on_the_path(self):
        """Relative files, `__file__`, `__name__` and imports of siblings are what the app's author saw."""
        folder = self.folder(
            app="""
                import os, sys
                import sibling
                from package import deep
                import input_schema
                CWD, FIRST, FILE, NAME = os.getcwd(), sys.path[0], __file__, __name__
                FOUND = sys.modules[__name__].__dict__ is globals()
                with open("notes.txt", "w") as file:
                    file.write("scratch")

                class InferlessPythonModel:
                    def infer(self, inputs): pass
            """,
            sibling="HERE = __file__",
        )
        (folder / "package").mkdir()
        (folder / "package" / "deep.py").write_text("DEPTH = 2")
        app = read_app(Settings(model=folder))
        on_a_thread(app.load)
        module: Any = app.module
        self.assertEqual(os.path.realpath(module.CWD), str(folder))
        self.assertEqual(module.FIRST, str(folder))
        self.assertEqual(module.FILE, str(folder / "app.py"))
        self.assertEqual(module.NAME, "app")
        self.assertTrue(module.FOUND)
        self.assertEqual(module.sibling.HERE, str(folder / "sibling.py"))
        self.assertEqual(module.deep.DEPTH, 2)
        self.assertEqual(module.input_schema.INPUT_SCHEMA, TEXT_SCHEMA)
        self.assertEqual((folder / "notes.txt").read_text(), "scratch")

    def test_siblings_win_over_installed_packages(self):
        """utils.py and config.py of the folder are imported, whatever is installed under these names."""
        installed = self.folder(utils="OURS = False", config="OURS = False")
        app = """
            import config
            from utils import OURS
            assert OURS and config.OURS

            class InferlessPythonModel:
                def infer(self, inputs): pass
        """
        siblings = {"utils": "OURS = True", "config": "OURS = True"}
        with ServerProcess(self.folder(app, **siblings), environment={"PYTHONPATH": str(installed)}):
            pass
        self.load(app, **siblings)  # where inferless_shim.config is imported, and modules of the last app may be

    def test_server_py_and_its_neighbours_are_not_on_the_apps_path(self):
        """An app that imports `models` or `tests` gets a package of that name, not what lies beside server.py."""
        folder = self.folder(
            app="""
                import sys
                assert all(path not in sys.path for path in ("", ROOT)), sys.path

                class InferlessPythonModel:
                    def infer(self, inputs): pass
            """.replace("ROOT", repr(str(ROOT)))
        )
        with ServerProcess(folder):
            pass

    def test_enter_from_an_installed_package_keeps_the_packages(self):
        """Where we are installed beside other packages, these are still found.

        The folder that we lie in was taken off the path wherever it stood, and with it every installed package.
        """
        folder = self.folder()
        ours = str(ROOT)
        sys.path[:] = ["/somewhere/bin", "/lib/python", ours, str(folder), "/more"]
        loader.enter(folder)
        self.assertEqual(sys.path, [str(folder), "/somewhere/bin", "/lib/python", ours, "/more"])
        for first in (ours, ""):
            sys.path[:] = [first, "/lib/python"]
            loader.enter(folder)
            self.assertEqual(sys.path, [str(folder), "/lib/python"])

    def test_environment_set_at_module_level_is_seen_by_imports(self):
        """`os.environ[...]` before an import takes effect in it."""
        self.addCleanup(os.environ.pop, "SHIM_TEST_HOME", None)
        app = self.load(
            app="""
                import os
                os.environ["SHIM_TEST_HOME"] = "/models"
                import library

                class InferlessPythonModel:
                    def infer(self, inputs):
                        return library.HOME
            """,
            streaming=False,
            library="import os\nHOME = os.environ['SHIM_TEST_HOME']",
        )
        self.assertEqual(app.infer({}, None), "/models")

    def test_source_with_tabs_a_bom_and_an_encoding_is_python(self):
        """The source is read as Python reads it."""
        folder = self.folder()
        source = "class InferlessPythonModel:\n\tdef infer(self, inputs):\n\t\treturn 'ö'\n"
        (folder / "app.py").write_bytes(b"\xef\xbb\xbf" + source.encode())
        app = read_app(Settings(model=folder))
        on_a_thread(app.load)
        self.assertEqual(app.infer({}, None), "ö")
        (folder / "app.py").write_bytes(b"# -*- coding: latin-1 -*-\r\n" + source.encode("latin-1"))
        app = read_app(Settings(model=folder))
        on_a_thread(app.load)
        self.assertEqual(app.infer({}, None), "ö")

    def test_large_schema_is_read(self):
        """A schema file of some megabytes (an image as example) is no trouble."""
        example = "x" * 2_000_000
        schema = f'INPUT_SCHEMA = {{"IMAGE": {{"datatype": "STRING", "shape": [1], "example": ["{example}"]}}}}'
        self.assertEqual(list(read_app(Settings(model=self.folder(schema=schema))).schema.inputs), ["IMAGE"])

    def test_classes_that_need_their_module_find_it(self):
        """Dataclasses with string annotations look their module up in sys.modules."""
        app = self.load(
            app="""
                from __future__ import annotations
                import dataclasses, typing

                @dataclasses.dataclass
                class Options:
                    size: typing.ClassVar[int] = 3

                class InferlessPythonModel:
                    def infer(self, inputs):
                        return Options.size
            """
        )
        self.assertEqual(app.infer({}, None), 3)

    def test_get_event_loop_works_in_initialize(self):
        """An app that imports asyncio and asks for its loop gets one, as on a main thread, and keeps it in infer.

        Python refuses that on other threads, and ours is one.
        """
        app = self.load(
            app="""
                import asyncio

                class InferlessPythonModel:
                    def initialize(self):
                        self.loop = asyncio.get_event_loop()

                    def infer(self, inputs):
                        return self.loop
            """
        )
        self.assertIsInstance(app.infer({}, None), asyncio.AbstractEventLoop)

    def test_asyncio_is_not_loaded_for_apps_that_do_not_use_it(self):
        """It costs 6 MB."""
        program = """
            import sys
            from pathlib import Path
            from inferless_shim.config import Settings
            from inferless_shim.engine import Engine
            from inferless_shim.loader import read_app
            engine = Engine(read_app(Settings(model=Path("models/echo").resolve())), Settings())
            engine.start()
            engine.loaded.wait()
            assert engine.failed is None
            assert engine.stop(30)
            print("asyncio" in sys.modules)
        """
        done = subprocess.run(
            [sys.executable, "-S", "-E", "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True
        )
        self.assertEqual((done.stdout, done.stderr), ("False\n", ""))


class TestCalls(LoaderTest):
    """Each method is called the way it was written."""

    def loaded_with(self, method: str, **kwargs: Any) -> App:
        """Load a class that has these lines in it; `self.calls` or the module's CALLS notes how it was called."""
        infer = "" if "def infer" in method else "    def infer(self, inputs): pass\n"
        method = textwrap.indent(textwrap.dedent(method).strip(), "    ")
        return self.load(app=f"CALLS = []\n\nclass InferlessPythonModel:\n{method}\n{infer}", **kwargs)

    def test_initialize_is_called_as_declared(self):
        """With self, with `context=None`, with a context that it insists on, not at all if there is none."""
        for method, calls in (
            ("def initialize(self): CALLS.append(())", [()]),
            ("def initialize(self, context=None): CALLS.append((context,))", [(None,)]),
            ("def initialize(self, context): CALLS.append((context,))", [(None,)]),
            ("def initialize(self, *args, **kwargs): CALLS.append((*args, *kwargs))", [()]),
            ("async def initialize(self): CALLS.append(())", [()]),
            ("pass", []),
        ):
            with self.subTest(method):
                self.assertEqual(self.loaded_with(method).module.CALLS, calls)

    def test_finalize_is_called_as_declared(self):
        """In all five shapes that public apps have, and as static or class method."""
        for method, calls in (
            ("def finalize(self): CALLS.append(())", [()]),
            ("def finalize(self, args): CALLS.append((args,))", [(None,)]),
            ("def finalize(self, *args): CALLS.append(args)", [()]),
            ("def finalize(): CALLS.append(())", [()]),
            ("pass", []),
            ("@staticmethod\ndef finalize(): CALLS.append(())", [()]),
            ("@classmethod\ndef finalize(cls): CALLS.append(())", [()]),
        ):
            with self.subTest(method):
                app = self.loaded_with(method)
                app.finalize()
                self.assertEqual(app.module.CALLS, calls)

    def test_finalize_that_raises_is_logged_and_no_more(self):
        """Also a sys.exit, also what is no method at all."""
        for method, told in (
            ("def finalize(self): 1 / 0", "ZeroDivisionError"),
            ("def finalize(self): raise SystemExit(1)", "SystemExit"),
            ("def finalize(self, *, must): pass", "TypeError"),
            ("finalize = None", "TypeError"),
        ):
            with self.subTest(method), self.assertLogs("inferless_shim.loader", logging.ERROR) as logs:
                self.loaded_with(method).finalize()
            self.assertIn("finalize() raised", logs.output[0])
            self.assertIn(told, logs.output[0])

    def test_infer_is_called_as_declared(self):
        """Inputs alone, inputs and handler under any names, `*args`, the inputs by name."""
        two = TEXT_SCHEMA | {"IMAGE_URL": {"datatype": "STRING", "shape": [1], "required": False, "example": ["x"]}}
        handler, inputs = object(), {"TEXT": "t", "IMAGE_URL": "u"}
        both, alone = (inputs, handler), (inputs,)
        for signature, body, streaming, expected in (
            ("(self, inputs)", "(inputs,)", False, alone),
            ("(self, inputs)", "(inputs,)", True, alone),
            ("(self, data, out)", "(data, out)", True, both),
            ("(self, inputs, stream_output_handler=None)", "(inputs, stream_output_handler)", True, both),
            ("(self, inputs, stream_output_handler=None)", "(inputs, stream_output_handler)", False, (inputs, None)),
            ("(self, inputs, context)", "(inputs, context)", False, both),
            ("(self, inputs, handler, more=3)", "(inputs, handler, more)", True, (*both, 3)),
            ("(self, *args)", "args", True, both),
            ("(self, *args)", "args", False, alone),
            ("(self, *args, **kwargs)", "(*args, *kwargs)", True, both),
            ("(self, inputs, *args)", "(inputs, *args)", True, both),
            ("(self, inputs, /, handler)", "(inputs, handler)", True, both),
            ("(self, TEXT, IMAGE_URL)", "(TEXT, IMAGE_URL)", False, ("t", "u")),
            ("(self, IMAGE_URL, TEXT)", "(TEXT, IMAGE_URL)", False, ("t", "u")),
            ("(self, TEXT, IMAGE_URL='d')", "(TEXT, IMAGE_URL)", True, ("t", "u")),
            ("(self, TEXT, handler)", "(TEXT, handler)", True, both),
            ("(self, TEXT)", "(TEXT,)", False, alone),
        ):
            with self.subTest(signature=signature, streaming=streaming):
                schema = f"INPUT_SCHEMA = {two!r}\nIS_STREAMING_OUTPUT = {streaming}"
                app = self.loaded_with(f"def infer{signature}: return {body}", schema=schema)
                self.assertEqual(app.infer(inputs, handler), expected)

    def test_infer_by_name_without_an_optional_input_uses_the_apps_default(self):
        """What the client left out is left out."""
        two = TEXT_SCHEMA | {"N": {"datatype": "INT32", "shape": [1], "required": False, "example": [1]}}
        app = self.loaded_with("def infer(self, TEXT, N=7): return TEXT, N", schema=f"INPUT_SCHEMA = {two!r}")
        self.assertEqual(app.infer({"TEXT": "t"}, None), ("t", 7))

    def test_infer_behind_a_decorator_is_called_as_declared(self):
        """With functools.wraps the signature shows through; without it, `*args` takes what there is."""
        for wraps in ("@functools.wraps(function)", ""):
            app = self.load(
                app=f"""
                    import functools

                    def decorated(function):
                        {wraps}
                        def call(*args, **kwargs):
                            return function(*args, **kwargs)
                        return call

                    class InferlessPythonModel:
                        @decorated
                        def infer(self, inputs, handler):
                            return inputs, handler
                """
            )
            self.assertEqual(app.infer({"TEXT": "t"}, 3), ({"TEXT": "t"}, 3))

    def test_infer_of_a_batched_app_gets_a_list(self):
        """As many inputs as there are, in order."""
        app = self.loaded_with(
            "def infer(self, inputs): return inputs", schema=f"INPUT_SCHEMA = {TEXT_SCHEMA!r}\nBATCH_SIZE = 4"
        )
        self.assertEqual(app.infer_batch([{"TEXT": "t"}, {"TEXT": "u"}]), [{"TEXT": "t"}, {"TEXT": "u"}])

    def test_infer_of_other_kinds_is_returned_as_it_is(self):
        """A coroutine, a generator and an async generator are the engine's to bring to an end."""
        for method, is_kind in (
            ("async def infer(self, inputs, handler): pass", inspect.iscoroutine),
            ("def infer(self, inputs, handler): yield", inspect.isgenerator),
            ("async def infer(self, inputs, handler): yield", inspect.isasyncgen),
        ):
            result = self.loaded_with(method).infer({}, None)
            self.assertTrue(is_kind(result))
            if inspect.iscoroutine(result):
                result.close()


if __name__ == "__main__":
    unittest.main()
