"""The `env:` of an app's inferless.yaml, read without a YAML parser, and put into the process's environment.

Reads variables that are written one a line, `NAME: value` or `- NAME=value`, or `{NAME: value, …}` in one line; steps
over the rest of the file. A variable that is written otherwise is a warning with its line, never an error: Inferless's
own tools read the whole file. A warning shows no value, which may be a secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import NamedTuple

FILE_NAMES = ("inferless.yaml", "inferless.yml")
MAX_BYTES = 1 << 20  # such files have a few kilobytes
PAIR = re.compile(r"""(["']?)([\w.-]+)\1 *:(?= |$) *(.*)""", re.ASCII)
QUOTED = r"""('(?:[^'\0-\x1f]|'')*'|"(?:[^"\\]|\\.)*")"""
# In {A: b, C: "d, e"}, a quote opens only where a name or a value begins.
FLOW_PAIR = rf"""[{{,]((?: *{QUOTED})?(?:: +{QUOTED}|[^,'"{{}}\[\]])*)"""
# What makes a value without quotes an anchor, an alias, a tag, a block, a list, a mapping, or no text.
NOT_PLAIN = re.compile(r"""^[&*!|>'"%@`{}\[\],]|^[-?:]( |$)|:( |$)|[\0-\x1f]""")


class Env(NamedTuple):
    """What a folder's file says; `path` is None if there is no such file."""

    variables: dict[str, str]
    warnings: list[str]
    path: Path | None


class Line(NamedTuple):
    number: int  # from 1
    depth: tuple[int, bool]  # indentation; whether it is a list's item, which may stand right below the list's key
    text: str
    body: list[Line]  # what belongs to it


def read_env(folder: Path) -> Env:
    """Read `env:`, or else `configuration: env:`, of the file in `folder`."""
    path = next((folder / name for name in FILE_NAMES if os.path.isfile(folder / name)), None)
    if path is None:
        return Env({}, [], None)
    env = Env({}, [], path)
    try:
        lines = find_env([*read_lines(path)])
    except ValueError as reason:
        return Env({}, [f"{path.name} {reason}"], path)
    for line in lines:
        try:
            if line.depth != lines[0].depth:
                raise ValueError("this line is not like those before; indent all alike, by spaces.")
            env.variables.update([read_variable(line)])
        except ValueError as reason:
            env.warnings.append(f"{path.name} line {line.number}: {reason}")
    return env


def apply(variables: dict[str, str], environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set the variables that `environ` does not have; return the names of the others, which keep their values."""
    kept = [name for name in variables if name in environ]
    environ.update({name: value for name, value in variables.items() if name not in environ})
    return kept


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the file's lines, but for blank ones and comments. Raises ValueError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"is not read: it has more than {MAX_BYTES:,} bytes; make it smaller.")
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"is not read: {error.strerror}; let this process read it.") from None
    except UnicodeDecodeError as error:
        number = len(error.object[: error.start + 1].splitlines())
        raise ValueError(f"line {number}: this is not UTF-8, so no env is read; save the file as UTF-8.") from None
    for number, text in enumerate(texts, 1):
        content = text.lstrip(" \t")
        if content and not content.startswith("#"):
            yield Line(number, (len(text) - len(content), content.startswith("- ")), text.strip(" "), [])


def outer(lines: list[Line]) -> Iterator[Line]:
    """Yield the outer lines, each with those that belong to it."""
    start = 0
    for end in range(1, len(lines) + 1):
        if end == len(lines) or lines[end].depth <= lines[start].depth:
            yield lines[start]._replace(body=lines[start + 1 : end])
            start = end


def find_env(lines: list[Line]) -> list[Line]:
    """Return the line of each variable. Raises ValueError."""
    keys = {found[2]: line for line in outer(lines) if (found := PAIR.fullmatch(line.text))}
    if "env" not in keys and "configuration" in keys:
        keys = {found[2]: line for line in outer(keys["configuration"].body) if (found := PAIR.fullmatch(line.text))}
    env = keys.get("env")
    if env is None:
        return []
    text = env.text.partition(":")[2].strip(" ")
    if flow := re.fullmatch(rf"((?:{FLOW_PAIR})+)}}(?: +#.*)?", text):
        pairs = [found[1].strip(" ") for found in re.finditer(FLOW_PAIR, flow[1])]
        return [env._replace(text=pair) for pair in pairs if pair]
    if scalar(text) != "":
        raise ValueError(f"line {env.number}: env is of a kind that is not read here; write one NAME: value a line.")
    return [*outer(env.body)]


def read_variable(line: Line) -> tuple[str, str]:
    """Read `NAME: value`, or `- NAME=value`, or `- name: NAME` with `value: value` below it. Raises ValueError."""
    if found := PAIR.fullmatch(line.text):
        value = None if line.body else scalar(found[3])
        if value is not None:
            return found[2], value
        raise ValueError(f"{found[2]} has a value of a kind that is not read here; write it in one line, in quotes.")
    item = line.text[2:].strip(" ") if line.text.startswith("- ") else ""
    text = scalar(item)
    if item and line.body:
        both = dict(map(read_variable, [line._replace(text=item, body=[]), *line.body]))
        text = f"{both['name']}={both['value']}" if both.keys() == {"name", "value"} else None
    if found := re.fullmatch(r"(?s)([A-Za-z0-9_.-]+)=(.*)", text or ""):
        return found[1], found[2]
    raise ValueError("this line is not NAME: value; write it so, indented by spaces.")


def scalar(text: str) -> str | None:
    """Return a value, plain or in quotes, without its comment; None if it is of another kind."""
    quoted = re.fullmatch(rf"{QUOTED}(?: +#.*)?", text)
    if quoted is None:
        plain = re.split(r"(?:^| )#", text)[0].rstrip(" ")
        return None if NOT_PLAIN.search(plain) else re.sub(r"^(~|null|Null|NULL)$", "", plain)
    try:
        value: str = quoted[1][1:-1].replace("''", "'") if text[0] == "'" else json.loads(quoted[1])
        value.encode()  # half a surrogate pair is no text
    except ValueError:
        return None
    return None if "\0" in value else value
