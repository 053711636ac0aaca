"""`--check`: what a folder holds, in words and without loading the model. Prints the report on stdout.

`input_schema.py` is executed, as the server would; of `app.py` nothing is but the classes that declare the inputs of a
pydantic app (`partial`). What cannot be right is an error, and the exit status 2; what may be right is a doubt.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import environment, loader, sdk, typed
from ..config import Settings
from ..errors import StartupError
from ..loader import App, Flags
from ..schema import EXCLUSIVE, Input, Rules, compile_schema
from ..signatures import how_functions_are_called
from ..usage import curl_line
from . import doubts, guesses
from .partial import NotHere, partial_class, partial_function
from .sending import Declared
from .source import METHODS, Marked, Source, read_source, schema_lines
from .syntax import Doubt, Method, bound_names, parse

EXIT_FAULTY = 2
WIDTH = 100  # of the report's tables, where an example would make them wider
NARROWEST = 24
ENV_WARNING = re.compile(r"(\S+) line ([0-9]+): ")
# Inferless's flags, and what they are called in a class that `@inferless.config` decorates.
FLAGS = {
    "IS_STREAMING_OUTPUT": "is_streaming_output",
    "BATCH_SIZE": "batch_size",
    "BATCH_WINDOW": "batch_window",
}
# What a pydantic class has beside its fields.
MEMBERS = {"dict", "json", "copy", "model_dump", "model_dump_json", "model_copy", "model_fields", "model_extra"}


@dataclass
class Findings:
    """What was found in a folder so far. `types` are the annotations of a class that could not be executed."""

    folder: Path
    relaxed: bool = False
    errors: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    source: Source | None = None
    app: App | None = None
    outputs: list[guesses.Output] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)


def check(settings: Settings) -> int:
    """Print what the folder holds; return the exit status: 0, or 2 after saying on stderr what is wrong."""
    place = os.path.relpath(settings.model)
    logging.getLogger("inferless_shim").setLevel(logging.ERROR)  # the report says it
    with contextlib.redirect_stdout(sys.stderr):  # what the app prints is not the report
        found = examine(settings)
    for error in found.errors:
        print(f"error: {error}", file=sys.stderr)
    if found.errors or found.app is None:
        return EXIT_FAULTY
    with contextlib.suppress(BrokenPipeError):  # who reads it has seen enough
        print("\n".join(report(found, found.app, place, settings)), flush=True)
    return 0


# ---- Finding out


def examine(settings: Settings) -> Findings:
    """Read the folder as far as it can be read; what stops one part does not stop the others."""
    found = Findings(settings.model, settings.relaxed_schema)
    if (found.folder / "app.py").is_file():
        with telling(found):
            found.source = read_source(found.folder)
    try:
        found.app = loader.read_app(settings)
    except StartupError as error:
        found.errors += schema_errors(found, str(error))
        if not (found.folder / "app.py").is_file():
            look_at_schema(found, settings)
        elif found.source is not None and not declaring_file(found.folder):
            found.errors += inputs_read(found.source)
    if found.source is not None:
        found.errors += doubts.faults(found.source)
        if found.app is not None and not found.errors:
            complete(found, found.source, found.app, settings)
    return found


@contextlib.contextmanager
def telling(found: Findings) -> Iterator[None]:
    """Make a StartupError one of the errors that are told, and go on after the block."""
    try:
        yield
    except StartupError as error:
        found.errors += schema_errors(found, str(error))


@contextlib.contextmanager
def telling_of(found: Findings, source: Source, declared: Marked | Method) -> Iterator[None]:
    """Tell the faults of what a class or the parameters of `infer` declare, as `telling` does."""
    try:
        yield
    except StartupError as error:
        found.errors += class_errors(found, source, str(error), declared)


def look_at_schema(found: Findings, settings: Settings) -> None:
    """Tell the faults of `input_schema.py` where there is no app that it could belong to."""
    path = found.folder / loader.SCHEMA_FILE
    if path.is_file():
        with telling(found):
            loader.enter(found.folder)
            loader.read_schema(path, settings.relaxed_schema, may_lack=False)


def declaring_file(folder: Path) -> str:
    """Return the file beside `app.py` that says what infer takes; "" if there is none."""
    names = (loader.SCHEMA_FILE, loader.EXAMPLE_FILE)
    return next((name for name in names if (folder / name).is_file()), "")


def inputs_read(source: Source) -> Iterator[str]:
    """Yield what a schema that is missing would have to name."""
    infer = source.entry.roles.get("infer") if source.entry is not None else None
    names = doubts.names_read(infer) if infer is not None else []
    if infer is not None and names:
        yield f"{infer.file.shown}:{infer.node.lineno}: infer reads {', '.join(names)}; a schema would name them."


def schema_errors(found: Findings, message: str) -> list[str]:
    """Make one error of each fault of a schema, with its line; one of any other message."""
    prefix = f"{found.folder / loader.SCHEMA_FILE}: "
    if not message.startswith(prefix):
        return [message]
    told = message.removeprefix(prefix).split("\n")
    if told[0].startswith(tuple(f"{flag} must be" for flag in FLAGS)):
        told = faults_of_schema(found)
    try:
        file = parse(found.folder / loader.SCHEMA_FILE, "input_schema", loader.SCHEMA_FILE)
        lines = {name: file.bindings[name].lineno for name in FLAGS if name in file.bindings} | dict(schema_lines(file))
    except StartupError:
        lines = {}
    return [f"{loader.SCHEMA_FILE}:{schema_line(lines, sentence)}: {sentence}" for sentence in told]


def faults_of_schema(found: Findings) -> list[str]:
    """Return all faults of the flags, the first of which stops the server, and of the schema; it has been executed."""
    path, values = found.folder / loader.SCHEMA_FILE, vars(sys.modules["input_schema"])
    flags, faults = good_flags(path, values)
    try:
        rules = Rules(flags.streaming, flags.batch_size > 0, found.relaxed)
        compile_schema(values.get("INPUT_SCHEMA", {}), rules)
    except StartupError as error:
        faults += str(error).split("\n")
    return faults


def good_flags(path: Path, values: Mapping[str, object]) -> tuple[Flags, list[str]]:
    """Return what the flags that are right say, and a sentence for each of the others."""
    good, faults = {}, []
    for name in (each for each in FLAGS if each in values):
        try:
            loader.read_flags(path, {name: values[name]})
            good[name] = values[name]
        except StartupError as error:
            faults.append(str(error).removeprefix(f"{path}: "))
    return loader.read_flags(path, good), faults


def schema_line(lines: Mapping[str, int], sentence: str, default: int = 1) -> int:
    """Return the line of the input that a sentence is about; `default` if it is about none of those in `lines`."""
    subject = sentence.removeprefix("An example in INPUT_SCHEMA does not fit: ")
    names = [name for name in lines if subject.startswith(f"{name} ")]
    return lines[max(names, key=len)] if names else default


def class_errors(found: Findings, source: Source, message: str, declared: Marked | Method) -> list[str]:
    """Make one error of each fault of a class, or of the parameters of `infer`, with the line of the field."""
    if isinstance(declared, Marked):
        lines = {guesses.input_name(each): each.line for each in source.fields(declared)}
    else:
        lines = {each.arg: each.lineno for each in ast.walk(declared.node.args) if isinstance(each, ast.arg)}
    told = []
    for sentence in message.split("\n"):
        if sentence == EXCLUSIVE:
            told += flag_errors(found, source, sentence)
        else:
            line = schema_line(lines, sentence, declared.node.lineno)
            told.append(f"{declared.file.shown}:{line}: {sentence}")
    return told


def flag_errors(found: Findings, source: Source, sentence: str) -> list[str]:
    """Make an error of a fault of the flags, which speaks of them as the app does."""
    config = source.chosen("config")
    if config is None:
        return schema_errors(found, f"{found.folder / loader.SCHEMA_FILE}: {sentence}")
    for flag, name in FLAGS.items():
        sentence = sentence.replace(flag, name)
    lines = {each.name: each.line for each in source.fields(config)}
    return [f"{config.file.shown}:{schema_line(lines, sentence, config.node.lineno)}: {sentence}"]


def complete(found: Findings, source: Source, app: App, settings: Settings) -> None:
    """Find out what the server would after loading: a pydantic app's schema and flags, outputs, doubts."""
    is_typed = app.schema is None
    with telling(found):
        if is_typed:
            declare(found, source, app, settings)
    request = source.chosen("request") if is_typed else None
    place = (request.file.shown, request.node.lineno) if request is not None else None
    for warning in app.schema.warnings if app.schema is not None else ():
        found.doubts.append(
            Doubt(*(place or (loader.SCHEMA_FILE, schema_line(dict(source.schema_lines), warning))), warning)
        )
    found.doubts += [env_doubt(warning) for warning in environment.read_env(found.folder).warnings]
    inputs = known_inputs(source, app, request) if not is_typed or request is not None else None
    members = members_of(source, request) if request is not None else None
    infer = source.entry.roles.get("infer") if source.entry is not None else None
    try:
        found.doubts += doubts.find(source, Declared(inputs, app.streaming, app.batched, members))
        found.outputs = declared_outputs(found, source) or (guesses.outputs(source, infer) if infer is not None else [])
    except RecursionError:
        found.doubts.append(Doubt("app.py", 1, "expressions are nested too deeply here for all doubts to be found."))


def known_inputs(source: Source, app: App, request: Marked | None) -> dict[str, bool] | None:
    """Return the names by which `infer` reads its inputs, and whether each is required; None if that is not known."""
    if request is None:
        return {each.name: each.required for each in app.schema.inputs.values()} if app.schema is not None else None
    fields = source.fields(request)
    return {each.name: each.default is None for each in fields} if is_plain(source, request) else None


def env_doubt(warning: str) -> Doubt:
    """Make a doubt of a warning that begins with a file's name, `line` and a number."""
    found = ENV_WARNING.match(warning)
    return Doubt(found[1], int(found[2]), warning[found.end() :]) if found else Doubt("inferless.yaml", 1, warning)


def declare(found: Findings, source: Source, app: App, settings: Settings) -> None:
    """Give an app that declares its inputs in `app.py` its flags and schema. Raises StartupError."""
    if source.chosen("config") is not None:
        app.flags, wrong = good_flags(found.folder / "app.py", loader.config_flags(config_of(source)))
        found.errors += [error for sentence in wrong for error in flag_errors(found, source, sentence)]
    rules = Rules(app.streaming, app.batched, settings.relaxed_schema)
    request, entry = source.chosen("request"), source.entry
    if request is not None:
        try:
            made = partial_class(source, request)
        except NotHere as error:
            app.schema = guesses.class_schema(source, request)
            found.types = {guesses.input_name(each): each.annotation for each in source.fields(request)}
            told = f"the inputs are read off the source of {request.node.name}, because {error}"
            found.doubts.append(Doubt(request.file.shown, request.node.lineno, told))
            return
        with telling_of(found, source, request):
            app.schema = typed.RequestSchema(made, rules)
    elif entry is not None and "infer" in entry.roles and source.role(entry.roles["infer"]):
        try:
            function = partial_function(source)
            _, inputs = how_functions_are_called(function, streaming=app.streaming)
            with telling_of(found, source, entry.roles["infer"]):
                app.schema = typed.SignatureSchema(function, inputs, rules)
        except TypeError:
            raise StartupError(f"{found.folder / 'app.py'}: infer takes no inputs; give it a parameter.") from None
        except NotHere as error:
            infer = entry.roles["infer"]
            found.doubts.append(infer.doubt(infer.node, f"what infer takes is not known, because {error}"))
    elif not source.opaque:
        raise StartupError(f"{found.folder} {loader.NO_SCHEMA}")


def config_of(source: Source) -> dict[str, object]:
    """Return the fields of the config class: its own, or what stands in its source."""
    config = source.chosen("config")
    if config is None:
        return {}
    try:
        return dict(sdk.config_of(partial_class(source, config)))
    except NotHere:
        return source.config_values()


def declared_outputs(found: Findings, source: Source) -> list[guesses.Output]:
    """Return the fields of the response class, if there is one."""
    response = source.chosen("response")
    if response is None:
        return []
    lines = {each.name: each.line for each in source.fields(response)}
    with telling(found):
        try:
            made = partial_class(source, response)
            return [
                guesses.Output(name, datatype, tuple(shape), response.file.shown, lines.get(name, response.node.lineno))
                for name, datatype, shape in typed.ResponseSchema(made).outputs
            ]
        except NotHere:
            return guesses.class_outputs(source, response)
    return []


def is_plain(source: Source, marked: Marked) -> bool:
    """Whether all that a class has is to be seen in the folder, pydantic's own aside."""
    chain = source.with_bases(marked.file, marked.node)
    bases = [(owner, base) for owner, cls in chain for base in cls.bases]
    return all(source.class_of(*each) or source.full_name(*each) == "pydantic.BaseModel" for each in bases)


def members_of(source: Source, marked: Marked) -> frozenset[str]:
    """Return the names that a request class has beside its fields."""
    chain = source.with_bases(marked.file, marked.node)
    body = [node for _, cls in chain for node in cls.body]
    own = {name for node in body for name in bound_names(node)}
    own |= {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
    return frozenset(own | MEMBERS)


# ---- Telling


def report(found: Findings, app: App, place: str, settings: Settings) -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"{app.name} ({place}): {kind_of(app.flags)}"
    inputs = list(app.schema.inputs.values()) if app.schema is not None else []
    yield from section("inputs", columns(input_rows(inputs, found.types)) if inputs else ["  none are known"])
    rows = [("name", "type", "shape", "line"), *map(output_row, found.outputs)]
    yield from section("outputs", columns(rows) if found.outputs else ["  none were found in the source"])
    if found.source is not None and found.source.entry is not None:
        yield from section("methods", columns(method_rows(found.source)))
    yield from section("flags", [f"  {line}" for line in flag_lines(app.flags)])
    env = environment.read_env(found.folder)
    if env.path is not None:
        yield from section(f"environment, from {env.path.name}", [f"  {plain(name)}" for name in sorted(env.variables)])
    yield from section("doubts", doubt_lines(found.doubts, note=False) or ["  none"])
    yield from section("notes", doubt_lines(found.doubts, note=True))
    if app.schema is not None:
        scheme, flags = ("https", ["--cacert", str(settings.tls_cert)]) if settings.tls_cert else ("http", [])
        base = f"{scheme}://127.0.0.1:{settings.port or 8000}"
        curl = curl_line(app, base, flags=flags, with_key=settings.api_key_file is not None)
        yield from section("when it is served", [f"  {curl}"])


def kind_of(flags: Flags) -> str:
    kind = "streams" if flags.streaming else "answers with JSON"
    batches = f", in batches of {flags.batch_size}, window {flags.batch_window} ms" if flags.batch_size else ""
    return kind + batches


def section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay rows out under each other."""
    table = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return [f"  {line}".rstrip() for line in lines]


def plain(text: str) -> str:
    """Return text that leaves a terminal as it is."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def input_rows(inputs: Sequence[Input], types: dict[str, str]) -> list[tuple[str, ...]]:
    """Return the table of inputs; the examples get the width that the other columns leave."""
    rows = [
        (plain(each.name), types.get(each.name, each.datatype), str(list(each.shape)), "yes" if each.required else "no")
        for each in inputs
    ]
    head = ("name", "type", "shape", "required")
    taken = sum(max(len(cell) for cell in cells) + 2 for cells in zip(head, *rows, strict=True)) + 2
    shown = [shortened(each.example, max(NARROWEST, WIDTH - taken)) for each in inputs]
    return [(*head, "example"), *((*row, example) for row, example in zip(rows, shown, strict=True))]


def shortened(example: object, width: int) -> str:
    """Return an example as JSON, its middle left out where it is too long."""
    if example is None:
        return ""
    text = json.dumps(example, ensure_ascii=False, default=str)
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[len(text) - half :]}"


def output_row(output: guesses.Output) -> tuple[str, ...]:
    return output.name, output.datatype or "?", str(list(output.shape)), f"{output.shown}:{output.line}"


def method_rows(source: Source) -> list[tuple[str, str]]:
    """Return where each method of the app's is, and how it is called."""
    assert source.entry is not None
    roles = source.entry.roles
    found = [roles[name] for name in METHODS if name in roles]
    return [(f"{each.file.shown}:{each.node.lineno}", each.signature) for each in found]


def flag_lines(flags: Flags) -> list[str]:
    batches = [f"BATCH_SIZE = {flags.batch_size}", f"BATCH_WINDOW = {flags.batch_window}"] if flags.batch_size else []
    return [f"IS_STREAMING_OUTPUT = {flags.streaming}", *batches]


def doubt_lines(found: Iterable[Doubt], *, note: bool) -> list[str]:
    """Return the doubts, or the notes, in the order of their lines."""
    chosen = sorted({each for each in found if each.note is note})
    return [f"{each.shown}:{each.line}: {plain(each.sentence)}" for each in chosen]
