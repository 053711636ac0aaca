"""An app folder becomes an `App`: its schema, its flags, what it is made of, and how its methods want to be called.

The folder is read in two steps: `read_app` executes `input_schema.py`, which is cheap and finds most mistakes, and
`App.load` imports `app.py` and runs `initialize`, on the thread that will run `infer`. An app that declares its inputs
in `app.py` itself (pydantic, or the parameters of `infer`) has no schema before that. The app's folder becomes the
working directory and the first entry of `sys.path`, as on Inferless (CONTRACT.md §1).
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from . import environment, sdk, strictjson, typed
from .answers import Outputs
from .config import Settings
from .errors import AppFailed, BadRequest, StartupError
from .loops import ensure_event_loop
from .parts import Parts, chosen, find_parts
from .schema import Rules, Schema, compile_schema
from .signatures import (
    InferCall,
    call_as_declared,
    how_functions_are_called,
    how_infer_is_called,
    parameters_of,
)

log = logging.getLogger(__name__)

SCHEMA_FILE = "input_schema.py"
EXAMPLE_FILE = "input.json"
DEFAULT_BATCH_WINDOW = 500  # milliseconds: Inferless's own
NO_SCHEMA = (
    f"has no {SCHEMA_FILE}; it says what infer takes, such as "
    'INPUT_SCHEMA = {"TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["Hello"]}}.'
)


@dataclass(frozen=True)
class Flags:
    """What an app says about how it runs. `batch_window` is in milliseconds; `batch_size` is 0 without batches."""

    streaming: bool = False
    batch_size: int = 0
    batch_window: int = DEFAULT_BATCH_WINDOW


class App:
    """A user's folder: what is known from its schema and, once loaded, the object that runs `infer`.

    `outputs` are what its response class declares, or what it was seen to answer: name to v2 datatype and shape.
    """

    def __init__(self, name: str, folder: Path, schema: Schema | None, flags: Flags, relaxed: bool = False) -> None:
        self.name = name
        self.folder = folder
        self.schema = schema
        self.flags = flags
        self.outputs: Outputs = {}
        self.module: ModuleType | None = None
        self.instance: Any = None
        self._guessed: Outputs | None = None
        self.on_import: Callable[[], object] = lambda: None  # called when its modules are there, before its object is
        self._relaxed = relaxed
        self._parts: Parts | None = None
        self._call = InferCall()
        self._response: typed.ResponseSchema | None = None

    @property
    def streaming(self) -> bool:
        return self.flags.streaming

    @property
    def batched(self) -> bool:
        return self.flags.batch_size > 0

    def load(self) -> None:
        """Make the app's object and run `initialize`; import `app.py` first, if that has not been done.

        Raises StartupError, with the app's own traceback.
        """
        marked = self._import() if self._parts is None else None
        self.on_import()
        parts = self._parts
        assert parts is not None
        ensure_event_loop()
        try:
            self.instance = parts.make()
        except BaseException as error:
            raise app_error(self.folder, f"{parts.name}() raised", error) from error
        if marked is not None:
            self._declare(getattr(self.instance, parts.infer), marked)
        try:
            if parts.initialize:
                call_as_declared(getattr(self.instance, parts.initialize))
        except BaseException as error:
            self.instance = None  # half a model is of no use
            raise app_error(self.folder, f"{parts.name}.{parts.initialize} raised", error) from error

    def infer(self, inputs: dict[str, Any], handler: Any, instance: Any = None) -> Any:
        """Call `infer` of `instance`, or of the app's own; return what that returns, a coroutine or generator, too."""
        assert self.schema is not None, "infer before load"
        return self._call(self._infer(instance), self.schema.build(inputs), handler)

    def infer_batch(self, batch: list[dict[str, Any]], instance: Any = None) -> Any:
        """Call `infer` with a list of inputs (BATCH_SIZE); it is to return a list of as many answers."""
        assert self.schema is not None, "infer before load"
        return self._infer(instance)([self.schema.build(inputs) for inputs in batch])

    def answer(self, result: Any) -> Any:
        """Return what `infer` returned as it is told. Raises AppFailed if it does not fit the response class."""
        if self._response is None:
            return typed.dumped(result)
        try:
            return self._response.check(result)
        except ValueError as error:
            raise AppFailed(str(error)) from None

    def described_outputs(self) -> Outputs:
        """Return `outputs`; before the first answer what its source seems to answer, BYTES where that says no type."""
        if not self.outputs and self._guessed is None:
            from .check import guesses, source  # only who asks needs them

            self._guessed = {}
            with contextlib.suppress(StartupError, RecursionError):  # what Python runs, and the guesser gives up on
                found = source.read_source(self.folder)
                infer = found.entry.roles.get("infer") if found.entry is not None else None
                seen = guesses.outputs(found, infer) if infer is not None else []
                self._guessed = {each.name: (each.datatype or "BYTES", [*each.shape]) for each in seen}
        return self.outputs or self._guessed or {}

    def finalize(self) -> None:
        """Run `finalize` if there is one, log and go on if it raises; let go of the object."""
        if self.instance is None or self._parts is None:
            return
        try:
            if self._parts.finalize:
                call_as_declared(getattr(self.instance, self._parts.finalize))
        except BaseException:
            log.exception("finalize() raised")
        self.instance = None

    def _infer(self, instance: Any) -> Callable[..., Any]:
        assert self._parts is not None, "infer before load"
        infer: Callable[..., Any] = getattr(self.instance if instance is None else instance, self._parts.infer)
        return infer

    def _import(self) -> dict[str, list[Any]]:
        """Execute `app.py` and find its parts; return what it has marked with `import inferless`, by role."""
        known = {role: len(sdk.of(role)) for role in sdk.ROLES}
        try:
            self.module = run_file("app", self.folder / "app.py")
        except BaseException as error:
            raise app_error(self.folder, "app.py raised while it was imported", error) from error
        marked = {role: sdk.of(role)[before:] for role, before in known.items()}
        self._parts = find_parts(self.module, marked)
        return marked

    def _declare(self, infer: Callable[..., Any], marked: Mapping[str, list[Any]]) -> None:
        """Find out what goes in and out of `infer`. Raises StartupError."""
        place = self.folder / "app.py"
        if self.schema is None and marked["config"]:
            self.flags = read_flags(place, config_flags(sdk.config_of(marked["config"][-1])))
        rules = Rules(self.streaming, self.batched, self._relaxed)
        try:
            if self.schema is not None:
                self._call = how_infer_is_called(infer, self.schema.inputs, streaming=self.streaming)
            elif marked["request"]:
                taken = [each.annotation for each in parameters_of(infer)]
                self.schema = typed.RequestSchema(chosen(marked["request"], taken), rules)
                self._call = how_infer_is_called(infer, (), streaming=self.streaming)
            elif marked["load"] or marked["infer"] or marked["method"]:
                self._call, inputs = how_functions_are_called(infer, streaming=self.streaming)
                self.schema = typed.SignatureSchema(infer, inputs, rules)
            else:
                raise StartupError(f"{self.folder} {NO_SCHEMA}")
        except TypeError:
            raise StartupError(f"{place}: infer takes no inputs; write infer(self, inputs).") from None
        if marked["response"]:
            given = inspect.signature(infer).return_annotation
            self._response = typed.ResponseSchema(chosen(marked["response"], [given]))
            self.outputs = {name: (datatype, shape) for name, datatype, shape in self._response.outputs}


def read_app(settings: Settings) -> App:
    """Read a folder as far as it goes without loading the model. Raises StartupError."""
    folder = settings.model
    if not folder.is_dir():
        raise StartupError(f"{folder} is not a folder; --model takes the folder that holds app.py.")
    if not (folder / "app.py").is_file():
        raise StartupError(f"{folder} has no app.py; an Inferless app is a folder with app.py and {SCHEMA_FILE}.")
    has_schema, has_example = (folder / SCHEMA_FILE).is_file(), (folder / EXAMPLE_FILE).is_file()
    declares = any(map(may_declare_inputs, folder.glob("*.py")))
    if not has_schema and not declares:  # or in a package that app.py imports
        from .check.source import read_source

        declares = any(may_declare_inputs(file.path) for file in read_source(folder).files)
    if not (has_schema or declares or has_example):
        raise StartupError(f"{folder} {NO_SCHEMA}")
    enter(folder)
    set_environment(folder)
    schema, flags = None, Flags()
    if has_schema:
        schema, flags = read_schema(folder / SCHEMA_FILE, settings.relaxed_schema, may_lack=declares)
    elif not declares:
        schema = read_example(folder / EXAMPLE_FILE)
    return App(settings.name or folder.name, folder, schema, flags, settings.relaxed_schema)


def may_declare_inputs(path: Path) -> bool:
    """Whether a source may have classes or functions that `import inferless` decorates."""
    return re.search(rb"^\s*(from\s+inferless|import\s.*\binferless)\b", path.read_bytes(), re.MULTILINE) is not None


def set_environment(folder: Path) -> None:
    """Apply the `env:` of inferless.yaml."""
    env = environment.read_env(folder)
    for warning in env.warnings:
        log.warning("%s", warning)
    kept = environment.apply(env.variables)
    if kept:
        log.info("inferless.yaml's env: %s set already; the process's own values stay", ", ".join(kept))


def read_schema(path: Path, relaxed: bool, *, may_lack: bool) -> tuple[Schema | None, Flags]:
    """Execute `input_schema.py`, which `may_lack` a schema if `app.py` declares one. Raises StartupError."""
    try:
        module = run_file("input_schema", path)
    except BaseException as error:
        raise app_error(path.parent, f"{path.name} raised", error) from error
    flags = read_flags(path, vars(module))
    if not hasattr(module, "INPUT_SCHEMA"):
        if may_lack:
            return None, flags
        raise StartupError(f"{path} does not define INPUT_SCHEMA, the dict that says what infer takes.")
    try:
        schema = compile_schema(module.INPUT_SCHEMA, Rules(flags.streaming, flags.batch_size > 0, relaxed))
    except StartupError as error:
        raise StartupError(f"{path}: {error}") from None
    for warning in schema.warnings:
        log.warning("%s: %s", path.name, warning)
    return schema, flags


def read_example(path: Path) -> Schema:
    """Read `input.json`, what Inferless had before `input_schema.py`: a v2 body that fits. Raises StartupError."""
    try:
        tensors = strictjson.loads(path.read_bytes(), path.name)["inputs"]  # type: ignore[index]
        raw = {
            each["name"]: {
                "datatype": each["datatype"],
                "shape": each["shape"],
                "required": not each.get("optional", False),
                "example": each.get("data"),
            }
            for each in tensors
        }
    except (BadRequest, OSError, AttributeError, KeyError, TypeError) as error:
        raise StartupError(f"{path} is no example of a request ({error!r}); write {SCHEMA_FILE} instead.") from None
    try:
        return compile_schema(raw, Rules())
    except StartupError as error:
        raise StartupError(f"{path}: {error}") from None


def config_flags(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the fields of an `@inferless.config` class into the flags of a schema file."""
    batched = declared.get("is_batched_input", "batch_size" in declared)
    return {
        "IS_STREAMING_OUTPUT": declared.get("is_streaming_output", False),
        "BATCH_SIZE": declared.get("batch_size", 1) if batched else None,
        "BATCH_WINDOW": declared.get("batch_window"),
    }


def read_flags(path: Path, values: Mapping[str, Any]) -> Flags:
    """Check what `path` says. 0 is Inferless's word for no batches and for the usual window. Raises StartupError."""
    streaming = values.get("IS_STREAMING_OUTPUT", False)
    if not isinstance(streaming, bool):
        raise StartupError(f"{path}: IS_STREAMING_OUTPUT must be True or False, not {streaming!r}.")
    numbers = {}
    for name in ("BATCH_SIZE", "BATCH_WINDOW"):
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise StartupError(f"{path}: {name} must be a whole number of at least 1, not {value!r}.")
        numbers[name] = value or 0
    return Flags(streaming, numbers["BATCH_SIZE"], numbers["BATCH_WINDOW"] or DEFAULT_BATCH_WINDOW)


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


def app_error(folder: Path, what: str, error: BaseException) -> StartupError:
    """Tell the app's own error with the app's own traceback: the frames before its folder are ours, and left out."""
    trace = error.__traceback__
    while trace is not None and not Path(trace.tb_frame.f_code.co_filename).is_relative_to(folder):
        trace = trace.tb_next
    shown = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    return StartupError(f"{what} ({folder}):\n{shown}")
