"""An app folder becomes an `App`: its schema, its flags, its class, and how its methods want to be called.

The folder is read in two steps: `read_app` executes `input_schema.py`, which is cheap and finds most mistakes, and
`App.load` imports `app.py` and runs `initialize`, on the thread that will run `infer`. The app's folder becomes the
working directory and the first entry of `sys.path`, as on Inferless (CONTRACT.md §1).
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .config import Settings
from .errors import StartupError
from .schema import Schema, compile_schema

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

CLASS_NAME = "InferlessPythonModel"
DEFAULT_BATCH_WINDOW = 500  # milliseconds: Inferless's own


class App:
    """A user's folder: what is known from its schema and, once loaded, the object that runs `infer`."""

    def __init__(self, name: str, folder: Path, schema: Schema, flags: dict[str, Any]) -> None:
        self.name = name
        self.folder = folder
        self.schema = schema
        self.streaming: bool = flags["IS_STREAMING_OUTPUT"]
        self.batched: bool = flags["BATCH_SIZE"] is not None
        self.module: ModuleType | None = None
        self.instance: Any = None
        self._infer: Callable[..., Any] | None = None
        self._takes = ""

    def load(self) -> None:
        """Import `app.py`, make the object, run `initialize`. Raises StartupError, with the app's own traceback."""
        try:
            self.module = run_file("app", self.folder / "app.py")
        except BaseException as error:
            raise app_error(self.folder, "app.py raised while it was imported", error) from error
        made = getattr(self.module, CLASS_NAME, None)
        if not inspect.isclass(made):
            raise StartupError(
                f"{self.folder / 'app.py'} has no class {CLASS_NAME}; an Inferless app defines it with the methods "
                "initialize, infer and finalize."
            )
        if not callable(getattr(made, "infer", None)):
            raise StartupError(f"{self.folder / 'app.py'}: class {CLASS_NAME} has no method infer.")
        with_event_loop()
        try:
            self.instance = made()
        except BaseException as error:
            raise app_error(self.folder, f"{CLASS_NAME}() raised", error) from error
        try:
            if hasattr(made, "initialize"):
                call_as_declared(self.instance, "initialize", None)
        except BaseException as error:
            raise app_error(self.folder, f"{CLASS_NAME}.initialize raised", error) from error
        self._infer = self.instance.infer
        self._takes = self._how_infer_takes()

    def infer(self, inputs: dict[str, Any], handler: Any) -> Any:
        """Call `infer` the way it was written; return what it returns (a coroutine or a generator, too)."""
        assert self._infer is not None, "infer before load"
        if self.batched:
            return self._infer([inputs])
        if self._takes == "names":
            return self._infer(**inputs)
        return self._infer(inputs, handler) if self._takes == "inputs, handler" else self._infer(inputs)

    def finalize(self) -> None:
        """Run `finalize` if there is one; log and go on if it raises."""
        if not hasattr(self.instance, "finalize"):
            return
        try:
            call_as_declared(self.instance, "finalize", None)
        except BaseException:
            log.exception("finalize() raised")

    def _how_infer_takes(self) -> str:
        """Tell `infer(inputs)`, `infer(inputs, handler)` and the old `infer(prompt, image_url)` apart."""
        no_inputs = f"{self.folder / 'app.py'}: infer takes no inputs; write infer(self, inputs)."
        try:
            signature = inspect.signature(self.instance.infer)
        except ValueError:  # `def infer():` has no place for self
            raise StartupError(no_inputs) from None
        names = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(names) > 1 and all(name in self.schema.inputs for name in names):
            return "names"
        two = len(names) > 1 or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
        if not names and not two:
            raise StartupError(no_inputs)
        needed = [name for name in names[1:] if signature.parameters[name].default is inspect.Parameter.empty]
        return "inputs, handler" if two and (self.streaming or needed) else "inputs"


def read_app(settings: Settings) -> App:
    """Read a folder as far as it goes without loading the model. Raises StartupError."""
    folder = settings.model
    if not folder.is_dir():
        raise StartupError(f"{folder} is not a folder; --model takes the folder that holds app.py.")
    if not (folder / "app.py").is_file():
        raise StartupError(f"{folder} has no app.py; an Inferless app is a folder with app.py and input_schema.py.")
    if not (folder / "input_schema.py").is_file():
        raise StartupError(
            f"{folder} has no input_schema.py; it says what infer takes, such as "
            'INPUT_SCHEMA = {"TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["Hello"]}}.'
        )
    enter(folder)
    try:
        module = run_file("input_schema", folder / "input_schema.py")
    except BaseException as error:
        raise app_error(folder, "input_schema.py raised", error) from error
    flags = read_flags(folder / "input_schema.py", module)
    try:
        schema = compile_schema(
            module.INPUT_SCHEMA,
            streaming=flags["IS_STREAMING_OUTPUT"],
            batched=flags["BATCH_SIZE"] is not None,
            relaxed=settings.relaxed_schema,
        )
    except StartupError as error:
        raise StartupError(f"{folder / 'input_schema.py'}: {error}") from None
    for warning in schema.warnings:
        log.warning("input_schema.py: %s", warning)
    return App(settings.name or folder.name, folder, schema, flags)


def read_flags(path: Path, module: ModuleType) -> dict[str, Any]:
    """Read the schema file's flags, checked. Raises StartupError."""
    if not hasattr(module, "INPUT_SCHEMA"):
        raise StartupError(f"{path} does not define INPUT_SCHEMA, the dict that says what infer takes.")
    flags = {
        "IS_STREAMING_OUTPUT": getattr(module, "IS_STREAMING_OUTPUT", False),
        "BATCH_SIZE": getattr(module, "BATCH_SIZE", None),
        "BATCH_WINDOW": getattr(module, "BATCH_WINDOW", DEFAULT_BATCH_WINDOW),
    }
    if not isinstance(flags["IS_STREAMING_OUTPUT"], bool):
        raise StartupError(f"{path}: IS_STREAMING_OUTPUT must be True or False, not {flags['IS_STREAMING_OUTPUT']!r}.")
    for name in ("BATCH_SIZE", "BATCH_WINDOW"):
        value = flags[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise StartupError(f"{path}: {name} must be a whole number of at least 1, not {value!r}.")
    return flags


def enter(folder: Path) -> None:
    """Make the folder the working directory and the first place to import from, before any installed package."""
    os.chdir(folder)
    # What Python puts first is where server.py lies: its neighbours must not shadow packages that the app needs. Only
    # there: further down it is where packages are installed, and we are one of them.
    ours = str(Path(__file__).resolve().parent.parent)
    others = sys.path[1:] if sys.path[:1] in ([ours], [""]) else sys.path
    sys.path[:] = [str(folder), *(entry for entry in others if entry != str(folder))]


def run_file(name: str, path: Path) -> ModuleType:
    """Execute a file as module `name`, even if another module of that name is imported already."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call_as_declared(instance: Any, name: str, argument: Any) -> Any:
    """Call a method that may take nothing, one argument, any number, or not even self (CONTRACT.md §1)."""
    method = getattr(instance, name)
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except ValueError:  # `def finalize():` in a class has no place for self
        method, parameters = method.__func__, []
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    result = method(*[argument] * len(needed))
    return event_loop().run_until_complete(result) if inspect.iscoroutine(result) else result


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that this thread keeps, made when it is first needed."""
    import asyncio  # 6 MB, which only apps that use it pay

    try:
        loop = asyncio.get_event_loop()
        if not loop.is_closed():
            return loop
    except RuntimeError:
        pass  # it has none yet, or asyncio.run() in infer took it away
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def with_event_loop() -> None:
    """Let `asyncio.get_event_loop()` work in `initialize` as it does on a main thread, where Inferless runs it."""
    if "asyncio" in sys.modules:
        event_loop()


def close_event_loop() -> None:
    """Close this thread's event loop, if there can be one, and the generators that it still has."""
    if "asyncio" in sys.modules:
        loop = event_loop()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def app_error(folder: Path, what: str, error: BaseException) -> StartupError:
    """Tell the app's own error with the app's own traceback: the frames before its folder are ours, and left out."""
    trace = error.__traceback__
    while trace is not None and not Path(trace.tb_frame.f_code.co_filename).is_relative_to(folder):
        trace = trace.tb_next
    shown = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    return StartupError(f"{what} ({folder}):\n{shown}")
